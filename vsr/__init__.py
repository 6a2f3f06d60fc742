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
    from vsr.pipeline import Progress, Result, upscale
    from vsr.region import Crop, Zoom

__all__ = ["Crop", "Progress", "Result", "VSRError", "Zoom", "__version__", "upscale"]


def __getattr__(name: str) -> Any:
    # what needs PyTorch is imported when first asked for: `vsr --help` answers at once
    if name == "VSRError":
        from engines.errors import VSRError

        return VSRError
    if name in ("Crop", "Zoom"):
        from vsr import region

        return getattr(region, name)
    if name in __all__:
        from vsr import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
