"""Several frames under way at once: the same results in the same order, and none is lost."""

from __future__ import annotations

import time
import weakref
from contextlib import ExitStack, closing
from itertools import pairwise
from threading import Event

import pytest
import torch
import torch.nn.functional as F
from conftest import write_clip
from devices import Failure
from test_engines import tiny_model

import vsr
from engines import BackendUnavailable, create_engine, load_model
from engines.base import Engine
from engines.errors import OutOfMemory
from engines.ov import OpenVINOEngine
from engines.safety import SafeEngine
from vsr import memory, stages
from vsr.convert import PlaneLayout
from vsr.finish import ToPlanes
from vsr.timeline import Timed

LAYOUT = PlaneLayout("yuv", chroma_step=(2, 2))
SIZE = (12, 16)


class Laned(Engine):
    """Enlarges by repetition; keeps account of what is under way, and fails when told.

    Args:
        fails: what raises ("begin" or "wait") at which frame.
        error: that it raises.
        blackens: the frame that comes out black.
    """

    backend = "laned"

    def __init__(self, lanes, *, fails=None, error=None, blackens=None) -> None:
        super().__init__(
            tiny_model("srgan-lite"),
            device=torch.device("cpu"),
            dtype=torch.float32,
            precision="fp32" if blackens is None else "int8",
        )
        self.lanes, self.lane_counts = lanes, (1, 2, 3, 4)
        self._fails, self._error, self._blackens = fails, error or Failure("broke"), blackens
        self._begun: list[int] = []
        self._count = 0
        self.most_under_way = 0
        self.whole = 0

    def _run(self, frames):
        self.whole += 1
        return enlarge(frames)

    def begin(self, frames, finish=None):
        number, self._count = self._count, self._count + 1
        if self._fails == ("begin", number):
            raise self._error
        self._begun.append(number)
        self.most_under_way = max(self.most_under_way, len(self._begun))

        def wait():
            time.sleep(0.01)  # for others to be begun meanwhile
            assert self._begun.pop(0) == number  # in their order, once each
            if self._fails == ("wait", number):
                raise self._error
            return [enlarge(frames) * (number != self._blackens)]

        return wait


def enlarge(frames):
    return frames.repeat_interleave(4, 2).repeat_interleave(4, 3)


def clip(count, repeats=()):
    planes: list[torch.Tensor] = []
    for index in range(count):
        if index not in repeats:
            planes = [
                torch.randint(60, 200, size, dtype=torch.uint8)
                for size in LAYOUT.plane_sizes(*SIZE)
            ]
        yield Timed(planes, index, 1)


def run(frames, engine, **options):
    size = (4 * SIZE[0], 4 * SIZE[1])
    with ExitStack() as stack:
        for frame in stages.chained(iter(frames), LAYOUT, engine, LAYOUT, size, stack, **options):
            yield frame.pts, frame.value


def same(results, expected):
    return [pts for pts, _ in results] == [pts for pts, _ in expected] and all(
        all(map(torch.equal, mine, theirs))
        for (_, mine), (_, theirs) in zip(results, expected, strict=True)
    )


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("repeats", [(), (1, 3, 5, 7, 9, 11), (1, 2, 3, 4, 5, 6, 7, 9)])
def test_frames_come_out_in_order_and_one_more_than_there_are_lanes_is_under_way(lanes, repeats):
    frames = list(clip(12, repeats))
    engine = Laned(lanes)
    results = list(run(frames, engine))
    assert same(results, list(run(frames, Laned(1))))
    repeated = [new is old for (_, old), (_, new) in pairwise(results)]
    assert repeated == [index in repeats for index in range(1, 12)]
    if lanes > 1:  # repeats wait in the same queue
        assert (2 if repeats else lanes) <= engine.most_under_way <= lanes + 1
    assert engine.whole == 0


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_frame_comes_out_before_the_next_one_goes_in(lanes):
    came = Event()

    def camera():
        for frame in clip(4):
            yield frame
            assert came.wait(10)
            came.clear()

    for _ in run(camera(), Laned(lanes)):
        came.set()


@pytest.mark.parametrize("what", ["begin", "wait"])
@pytest.mark.parametrize("which", [0, 1, 2, 5])
def test_a_failure_comes_after_the_frames_before_it(what, which):
    results = run(clip(9), Laned(3, fails=(what, which)))
    seen = []
    with pytest.raises(Failure, match="broke"):
        seen.extend(pts for pts, _ in results)
    assert seen == list(range(which))


