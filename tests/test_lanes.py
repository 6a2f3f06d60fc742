"""Several frames under way at once: the same results in the same order, and none is lost."""

from __future__ import annotations

from contextlib import ExitStack, closing

import pytest
import torch
from conftest import write_clip
from devices import Failure
from test_engines import tiny_model

import vsr
from engines import create_engine
from engines.base import Engine
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
        self.lanes = self.most_lanes = lanes
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
@pytest.mark.parametrize("repeats", [(), (1, 2, 3, 4, 7, 9)])
def test_frames_under_way_come_out_in_order_and_no_more_than_there_are_lanes(lanes, repeats):
    frames = list(clip(10, repeats))
    engine = Laned(lanes)
    results = list(run(frames, engine))
    assert same(results, list(run(frames, Laned(1))))
    assert [planes is results[index - 1][1] for index, (_, planes) in enumerate(results) if index]
    assert engine.most_under_way == (lanes if not repeats else min(lanes, 2))
    assert engine.whole == 0


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
def test_short_of_memory_a_frame_is_computed_alone_and_so_are_those_that_follow(what):
    frames = list(clip(8))
    bare = Laned(3, fails=(what, 4), error=MemoryError())
    engine = SafeEngine(bare)
    assert engine.lanes == 3
    assert same(list(run(frames, engine)), list(run(frames, Laned(1))))
    assert engine.lanes == 1
    # a frame that is begun when memory runs short still comes out of its lane
    assert bare.whole == (4 if what == "begin" else 2)


def test_a_spoilt_frame_is_told_from_those_beside_it():
    engine = SafeEngine(Laned(3, blackens=3))
    frames = list(clip(7))
    results = list(run(frames, engine))
    assert engine.recomputed == 1
    assert not any(bool((planes[0] < 20).all()) for _, planes in results)
    expected = list(run(frames, Laned(1)))
    assert same(results[:3] + results[4:], expected[:3] + expected[4:])


def test_with_tiles_there_is_one_lane():
    assert SafeEngine(Laned(3), side=16).lanes == 1


# --- OpenVINO -------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["srgan-lite", "srgan", "srcnn"])
@pytest.mark.parametrize("finish", [None, ToPlanes(LAYOUT)])
def test_openvino_gives_the_same_on_several_lanes(network, finish):
    with closing(
        create_engine(tiny_model(network), backend="openvino", precision="fp32", threads=2)
    ) as engine:
        assert (engine.lanes, engine.most_lanes) == (1, 2)
        frames = [torch.rand(1, 3, 21, 30) for _ in range(7)]
        alone = [engine.begin(frame, finish)() for frame in frames]
        engine.lanes = 2
        waits, results = [], []
        for frame in frames:
            waits.append(engine.begin(frame.clone(), finish))  # whose memory is nobody else's
            if len(waits) == engine.lanes:
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


def test_one_thread_has_one_lane():
    engine = create_engine(tiny_model("srgan-lite"), backend="openvino", threads=1)
    assert engine.most_lanes == 1


# --- jobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "lanes"), [(1 << 40, 4), (1 << 30, 4), (200 << 20, 2), (1 << 20, 1), (None, 4)]
)
def test_memory_decides_how_many_lanes_there_are(free, lanes, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: free)
    engine = Laned(4)
    assert memory.automatic_lanes(engine, (200, 250)) == lanes
    assert memory.automatic_lanes(engine, (4000, 8000)) == (4 if free == 1 << 40 else 1)
    engine.most_lanes = 1
    assert memory.automatic_lanes(engine, (200, 250)) == 1


@pytest.mark.parametrize(
    ("options", "lanes"), [({}, 2), ({"tile": 16}, 1), ({"changed_only": True}, 1)]
)
def test_a_job_uses_its_lanes_and_makes_the_same_clip(
    options, lanes, tiny_weights, tmp_path, monkeypatch
):
    source = write_clip(tmp_path / "in.mp4", pts=tuple(range(0, 4000, 400)))
    used = []
    original = OpenVINOEngine._start

    def start(self, frames, finish, count):
        used.append(count)
        return original(self, frames, finish, count)

    monkeypatch.setattr(OpenVINOEngine, "_start", start)
    pictures = {}
    for threads, chosen in ((1, {}), (2, options)):
        used.clear()
        folder = tmp_path / str(threads)
        vsr.upscale(
            source, folder / "%02d.png", model=tiny_weights, backend="openvino",
            precision="fp32", threads=threads, **chosen,
        )  # fmt: skip
        assert set(used) == {lanes if threads > 1 else 1}
        pictures[threads] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert len(pictures[1]) == 10
    if not options:  # tiles differ by the rounding of float32 sums
        assert pictures[1] == pictures[2]
