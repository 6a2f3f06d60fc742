"""Slots: frames in order, nothing overwritten while in flight, all given back whatever happens."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from contextlib import ExitStack
from itertools import pairwise

import pytest
import torch
from devices import POISON, Failure, Simulated
from test_engines import tiny_model

from engines import create_engine
from engines.base import Engine
from engines.safety import SafeEngine
from vsr.convert import PlaneLayout, from_rgb, to_rgb
from vsr.stages import chained, device_of
from vsr.timeline import Timed
from vsr.transfer import Cuda, Host, Slots

LAYOUT = PlaneLayout("yuv", chroma_step=(2, 2))
LARGE = PlaneLayout("yuv", depth=10, chroma_step=(2, 2))
SIZE = (12, 16)
OUTPUT_SIZE = (36, 48)  # smaller than times 4: resized on the device too
WAIT_SECONDS = 20  # a test that hangs fails


class Counting(Engine):
    """Enlarges by repetition, takes the simulated device's time, and fails when told."""

    backend = "counting"

    def __init__(self, device: Simulated | None = None, seconds: float = 0, fails: int = 0) -> None:
        super().__init__(tiny_model("srgan-lite"), device=torch.device("cpu"), dtype=torch.float32)
        self._simulated, self._seconds, self._fails = device, seconds, fails
        self.calls = 0

    def _run(self, frames):
        self.calls += 1
        if self.calls == self._fails:
            raise Failure("the engine failed")
        if self._simulated is not None:
            self._simulated.spend(self._seconds)
        return frames.repeat_interleave(4, 2).repeat_interleave(4, 3)


def clip(count: int, *, repeat: frozenset[int] = frozenset()) -> list[Timed[list[torch.Tensor]]]:
    """Frames of noise, with gaps between their rows as decoders leave them, and an alpha plane."""
    frames = []
    planes: list[torch.Tensor] = []
    for index in range(count):
        if index not in repeat:
            sizes = [*LAYOUT.plane_sizes(*SIZE), SIZE]
            planes = [torch.randint(0, 256, (h, w + 5), dtype=torch.uint8)[:, :w] for h, w in sizes]
        frames.append(Timed(planes, 7 * index, 7))
    return frames


def run(frames, engine, device, **options) -> list[Timed[list[torch.Tensor]]]:
    """Run the chain, and keep copies of what it gives at the time it gives it."""
    results: list[Timed[list[torch.Tensor]]] = []
    with ExitStack() as stack:
        chain = chained(
            iter(frames), LAYOUT, engine, LARGE, OUTPUT_SIZE, stack, device=device, **options
        )
        results += [Timed([p.clone() for p in f.value], f.pts, f.duration) for f in chain]
    return results


def assert_same(one, other) -> None:
    assert [(f.pts, f.duration) for f in one] == [(f.pts, f.duration) for f in other]
    for mine, theirs in zip(one, other, strict=True):
        assert all(map(torch.equal, mine.value, theirs.value))


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(WAIT_SECONDS)
    assert not [thread for thread in left if thread.is_alive()]


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [2, 3, 5])
def test_an_accelerator_gives_what_the_host_gives_in_order(slots):
    frames = clip(20)
    expected = run(frames, Counting(), Host(16))
    assert [frame.pts for frame in expected] == list(range(0, 140, 7))
    assert_same(run(frames, Counting(), Simulated(slots=slots)), expected)


def test_repeats_cross_the_bus_once_and_come_out_as_often_as_they_went_in():
    frames = clip(12, repeat=frozenset({1, 2, 5, 11}))
    device, engine = Simulated(slots=2), Counting()
    assert_same(run(frames, engine, device), run(frames, Counting(), Host(16)))
    assert engine.calls == 8
    assert device.counted["copy"] == 8 * (3 + 3)  # alpha stays where it is
    with ExitStack() as stack:
        chain = chained(
            iter(frames), LAYOUT, Counting(), LARGE, OUTPUT_SIZE, stack, device=Simulated(slots=2)
        )
        lists = [frame.value for frame in chain]
    same = [later is earlier for earlier, later in pairwise(lists)]
    assert [index + 1 for index, repeated in enumerate(same) if repeated] == [1, 2, 5, 11]


