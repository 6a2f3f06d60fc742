"""The stages of a clip's job, each a generator of frames and each in a thread of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from typing import TypeVar

import torch
from torch import Tensor

from engines import Engine
from engines.tiles import TiledEngine
from vsr.convert import PlaneLayout, from_rgb, resize, to_rgb
from vsr.threads import Meter, in_thread
from vsr.video import Timed

T = TypeVar("T")

QUEUE_DEPTH = 2
STAGES = ("decode", "to-rgb", "engine", "to-planes", "encode")


class StageMeters(dict[str, Meter]):
    """A meter for each of `STAGES`; `chained` keeps the first four, the caller that of "encode"."""

    def __init__(self) -> None:
        super().__init__((name, Meter()) for name in STAGES)

    def shares(self) -> dict[str, float]:
        """Return each stage's share of the time that all have been at work, 1 in sum."""
        busy = {name: meter.busy_seconds for name, meter in self.items()}
        total = sum(busy.values())
        return {name: seconds / total for name, seconds in busy.items()} if total else {}

    def queued(self) -> dict[str, int]:
        """Return how many frames wait after each stage; after the last, none can."""
        return {name: self[name].queued for name in STAGES[:-1]}


def chained(
    frames: Iterator[Timed[list[Tensor]]],
    layout: PlaneLayout,
    engine: Engine,
    output_layout: PlaneLayout,
    size: tuple[int, int],
    stack: ExitStack,
    *,
    changed_only: bool = False,
    meters: StageMeters | None = None,
) -> Iterator[Timed[list[Tensor]]]:
    """Chain the stages from decoded planes to those of the output, each in a thread of its own.

    A frame equal to the one before it, to the bit, comes out as the very same list of planes.

    Args:
        frames: from the decoder; consumed in a thread.
        layout: of their planes.
        engine: upscales them; a `TiledEngine` for `changed_only`.
        output_layout: of the planes that come out.
        size: (height, width) of the output.
        stack: closes the stages, from the last to the first.
        changed_only: compute only the tiles that differ from those of the frame before.
        meters: told what each stage costs.
    """
    meters = meters or StageMeters()

    def stage(items: Iterable[Timed[T]], name: str) -> Iterator[Timed[T]]:
        made = in_thread(items, depth=QUEUE_DEPTH, name=name, meter=meters[name])
        return stack.enter_context(closing(made))

    decoded = stage(without_repeats(frames), "decode")
    rgb = stage(to_rgb_frames(decoded, layout, engine), "to-rgb")
    if changed_only:
        assert isinstance(engine, TiledEngine)
        large = stage(upscaled_where_changed(rgb, engine), "engine")
    else:
        large = stage(upscaled(rgb, engine), "engine")
    return stage(to_plane_frames(large, output_layout, size), "to-planes")


def without_repeats(
    frames: Iterator[Timed[list[Tensor]]],
) -> Iterator[Timed[list[Tensor] | None]]:
    """Put None for the planes of a frame that are equal to those of the one before it."""
    last: list[Tensor] | None = None
    for frame in frames:
        repeated = last is not None and all(map(torch.equal, frame.value, last))
        yield Timed(None if repeated else frame.value, frame.pts, frame.duration)
        last = frame.value


def to_rgb_frames(
    frames: Iterator[Timed[list[Tensor] | None]], layout: PlaneLayout, engine: Engine
) -> Iterator[Timed[Tensor | None]]:
    """Turn planes into what the engine takes, (1, 3, H, W) on its device; alpha is left out."""
    count = len(layout.plane_sizes(1, 1))
    for frame in frames:
        if frame.value is None:
            yield Timed(None, frame.pts, frame.duration)
            continue
        planes = [plane.to(engine.device) for plane in frame.value[:count]]
        rgb = to_rgb(planes, layout).to(engine.dtype)
        yield Timed(rgb, frame.pts, frame.duration)


def upscaled(
    frames: Iterator[Timed[Tensor | None]], engine: Engine
) -> Iterator[Timed[Tensor | None]]:
    """Run the engine."""
    for frame in frames:
        large = None if frame.value is None else engine(frame.value)
        yield Timed(large, frame.pts, frame.duration)


def upscaled_where_changed(
    frames: Iterator[Timed[Tensor | None]], engine: TiledEngine
) -> Iterator[Timed[Tensor | None]]:
    """Run the engine on what differs from the frame before."""
    last: tuple[Tensor, Tensor] | None = None
    for frame in frames:
        large = None
        if frame.value is not None:
            large = engine(frame.value) if last is None else engine.update(frame.value, *last)
            last = frame.value, large
        yield Timed(large, frame.pts, frame.duration)


def to_plane_frames(
    frames: Iterator[Timed[Tensor | None]], layout: PlaneLayout, size: tuple[int, int]
) -> Iterator[Timed[list[Tensor]]]:
    """Shrink to the output's size and turn into the planes that the encoder takes, on the CPU."""
    planes: list[Tensor] = []
    for frame in frames:
        if frame.value is not None:
            rgb = resize(frame.value.float(), size)
            planes = [plane.cpu() for plane in from_rgb(rgb, layout)]
        yield Timed(planes, frame.pts, frame.duration)
