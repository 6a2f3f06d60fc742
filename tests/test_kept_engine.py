"""One engine for many jobs, and the job that changes its engine on the way."""

from __future__ import annotations

import json
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from conftest import write_clip

import engines
from engines import Building, EngineBuildError, load_model
from engines.base import CompiledEngine, Engine
from engines.pytorch import PyTorchEngine
from vsr import kept_engine, segments
from vsr.cli import main
from vsr.config import UpscaleConfig
from vsr.kept_engine import KeptEngine
from vsr.pipeline import run
from vsr.stages import announced

PATIENCE_SECONDS = 20
SIZE = (38, 50)


class Counting(PyTorchEngine, CompiledEngine):
    """Counts what is made and closed, and builds when told so."""

    made: list[Counting]
    building_shares = (0.0, 1.0)
    long = False
    may_finish: Event

    def __init__(self, model, *, building=None, **settings) -> None:
        super().__init__(model, **settings)
        self.backend, self.building = "tensorrt", building
        self.closed = 0
        Counting.made.append(self)

    def takes_long(self, shape) -> bool:
        return self.long

    def prepare(self, shape) -> None:
        if self.building is not None:
            for share in self.building_shares:
                self.building(Building(shape, share))
        assert not self.long or self.may_finish.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def made(monkeypatch):
    """The engines that stand in for TensorRT's."""
    monkeypatch.setattr(Counting, "made", [], raising=False)
    monkeypatch.setattr(Counting, "may_finish", Event(), raising=False)
    monkeypatch.setattr(Counting, "long", False)
    home = dict(engines.BACKENDS) | {"tensorrt": (__name__, "Counting")}
    monkeypatch.setattr(engines, "BACKENDS", home)
    yield Counting.made
    Counting.may_finish.set()


@pytest.fixture
def config(tiny_weights, plain_clip):
    return UpscaleConfig(plain_clip, model=tiny_weights, backend="tensorrt", precision="fp32")


