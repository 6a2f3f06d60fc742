"""Digital zoom: the part of a picture that is upscaled, cut from the decoded planes.

A region is meant as the picture is seen: upright, after any rotation that the clip asks for, and in
its own samples, before any stretching of ones that are not square. It is turned back into a
`Window` of the picture as stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from torch import Tensor

from engines.errors import MediaError
from vsr.convert import PlaneLayout, quarter_turn


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle, in samples of the upright picture."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if min(self.x, self.y) < 0 or min(self.width, self.height) < 1:
            raise ValueError(f"crop must be X,Y from 0 and W,H from 1, got {self}")

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.width},{self.height}"


@dataclass(frozen=True, slots=True)
class Zoom:
    """A rectangle of the picture's shape, a `factor`th of its width and height, around a point.

    Moved where it would reach over the edge, and rounded to whole chroma samples.
    """

    factor: float
    x: int
    """of the middle, in samples of the upright picture"""
    y: int

    def __post_init__(self) -> None:
        if not 1 <= self.factor < inf:
            raise ValueError(f"zoom must be by a factor of 1 or more, got {self.factor:g}")
        if min(self.x, self.y) < 0:
            raise ValueError(f"zoom must be at X,Y from 0, got {self.x},{self.y}")

    def __str__(self) -> str:
        return f"{self.factor:g}@{self.x},{self.y}"


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of the picture as stored, in luma samples; it splits no chroma sample."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, planes: Sequence[Tensor], layout: PlaneLayout) -> list[Tensor]:
        """Return views of the planes of a frame (alpha, after the others, is as large as luma)."""
        colours = len(layout.plane_sizes(1, 1))
        sizes = layout.plane_sizes(self.height, self.width)
        steps = [(1, 1)] + [layout.chroma_step if layout.kind == "yuv" else (1, 1)] * (colours - 1)
        sizes += [(self.height, self.width)] * (len(planes) - colours)
        steps += [(1, 1)] * (len(planes) - colours)
        return [
            plane.narrow(0, self.top // down, height).narrow(1, self.left // across, width)
            for plane, (height, width), (down, across) in zip(planes, sizes, steps, strict=True)
        ]


def window(
    region: Crop | Zoom,
    size: tuple[int, int],
    layout: PlaneLayout,
    display_matrix: Sequence[int] | None,
) -> Window:
    """Find a region in the picture as stored.

    Args:
        region: of the upright picture.
        size: (height, width) of the picture as stored.
        layout: of its planes.
        display_matrix: what makes it upright; see `vsr.convert.oriented`.

    Raises:
        MediaError: it reaches over the edge, or a crop splits chroma samples.
    """
    turned, flips = quarter_turn(display_matrix) if display_matrix else (False, (False, False))
    upright = size[::-1] if turned else size
    steps = layout.chroma_step if layout.kind == "yuv" else (1, 1)
    if isinstance(region, Crop):
        spans = [(region.y, region.height), (region.x, region.width)]
    else:
        if region.y >= upright[0] or region.x >= upright[1]:
            raise MediaError(f"--zoom {region} is not in the picture of {upright[1]}x{upright[0]}")
        spans = [
            _around(middle, length, region.factor)
            for middle, length in zip((region.y, region.x), upright, strict=True)
        ]
    if any(begin + length > whole for (begin, length), whole in zip(spans, upright, strict=True)):
        raise MediaError(f"--crop {region} reaches over the picture of {upright[1]}x{upright[0]}")
    spans = _mirrored(spans, upright, flips)
    if turned:
        spans = spans[::-1]
    whole = [
        _to_chroma(*span, length, step)
        for span, length, step in zip(spans, size, steps, strict=True)
    ]
    if isinstance(region, Crop) and whole != spans:
        seen = _mirrored(whole[::-1] if turned else whole, upright, flips)
        near = Crop(seen[1][0], seen[0][0], seen[1][1], seen[0][1])
        tall, wide = steps[::-1] if turned else steps
        raise MediaError(
            f"--crop {region} splits chroma samples, each of which is {wide}x{tall} "
            f"samples large: use --crop {near}"
        )
    return Window(whole[0][0], whole[1][0], whole[0][1], whole[1][1])


def _around(middle: int, whole: int, factor: float) -> tuple[int, int]:
    length = max(1, round(whole / factor))
    return min(max(0, middle - length // 2), whole - length), length


def _mirrored(
    spans: list[tuple[int, int]], size: Sequence[int], flips: tuple[bool, bool]
) -> list[tuple[int, int]]:
    return [
        (whole - begin - length if flip else begin, length)
        for (begin, length), whole, flip in zip(spans, size, flips, strict=True)
    ]


def _to_chroma(begin: int, length: int, whole: int, step: int) -> tuple[int, int]:
    """Extend a span to whole chroma samples; the last one may be cut by the picture's edge."""
    start = begin // step * step
    end = min(whole, -(-(begin + length) // step) * step)
    return start, end - start
