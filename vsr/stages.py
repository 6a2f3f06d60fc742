"""The stages of a clip's job, each a generator of frames.

On the CPU each has a thread of its own. On an accelerator one thread launches all that is computed,
and the frame's `Slot` keeps uploads, work and downloads in order (see `vsr.transfer`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from engines import Engine
from engines.finish import Finish
from engines.safety import SafeEngine
from engines.tiles import Known
from vsr import segments
from vsr.convert import PlaneLayout, from_rgb, resize, to_rgb
from vsr.finish import planes_finish
from vsr.strips import StripUpscaler
from vsr.threads import Meter, in_thread
from vsr.timeline import Timed
from vsr.transfer import Cuda, Device, Host, Slot, Slots

T = TypeVar("T")

QUEUE_DEPTH = 2
STAGES = ("decode", "to-rgb", "engine", "to-planes", "encode")
# four queues and what is made on either side of each, and the one that is read: never scarce
_HOST_SLOTS = 4 * (QUEUE_DEPTH + 2)  # and one more a lane, and one that waits its turn


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


class Staged(NamedTuple):
    """A frame before the engine."""

    slot: Slot
    rgb: Tensor
    """(1, 3, H, W) on the device; to be read within the slot's `work` only"""


class Enlarged(NamedTuple):
    """A frame after the engine; tensors are on the device, to be read within `work` only."""

    slot: Slot
    results: list[Tensor]
    """planes, or (1, 3, H, W) RGB that is still to be shrunk or converted"""
    are_planes: bool
    verdict: Tensor | None
    """of the engine; see `Engine.verdict`"""


def device_of(engine: Engine, *, results_stay: bool = False) -> Device:
    """Return where an engine's frames have to be brought.

    Args:
        engine: has them computed there.
        results_stay: whether the planes that come out are wanted on a GPU that it is.
    """
    if engine.device.type == "cuda":
        return Cuda(engine.device, results_stay=results_stay)
    return Host(_HOST_SLOTS + engine.lanes + 1)


def chained(
    frames: Iterator[Timed[list[Tensor]]],
    layout: PlaneLayout,
    engine: Engine,
    output_layout: PlaneLayout,
    size: tuple[int, int],
    stack: ExitStack,
    *,
    changed_only: bool = False,
    tolerance: float = 0.0,
    meters: StageMeters | None = None,
    device: Device | None = None,
    strip_rows: int | None = None,
    stop: Callable[[], None] | None = None,
    anew_every: int = segments.SEGMENT_FRAMES,
) -> Iterator[Timed[list[Tensor]]]:
    """Chain the stages from decoded planes to those of the output.

    A frame equal to the one before it, to the bit, comes out as the very same list of planes. On an
    accelerator the planes are those of a slot: valid until the next frame is asked for.

    Args:
        frames: from the decoder; consumed in a thread.
        layout: of their planes.
        engine: upscales them; a `SafeEngine` with tiles for `changed_only`.
        output_layout: of the planes that come out.
        size: (height, width) of the output.
        stack: closes the stages, from the last to the first.
        changed_only: compute only the tiles that differ from those of the frame before.
        tolerance: what of that counts as the same (see `TiledEngine.update`).
        meters: told what each stage costs; on an accelerator all that is launched is "to-planes".
        device: None: where the engine is.
        strip_rows: of the enlarged frame, where memory does not hold it whole (see `vsr.strips`);
            all of it is computed then, whatever has changed.
        stop: ends what `frames` may be waiting for, when the stages end.
        anew_every: with `changed_only`, after so many frames one is computed whole.
    """
    meters = meters or StageMeters()
    device = device or device_of(engine)
    slots = Slots(device)
    stack.callback(slots.close)

    def wake() -> None:  # an interruption may find any of the threads waiting
        engine.cancel()
        slots.stop()
        if stop is not None:
            stop()

    def stage(items: Iterable[Timed[T]], name: str) -> Iterator[Timed[T]]:
        made = in_thread(items, depth=QUEUE_DEPTH, name=name, meter=meters[name], wake=wake)
        return stack.enter_context(closing(made))

    def step(items: Iterable[Timed[T]], name: str) -> Iterable[Timed[T]]:
        return stage(items, name) if device.stages_overlap else items

    distinct = without_repeats(frames, anew_every=anew_every if changed_only else None)
    uploads = stage(uploaded(distinct, slots, layout), "decode")
    rgb = announced(step(to_rgb_frames(uploads, layout, engine), "to-rgb"), engine)
    if strip_rows is not None:
        assert isinstance(engine, SafeEngine)
        upscaler = StripUpscaler(engine, output_layout, size, strip_rows)
        downloads = stage(plane_frames_in_strips(rgb, upscaler), "engine")
        stack.callback(slots.stop)
        return delivered(downloads, slots)
    finish = planes_finish(output_layout, engine.scale)
    if changed_only:
        assert isinstance(engine, SafeEngine)
        changes = upscaled_where_changed(rgb, engine, finish, size, anew_every, tolerance)
        large = step(changes, "engine")
    else:
        large = step(upscaled(rgb, engine, finish, size), "engine")
    downloads = stage(to_plane_frames(large, output_layout, size), "to-planes")
    again = None
    if isinstance(engine, SafeEngine) and engine.judges:
        again = partial(recomputed, engine, layout, output_layout, size)
    return delivered(downloads, slots, again)


