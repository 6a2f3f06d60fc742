"""The GPU's part of the speed benchmark: its plan, that nothing stops it, and its statistics."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path

import gpu_workers
import pytest
import torch

from benchmarks import gpu, gpu_launches, gpu_rows
from benchmarks.gpu import PAPER, SIZES, Row, plan, run
from engines.errors import BackendUnavailable

REPOSITORY = Path(__file__).parents[1]


class SimulatedGpu(gpu_launches.Gpu):
    """Streams whose work takes as long as `work` says; launching it takes the host no time."""

    def __init__(self, batch_ms: float = 4.0) -> None:
        self.device = torch.device("cpu")
        self.batch_ms = batch_ms
        self.host = 0.0
        self.free_at: dict[int, float] = {}
        self.in_use = 0
        self.launched: list[int] = []

    def seconds(self):
        return self.host

    def synchronize(self):
        self.host = max([self.host, *self.free_at.values()])

    def stream(self):
        self.free_at[len(self.free_at)] = 0.0
        return len(self.free_at) - 1

    @contextmanager
    def using(self, stream):
        self.in_use = stream
        yield
        self.in_use = 0

    def mark(self):
        return max(self.host, self.free_at.setdefault(self.in_use, 0.0))

    def between_ms(self, first, second):
        return 1000 * (second - first)

    def used_bytes(self):
        return 1 << 30

    def work(self):
        self.launched.append(self.in_use)
        start = max(self.host, self.free_at[self.in_use])
        self.free_at[self.in_use] = start + self.batch_ms / 1000


# --------------------------------------------------------------------------------------------------
# The plan
# --------------------------------------------------------------------------------------------------


def test_the_plan_measures_what_it_is_to_answer():
    rows = plan("srgan-lite")
    assert rows[0].kind == "rates"
    assert len({row.title for row in rows}) == len(rows)
    engine = [row for row in rows if row.kind == "engine"]
    for runner in ("eager", "compile", "tensorrt"):
        for network in ("srgan-lite", PAPER):
            mine = [r for r in engine if (r.runner, r.network, r.name) == (runner, network, "270p")]
            assert {row.batch for row in mine} == {1, 2, 4}
            assert {row.contexts for row in mine} == {1, 2, 3}
            assert {row.graph for row in mine} == {True, False}
            assert {row.algebra for row in mine} == {True, False}
    assert {row.kind for row in rows} == {"rates", "engine", "null sink", "end to end"}
    for kind in ("null sink", "end to end"):
        mine = [row for row in rows if row.kind == kind]
        assert {row.size for row in mine} == set(SIZES.values())
        assert {row.decoder for row in mine} == {"cpu", "nvdec"}
        assert {row.runner for row in mine} == {"pytorch", "tensorrt"}
    assert {row.tile for row in rows if row.name == "1080p"} == {gpu.TILE}
    assert {row.tile for row in rows if row.name != "1080p"} == {None}


def test_one_thing_at_a_time_differs_from_a_runners_first_row():
    rows = [row for row in plan("srgan-lite") if row.kind == "engine" and row.name == "270p"]
    first = {}
    for row in rows:
        base = first.setdefault((row.runner, row.network), row)
        changed = [f.name for f in fields(Row) if getattr(row, f.name) != getattr(base, f.name)]
        assert len(changed) == (row is not base)


def test_smoke_rows_are_tiny_and_all_there():
    rows, tiny = plan("srgan-lite"), plan("srgan-lite", smoke=True)
    assert [row.kind for row in tiny] == [row.kind for row in rows]
    assert {row.size for row in tiny} == {(32, 48)}
    assert max(row.frames for row in tiny) <= 6


# --------------------------------------------------------------------------------------------------
# Running it
# --------------------------------------------------------------------------------------------------


def test_a_row_that_fails_hangs_or_kills_its_process_does_not_stop_the_others():
    rows = [
        Row("rates"),
        Row("engine", "eager"),
        Row("engine", "compile"),  # dies
        Row("engine", "pytorch"),  # is not there
        Row("engine", "eager", batch=2),
        Row("engine", "onnxruntime"),  # hangs
        Row("engine", "tensorrt"),  # breaks the GPU for its process
        Row("null sink", "eager"),
    ]
    lines: list[str] = []
    document = run(rows, gpu_workers.by_runner, seconds=60, show=lines.append, row_seconds=1.5)
    assert json.loads(json.dumps(document))["environment"] == {"device": "simulated"}
    first, dead, absent, second, hung, broken, null = document["rows"]
    assert [row["title"] for row in document["rows"]] == [row.title for row in rows[1:]]
    assert "ended with exit code 3" in dead["error"]
    assert absent["error"] == "BackendUnavailable: not there"
    assert hung["error"] == "no result after 1.5 s"
    assert "illegal address" in broken["error"]
    assert "broken" not in broken
    assert first["pid"] != second["pid"] != null["pid"]
    pixels = 270 * 480
    assert first["ceiling_fps"] == {"matrices": pytest.approx(1e15 / (1e7 * pixels), abs=0.01)}
    assert null["ceiling_fps"]["copies"] == pytest.approx(1e10 / (24 * pixels), abs=0.01)
    assert null["share_reached"]["copies"] == pytest.approx(100 * 24 * pixels / 1e10, abs=1e-4)
    assert len(lines) == len(rows)
    assert "100.0 frames/s, median 10.000 ms, p95 11.000 ms, 13% of matrices" in lines[1]
    assert lines[2].endswith(dead["error"])


def test_a_process_goes_on_from_row_to_row():
    rows = [Row("engine", batch=batch) for batch in (1, 2, 4)]
    document = run(rows, gpu_workers.well_behaved, seconds=60, show=str)
    (pid,) = {row["pid"] for row in document["rows"]}
    assert pid != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_that_does_not_start_is_an_error_of_each_row():
    document = run(
        [Row("engine")] * 2, gpu_workers.never_ready, seconds=60, show=str, start_seconds=0.3
    )
    assert [row["error"] for row in document["rows"]] == ["no result after 0.3 s"] * 2


def test_rows_for_which_no_time_is_left_say_so():
    document = run([Row("engine")] * 2, gpu_workers.well_behaved, seconds=0, show=str)
    assert [row["error"] for row in document["rows"]] == ["not measured: the 0 s are over"] * 2


# --------------------------------------------------------------------------------------------------
# Statistics
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contexts", [1, 3])
def test_contexts_share_the_time_and_a_batch_counts_all_its_frames(contexts):
    device = SimulatedGpu(batch_ms=4)
    launches = [(device.stream(), device.work) for _ in range(contexts)]
    figures = gpu_rows.paced(launches, device, batch=2, seconds=0.4)
    assert figures["fps"] == pytest.approx(contexts * 2 / 0.004)
    assert figures["median_ms"] == figures["p95_ms"] == pytest.approx(4)
    assert figures["batches"] == 100 * contexts
    assert Counter(device.launched).keys() == set(range(contexts))
    assert len(set(Counter(device.launched).values())) == 1


def test_a_slow_batch_shows_in_the_95th_percentile_and_not_in_the_median():
    device = SimulatedGpu(batch_ms=1)
    launched = 0

    def launch():
        nonlocal launched
        launched += 1
        device.batch_ms = 9 if launched % 10 == 0 else 1
        device.work()

    figures = gpu_rows.paced([(device.stream(), launch)], device, batch=1, seconds=0.1)
    assert figures["median_ms"] == pytest.approx(1)
    assert figures["p95_ms"] == pytest.approx(9)


def test_slow_work_is_measured_ten_times_all_the_same():
    device = SimulatedGpu(batch_ms=3000)
    figures = gpu_rows.paced([(device.stream(), device.work)], device, batch=1, seconds=1)
    assert figures["batches"] == 10


def test_the_fastest_of_many_is_the_rate():
    device = SimulatedGpu()
    device.stream()
    times = iter([50, 50, 50, *([7] * 9), 2])

    def launch():
        device.batch_ms = next(times)
        device.work()

    assert gpu_rows._fastest(launch, device) == pytest.approx(0.002)


# --------------------------------------------------------------------------------------------------
# Rows
# --------------------------------------------------------------------------------------------------


def measured(row, tmp_path, device=None):
    return gpu_rows.measure(
        row, device or SimulatedGpu(), REPOSITORY / "samples" / "bbb.mp4", tmp_path, True
    )


@pytest.mark.parametrize("algebra", [True, False])
def test_an_engine_row_names_the_work_of_its_network(tmp_path, monkeypatch, algebra):
    monkeypatch.setattr(gpu_rows, "launches_of", lambda row, model, device, stack: [
        (device.stream(), device.work)
    ])  # fmt: skip
    row = Row("engine", network="srgan-lite", size=(16, 16), algebra=algebra)
    result = measured(row, tmp_path)
    assert result["scale"] == 4
    assert 90_000 < result["macs_per_lr_pixel"] < 110_000  # all 98,320 weights at low resolution
    assert result["fps"] == pytest.approx(250)
    assert result["used_bytes"] == 1 << 30


@pytest.mark.parametrize("algebra", [True, False])
def test_the_papers_generator_runs_in_half_precision_in_both_forms(algebra):
    row = Row("engine", "eager", size=(16, 16), algebra=algebra, graph=False)
    net = gpu_launches._module(row, gpu_rows.network(PAPER))
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float16}
    assert {p.dtype for p in gpu_rows.network(PAPER).net.parameters()} == {torch.float32}


def test_a_plain_engine_row_runs_the_rewritten_network():
    row = Row("engine", "eager", "srgan-lite", size=(16, 16), batch=2, contexts=2, graph=False)
    model = gpu_rows.network("srgan-lite")
    with ExitStack() as stack:
        launches = gpu_launches.launches_of(row, model, SimulatedGpu(), stack)
        results = [launch() for _, launch in launches]
    assert [tuple(result.shape) for result in results] == [(2, 3, 64, 64)] * 2
    assert {result.dtype for result in results} == {torch.float16}
    assert not any(result.requires_grad for result in results)


def test_what_a_back_end_cannot_be_told_is_not_available(monkeypatch):
    from engines import trt

    class Plain:
        def __init__(self, model, *, rewrites=None):
            self.rewrites = rewrites

    monkeypatch.setattr(trt, "TensorRTEngine", Plain)
    model = gpu_rows.network("srgan-lite")
    row = Row("engine", "tensorrt", "srgan-lite")
    assert gpu_launches.engine_of(row, model).rewrites is None
    assert gpu_launches.engine_of(replace(row, algebra=False), model).rewrites == gpu_launches.NONE
    with pytest.raises(BackendUnavailable, match="TensorRTEngine has no graph"):
        gpu_launches.engine_of(replace(row, graph=False), model)


def test_contexts_of_a_back_end_are_engines_of_their_own(monkeypatch):
    closed = []

    class Counting:
        dtype = torch.float16

        def __call__(self, frames):
            return frames

        def close(self):
            closed.append(self)

    monkeypatch.setattr(gpu_launches, "engine_of", lambda row, model: Counting())
    monkeypatch.setattr(gpu_launches, "_parameters", lambda runner: {"rewrites"})
    row = Row("engine", "tensorrt", "srgan-lite", size=(8, 8), contexts=3, batch=2)
    with ExitStack() as stack:
        launches = gpu_launches.launches_of(row, None, SimulatedGpu(), stack)
        assert [stream for stream, _ in launches] == [0, 1, 2]
        assert {launch().shape for _, launch in launches} == {(2, 3, 8, 8)}
    assert len(set(closed)) == 3
    monkeypatch.setattr(gpu_launches, "_parameters", lambda runner: {"rewrites", "contexts"})
    with ExitStack() as stack:
        ((_, launch),) = gpu_launches.launches_of(row, None, SimulatedGpu(), stack)
        assert launch().shape == (3 * 2, 3, 8, 8)
    assert len(set(closed)) == 4


def test_a_launch_for_all_contexts_counts_the_frames_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_rows, "launches_of", lambda row, model, device, stack: [
        (device.stream(), device.work)
    ])  # fmt: skip
    row = Row("engine", "tensorrt", "srgan-lite", size=(16, 16), batch=2, contexts=3)
    assert measured(row, tmp_path)["fps"] == pytest.approx(6 / 0.004)


def test_the_null_sink_is_the_programs_own_chain(tmp_path):
    row = Row("null sink", "pytorch", "srgan-lite", size=(32, 48), frames=6, warm_up=1, graph=None)
    if torch.cuda.is_available():
        pytest.skip("on the CPU")
    result = measured(row, tmp_path)
    assert result["fps"] > 0
    whole = measured(replace(row, kind="end to end"), tmp_path)
    assert whole["fps"] > 0
    assert whole["reused_frames"] == 0


def test_a_missing_gpu_is_the_error_of_a_row():
    class Pipe:
        def __init__(self, rows):
            self.rows, self.sent = rows, []

        def recv(self):
            if not self.rows:
                raise EOFError
            return self.rows.pop(0)

        def send(self, what):
            self.sent.append(what)

    if torch.cuda.is_available():
        pytest.skip("there is one")
    pipe = Pipe([Row("rates")])
    gpu_rows.serve(pipe, REPOSITORY / "samples" / "bbb.mp4", True)
    ready, result = pipe.sent
    assert ready == "ready"
    assert result["error"].startswith("BackendUnavailable: no NVIDIA GPU")
    assert result["broken"] is False


# --------------------------------------------------------------------------------------------------
# The script
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def fps(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("fps")


def test_where_a_gpu_is_its_part_follows(fps, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fps, "measure", lambda *_: {"benchmark": "fps", "rows": []})
    asked = []

    def run_rows(rows, serve, *, seconds):
        asked.append((rows, seconds))
        return {"rows": [], "rates": {}}

    monkeypatch.setattr(gpu, "run", run_rows)
    assert fps.main(["--smoke"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["gpu"] == {"rows": [], "rates": {}}
    assert fps.main(["--smoke", "--gpu", "tensorrt, srgan,", "--gpu-seconds", "60"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document == {"benchmark": "fps", "gpu": {"rows": [], "rates": {}}}
    (everything, default), (some, seconds) = asked
    assert (default, seconds) == (540, 60)
    assert everything == plan("srgan-lite", smoke=True)
    assert some[0].kind == "rates"
    assert {(row.runner, row.network) for row in some[1:]} == {("tensorrt", "srgan")}


def test_gpu_without_one_is_an_error(fps, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fps.main(["--smoke", "--gpu"]) == 1
    assert "fps: error: --gpu needs an NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.timeout(280)
@pytest.mark.parametrize("text", ["engine, eager", "sink, pytorch", "end, pytorch"])
def test_the_gpus_part_runs_on_a_gpu(text):
    command = [sys.executable, "benchmarks/fps.py", "--smoke", "--gpu", text]
    result = subprocess.run(
        [*command, "--gpu-seconds", "240"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=270,
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout.splitlines()[-1])["gpu"]
    assert document["rates"]["matrix_macs_per_second"] > 1e11
    assert document["rows"]
    for row in document["rows"]:
        if row["decoder"] == "cpu":  # NVDEC and NVENC need not be there
            assert "error" not in row, row
            assert row["fps"] > 0
            assert row["ceiling_fps"].keys() >= {"matrices"}
