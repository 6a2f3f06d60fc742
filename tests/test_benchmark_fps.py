from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from engines import BACKENDS
from engines.weights import load_model

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def fps(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("fps")


def test_every_stage_of_every_back_end_is_measured(tmp_path):
    command = [sys.executable, "benchmarks/fps.py", "--smoke", "--threads", "1"]
    command += ["--json", tmp_path / "f.json", "--plot", tmp_path / "f.png"]
    command += ["--precision", "fp32"]  # each costs a process that imports everything
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    *table, last = result.stdout.splitlines()
    document = json.loads(last)
    assert json.loads((tmp_path / "f.json").read_text()) == document
    assert not list(tmp_path.glob("*.partial"))
    assert str(tmp_path) not in last  # a result names no path of the machine
    with Image.open(tmp_path / "f.png") as figure:
        assert figure.width > 400

    rows = {f"{row['backend']} {row['precision']}": row for row in document["rows"]}
    assert rows.keys() | document["absent"].keys() == {
        "pytorch fp32", "openvino fp32", "tensorrt fp32",
    }  # fmt: skip
    assert "pytorch fp32" in rows
    for row in rows.values():
        assert row["sha256"] == load_model(row["model"]).sha256
        stages = row["stages"]
        back = ["convert back"] if row["backend"] == "pytorch" else []  # OpenVINO makes the planes
        assert list(stages) == ["decode", "convert", "engine", *back, "encode"]
        assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1, abs=0.01)
        alone = ("engine alone", row["engine_alone"])
        for name, figures in [*stages.items(), alone, *row["end_to_end"].items()]:
            assert 0 < figures["median_ms"] <= figures["p95_ms"]
            assert figures["fps"] > 0
            assert figures["cpu_ms"] > 0
            start = (f"{name}  ", f"end to end, {name}  ")
            cells = {f"{figures['median_ms']:.2f}", f"{figures['fps']:.2f}"}
            lines = [line.split() for line in table if line.startswith(start)]
            assert sum(cells <= set(line) for line in lines) == 1
        assert row["end_to_end"].keys() == {"null sink", "encoder"}
        pixels = 32 * 48
        roofline = row["roofline"]
        rate = roofline["ceiling_fps"] * roofline["macs_per_lr_pixel"] * pixels
        assert rate == pytest.approx(document["matrix_macs_per_second"], rel=1e-3)
        assert roofline["share_reached"] == pytest.approx(
            row["engine_alone"]["fps"] / roofline["ceiling_fps"], abs=1e-3
        )
        assert row["peak_bytes"] > 50_000_000
        assert row["load_seconds"] > 0


def test_the_warm_up_does_not_count_and_the_flush_does(fps, monkeypatch):
    seconds = iter([5.0, 9.0, 9.1, 9.3, 9.5, 10.5])  # the last: after the flush
    cpu = iter([2.0, 3.5])
    monkeypatch.setattr(fps.time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(fps.time, "process_time", lambda: next(cpu))
    clock = fps.Clock(warm_up=2)
    for _ in range(5):
        clock.tick()
    assert clock.stop() == {"median_ms": 200, "p95_ms": 200, "fps": 2, "cpu_ms": 500}


def test_the_matrix_rate_counts_multiplications_of_the_quicker_library(fps, monkeypatch):
    seconds = iter([0, 3, 3, 4, *range(10, 26)])  # NumPy 3 s, PyTorch 1 s, then 1 s each
    monkeypatch.setattr(fps.time, "perf_counter", lambda: next(seconds))
    assert fps.matrix_rate(10) == 1000


def test_the_matrix_rate_is_the_best_of_the_looks_at_it(fps, monkeypatch):
    seconds = iter([*range(0, 60, 3), *range(100, 120)])  # a slow burst, then one at a second each
    pauses = []
    monkeypatch.setattr(fps.time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(fps.time, "sleep", pauses.append)
    assert fps.matrix_rate(10, rounds=2) == 1000
    assert pauses == [0, fps.MATRIX_PAUSE]


def test_a_back_end_that_is_not_there_is_a_line_and_no_row(fps, monkeypatch, capsys, tmp_path):
    class Refusing:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, *_):
            raise fps.BackendUnavailable("needs what is not there")

    monkeypatch.setattr(fps, "ProcessPoolExecutor", Refusing)
    monkeypatch.setattr(fps, "matrix_rate", lambda side, rounds: 1e9)
    document = fps.measure(REPOSITORY / "samples" / "bbb.mp4", fps.Protocol(size=(32, 48)))
    assert document["rows"] == []
    assert document["absent"].keys() >= {"openvino fp32", "openvino int8", "pytorch fp32"}
    assert set(document["absent"].values()) == {"needs what is not there"}
    assert "openvino int8: needs what is not there" in capsys.readouterr().out


def test_each_precision_of_each_back_end_is_measured_or_the_one_that_is_asked_for(fps):
    every = fps.kinds(fps.Protocol())
    assert {backend for backend, _ in every} == BACKENDS.keys()
    assert {("openvino", "fp32"), ("openvino", "int8"), ("openvino", "bf16")} <= set(every)
    half = fps.kinds(fps.Protocol(precision="fp16"))
    assert half == [("pytorch", "fp16"), ("tensorrt", "fp16")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip", "absent.mp4"], "cannot read absent.mp4"),
        (["--size", "48"], "expected --size WIDTHxHEIGHT, got 48"),
        (["--size", "47x32"], "size must be even and at least 16x16"),
        (["--frames", "2"], "frames must be at least 3, got 2"),
        (["--threads", "0"], "threads must be 1 to 256, got 0"),
        (["--plot", "figure.svg"], "--plot writes a .png, got figure.svg"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_exit_code_1(fps, capsys, arguments, message):
    assert fps.main(["--smoke", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fps: error: ")
    assert message in line


def test_without_matplotlib_a_plot_is_refused_before_the_work(fps, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert fps.main(["--smoke", "--plot", "figure.png"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "--plot needs matplotlib: pip install -e '.[plot]'" in output.err