def without_repeats(
    frames: Iterator[Timed[list[Tensor]]], *, anew_every: int | None = None
) -> Iterator[Timed[list[Tensor] | None]]:
    """Put None for the planes of a frame that are equal to those of the one before it.

    Args:
        frames: decoded ones.
        anew_every: frames after which the next one counts as new, whatever it is.
    """
    last: list[Tensor] | None = None
    for number, frame in enumerate(frames):
        if anew_every is not None and number % anew_every == 0:
            last = None
        repeated = last is not None and all(map(_is_same, frame.value, last))
        yield Timed(None if repeated else frame.value, frame.pts, frame.duration)
        last = frame.value


def _is_same(plane: Tensor, other: Tensor) -> bool:
    # of one clip some frames may lie on a GPU and some not (see `Reader.decode_on`)
    return plane.device == other.device and torch.equal(plane, other)


def uploaded(
    frames: Iterable[Timed[list[Tensor] | None]], slots: Slots, layout: PlaneLayout
) -> Iterator[Timed[Slot | None]]:
    """Put each frame's planes into a slot, once one is free; alpha is left out."""
    count = len(layout.plane_sizes(1, 1))
    for frame in frames:
        slot = None
        if frame.value is not None:
            slot = slots.take()
            if slot is None:  # the job is over
                return
            slot.upload(frame.value[:count])
        yield Timed(slot, frame.pts, frame.duration)


def to_rgb_frames(
    frames: Iterable[Timed[Slot | None]], layout: PlaneLayout, engine: Engine
) -> Iterator[Timed[Staged | None]]:
    """Turn planes into what the engine takes, (1, 3, H, W) on its device."""
    for frame in frames:
        staged = None
        if (slot := frame.value) is not None:
            with slot.work():
                staged = Staged(slot, to_rgb(slot.planes, layout).to(engine.dtype))
        yield Timed(staged, frame.pts, frame.duration)


def announced(frames: Iterable[T], engine: Engine) -> Iterator[T]:
    """Tell the engine, in the thread that runs it, where each frame begins."""
    for number, frame in enumerate(frames):
        engine.frame_begins(number)
        yield frame


def upscaled(
    frames: Iterable[Timed[Staged | None]],
    engine: Engine,
    finish: Finish | None = None,
    size: tuple[int, int] = (0, 0),
) -> Iterator[Timed[Enlarged | None]]:
    """Run the engine; as far as to the planes, where it does that with less work.

    Where the engine has several lanes, they are begun in a thread of their own.

    Args:
        frames: as it takes them.
        engine: runs.
        finish: makes the planes of what needs no shrinking; None: that is left to the next stage.
        size: (height, width) of the output.
    """
    begun = _begun(frames, engine, finish, size)
    if engine.lanes > 1:  # one more is being begun, and one waited for
        begun = in_thread(begun, depth=engine.lanes - 1, name="lanes", wake=engine.cancel)
    with closing(begun):
        for frame in begun:
            enlarged = None if frame.value is None else frame.value()
            yield Timed(enlarged, frame.pts, frame.duration)


