"""YUV to RGB and back, by the matrix, range, depth and chroma siting of the clip.

Quantisation is that of ITU-R BT.601, BT.709 and BT.2020 as ITU-T H.273 sums it up, n bits deep:

    limited    Y = (219 y + 16) 2^(n-8)      C = (224 c + 128) 2^(n-8)
    full       Y = y (2^n - 1)               C = c (2^n - 1) + 2^(n-1)

with y = Kr R + Kg G + Kb B in [0, 1], and c = (B - y) / 2(1 - Kb) or (R - y) / 2(1 - Kr).
Knows nothing of files: planes in, planes out, on whatever device they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
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
    y = (planes[0].float() - offset) / gain
    gain, offset = layout.chroma_gain_offset
    u, v = (
        (_enlarge_chroma(plane.float(), y.shape, layout) - offset) / gain for plane in planes[1:]
    )
    kr, kb = LUMA_WEIGHTS[layout.matrix]
    red = y + 2 * (1 - kr) * v
    blue = y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return torch.stack([red, green, blue])[None].clamp_(0, 1)


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
    to_y, to_uv = _to_yuv(layout.matrix, rgb.device)
    height, width = rgb.shape[2:]
    y = (to_y @ rgb.view(3, -1)).view(height, width)
    small = _shrink_chroma(rgb[0], layout)  # (3, h, w); linear, so shrinking first is the same
    u, v = (to_uv @ small.reshape(3, -1)).view(2, *small.shape[1:])
    chroma = layout.chroma_gain_offset
    return [
        _quantise(y, layout, layout.luma_gain_offset),
        _quantise(u, layout, chroma),
        _quantise(v, layout, chroma),
    ]


@lru_cache(maxsize=32)
def _to_yuv(matrix: Matrix, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what makes Y (1, 3) and U, V (2, 3) of R, G, B.

    Made once: to bring numbers to a GPU is to wait for it.
    """
    kr, kb = LUMA_WEIGHTS[matrix]
    kg = 1 - kr - kb
    to_uv = [
        [-kr / (2 * (1 - kb)), -kg / (2 * (1 - kb)), 0.5],
        [0.5, -kg / (2 * (1 - kr)), -kb / (2 * (1 - kr))],
    ]
    return (
        torch.tensor([[kr, kg, kb]], device=device),
        torch.tensor(to_uv, device=device),
    )


def _quantise(plane: Tensor, layout: PlaneLayout, gain_offset: tuple[float, float]) -> Tensor:
    gain, offset = gain_offset
    levels = (plane * gain).add_(offset).round_().clamp_(0, (1 << layout.depth) - 1)
    return levels.to(layout.dtype)


def _enlarge_chroma(plane: Tensor, size: Sequence[int], layout: PlaneLayout) -> Tensor:
    """Bring a chroma plane to luma size by linear interpolation from where its samples lie."""
    for axis in (0, 1):
        step = layout.chroma_step[axis]
        if step == 1:
            continue
        at = torch.arange(size[axis], device=plane.device, dtype=torch.float32)
        at = (at - layout.chroma_position[axis]) / step
        at = at.clamp(0, plane.shape[axis] - 1)
        before = at.floor().long()
        after = (before + 1).clamp(max=plane.shape[axis] - 1)
        weight = (at - before).unsqueeze(1 - axis)
        plane = torch.lerp(
            plane.index_select(axis, before), plane.index_select(axis, after), weight
        )
    return plane


def _shrink_chroma(rgb: Tensor, layout: PlaneLayout) -> Tensor:
    """Bring (3, H, W) to chroma size, by a filter around where the chroma samples lie.

    A triangle where that is a luma sample, a box where it is the middle of a group.
    """
    for axis in (0, 1):
        step = layout.chroma_step[axis]
        if step == 1:
            continue
        position = layout.chroma_position[axis]
        if position.is_integer():
            weights = [(step - abs(k)) / step**2 for k in range(1 - step, step)]
            lead = step - 1 - int(position)
        else:
            weights, lead = [1 / step] * step, 0
        length = rgb.shape[axis + 1]
        count = -(-length // step)
        tail = (count - 1) * step + len(weights) - lead - length
        pads = [lead, max(0, tail)]
        padding = [*pads, 0, 0] if axis == 1 else [0, 0, *pads]
        padded = F.pad(rgb[None], padding, mode="replicate")[0]
        parts = (padded.narrow(axis + 1, k, (count - 1) * step + 1) for k in range(len(weights)))
        every = (slice(None),) * (axis + 1) + (slice(None, None, step),)
        weighted = (part[every] * weight for weight, part in zip(weights, parts, strict=True))
        total = next(weighted)
        for part in weighted:
            total += part
        rgb = total
    return rgb


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
    return plane.flip(axes) if axes else plane


def quarter_turn(display_matrix: Sequence[int]) -> tuple[bool, tuple[bool, bool]]:
    """Tell whether rows become columns, and then whether they are flipped, (down, across)."""
    a, b, c, d = (display_matrix[index] for index in (0, 1, 3, 4))
    turned = abs(b) > abs(a)
    if turned:
        a, d = c, b
    return turned, (d < 0, a < 0)