@pytest.mark.parametrize("which", [0, 1, 4])
def test_a_failure_of_the_decoder_comes_after_the_frames_before_it(which):
    def decoder():
        yield from clip(which)
        raise Failure("the decoder failed")

    seen = []
    with pytest.raises(Failure, match="decoder"):
        seen.extend(pts for pts, _ in run(decoder(), Laned(3)))
    assert seen == list(range(which))


@pytest.mark.parametrize("what", ["begin", "wait"])
def test_short_of_memory_a_frame_is_computed_alone_and_so_are_those_that_follow(what, caplog):
    frames = list(clip(8))
    bare = Laned(3, fails=(what, 4), error=MemoryError())
    engine = SafeEngine(bare)
    assert engine.lanes == 3
    assert same(list(run(frames, engine)), list(run(frames, Laned(1))))
    assert engine.lanes == 1
    # what is under way when memory runs short still comes out of its lane
    assert bare.whole == 4 if what == "begin" else 1 <= bare.whole <= 4
    assert caplog.text.count("from here on one frame at a time") == 1


def test_a_spoilt_frame_is_told_from_those_beside_it():
    engine = SafeEngine(Laned(3, blackens=3))
    frames = list(clip(7))
    results = list(run(frames, engine))
    assert engine.recomputed == 1
    assert not any(bool((planes[0] < 20).all()) for _, planes in results)
    expected = list(run(frames, Laned(1)))
    assert same(results[:3] + results[4:], expected[:3] + expected[4:])


def test_the_tiles_of_a_frame_share_the_lanes():
    frames = torch.rand(1, 3, 64, 64)
    bare = Laned(3)
    engine = SafeEngine(bare, side=16)
    assert engine.lanes == 1  # of whole frames
    assert torch.equal(engine(frames), Laned(1)(frames))
    assert bare.most_under_way == 4
    known = engine.update(frames, None)
    frames = frames.clone()
    frames[..., :20] = 0.5
    bare.most_under_way = 0
    assert torch.equal(engine.update(frames, known).results[0], Laned(1)(frames))
    assert bare.most_under_way == 4


# --- OpenVINO -------------------------------------------------------------------------------------


@pytest.mark.two_cores
@pytest.mark.parametrize("network", ["srgan-lite", "srgan", "srcnn"])
@pytest.mark.parametrize("finish", [None, ToPlanes(LAYOUT)])
def test_openvino_gives_the_same_on_several_lanes(network, finish):
    with closing(
        create_engine(tiny_model(network), backend="openvino", precision="fp32", threads=2)
    ) as engine:
        assert (engine.lanes, engine.lane_counts) == (1, (1, 2))
        frames = [torch.rand(1, 3, 21, 30) for _ in range(7)]
        alone = [engine.begin(frame, finish)() for frame in frames]
        engine.lanes = 2
        waits, results = [], []
        for frame in frames:
            waits.append(engine.begin(frame.clone(), finish))  # whose memory is nobody else's
            if len(waits) == engine.lanes + 1:
                results.append(waits.pop(0)())
        results += [wait() for wait in waits]
    assert all(
        all(map(torch.equal, mine, theirs)) for mine, theirs in zip(results, alone, strict=True)
    )


def test_frames_that_nobody_waits_for_disturb_no_other():
    with closing(
        create_engine(tiny_model("srgan-lite"), backend="openvino", precision="fp32", threads=2)
    ) as engine:
        frame = torch.rand(1, 3, 21, 30)
        expected = engine(frame)
        engine.lanes = 2
        for _ in range(5):
            engine.begin(torch.rand(1, 3, 21, 30))
        assert torch.equal(engine.begin(frame)()[0], expected)
        engine.begin(torch.rand(1, 3, 21, 30))  # under way when the engine is closed


@pytest.mark.two_cores
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_built_in_model_gives_the_same_bits_on_one_lane_and_on_two(precision):
    """An interrupted job may go on with another number of lanes, and ends in the same file."""
    model = load_model("srgan-lite")
    try:
        engine = create_engine(model, backend="openvino", precision=precision, threads=2)
    except BackendUnavailable:
        pytest.skip(f"no {precision} on this CPU")
    frames = F.interpolate(torch.rand(3, 3, 17, 30), scale_factor=9, mode="bicubic").clamp(0, 1)
    results = []
    with closing(engine):
        for lanes in engine.lane_counts:
            engine.lanes = lanes
            waits = [engine.begin(frame[None], ToPlanes(LAYOUT)) for frame in frames]
            results.append([wait() for wait in waits])
    for alone, laned in zip(*results, strict=True):
        assert all(map(torch.equal, alone, laned))