def _begun(
    frames: Iterable[Timed[Staged | None]],
    engine: Engine,
    finish: Finish | None,
    size: tuple[int, int],
) -> Generator[Timed[Callable[[], Enlarged] | None], None, None]:
    """Begin frame after frame; each is waited for by a call."""
    for frame in frames:
        staged, call = frame.value, None
        if staged is not None:
            shrinks = not _needs_no_shrinking(staged, engine, size)
            last = None if finish is None or shrinks or not engine.fuses(finish) else finish
            call = partial(_enlarged, engine, staged, engine.begin(staged.rgb, last), last)
        yield Timed(call, frame.pts, frame.duration)


def _enlarged(
    engine: Engine, staged: Staged, begun: Callable[[], list[Tensor]], finish: Finish | None
) -> Enlarged:
    with staged.slot.work():  # an engine with one lane, as on an accelerator, works here
        results = begun()
    return Enlarged(staged.slot, results, finish is not None, engine.verdict())


def _needs_no_shrinking(staged: Staged, engine: Engine, size: tuple[int, int]) -> bool:
    height, width = staged.rgb.shape[2:]
    return (height * engine.scale, width * engine.scale) == size


def upscaled_where_changed(
    frames: Iterable[Timed[Staged | None]],
    engine: SafeEngine,
    finish: Finish | None,
    size: tuple[int, int],
    anew_every: int,
    tolerance: float,
) -> Iterator[Timed[Enlarged | None]]:
    """Run the engine on what differs from the frame before, and make the planes of no more.

    After `anew_every` frames all is computed anew, as it is where an interrupted job goes on: a
    frame that is pieced together may differ from a whole one by the rounding of float32 sums.
    """
    known: Known | None = None
    for number, frame in enumerate(frames):
        if number % anew_every == 0:
            known = None
        enlarged = None
        if (staged := frame.value) is not None:
            last = finish if _needs_no_shrinking(staged, engine, size) else None
            with staged.slot.work():
                known = engine.update(staged.rgb, known, last, tolerance=tolerance)
            enlarged = Enlarged(staged.slot, known.results, last is not None, engine.verdict())
        yield Timed(enlarged, frame.pts, frame.duration)


def plane_frames_in_strips(
    frames: Iterable[Timed[Staged | None]], upscaler: StripUpscaler
) -> Iterator[Timed[Slot | None]]:
    """Run the engine and make the planes that the encoder takes, without a whole enlarged frame."""
    for frame in frames:
        slot = None
        if frame.value is not None:
            slot = frame.value.slot
            with slot.work():
                planes = upscaler(frame.value.rgb)
            slot.download(planes)
        yield Timed(slot, frame.pts, frame.duration)


def to_plane_frames(
    frames: Iterable[Timed[Enlarged | None]], layout: PlaneLayout, size: tuple[int, int]
) -> Iterator[Timed[Slot | None]]:
    """Shrink to the output's size and turn into the planes that the encoder takes.

    The verdict, where there is one, follows the planes to the host.
    """
    for frame in frames:
        slot = None
        if frame.value is not None:
            slot, results, are_planes, verdict = frame.value
            if not are_planes:
                with slot.work():
                    results = from_rgb(resize(results[0].float(), size), layout)
            slot.download(results if verdict is None else [*results, verdict])
        yield Timed(slot, frame.pts, frame.duration)


def delivered(
    frames: Iterable[Timed[Slot | None]],
    slots: Slots,
    again: Callable[[Slot], list[Tensor]] | None = None,
) -> Iterator[Timed[list[Tensor]]]:
    """Wait for each frame's planes; its slot is free again when the next frame's turn has come.

    Args:
        frames: whose downloads are launched.
        slots: of these frames.
        again: computes a spoilt frame once more; None: no frame comes with a verdict.
    """
    planes: list[Tensor] = []
    held: Slot | None = None
    for frame in frames:
        if frame.value is not None:
            if held is not None:
                slots.give_back(held)
            held = frame.value
            planes = held.result()
            if again is not None and bool(planes.pop()):
                planes = again(held)
        yield Timed(planes, frame.pts, frame.duration)


def recomputed(
    engine: SafeEngine,
    layout: PlaneLayout,
    output_layout: PlaneLayout,
    size: tuple[int, int],
    slot: Slot,
) -> list[Tensor]:
    """Compute the frame in a slot in float32, from its planes to those of its result."""
    with slot.work():
        large = engine.again(to_rgb(slot.planes, layout))
        planes = from_rgb(resize(large, size), output_layout)
    slot.download(planes)
    return slot.result()
