"""From RGB to the planes of the output strip by strip: for frames whose result is too large whole.

Between the engine and the encoder a frame is float32 RGB at four times its size: 192 bytes a pixel
of the input, 6.4 GB at 8K. Here it is never whole: a strip of rows goes through the engine, the
shrinking and the conversion, and only its rows of the planes are kept (24 bytes a pixel for 8-bit
4:2:0, 96 at most).

Each step looks beyond the rows that it makes: the network by its receptive radius, the bicubic
filter by its support, chroma by its step. So a strip is made with a margin that is then cut off,
and begins where the sampling grid of the whole frame begins anew: at a multiple of the reduced
fraction of output rows to enlarged rows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from engines.safety import SafeEngine
from engines.tiles import receptive_radius
from vsr.convert import PlaneLayout, from_rgb, resize

log = logging.getLogger(__name__)

_CUBIC_SUPPORT = 2  # samples of the smaller grid to each side (Keys 1981)


@dataclass(frozen=True, slots=True)
class Strip:
    """One part of a frame as ranges of rows."""

    rows: slice
    """of the output"""
    made: slice
    """of the output, with the margin"""
    enlarged: slice
    """of the enlarged frame: what `made` is shrunk from"""
    window: slice
    """of the input: what the engine sees; as many rows each, for a back end compiles for a size"""


def strips(
    height: int, *, output_height: int, scale: int, radius: int, chroma_step: int, rows: int
) -> Iterator[Strip]:
    """Cut a frame into strips.

    Args:
        height: of the input.
        output_height: of the output, at most scale * height.
        scale: of the engine.
        radius: of the network, in rows of the input.
        chroma_step: rows of luma a row of chroma of the output.
        rows: of the output a strip, about; at least one step of the common grid.
    """
    ratio = Fraction(output_height, height * scale)
    grid = math.lcm(ratio.numerator, chroma_step)
    reach = _CUBIC_SUPPORT + 1 if ratio < 1 else 0
    margin = -(-(reach + chroma_step) // grid) * grid
    core = max(1, rows // grid) * grid
    window_rows = -(-int((core + 2 * margin) / ratio) // scale) + 2 * radius + 1
    for begin in range(0, output_height, core):
        end = min(begin + core, output_height)
        made = slice(max(0, begin - margin), min(output_height, end + margin))
        enlarged = slice(int(made.start / ratio), int(made.stop / ratio))
        top = min(max(0, enlarged.start // scale - radius), max(0, height - window_rows))
        window = slice(top, min(height, top + window_rows))
        yield Strip(slice(begin, end), made, enlarged, window)


class StripUpscaler:
    """Upscales frames strip by strip.

    Args:
        engine: upscales a window, by itself or in tiles.
        layout: of the planes to make.
        size: (height, width) of the output.
        rows: of the enlarged frame a strip, about.
    """

    def __init__(
        self, engine: SafeEngine, layout: PlaneLayout, size: tuple[int, int], rows: int
    ) -> None:
        self._engine = engine
        self._layout = layout
        self._size = size
        self._rows = rows
        self._radius = receptive_radius(engine.model.net)
        self._has_warned = False

    def __call__(self, frame: Tensor) -> list[Tensor]:
        """Upscale a frame.

        Args:
            frame: (1, 3, H, W) as the engine takes it.

        Returns:
            Planes of the layout on the CPU, equal to those of the whole frame up to the rounding of
            float32 sums; fresh contiguous tensors.
        """
        height, width = self._size
        planes = [
            torch.empty(shape, dtype=self._layout.dtype)
            for shape in self._layout.plane_sizes(height, width)
        ]
        down = self._layout.chroma_step[0] if self._layout.kind == "yuv" else 1
        steps = (1, down, down)
        rows = self._rows * height // (frame.shape[2] * self._engine.scale)
        cuts = list(
            strips(
                frame.shape[2], output_height=height, scale=self._engine.scale,
                radius=self._radius, chroma_step=down, rows=rows,
            )
        )  # fmt: skip
        if len(cuts) == 1 and height > rows and not self._has_warned:
            self._has_warned = True
            log.warning(
                "memory is short, and frames of %d rows cannot be made of %d in strips: a height "
                "near it may be made in less", height, frame.shape[2],
            )  # fmt: skip
        for strip in cuts:
            parts = self._make(frame, strip)
            for plane, part, step in zip(planes, parts, steps, strict=False):
                first, last = strip.rows.start // step, -(-strip.rows.stop // step)
                skipped = strip.made.start // step
                plane[first:last] = part[first - skipped : last - skipped]
        return planes

    def _make(self, frame: Tensor, strip: Strip) -> list[Tensor]:
        scale = self._engine.scale
        large = self._engine.upscale(frame[:, :, strip.window])
        above = strip.window.start * scale
        part = large[:, :, strip.enlarged.start - above : strip.enlarged.stop - above]
        made = resize(part.float(), (strip.made.stop - strip.made.start, self._size[1]))
        return [plane.cpu() for plane in from_rgb(made.contiguous(), self._layout)]
