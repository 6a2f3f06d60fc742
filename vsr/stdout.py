"""A clip's picture to standard output, as YUV4MPEG2: for the next program of a pipe."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray
from torch import Tensor

from engines import Engine
from engines.errors import MediaError
from vsr.clip import ClipInfo
from vsr.config import Progress, UpscaleConfig
from vsr.convert import PlaneLayout
from vsr.ffmpeg import reason
from vsr.memory import automatic_strip
from vsr.output import kept_aspect_ratio
from vsr.pixels import guess_matrix
from vsr.stages import StageMeters, chained
from vsr.video import Reader
from vsr.y4m import Y4mHeader

if sys.platform == "win32":
    import msvcrt

Buffer = bytes | NDArray[Any]

log = logging.getLogger(__name__)

STDOUT = Path("-")
_STEPS = {(2, 2): "420", (1, 2): "422", (1, 1): "444"}
_SITINGS = {"centre": "jpeg", "left": "mpeg2", "topleft": "paldv"}
_DEPTHS = (8, 9, 10, 12, 14, 16)
_GREY_DEPTHS = (8, 9, 10, 12, 16)


def check_stdout() -> None:
    """Refuse to write samples to a terminal.

    Raises:
        MediaError: standard output is one.
    """
    if os.isatty(1):
        raise MediaError("standard output is a terminal: -o - is for a pipe, or for > clip.y4m")


def y4m_layout(info: ClipInfo) -> PlaneLayout:
    """Return the layout that YUV4MPEG2 has for a clip: its own, or what holds as much."""
    layout = info.layout
    depths = _GREY_DEPTHS if layout.kind == "grey" else _DEPTHS
    layout = replace(layout, depth=min(depth for depth in depths if depth >= layout.depth))
    if layout.kind == "rgb":
        return replace(
            layout, kind="yuv", full_range=False, matrix=guess_matrix(*info.size), siting="left"
        )
    if layout.chroma_step not in _STEPS:
        layout = replace(layout, chroma_step=(1, 1))
    tells = layout.chroma_step == (2, 2) and layout.depth == 8 and layout.siting in _SITINGS
    return layout if tells else replace(layout, siting="left")


def y4m_header(
    layout: PlaneLayout, size: tuple[int, int], rate: Fraction, sample_aspect_ratio: Fraction
) -> Y4mHeader:
    """Say in tags what frames of a layout are."""
    if layout.kind == "grey":
        chroma = "mono" + (str(layout.depth) if layout.depth > 8 else "")
    else:
        chroma = _STEPS[layout.chroma_step]
        if layout.depth > 8:
            chroma += f"p{layout.depth}"
        elif chroma == "420":
            chroma += _SITINGS[layout.siting]
    return Y4mHeader(
        size, chroma, rate=rate, sample_aspect_ratio=sample_aspect_ratio,
        full_range=layout.full_range,
    )  # fmt: skip


def upscale_to_stdout(
    config: UpscaleConfig,
    reader: Reader,
    engine: Engine,
    output: Path,
    size: tuple[int, int],
    key: dict[str, Any],
    progress: Callable[[Progress], None],
) -> tuple[int, int, int]:
    """Upscale each frame to (height, width) and write it to standard output.

    Returns:
        The number of frames, of those resumed (0) and of those reused.

    Raises:
        MediaError: the input cannot be read, or the reader of the output has gone away.
    """
    info, layout = reader.info, y4m_layout(reader.info)
    aspect = kept_aspect_ratio(config, info, size)
    rate = info.average_rate
    _say_what_is_lost(reader, layout, size)
    count = reused = 0
    late = False
    with _standard_output() as write, ExitStack() as stack:
        meters = StageMeters()
        planes = chained(
            reader.frames(), info.layout, engine, layout, size, stack,
            changed_only=config.changed_only, tolerance=config.tolerance,
            meters=meters, stop=reader.stop,
            strip_rows=automatic_strip(engine, info.size),
        )  # fmt: skip
        first: int | None = None
        last: list[Tensor] | None = None
        try:
            write(y4m_header(layout, size, rate, aspect).line())
            for frame in planes:
                reused += frame.value is last
                last = frame.value
                first = frame.pts if first is None else first
                late |= abs((frame.pts - first) * info.time_base * rate - count) > 1
                with meters["encode"].working():
                    write(b"FRAME\n")
                    for plane in frame.value:
                        write(plane.contiguous().numpy())
                count += 1
                progress(Progress(count, info.frames, 0, 0, meters.shares(), meters.queued()))
        except BrokenPipeError:
            raise MediaError(
                f"the reader of standard output has gone away after {count} frames"
            ) from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted after {count} frames") from None
        if count != reader.frames_read:
            raise MediaError(f"{reader.frames_read} frames were decoded but {count} written")
    if late:
        log.warning(
            "the frames of %s are not %s a second: YUV4MPEG2 holds no times, only their order",
            info.path, rate,
        )  # fmt: skip
    return count, 0, reused


@contextmanager
def _standard_output() -> Iterator[Callable[[Buffer], None]]:
    """Have standard output alone: what else is printed meanwhile goes to standard error."""
    sys.stdout.flush()
    file = os.dup(1)
    os.dup2(2, 1)
    if sys.platform == "win32":
        msvcrt.setmode(file, os.O_BINARY)

    def write(data: Buffer) -> None:
        left = memoryview(cast(Any, data)).cast("B")
        try:
            while left:
                left = left[os.write(file, left) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise MediaError(f"cannot write to standard output: {reason(error)}") from error

    try:
        yield write
    finally:
        sys.stdout.flush()
        os.dup2(file, 1)
        os.close(file)


def _say_what_is_lost(reader: Reader, layout: PlaneLayout, size: tuple[int, int]) -> None:
    info = reader.info
    others = sorted({stream.type for stream in reader.container.streams} - {"video"})
    if others:
        log.warning(
            "%s: YUV4MPEG2 holds the picture alone, without %s", info.path, ", ".join(others)
        )
    if info.display_matrix is not None:
        log.warning("%s is to be turned for display: YUV4MPEG2 does not say so", info.path)
    if info.alpha:
        log.warning("the alpha channel of %s is dropped: YUV4MPEG2 has none", info.path)
    if layout.kind == "yuv" and layout.matrix != guess_matrix(*size):
        log.warning(
            "the colour matrix is %s, which YUV4MPEG2 does not say and nobody guesses at %dx%d: "
            "tell the next program",
            layout.matrix, size[1], size[0],
        )  # fmt: skip
