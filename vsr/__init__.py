"""Video super-resolution: a clip goes in, the same clip comes out four times as large.

>>> import vsr
>>> result = vsr.upscale("clip.mp4")  # doctest: +SKIP
>>> result.output, result.frames  # doctest: +SKIP
(PosixPath('clip_x4.mp4'), 250)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vsr.version import __version__

if TYPE_CHECKING:
    from engines.errors import VSRError
    from vsr.config import Progress, Result
    from vsr.pipeline import upscale
    from vsr.region import Crop, Zoom
    from vsr.span import Span

__all__ = ["Crop", "Progress", "Result", "Span", "VSRError", "Zoom", "__version__", "upscale"]


def __getattr__(name: str) -> Any:
    # what needs PyTorch is imported when first asked for: `vsr --help` answers at once
    if name == "VSRError":
        from engines.errors import VSRError

        return VSRError
    if name in ("Crop", "Zoom"):
        from vsr import region

        return getattr(region, name)
    if name == "Span":
        from vsr.span import Span

        return Span
    if name in ("Progress", "Result"):
        from vsr import config

        return getattr(config, name)
    if name == "upscale":
        from vsr.pipeline import upscale

        return upscale
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