def test_only_what_changed_is_computed_on_an_accelerator_too():
    first = clip(1)[0].value
    moving = []
    for index in range(6):
        planes = [plane.clone() for plane in first]
        planes[0][2, 3 + index] ^= 255
        moving.append(Timed(planes, index, 1))
    engine = SafeEngine(create_engine(tiny_model("srgan-lite"), backend="pytorch"), side=16)
    expected = run(moving, engine, Host(16))
    assert_same(run(moving, engine, Simulated(), changed_only=True), expected)


def test_planes_that_a_decoder_left_on_the_accelerator_are_taken_as_they_are():
    frames = clip(9, repeat=frozenset({4}))
    device = Simulated(slots=2)
    for index in (0, 1, 3, 5, 8):  # 4 repeats 3; the others came from the CPU's decoder
        device.decoded += frames[index].value
    expected = run(frames, Counting(), Host(16))
    assert_same(run(frames, Counting(), device), expected)
    assert device.counted["copy"] == 3 * 3 + 8 * 3  # alpha stays where it is


def test_results_stay_on_the_accelerator_where_they_are_wanted_there():
    frames = clip(9, repeat=frozenset({4}))
    device = Simulated(slots=2, results_stay=True)
    assert_same(run(frames, Counting(), device), run(frames, Counting(), Host(16)))
    assert device.counted["copy"] == 8 * 3


def test_a_free_slot_holds_nothing_of_others():
    device = Simulated(slots=2, results_stay=True)
    slot = device.slot()
    device.decoded += [torch.zeros(2, 2)]
    result = torch.zeros(3)
    slot.upload(device.decoded)
    assert slot.planes[0] is device.decoded[0]
    with slot.work():
        pass
    slot.download([result])
    assert slot.result()[0] is result
    slot.vacate()
    assert slot.planes == []
    assert slot.result() == []


def test_on_the_host_no_plane_is_copied():
    slot = Host(1).slot()
    planes, result = clip(1)[0].value, [torch.zeros(3)]
    slot.upload(planes)
    with slot.work():
        assert all(mine is theirs for mine, theirs in zip(slot.planes, planes, strict=True))
    slot.download(result)
    assert slot.result()[0] is result[0]
    assert slot.result() == []  # it does not keep what is no longer its own
    slot.vacate()
    assert list(slot.planes) == []


# --- order on the device --------------------------------------------------------------------------


def test_uploads_and_downloads_take_place_while_others_compute():
    """The bus is hidden: of 20 frames only the first upload and the last download are seen."""
    device = Simulated(slots=3, upload_seconds=1, download_seconds=2)
    run(clip(20), Counting(device, seconds=10), device)
    assert device.end == 3 * 1 + 20 * 10 + 3 * 2


def test_with_two_slots_the_bus_is_hidden_as_long_as_it_is_quicker_than_the_engine():
    device = Simulated(slots=2, upload_seconds=1, download_seconds=2)
    run(clip(20), Counting(device, seconds=10), device)
    assert device.end == 3 * 1 + 20 * 10 + 3 * 2
    slow_bus = Simulated(slots=2, upload_seconds=4, download_seconds=4)
    run(clip(20), Counting(slow_bus, seconds=10), slow_bus)
    # a slot is busy for 12 + 10 + 12: two of them give a frame every 17
    assert slow_bus.end == pytest.approx(20 * 17, rel=0.1)


def test_the_host_waits_once_a_frame_and_for_an_event():
    device = Simulated()
    run(clip(10), Counting(), device)
    assert device.counted["wait"] == 10
    assert device.closing == 2 * device.slots  # streams are waited for at the end alone


def test_a_result_is_not_there_before_it_is_waited_for():
    """The simulation is honest: it does nothing early."""
    device = Simulated()
    slot = device.slot()
    slot.upload(clip(1)[0].value)
    assert all((plane == POISON).all() for plane in slot.planes)
    with slot.work():
        made = [plane + 1 for plane in slot.planes]
    slot.download(made)
    assert all((landing == POISON).all() for landing in slot._host_out)
    assert all(map(torch.equal, slot.result(), made))


def test_what_is_downloaded_stays_until_it_has_arrived():
    """A copy does not keep its source: PyTorch would give the memory to the next frame."""
    device = Simulated()
    device.copy = lambda target, source: None
    slot = device.slot()
    slot.upload(clip(1)[0].value)
    with slot.work():
        made = slot.planes[0] + 1
    gone = weakref.ref(made)
    slot.download([made])
    del made
    assert gone() is not None
    slot.result()
    assert gone() is None