def test_a_frame_that_failed_spoils_nothing_that_follows():
    with closing(
        create_engine(tiny_model("srgan"), backend="openvino", precision="fp32", threads=2)
    ) as engine:
        small, large = torch.rand(1, 3, 21, 30), torch.rand(1, 3, 400, 400)
        expected = engine(small)
        for lanes in (1, 2):
            engine.lanes = lanes
            wait = engine._start(large, None, lanes)
            engine.cancel()
            with pytest.raises(RuntimeError, match="cancel"):
                wait()
            assert engine.begin(large)()[0].shape == (1, 3, 1600, 1600)
            assert torch.equal(engine.begin(small)()[0], expected)
        engine.begin(large)  # under way when the engine is closed


def test_memory_that_lanes_took_is_given_back_with_them():
    with closing(
        create_engine(tiny_model("srgan-lite"), backend="openvino", precision="fp32", threads=2)
    ) as engine:
        frame = torch.rand(1, 3, 21, 30)
        engine.lanes = 2
        engine.begin(frame)()
        engine(frame)
        assert sorted(key[2] for key in engine._compiled) == [1, 2]
        engine.lanes = 1
        engine(frame)
        assert [key[2] for key in engine._compiled] == [1]


def test_the_sizes_that_are_kept_are_the_last_two_used():
    with closing(
        create_engine(tiny_model("srgan-lite"), backend="openvino", precision="fp32", threads=1)
    ) as engine:
        for width in (20, 24, 20, 28):
            engine(torch.rand(1, 3, 16, width))
        assert [key[1][3] for key in engine._compiled] == [20, 28]


def test_no_result_is_kept_by_the_lane_that_made_it():
    with closing(
        create_engine(tiny_model("srgan-lite"), backend="openvino", precision="fp32", threads=2)
    ) as engine:
        engine.lanes = 2
        (result,) = engine.begin(torch.rand(1, 3, 21, 30))()
        kept = weakref.ref(result)
        del result
        assert kept() is None


@pytest.mark.parametrize(
    ("threads", "counts"),
    [(1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (6, (1, 2, 3)), (7, (1,)), (16, (1, 2, 4))],
)
def test_lanes_share_the_threads_evenly(threads, counts, monkeypatch):
    monkeypatch.setattr(OpenVINOEngine, "_thread_count", lambda _: threads)
    with closing(
        create_engine(tiny_model("srgan-lite"), backend="openvino", threads=threads)
    ) as engine:
        assert engine.lane_counts == counts


def test_openvino_says_how_many_threads_there_are():
    with closing(create_engine(tiny_model("srgan-lite"), backend="openvino", threads=1)) as engine:
        assert engine._thread_count() == 1
        assert engine.lane_counts == (1,)


def test_a_compilation_that_finds_no_memory_says_so(monkeypatch):
    with closing(create_engine(tiny_model("srgan-lite"), backend="openvino")) as engine:

        class Core:
            def compile_model(self, *_):
                raise RuntimeError("Failed to allocate 134400000 bytes of memory")

        monkeypatch.setattr(engine, "_core", Core())
        with pytest.raises(OutOfMemory, match="134400000"):
            engine(torch.rand(1, 3, 8, 8))


# --- jobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "lanes"),
    [(1 << 40, 4), (1 << 30, 4), (220 << 20, 2), (1 << 20, 1), (0, 1), (None, 4)],
)
def test_memory_decides_how_many_lanes_there_are(free, lanes, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: free)
    engine = Laned(4)
    assert memory.automatic_lanes(engine, (200, 250)) == lanes
    assert memory.automatic_lanes(engine, (4000, 8000)) == (4 if free == 1 << 40 else 1)
    assert memory.automatic_lanes(engine, (4000, 8000), side=200) == lanes
    engine.lane_counts = (1,)
    assert memory.automatic_lanes(engine, (200, 250)) == 1


@pytest.mark.two_cores
@pytest.mark.parametrize("options", [{}, {"tile": 16}, {"tile": 16, "changed_only": True}])
def test_a_job_uses_its_lanes_and_makes_the_same_clip(options, tiny_weights, tmp_path, monkeypatch):
    source = write_clip(tmp_path / "in.mp4", pts=tuple(range(0, 4000, 400)))
    used = []
    original = OpenVINOEngine._start

    def start(self, frames, finish, count):
        used.append(count)
        return original(self, frames, finish, count)

    monkeypatch.setattr(OpenVINOEngine, "_start", start)
    pictures = {}
    for threads in (1, 2):
        used.clear()
        folder = tmp_path / str(threads)
        vsr.upscale(
            source, folder / "%02d.png", model=tiny_weights, backend="openvino",
            precision="fp32", threads=threads, **options,
        )  # fmt: skip
        assert set(used) == {threads}
        pictures[threads] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert len(pictures[1]) == 10
    assert pictures[1] == pictures[2]
