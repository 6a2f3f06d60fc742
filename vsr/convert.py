"""YUV to RGB and back, by the matrix, range, depth and chroma siting of the clip.

Quantisation is that of ITU-R BT.601, BT.709 and BT.2020 as ITU-T H.273 sums it up, n bits deep:

    limited    Y = (219 y + 16) 2^(n-8)      C = (224 c + 128) 2^(n-8)
    full       Y = y (2^n - 1)               C = c (2^n - 1) + 2^(n-1)

with y = Kr R + Kg G + Kb B in [0, 1], and c = (B - y) / 2(1 - Kb) or (R - y) / 2(1 - Kr).
Knows nothing of files: planes in, planes out, on whatever device they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["yuv", "rgb", "grey"]
Matrix = Literal["bt601", "bt709", "bt2020", "smpte240m", "fcc"]
Siting = Literal["left", "centre", "topleft", "top", "bottomleft", "bottom"]

# (Kr, Kb) of each matrix, ITU-T H.273 table 4
LUMA_WEIGHTS: dict[Matrix, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "smpte240m": (0.212, 0.087),
    "fcc": (0.30, 0.11),
}

BAND_PIXELS = 1 << 17
"""of a band of rows that is converted at once: what it takes stays in a core's cache"""


@dataclass(frozen=True, slots=True)
class PlaneLayout:
    """What the planes of a frame mean."""

    kind: Kind
    """yuv: Y, U, V; rgb: R, G, B; grey: Y"""
    depth: int = 8
    """bits of a sample: 8 in uint8, 9 to 16 in uint16"""
    full_range: bool = False
    matrix: Matrix = "bt709"
    """used by yuv alone"""
    chroma_step: tuple[int, int] = (1, 1)
    """luma samples a chroma sample, (vertical, horizontal): 4:2:0 is (2, 2), 4:2:2 is (1, 2)"""
    siting: Siting = "left"
    """where a chroma sample lies among its luma samples, ITU-T H.273 figure 1"""

    def __post_init__(self) -> None:
        if not 8 <= self.depth <= 16:
            raise ValueError(f"depth must be 8 to 16 bits, got {self.depth}")
        if any(step not in (1, 2, 4) for step in self.chroma_step):
            raise ValueError(f"chroma_step must be of 1, 2 and 4, got {self.chroma_step}")

    @property
    def dtype(self) -> torch.dtype:
        """How a sample is stored."""
        return torch.uint8 if self.depth == 8 else torch.uint16

    @property
    def luma_gain_offset(self) -> tuple[float, float]:
        """Code values of y: gain * y + offset."""
        if self.full_range:
            return float((1 << self.depth) - 1), 0.0
        return float(219 << (self.depth - 8)), float(16 << (self.depth - 8))

    @property
    def chroma_gain_offset(self) -> tuple[float, float]:
        """Code values of c in [-0.5, 0.5]: gain * c + offset."""
        middle = float(1 << (self.depth - 1))
        if self.full_range:
            return float((1 << self.depth) - 1), middle
        return float(224 << (self.depth - 8)), middle

    @property
    def chroma_position(self) -> tuple[float, float]:
        """Where a chroma sample lies in its group, in luma samples from the first: (down, across).

        A clip that is subsampled in one direction only has no say in the other.
        """
        down, across = self.chroma_step
        middle = (down - 1) / 2
        first_row, last_row = self.siting.startswith("top"), self.siting.startswith("bottom")
        return (
            0.0 if first_row else float(down - 1) if last_row else middle,
            0.0 if self.siting.endswith("left") else (across - 1) / 2,
        )

    def plane_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return (height, width) of each plane of a frame."""
        if self.kind == "grey":
            return [(height, width)]
        down, across = self.chroma_step if self.kind == "yuv" else (1, 1)
        chroma = (-(-height // down), -(-width // across))
        return [(height, width), chroma, chroma]


def to_rgb(planes: Sequence[Tensor], layout: PlaneLayout) -> Tensor:
    """Turn the planes of one frame into the engine's input.

    Args:
        planes: (H, W) each, of `layout.plane_sizes` and `layout.dtype`.
        layout: what they mean.

    Returns:
        (1, 3, H, W) float32 RGB, clamped to [0, 1], on the planes' device; a fresh tensor. The
        transfer function is left as it is: values are as displayed, not linear light.
    """
    gain, offset = layout.luma_gain_offset
    if layout.kind != "yuv":
        levels = torch.stack([plane.float() for plane in planes])  # (1 or 3, H, W)
        return ((levels - offset) / gain).clamp_(0, 1).expand(3, -1, -1)[None].contiguous()
    y = planes[0].float().sub_(offset).div_(gain)
    gain, offset = layout.chroma_gain_offset
    chroma = torch.stack([planes[1], planes[2]]).float().sub_(offset).div_(gain)  # (2, h, w)
    u, v = _enlarge_chroma(chroma, y.shape, layout)
    kr, kb = LUMA_WEIGHTS[layout.matrix]
    kg = 1 - kr - kb
    rgb = y.new_empty(1, 3, *y.shape)
    red, green, blue = rgb[0]
    torch.add(y, v, alpha=2 * (1 - kr), out=red)
    torch.add(y, v, alpha=-2 * (1 - kr) * kr / kg, out=green)
    green.add_(u, alpha=-2 * (1 - kb) * kb / kg)
    torch.add(y, u, alpha=2 * (1 - kb), out=blue)
    return rgb.clamp_(0, 1)


def from_rgb(rgb: Tensor, layout: PlaneLayout) -> list[Tensor]:
    """Turn the engine's output into the planes of one frame.

    Args:
        rgb: (1, 3, H, W) float32 in [0, 1].
        layout: what the planes shall mean.

    Returns:
        Planes of `layout.plane_sizes(H, W)` and `layout.dtype`, rounded to the nearest code value;
        fresh contiguous tensors on the device of `rgb`.
    """
    if rgb.ndim != 4 or rgb.shape[:2] != (1, 3):
        raise ValueError(f"rgb must be (1, 3, H, W), got {tuple(rgb.shape)}")
    if layout.kind == "rgb":
        return [_quantise(plane, layout, layout.luma_gain_offset) for plane in rgb[0]]
    if layout.kind == "grey":  # three equal channels went in: their mean came out
        return [_quantise(rgb[0].mean(0), layout, layout.luma_gain_offset)]
    height, width = rgb.shape[2:]
    sizes = layout.plane_sizes(height, width)
    planes = [torch.empty(size, dtype=layout.dtype, device=rgb.device) for size in sizes]
    rows = max(1, BAND_PIXELS // width) if rgb.device.type == "cpu" else height
    space = _Workspace(rgb, layout, -(-rows // layout.chroma_step[0]))
    for first_group in range(0, sizes[1][0], space.groups):
        _convert_band(rgb[0], layout, planes, first_group, space)
    return planes


class _Workspace:
    """Room for one band, used over again: fresh memory costs more than all the arithmetic.

    Args:
        rgb: (1, 3, H, W), what shall be converted.
        layout: of the planes.
        groups: rows of chroma in a band.
    """

    def __init__(self, rgb: Tensor, layout: PlaneLayout, groups: int) -> None:
        width = rgb.shape[3]
        self.groups, self.columns = groups, layout.plane_sizes(1, width)[1][1]
        self.down, self.across = (_Shrinking(layout, axis) for axis in (0, 1))
        rows = self.down.span(groups)
        self.y = rgb.new_empty(rows, width)
        self.differences = rgb.new_empty(2, rows, width)  # B - Y, R - Y
        self.row_sums = rgb.new_empty(2, rows, width)
        low_width = max(self.across.span(self.columns), self.across.lead + width)
        self.low = rgb.new_empty(2, groups, low_width)
        self.column_sums = rgb.new_empty(2, groups, low_width)
        self.small = rgb.new_empty(2, groups, self.columns)


class _Shrinking:
    """The filter of chroma along one axis, as sums of neighbours: a box or, twice, a triangle.

    A triangle where chroma lies on a luma sample, a box where it lies in the middle of a group.
    """

    def __init__(self, layout: PlaneLayout, axis: int) -> None:
        self.step, position = layout.chroma_step[axis], layout.chroma_position[axis]
        self.triangle = position.is_integer()
        self.lead = self.step - 1 - int(position) if self.triangle else 0
        """samples that it reads before the group"""
        self.gain = self.step ** (2 if self.triangle else 1)
        """sum of its weights"""

    def span(self, groups: int) -> int:
        """Return how many samples so many groups read."""
        return groups * self.step + (self.step - 1 if self.triangle else 0)

    def __call__(self, source: Tensor, sums: Tensor, out: Tensor) -> Tensor:
        """Sum up groups of rows: (2, R, C) to `out` (2, r, C), by way of `sums` (2, R, C)."""
        span = out.shape[1] * self.step
        if self.triangle and self.step > 1:
            parts = [source[:, k : k + span] for k in range(self.step)]
            source = _added(parts, sums[:, :span])
        return _added([source[:, k : span : self.step] for k in range(self.step)], out)


def _added(parts: Sequence[Tensor], out: Tensor) -> Tensor:
    if len(parts) == 1:
        return out.copy_(parts[0])
    torch.add(parts[0], parts[1], out=out)
    for part in parts[2:]:
        out.add_(part)
    return out


def _convert_band(
    rgb: Tensor,
    layout: PlaneLayout,
    planes: Sequence[Tensor],
    first_group: int,
    space: _Workspace,
) -> None:
    """Fill `space.groups` rows of chroma from the first, and their rows of luma.

    Args:
        rgb: (3, H, W) in [0, 1], of the whole frame.
        layout: of the planes.
        planes: Y, U and V of the whole frame.
        first_group: row of chroma.
        space: room to work in.
    """
    height, down = rgb.shape[1], layout.chroma_step[0]
    groups = min(space.groups, planes[1].shape[0] - first_group)
    # the rows that the filter reads may lie outside the frame
    first, span = first_group * down - space.down.lead, space.down.span(groups)
    top, bottom = max(first, 0), min(first + span, height)
    red, green, blue = rgb[:, top:bottom]
    kr, kb = LUMA_WEIGHTS[layout.matrix]
    y = torch.mul(red, kr, out=space.y[: bottom - top])
    y.add_(green, alpha=1 - kr - kb).add_(blue, alpha=kb)
    differences = space.differences[:, :span]
    inside = slice(top - first, bottom - first)
    torch.sub(blue, y, out=differences[0, inside])
    torch.sub(red, y, out=differences[1, inside])
    differences[:, : inside.start] = differences[:, inside.start, None]
    differences[:, inside.stop :] = differences[:, inside.stop - 1, None]
    small = _shrink_chroma(differences, space)
    gain, offset = layout.chroma_gain_offset
    gain /= space.down.gain * space.across.gain
    for plane, levels, weight in zip(planes[1:], small, (kb, kr), strict=True):
        part = plane[first_group : first_group + groups]
        _quantise_into(part, levels, layout, (gain / (2 * (1 - weight)), offset))
    own = slice(first_group * down, min((first_group + groups) * down, height))
    luma = y[own.start - top : own.stop - top]
    _quantise_into(planes[0][own], luma, layout, layout.luma_gain_offset)


def _shrink_chroma(differences: Tensor, space: _Workspace) -> Tensor:
    """Sum up a band of both, (2, R, W), to chroma size (2, h, w), in `space.small`."""
    rows, width = differences.shape[1:]
    groups, lead = rows // space.down.step, space.across.lead
    low = space.low[:, :groups]
    middle = low[..., lead : lead + width]
    space.down(differences, space.row_sums, middle)
    low[..., :lead] = middle[..., :1]
    low[..., lead + width :] = middle[..., -1:]
    small = space.small[:, :groups]
    space.across(low.mT, space.column_sums[:, :groups].mT, small.mT)
    return small


def _quantise_into(
    plane: Tensor, levels: Tensor, layout: PlaneLayout, gain_offset: tuple[float, float]
) -> None:
    gain, offset = gain_offset
    # a number made on the device: to bring one to a GPU is to wait for it
    torch.add(levels.new_full((), offset), levels, alpha=gain, out=levels)
    plane.copy_(levels.round_().clamp_(0, (1 << layout.depth) - 1))


def _quantise(plane: Tensor, layout: PlaneLayout, gain_offset: tuple[float, float]) -> Tensor:
    result = torch.empty(plane.shape, dtype=layout.dtype, device=plane.device)
    _quantise_into(result, plane.clone(), layout, gain_offset)
    return result


def _enlarge_chroma(planes: Tensor, size: Sequence[int], layout: PlaneLayout) -> Tensor:
    """Bring (2, h, w) to luma size (H, W) by linear interpolation from where its samples lie."""
    for axis in (1, 0):  # rows are made faster than columns, so they are made last
        step, dim = layout.chroma_step[axis], axis + 1
        if step == 1:
            continue
        last = planes.shape[dim] - 1
        padded = torch.cat([planes.narrow(dim, 0, 1), planes, planes.narrow(dim, last, 1)], dim)
        large = planes.new_empty([2, *planes.shape[1:dim], size[axis], *planes.shape[dim + 1 :]])
        for phase in range(step):  # all that lie alike between two samples, at once
            at = (phase - layout.chroma_position[axis]) / step
            before = math.floor(at)
            part = large[:, phase::step] if axis == 0 else large[..., phase::step]
            here, after = (padded.narrow(dim, before + k, part.shape[dim]) for k in (1, 2))
            torch.lerp(here, after, at - before, out=part)
        planes = large
    return planes


def resize(rgb: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrink RGB by antialiased bicubic interpolation.

    Args:
        rgb: (1, 3, H, W) in [0, 1].
        size: (height, width); returned as it is when it is the present one.
    """
    if tuple(rgb.shape[2:]) == size:
        return rgb
    return F.interpolate(rgb, size, mode="bicubic", antialias=True, align_corners=False).clamp_(
        0, 1
    )


def oriented(plane: Tensor, display_matrix: Sequence[int]) -> Tensor:
    """Turn and mirror a plane (H, W) in quarter turns as a display matrix says.

    The matrix is FFmpeg's: a, b, u, c, d, v, x, y, w with x' = a x + c y and y' = b x + d y.
    """
    turned, flips = quarter_turn(display_matrix)
    if turned:
        plane = plane.mT
    axes = [axis for axis, flip in enumerate(flips) if flip]
    if not axes:
        return plane
    if plane.dtype == torch.uint16:  # which PyTorch does not flip
        return plane.view(torch.int16).flip(axes).view(torch.uint16)
    return plane.flip(axes)


def quarter_turn(display_matrix: Sequence[int]) -> tuple[bool, tuple[bool, bool]]:
    """Tell whether rows become columns, and then whether they are flipped, (down, across)."""
    a, b, c, d = (display_matrix[index] for index in (0, 1, 3, 4))
    turned = abs(b) > abs(a)
    if turned:
        a, d = c, b
    return turned, (d < 0, a < 0)