def test_a_slot_that_is_filled_too_early_is_seen():
    """What the order of slots is for: the second frame overwrites the first on its way up."""
    slot = Simulated().slot()
    one, two = (frame.value for frame in clip(2))
    slot.upload(one)
    slot.upload(two)
    with slot.work():
        assert torch.equal(slot.planes[0], two[0])
    assert not torch.equal(slot.planes[0], one[0])


def test_no_slot_is_filled_while_its_result_is_read():
    """The encoder is slow: the planes it reads stay as they are until it asks for the next."""
    device = Simulated(slots=2)
    with ExitStack() as stack:
        chain = chained(
            iter(clip(12)), LAYOUT, Counting(), LARGE, OUTPUT_SIZE, stack, device=device
        )
        for frame in chain:
            before = [plane.clone() for plane in frame.value]
            threading.Event().wait(0.01)  # the other threads run as far as they may
            assert all(map(torch.equal, frame.value, before))


# --- failures and early ends ----------------------------------------------------------------------


@pytest.mark.parametrize("what", ["copy", "record", "wait"])
@pytest.mark.parametrize("which", [1, 7, 20])
def test_a_failure_of_the_device_is_raised_and_ends_all(what, which):
    with pytest.raises(Failure, match=f"{what} {which} failed"):
        run(clip(40), Counting(), Simulated(slots=2, fails=(what, which)))


@pytest.mark.parametrize("kind", ["host", "accelerator"])
def test_a_failure_of_the_engine_comes_after_the_frames_before_it(kind):
    device = Host(16) if kind == "host" else Simulated(slots=2)
    frames, arrived = clip(40), []
    with ExitStack() as stack:
        chain = chained(
            iter(frames), LAYOUT, Counting(fails=4), LARGE, OUTPUT_SIZE, stack, device=device
        )
        with pytest.raises(Failure, match="the engine failed"):
            arrived.extend(frame.pts for frame in chain)
    assert arrived == [0, 7, 14]


@pytest.mark.parametrize("kind", ["host", "accelerator"])
def test_a_failure_of_the_decoder_comes_after_the_frames_before_it(kind):
    def decoder():
        yield from clip(5)
        raise OSError("the file breaks off")

    device = Host(16) if kind == "host" else Simulated(slots=2)
    arrived = []
    with ExitStack() as stack:
        chain = chained(decoder(), LAYOUT, Counting(), LARGE, OUTPUT_SIZE, stack, device=device)
        with pytest.raises(OSError, match="breaks off"):
            arrived.extend(frame.pts for frame in chain)
    assert arrived == [0, 7, 14, 21, 28]


@pytest.mark.parametrize("taken", [0, 1, 3])
@pytest.mark.parametrize("slots", [2, 3])
def test_an_early_end_waits_for_the_device_and_closes_the_decoder(slots, taken):
    closed = threading.Event()

    def decoder():
        try:
            while True:
                yield from clip(1)
        finally:
            closed.set()

    device = Simulated(slots=slots)
    with ExitStack() as stack:
        chain = chained(decoder(), LAYOUT, Counting(), LARGE, OUTPUT_SIZE, stack, device=device)
        for _ in range(taken):
            next(chain)
    assert all(stream.done == stream.launched for stream in device.streams)
    assert closed.wait(WAIT_SECONDS if taken else 0) == bool(taken)


def test_whoever_waits_for_a_slot_is_woken_at_the_end():
    slots = Slots(Host(1))
    assert slots.take() is not None
    woken: list[object] = []
    threads = [threading.Thread(target=lambda: woken.append(slots.take())) for _ in range(2)]
    for thread in threads:
        thread.start()
    slots.stop()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert woken == [None, None]
    slots.close()


