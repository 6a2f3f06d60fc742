"""Planes for the encoder as the engine's own last step.

`engines.finish` says what that is for. Matrix, range, chroma filter and rounding are those of
`vsr.convert.from_rgb`. Before the last pixel shuffle all of them but rounding are one convolution:
of a *cell*, the pixels that the shuffle would spread, and where chroma is sited left also of the
cell before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.finish import CellFinish, Finish
from vsr.convert import LUMA_WEIGHTS, PlaneLayout, from_rgb

_NUMBERS = {4: torch.int32, 2: torch.int16, 1: torch.uint8}  # by their bytes

BLACK_LEVELS = 0.5
"""above the code value of black, of 8 bits: what lies below is nothing"""


@dataclass(frozen=True, slots=True)
class ToPlanes:
    """A `Finish` that makes the planes of a layout."""

    layout: PlaneLayout

    def __call__(self, rgb: Tensor) -> list[Tensor]:
        """Make them (see `from_rgb`)."""
        return from_rgb(rgb, self.layout)

    @property
    def reach(self) -> int:
        """How far chroma sees, in luma samples."""
        return max(self.layout.chroma_step) if self.layout.kind == "yuv" else 0

    def before_shuffle(self, factor: int) -> CellFinish | None:
        """See `Finish`; for 8-bit YUV whose chroma sees no further than the cell before it."""
        layout = self.layout
        if layout.kind != "yuv" or layout.depth != 8:
            return None
        if any(factor % step for step in layout.chroma_step):
            return None
        (top, *_), (left, *_) = (sorted(_taps(layout, axis)) for axis in (0, 1))
        bottom, right = (max(_taps(layout, axis)) for axis in (0, 1))
        down, across = layout.chroma_step
        if top < 0 or bottom >= down or left < -factor or right >= across:
            return None
        return PlanesOfCells(layout, factor)

    def is_black(self, results: list[Tensor]) -> Tensor:
        """See `Finish`: by luma, or by the brightest of R, G and B."""
        _, offset = self.layout.luma_gain_offset
        most = offset + BLACK_LEVELS * (1 << self.layout.depth - 8)
        lit = results if self.layout.kind == "rgb" else results[:1]
        return torch.stack([plane.float().amax() < most for plane in lit]).all()


def planes_finish(layout: PlaneLayout, scale: int) -> Finish | None:
    """Return what makes planes of the enlarged frame, tile by tile too, or None.

    Args:
        layout: of the planes.
        scale: of the engine: chroma must not be coarser, or a tile has no chroma of its own.
    """
    if layout.kind == "yuv" and any(scale % step for step in layout.chroma_step):
        return None
    return ToPlanes(layout)


def _taps(layout: PlaneLayout, axis: int) -> dict[int, float]:
    """Return the chroma filter along an axis: weights by luma sample, from the group's first.

    A triangle where chroma lies on a luma sample, a box where it lies in the middle of a group.
    """
    step, position = layout.chroma_step[axis], layout.chroma_position[axis]
    if not position.is_integer():
        return dict.fromkeys(range(step), 1 / step)
    return {int(position) + k: (step - abs(k)) / step**2 for k in range(1 - step, step)}


class PlanesOfCells(CellFinish):
    """Makes planes of cells.

    Args:
        layout: of the planes; `ToPlanes.before_shuffle` says which ones.
        factor: side of a cell, in pixels.
    """

    def __init__(self, layout: PlaneLayout, factor: int) -> None:
        super().__init__()
        down, across = layout.chroma_step
        self.luma = (factor, factor)
        self.chroma = (factor // down, factor // across)
        weight, bias = _weights(layout, factor)
        own, before = weight[..., factor:], weight[..., :factor]
        self.looks_back = bool(before.any())
        kernels = [before, own] if self.looks_back else [own]
        self.all = _convolution(kernels, bias)
        # left of the first cell lies its own first column over again
        first = own.clone()
        first[..., 0] += before.sum(-1)
        samples = factor * factor
        self.first = _convolution([first[samples:]], bias[samples:])

    def forward(self, cells: Tensor) -> tuple[Tensor, ...]:
        """Make the samples of each cell: Y before U before V.

        Args:
            cells: (1, 3*factor*factor, H, W) float32 in [0, 1].

        Returns:
            All, (1, H, W, samples) uint8; where chroma looks back, U and V of the first column
            over again, (1, H, 1, samples).
        """
        if not self.looks_back:
            return (_to_bytes(self.all(cells)),)
        first = _to_bytes(self.first(cells[..., :1]))
        return _to_bytes(self.all(F.pad(cells, (1, 0, 0, 0)))), first

    def assembled(self, made: Sequence[Tensor]) -> list[Tensor]:
        """See `CellFinish`."""
        cells = made[0][0]  # (H, W, samples)
        luma, chroma = (rows * columns for rows, columns in (self.luma, self.chroma))
        if self.looks_back:
            cells[:, :1, luma:] = made[1][0]
        y, u, v = torch.split(cells, [luma, chroma, chroma], -1)
        return [_spread(y, self.luma), _spread(u, self.chroma), _spread(v, self.chroma)]


def _weights(layout: PlaneLayout, factor: int) -> tuple[Tensor, Tensor]:
    """Return what each sample of a cell's planes takes of the cell and the one before it.

    Returns:
        weights (samples, 3, factor, 2 * factor): of R, G and B of each pixel, Y before U before V;
        what is added (samples,).
    """
    kr, kb = LUMA_WEIGHTS[layout.matrix]
    luma = torch.tensor([kr, 1 - kr - kb, kb], dtype=torch.float64)
    gain, offset = layout.luma_gain_offset
    weights, added = [], []

    def sample() -> Tensor:
        weights.append(torch.zeros(3, factor, 2 * factor, dtype=torch.float64))
        return weights[-1]

    for row in range(factor):
        for column in range(factor):
            sample()[:, row, factor + column] = gain * luma
            added.append(offset)
    gain, offset = layout.chroma_gain_offset
    rows, columns = (_taps(layout, axis) for axis in (0, 1))
    down, across = layout.chroma_step
    for colour, share in ((2, kb), (0, kr)):
        difference = (torch.eye(3, dtype=torch.float64)[colour] - luma) / (2 * (1 - share))
        for row in range(0, factor, down):
            for column in range(0, factor, across):
                here = sample()
                for down_by, part in rows.items():
                    for across_by, other in columns.items():
                        at = (slice(None), row + down_by, factor + column + across_by)
                        here[at] += gain * part * other * difference
                added.append(offset)
    return torch.stack(weights).float(), torch.tensor(added)


def _convolution(kernels: list[Tensor], bias: Tensor) -> nn.Conv2d:
    """Make a convolution of weights (samples, 3, factor, factor) for cells side by side."""
    weight = torch.stack([kernel.flatten(1) for kernel in kernels], -1)[:, :, None]
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], (1, len(kernels)))
    conv.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    conv.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return conv


def _to_bytes(levels: Tensor) -> Tensor:
    """Round (1, C, H, W) to (1, H, W, C) uint8: as it lies in memory, where channels come last."""
    return levels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _spread(cells: Tensor, sides: tuple[int, int]) -> Tensor:
    """Spread (H, W, rows * columns) uint8 to (H * rows, W * columns)."""
    rows, columns = sides
    height, width = cells.shape[:2]
    # a row of a cell moves as one number, if it lies where such a number may
    places = (columns, cells.stride(1), cells.storage_offset())
    size = next(size for size in _NUMBERS if not any(place % size for place in places))
    numbers = cells.view(_NUMBERS[size]).view(height, width, rows, columns // size)
    spread = numbers.permute(0, 2, 1, 3).contiguous()
    return spread.view(torch.uint8).view(height * rows, width * columns)
