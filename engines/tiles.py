"""A frame in parts: for frames too large for memory, and frames of which little has changed.

A pixel of the result depends on the input within the network's receptive radius and on nothing
else. So a part of the frame, a *core*, comes out as in the whole frame if the network sees a
*window* that reaches one radius further, or to the frame's own border, where the network pads with
zeros as it does for the whole frame. All windows of a frame have one shape: back ends that compile
for a shape do so once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from engines.base import Engine

SMALLEST_TILE = 16  # below it, nearly all of the work is overlap


Window = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Tile:
    """One part of a frame, in pixels of the input, each as (rows, columns)."""

    core: Window
    window: Window

    def of_result(self, scale: int) -> tuple[slice, slice]:
        """Where the core lies in the result of the whole frame."""
        rows, columns = (slice(part.start * scale, part.stop * scale) for part in self.core)
        return rows, columns

    def of_window(self, scale: int) -> tuple[slice, slice]:
        """Where the core lies in the result of the window."""
        rows, columns = (
            slice((core.start - window.start) * scale, (core.stop - window.start) * scale)
            for core, window in zip(self.core, self.window, strict=True)
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

    def update(self, frames: Tensor, last_frames: Tensor, last_result: Tensor) -> Tensor:
        """Upscale frames of which the last ones' result is known: only what changed is computed.

        Args:
            frames: as the contract has it.
            last_frames: of the same shape.
            last_result: what this engine made of them; left as it is.

        Returns:
            What a call with `frames` returns, to the bit unless whole frames and tiles mix; a fresh
            tensor.
        """
        self._check(frames)
        parts = list(self._tiles(frames))
        windows = [tile.window for tile in parts]
        differ = _differ if frames.device.type == "cpu" else _differ_on_device
        flags = differ(frames, last_frames, windows)
        changed = [tile for tile, flag in zip(parts, flags, strict=True) if flag]
        if self.whole_frames and self._is_less_work_whole(changed, frames):
            return self._engine(frames)
        result = last_result.clone()
        for tile in changed:
            self._put(tile, frames, result)
        return result

    def _is_less_work_whole(self, parts: Sequence[Tile], frames: Tensor) -> bool:
        height, width = frames.shape[2:]
        within = [
            (rows.stop - rows.start) * (columns.stop - columns.start)
            for rows, columns in (tile.window for tile in parts)
        ]
        return bool(sum(within) >= height * width)

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
        if self.whole_frames:
            return self._engine(frames)
        count, channels, height, width = frames.shape
        result = frames.new_empty(count, channels, height * self.scale, width * self.scale)
        for tile in self._tiles(frames):
            self._put(tile, frames, result)
        return result

    def _tiles(self, frames: Tensor) -> Iterator[Tile]:
        height, width = frames.shape[2:]
        return tiles((height, width), side=self.side, overlap=self.overlap)

    def _put(self, tile: Tile, frames: Tensor, result: Tensor) -> None:
        part = self._engine(frames[(..., *tile.window)])
        result[(..., *tile.of_result(self.scale))] = part[(..., *tile.of_window(self.scale))]


def _differ(one: Tensor, other: Tensor, windows: Sequence[Window]) -> list[bool]:
    """Tell in which windows two batches of frames differ."""
    return [not torch.equal(one[(..., *part)], other[(..., *part)]) for part in windows]


def _differ_on_device(one: Tensor, other: Tensor, windows: Sequence[Window]) -> list[bool]:
    """Do as `_differ`, and wait for the device once, not at each window."""
    differs = (one != other).flatten(0, 1).any(0)  # (H, W)
    changed: list[bool] = torch.stack([differs[part].any() for part in windows]).tolist()
    return changed


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


@torch.no_grad()
def bytes_per_pixel(net: nn.Module) -> int:
    """Estimate the memory that a back end takes for a pixel of the input, in float32.

    The model: the layer whose input and output are largest holds both, and a back end needs as much
    again to bring them into the order that it computes in. For the lite generator that is 768
    bytes, for the paper's 16,384. An estimate: whoever takes it leaves room beside.
    """
    side, most = 8, 0

    def note(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal most
        most = max(most, output.nbytes + sum(cast(Tensor, value).nbytes for value in inputs))

    leaves = [module for module in net.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    parameter = next(net.parameters())
    net(torch.zeros(1, 3, side, side, dtype=parameter.dtype, device=parameter.device))
    for hook in hooks:
        hook.remove()
    return 2 * most // side**2