def test_a_job_on_the_cpu_touches_nothing_of_cuda(plain_clip, tiny_weights, tmp_path):
    """And to print a usage line, not even PyTorch is imported."""
    code = (
        "import sys, vsr.cli\n"
        "assert 'torch' not in sys.modules\n"
        "import vsr, torch\n"
        "torch.cuda.is_available = lambda: False\n"
        "vsr.upscale(*sys.argv[1:3], model=sys.argv[3], backend='pytorch')\n"
        "assert not torch.cuda.is_initialized()\n"
        "left = ('engines.trt', 'tensorrt', 'tensorrt_rtx')\n"
        "assert not sys.modules.keys() & set(left)\n"
    )
    command = [sys.executable, "-c", code, plain_clip, tmp_path / "out.mp4", tiny_weights]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_cuda_asks_for_pinned_memory_sleeping_waits_and_copies_that_do_not_wait(monkeypatch):
    asked, gpu = [], torch.device("cuda", 1)

    def note(name, result=None):
        return lambda *args, **options: asked.append((name, *args, options)) or result

    class Target:
        copy_ = staticmethod(note("copy"))

    for name in ("Stream", "Event", "stream"):
        monkeypatch.setattr(torch.cuda, name, note(name))
    monkeypatch.setattr(torch, "empty", note("empty"))
    device, like = Cuda(gpu, slots=2), torch.zeros(3, 2, dtype=torch.uint16)
    device.event()
    device.using("a stream")
    device.host_memory(like)
    device.memory(like)
    device.copy(Target(), like)
    wanted = {"dtype": torch.uint16}
    assert asked == [
        ("Stream", gpu, {}),
        ("Event", {"blocking": True}),
        ("stream", "a stream", {}),
        ("empty", like.shape, wanted | {"pin_memory": True}),
        ("empty", like.shape, wanted | {"device": gpu}),
        ("copy", like, {"non_blocking": True}),
    ]


def test_one_slot_alone_is_refused():
    with pytest.raises(ValueError, match="one slot computes while another moves: got 1"):
        Simulated(slots=1)


def test_the_engines_device_decides():
    engine = Counting()
    assert isinstance(device_of(engine), Host)


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("depth", [8, 10])
def test_a_gpu_gives_the_planes_that_the_cpu_gives(depth):
    """Colour maths in float32 on both: at most one code value where a sum falls on an edge."""
    layout = PlaneLayout("yuv", depth=depth, chroma_step=(2, 2))
    frames = [
        Timed(
            [torch.randint(16, 1 << depth, s).to(layout.dtype) for s in layout.plane_sizes(*SIZE)],
            index, 1,
        )
        for index in range(30)
    ]  # fmt: skip
    results = []
    for device in ("cpu", "cuda"):
        engine = Counting()
        engine.device = torch.device(device)
        with ExitStack() as stack:
            chain = chained(iter(frames), layout, engine, LARGE, OUTPUT_SIZE, stack)
            results.append([[p.clone().int() for p in frame.value] for frame in chain])
    for mine, theirs in zip(*results, strict=True):
        assert all((a - b).abs().max() <= 1 for a, b in zip(mine, theirs, strict=True))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_gpu_is_waited_for_by_event_only():
    """PyTorch itself refuses whatever else would wait, in any thread."""
    engine = SafeEngine(create_engine(tiny_model("srgan-lite"), backend="pytorch"))
    assert engine.judges
    seen = 0
    with ExitStack() as stack:
        chain = chained(iter(clip(40)), LAYOUT, engine, LARGE, OUTPUT_SIZE, stack)
        try:
            for seen, _ in enumerate(chain, 1):
                if seen == 10:  # buffers, graphs and constants are made
                    torch.cuda.set_sync_debug_mode("error")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert seen == 40
    assert engine.recomputed == 0


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_frames_in_flight_on_a_gpu_keep_apart(precision):
    """What the chain gives with its slots is what the engine gives for each frame alone."""
    engine = create_engine(tiny_model("srgan-lite"), backend="pytorch", precision=precision)
    frames = clip(60)
    size = (4 * SIZE[0], 4 * SIZE[1])
    with ExitStack() as stack:
        chain = chained(iter(frames), LAYOUT, engine, LARGE, size, stack)
        results = [[plane.clone() for plane in frame.value] for frame in chain]
    for frame, planes in zip(frames, results, strict=True):
        rgb = to_rgb([plane.cuda() for plane in frame.value[:3]], LAYOUT).to(engine.dtype)
        alone = from_rgb(engine(rgb).float(), LARGE)
        assert all(
            torch.equal(mine.cpu(), other) for mine, other in zip(alone, planes, strict=True)
        )
