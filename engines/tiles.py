"""A frame in parts: for frames too large for memory, and frames of which little has changed.

A pixel of the result depends on the input within the network's receptive radius and on nothing
else. So a part of the frame, a *core*, comes out as in the whole frame if the network sees a
*window* that reaches one radius further, or to the frame's own border, where the network pads with
zeros as it does for the whole frame. All windows of a frame have one shape: back ends that compile
for a shape do so once.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from engines.base import Engine
from engines.finish import Finish

SMALLEST_TILE = 16  # below it, nearly all of the work is overlap


Window = tuple[slice, slice]
PerPixel = tuple[Fraction | int, Fraction | int]


@dataclass(frozen=True, slots=True)
class Tile:
    """One part of a frame, in pixels of the input, each as (rows, columns)."""

    core: Window
    window: Window

    def of_result(self, per_pixel: PerPixel) -> Window:
        """Where the core lies in what is made of the whole frame.

        Args:
            per_pixel: rows and columns of that for one of the input.
        """
        return _scaled(self.core, (0, 0), per_pixel)

    def of_window(self, per_pixel: PerPixel) -> Window:
        """Where the core lies in what is made of the window."""
        rows, columns = self.window
        return _scaled(self.core, (rows.start, columns.start), per_pixel)


def _scaled(part: Window, origin: tuple[int, int], per_pixel: PerPixel) -> Window:
    rows, columns = (
        slice(int((side.start - begin) * factor), int((side.stop - begin) * factor))
        for side, begin, factor in zip(part, origin, per_pixel, strict=True)
    )
    return rows, columns


def tiles(size: tuple[int, int], *, side: int, overlap: int) -> Iterator[Tile]:
    """Cut a frame into cores of side x side pixels; the last of a row or column may be smaller.

    Args:
        size: (height, width) of the frame.
        side: of a core.
        overlap: pixels that a window reaches beyond its core, where the frame does not end.
    """
    axes = []
    for length in size:
        window = min(length, side + 2 * overlap)
        parts = []
        for start in range(0, length, side):
            begin = min(max(0, start - overlap), length - window)
            parts.append((slice(start, min(start + side, length)), slice(begin, begin + window)))
        axes.append(parts)
    for (core_rows, rows), (core_columns, columns) in product(*axes):
        yield Tile((core_rows, core_columns), (rows, columns))


@dataclass(frozen=True, slots=True)
class Known:
    """What was made of a frame, and from what: the next one is compared with it."""

    seen: list[Tensor]
    """of each tile in its order: the window that its part of the results was made from"""
    results: list[Tensor]
    """the enlarged frame alone, or what a finish made of it"""


class TiledEngine(Engine):
    """An engine that runs another one tile by tile; same contract, same results.

    Float32 sums may be taken in another order: results differ by some 1e-6.

    Args:
        engine: runs the windows; closed with this one.
        side: of a tile's core, in pixels of the input, at least `SMALLEST_TILE`.
        whole_frames: whether there is memory for whole frames: then a frame is computed whole where
            that is less work than its tiles, which overlap.
    """

    def __init__(self, engine: Engine, side: int, *, whole_frames: bool = False) -> None:
        super().__init__(
            engine.model, device=engine.device, dtype=engine.dtype, precision=engine.precision
        )
        if side < SMALLEST_TILE:
            raise ValueError(f"a tile must be at least {SMALLEST_TILE} pixels, got {side}")
        self.backend = engine.backend
        self.side = side
        self.whole_frames = whole_frames
        self.overlap = receptive_radius(engine.model.net)
        self._engine = engine

    def update(
        self,
        frames: Tensor,
        known: Known | None,
        finish: Finish | None = None,
        *,
        tolerance: float = 0.0,
    ) -> Known:
        """Upscale frames; where the last ones are known, only what has changed is computed.

        Args:
            frames: as the contract has it; one, where there is a finish.
            known: what this returned for frames of the same shape with the same finish; left as it
                is. None: all is new.
            finish: see `finished`.
            tolerance: a tile none of whose values differs by more than this from those that it was
                made from, on the scale of [0, 1], counts as unchanged.

        Returns:
            Fresh results: with tolerance 0 those of a call or of `finished`, to the bit unless
            whole frames and tiles mix.
        """
        self._check(frames)
        parts = list(self._tiles(frames, finish))
        windows = [frames[(..., *tile.window)] for tile in parts]
        if known is None:
            return Known([part.clone() for part in windows], self._outputs(frames, finish))
        flags = _differ(windows, known.seen, tolerance)
        changed = [tile for tile, flag in zip(parts, flags, strict=True) if flag]
        if self.whole_frames and self._is_less_work_whole(changed, frames):
            return Known([part.clone() for part in windows], self._whole(frames, finish))
        results = [result.clone() for result in known.results]
        self._put(changed, frames, finish, results)
        seen = [
            new.clone() if flag else old
            for new, old, flag in zip(windows, known.seen, flags, strict=True)
        ]
        return Known(seen, results)

    def _is_less_work_whole(self, parts: Sequence[Tile], frames: Tensor) -> bool:
        height, width = frames.shape[2:]
        within = [
            (rows.stop - rows.start) * (columns.stop - columns.start)
            for rows, columns in (tile.window for tile in parts)
        ]
        return bool(sum(within) >= height * width)

    def fuses(self, finish: Finish) -> bool:
        return self._engine.fuses(finish)

    def finished(self, frames: Tensor, finish: Finish) -> list[Tensor]:
        self._check(frames)
        return self._outputs(frames, finish)

    def frame_begins(self, number: int) -> None:
        """Pass it on."""
        self._engine.frame_begins(number)

    def cancel(self) -> None:
        """Give up what takes long."""
        self._engine.cancel()

    def close(self) -> None:
        """Give back what the engine holds."""
        self._engine.close()

    def _run(self, frames: Tensor) -> Tensor:
        return self._outputs(frames, None)[0]

    def _outputs(self, frames: Tensor, finish: Finish | None) -> list[Tensor]:
        if self.whole_frames:
            return self._whole(frames, finish)
        results: list[Tensor] = []
        self._put(self._tiles(frames, finish), frames, finish, results)
        return results

    def _whole(self, frames: Tensor, finish: Finish | None) -> list[Tensor]:
        if finish is None:
            return [self._engine(frames)]
        return self._engine.finished(frames, finish)

    def _tiles(self, frames: Tensor, finish: Finish | None) -> Iterator[Tile]:
        height, width = frames.shape[2:]
        reach = 0 if finish is None else -(-finish.reach // self.scale)
        return tiles((height, width), side=self.side, overlap=self.overlap + reach)

    def _put(
        self,
        parts: Iterable[Tile],
        frames: Tensor,
        finish: Finish | None,
        results: list[Tensor],
    ) -> None:
        """Compute tiles and put them into the results, which are made if there are none yet."""
        under_way: deque[tuple[Tile, Callable[[], list[Tensor]]]] = deque()
        for tile in parts:
            begun = self._engine.begin(frames[(..., *tile.window)], finish)
            under_way.append((tile, begun))
            if len(under_way) > self._engine.lanes:
                self._put_one(under_way.popleft(), frames, results)
        for one in under_way:
            self._put_one(one, frames, results)

    def _put_one(
        self,
        begun: tuple[Tile, Callable[[], list[Tensor]]],
        frames: Tensor,
        results: list[Tensor],
    ) -> None:
        tile, wait = begun
        window = frames[(..., *tile.window)]
        parts = wait()
        scales = [_per_pixel(part, window) for part in parts]
        if not results:
            for part, scale in zip(parts, scales, strict=True):
                size = (int(n * k) for n, k in zip(frames.shape[2:], scale, strict=True))
                results.append(part.new_empty(*part.shape[:-2], *size))
        for result, part, scale in zip(results, parts, scales, strict=True):
            result[(..., *tile.of_result(scale))] = part[(..., *tile.of_window(scale))]


def _per_pixel(part: Tensor, window: Tensor) -> PerPixel:
    down, across = map(Fraction, part.shape[-2:], window.shape[-2:])
    return down, across


def _differ(new: Sequence[Tensor], old: Sequence[Tensor], tolerance: float) -> list[bool]:
    """Tell which of two lists of tensors differ by more than so much anywhere."""
    if new[0].device.type == "cpu" and not tolerance:
        return [not torch.equal(a, b) for a, b in zip(new, old, strict=True)]
    most = [(a - b).abs().amax() for a, b in zip(new, old, strict=True)]
    flags: list[bool] = (torch.stack(most) > tolerance).tolist()  # one wait for a device
    return flags


# --------------------------------------------------------------------------------------------------
# What the network itself says
# --------------------------------------------------------------------------------------------------


@torch.no_grad()
def receptive_radius(net: nn.Module) -> int:
    """Find out how far from a pixel of the input its influence on the result reaches, in pixels.

    One pixel is made "not a number", which goes wherever a value is used, be its weight zero: no
    trained weights can hide a connection. Rows and columns are tried one after the other, which
    square kernels allow.

    Args:
        net: maps (N, 3, H, W) to a multiple of that; left unchanged.
    """
    exact = copy.deepcopy(net).double().cpu()  # in float64 no back end takes short cuts
    return max(_radius_along(exact, axis) for axis in (2, 3))


def _radius_along(net: nn.Module, axis: int) -> int:
    centre = 32
    while True:
        shape = [1, 3, 1, 1]
        shape[axis] = 2 * centre + 1
        line = torch.zeros(shape, dtype=torch.float64)
        line.select(axis, centre).fill_(torch.nan)
        result = net(line)
        others = [dim for dim in range(4) if dim != axis]
        touched = result.isnan().any(others[2]).any(others[1]).any(others[0]).nonzero()
        scale = result.shape[axis] // shape[axis]
        radius = int((touched // scale - centre).abs().max())
        if radius < centre:
            return radius
        centre *= 2


def bytes_per_pixel(net: nn.Module) -> int:
    """Estimate the memory that a back end takes for a pixel of the input, in float32.

    The model: the layer whose input and output are largest holds both, and a back end needs as much
    again to bring them into the order that it computes in. For the lite generator that is 768
    bytes, for the paper's 16,384. An estimate: whoever takes it leaves room beside.
    """

    def both(inputs: tuple[Any, ...], output: Tensor) -> int:
        return output.nbytes + sum(cast(Tensor, value).nbytes for value in inputs)

    return 2 * _most_per_pixel(net, both)


def values_per_pixel(net: nn.Module) -> int:
    """Return how many numbers the largest tensor within a network has for a pixel of the input."""
    return _most_per_pixel(net, lambda inputs, output: output.numel())


@torch.no_grad()
def _most_per_pixel(net: nn.Module, count: Callable[[tuple[Any, ...], Tensor], int]) -> int:
    """Return the most that `count` finds in the inputs and output of a layer, by pixels."""
    side, most = 8, 0

    def note(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal most
        most = max(most, count(inputs, output))

    leaves = [module for module in net.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    parameter = next(net.parameters())
    net(torch.zeros(1, 3, side, side, dtype=parameter.dtype, device=parameter.device))
    for hook in hooks:
        hook.remove()
    return most // side**2
