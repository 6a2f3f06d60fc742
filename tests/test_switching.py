"""Beginning on one back end and going on on another: two CPU engines, and a build on cue."""

from __future__ import annotations

from threading import Event

import pytest
import torch
from test_engines import tiny_model

from engines import EngineBuildError
from engines.base import CompiledEngine, Engine
from engines.switching import SwitchingEngine
from engines.tiles import TiledEngine

PATIENCE_SECONDS = 20


class Constant(CompiledEngine):
    """Gives one level, in its own dtype; is ready when told so."""

    def __init__(self, model, level: float, *, dtype=torch.float32, long: bool = True) -> None:
        super().__init__(model, device=torch.device("cpu"), dtype=dtype)
        self.backend = f"level {level}"
        self.level, self.long = level, long
        self.may_finish, self.error = Event(), None
        self.prepared: list[tuple[int, int, int]] = []
        self.closed = self.cancelled = False

    def takes_long(self, shape) -> bool:
        return self.long

    def prepare(self, shape) -> None:
        self.prepared.append(shape)
        assert not self.long or self.may_finish.wait(PATIENCE_SECONDS)
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        self.cancelled, self.error = True, EngineBuildError("given up")
        self.may_finish.set()

    def close(self) -> None:
        self.closed = True

    def _run(self, frames):
        n, c, h, w = frames.shape
        return torch.full((n, c, h * 4, w * 4), self.level, dtype=frames.dtype)


@pytest.fixture(scope="module")
def model():
    return tiny_model("srgan-lite")


@pytest.fixture
def pair(model):
    now, later = Constant(model, 0.25), Constant(model, 0.75, dtype=torch.float16)
    yield now, later
    later.may_finish.set()


def finish(engine: SwitchingEngine, later: Constant) -> None:
    later.may_finish.set()
    engine._thread.join(PATIENCE_SECONDS)
    assert not engine._thread.is_alive()


def levels(engine: Engine, numbers: range) -> list[float]:
    found = []
    for number in numbers:
        engine.frame_begins(number)
        result = engine(torch.rand(1, 3, 6, 8))
        assert result.dtype == torch.float32
        found.append(float(result[0, 0, 0, 0]))
    return found


def test_it_switches_before_the_first_frame_of_the_next_run_and_not_within_one(pair):
    now, later = pair
    engine = SwitchingEngine(now, later, every=4)
    assert levels(engine, range(5)) == [0.25] * 5
    assert engine.switched_at is None
    finish(engine, later)
    assert levels(engine, range(5, 10)) == [0.25] * 3 + [0.75] * 2
    assert engine.switched_at == 8
    assert later.prepared == [(1, 6, 8)]
    engine.close()
    assert now.closed
    assert later.closed


def test_an_engine_that_is_there_computes_from_the_first_frame_on(model):
    later = Constant(model, 0.75, long=False)
    engine = SwitchingEngine(Constant(model, 0.25), later, every=4)
    assert levels(engine, range(3)) == [0.75] * 3
    assert engine.switched_at == 0
    assert later.prepared == [(1, 6, 8)]


def test_the_next_job_begins_on_what_is_ready(pair):
    now, later = pair
    engine = SwitchingEngine(now, later, every=4)
    levels(engine, range(2))
    finish(engine, later)
    assert levels(engine, range(2)) == [0.75] * 2
    assert engine.switched_at == 0


def test_repeated_frames_are_counted_though_nobody_computes_them(pair):
    now, later = pair
    engine = SwitchingEngine(now, later, every=4)
    levels(engine, range(1))
    finish(engine, later)
    for number in range(1, 5):
        engine.frame_begins(number)  # without a call
    assert engine.switched_at == 4


def test_all_tiles_of_a_frame_come_from_one_engine(pair):
    now, later = pair
    engine = TiledEngine(SwitchingEngine(now, later, every=2), 16)
    engine.frame_begins(0)
    engine(torch.rand(1, 3, 40, 40))
    finish(engine._engine, later)
    for number, level in [(1, 0.25), (2, 0.75)]:
        engine.frame_begins(number)
        assert set(engine(torch.rand(1, 3, 40, 40)).unique().tolist()) == {level}
    engine.close()


def test_a_build_that_fails_is_an_error_at_the_next_run_not_a_silent_fallback(pair):
    now, later = pair
    later.error = EngineBuildError("48.1 dB")
    engine = SwitchingEngine(now, later, every=2)
    levels(engine, range(1))
    finish(engine, later)
    assert levels(engine, range(1, 2)) == [0.25]
    with pytest.raises(EngineBuildError, match=r"48\.1 dB"):
        engine.frame_begins(2)
    engine.close()


def test_closing_before_it_is_ready_gives_the_build_up_and_says_so(pair, caplog):
    now, later = pair
    engine = SwitchingEngine(now, later, every=2)
    levels(engine, range(3))
    engine.close()
    assert later.cancelled
    assert not engine._thread.is_alive()
    assert "was not ready before the last frame" in caplog.text


def test_the_switch_is_logged_with_its_frame(pair, caplog):
    now, later = pair
    engine = SwitchingEngine(now, later, every=2)
    levels(engine, range(1))
    finish(engine, later)
    levels(engine, range(1, 3))
    assert "from frame 2 on: level 0.75" in caplog.text
    assert engine.backend == "level 0.75"
    assert engine.description.startswith("level 0.25")


def test_engines_that_do_not_fit_together_are_refused(model):
    other = Constant(model, 0.5)
    other.scale = 2
    with pytest.raises(ValueError, match="cannot take over"):
        SwitchingEngine(Constant(model, 0.5), other, every=4)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        SwitchingEngine(Constant(model, 0.5), Constant(model, 0.5), every=0)


def test_the_second_engine_is_made_once_the_first_has_run(pair, monkeypatch):
    now, later = pair
    order = []
    for engine, what in ((now, "_run"), (later, "prepare")):
        work = getattr(engine, what)
        monkeypatch.setattr(
            engine, what, lambda *given, what=what, work=work: (order.append(what), work(*given))[1]
        )
    engine = SwitchingEngine(now, later, every=2)
    levels(engine, range(1))
    finish(engine, later)
    assert order == ["_run", "prepare"]
    engine.close()