def upscale(capsys, *arguments: object) -> tuple[int, list[str], list[str]]:
    code = main(["upscale", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


def test_jobs_that_ask_for_the_same_share_an_engine_and_others_do_not(made, config, tiny_weights):
    model = load_model(tiny_weights)
    with KeptEngine() as kept:
        first = kept.engine(config, model, SIZE)
        assert kept.engine(replace(config, crf=3, tile=32), model, (7, 9)) is first
        for other, weights in [
            (replace(config, threads=1), model),
            (config, replace(model, sha256="other")),
            (replace(config, precision="auto"), model),
        ]:
            before = made[-1]
            assert kept.engine(other, weights, SIZE) is not before
            assert before.closed == 1
        assert made[-1].closed == 0
    assert [engine.closed for engine in made] == [1] * 4


def test_tiles_stay_as_they_are_while_the_engine_is_kept(made, config):
    model, sides = load_model(config.model), iter([64, 32, 16])
    with KeptEngine() as kept:
        kept.engine(config, model, SIZE)
        found = [kept.tile_side(config, SIZE, lambda: next(sides)) for _ in range(2)]
        assert found == [64, 64]
        assert kept.tile_side(config, (7, 9), lambda: next(sides)) == 32
        kept.close()
        assert kept.tile_side(config, SIZE, lambda: next(sides)) == 16


def test_a_folder_of_clips_takes_one_engine_and_closes_it(made, tmp_path, tiny_weights, capsys):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_clip(tmp_path / name)
    order = (tmp_path, "--weights", tiny_weights, "--backend", "tensorrt")
    code, out, _ = upscale(capsys, *order)
    assert (code, out[-1]) == (0, "3 inputs: 3 done, 0 skipped, 0 failed")
    assert [engine.closed for engine in made] == [1]


def test_a_job_that_fails_takes_its_engine_along(made, config, tmp_path, monkeypatch):
    def fail(self, frames):
        raise RuntimeError("kernel")

    config = replace(config, output=tmp_path / "out.mp4")
    with KeptEngine() as kept:
        with monkeypatch.context() as patch:
            patch.setattr(Counting, "_run", fail)
            with pytest.raises(RuntimeError, match="kernel"):
                run(config, lambda _: None, kept=kept)
        assert [engine.closed for engine in made] == [1]
        assert run(config, lambda _: None, kept=kept).frames == 10
    assert [engine.closed for engine in made] == [1, 1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals to one thread are POSIX")
def test_ctrl_c_gives_up_a_build_before_it_waits_for_the_stage(made, config, tmp_path, monkeypatch):
    """The engine's thread ends only if `cancel` comes before the stages are closed."""
    given_up: list[bool] = []

    def build(self, frames):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        given_up.append(self.may_finish.wait(PATIENCE_SECONDS))
        raise EngineBuildError("given up")

    monkeypatch.setattr(Counting, "_run", build)
    monkeypatch.setattr(Counting, "cancel", lambda self: self.may_finish.set())
    config = replace(config, output=tmp_path / "out.mp4")
    with KeptEngine() as kept, pytest.raises(KeyboardInterrupt):
        run(config, lambda _: None, kept=kept)
    assert given_up == [True]
    assert list(tmp_path.iterdir()) == []


# --- starting now ---------------------------------------------------------------------------------


class Later(Counting):
    """Gives a picture of one level, so that one can see who computed a frame."""

    def _run(self, frames):
        return torch.full_like(super()._run(frames), 0.9)


def frames_are_bright(path: Path) -> list[bool]:
    from vsr.video import Reader

    with Reader(path) as reader:
        return [bool(frame.value[0].float().mean() > 200) for frame in reader.frames()]


@pytest.fixture
def starting(made, monkeypatch):
    """Segments of three frames, and a build that ends when the second segment has begun."""
    monkeypatch.setattr(engines, "BACKENDS", engines.BACKENDS | {"tensorrt": (__name__, "Later")})
    monkeypatch.setattr(segments, "SEGMENT_FRAMES", 3)
    monkeypatch.setattr(Counting, "long", True)

    real = kept_engine.SwitchingEngine.frame_begins

    def on_cue(self, number):
        if number == 4:
            Counting.may_finish.set()
            self._thread.join(PATIENCE_SECONDS)
        real(self, number)

    monkeypatch.setattr(kept_engine.SwitchingEngine, "frame_begins", on_cue)


def test_a_clip_that_starts_now_changes_over_at_a_segment_and_says_where(
    starting, made, tmp_path, tiny_weights, capsys
):
    clip, output = write_clip(tmp_path / "a.mp4"), tmp_path / "out.mp4"
    order = (clip, "-o", output, "--weights", tiny_weights, "--backend", "tensorrt", "--start-now")
    code, out, err = upscale(capsys, *order, "--json", "--progress", "json")
    result = json.loads(out[0])
    assert code == 0
    assert (result["frames"], result["switched_at"], result["backend"]) == (10, 6, "tensorrt")
    assert frames_are_bright(output) == [False] * 6 + [True] * 4
    assert [line for line in err if "from frame 6 on: tensorrt" in line]
    built = [json.loads(line)["building"] for line in err if line.startswith('{"building"')]
    assert [entry["share"] for entry in built] == [0.0, 1.0]
    assert built[0]["width"] == 50


def test_without_it_one_engine_makes_the_whole_clip(made, monkeypatch, config, tmp_path):
    with KeptEngine() as kept:
        result = run(replace(config, output=tmp_path / "out.mp4"), lambda _: None, kept=kept)
        assert isinstance(kept._engine, Engine)
    assert result.switched_at is None


def test_clips_of_another_size_do_not_share_a_switch(made, config, tiny_weights):
    config, model = replace(config, start_now=True), load_model(tiny_weights)
    with KeptEngine() as kept:
        first = kept.engine(config, model, SIZE)
        assert kept.engine(config, model, SIZE) is first
        assert kept.engine(config, model, (8, 8)) is not first


def test_a_journal_of_a_run_that_started_now_is_not_gone_on_with_without_it(config, made):
    from vsr.job_key import job_key

    model = load_model(config.model)
    with KeptEngine() as kept:
        engine = kept.engine(config, model, SIZE)
        keys = [
            job_key(replace(config, start_now=now), model, engine, SIZE, decoder="cpu")
            for now in (False, True)
        ]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start-now"], "start_now needs backend tensorrt, got auto"),
        (
            ["--start-now", "--changed-only", "--backend", "tensorrt"],
            "give start_now or changed_only, not both",
        ),
    ],
)
def test_what_does_not_go_with_it_is_wrong_usage(arguments, message, plain_clip, capsys):
    code, _, err = upscale(capsys, plain_clip, *arguments)
    assert (code, len(err)) == (2, 1)
    assert message in err[0]


def test_each_frame_is_announced_before_it_is_computed(made, config):
    model, order = load_model(config.model), []
    with KeptEngine() as kept:
        engine = kept.engine(config, model, SIZE)
        engine.frame_begins = lambda number: order.append(number)
        for frame in announced(iter("ab"), engine):
            order += [frame.upper()]
    assert order == [0, "A", 1, "B"]
