"""The probe of TensorRT: how far it comes, and what it says of the step that stops it."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import rtx_probe
from engines.errors import BackendUnavailable


def run(capsys, *arguments):
    assert rtx_probe.main(["--size", "32x24", "--network", "srgan-lite", *arguments]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last)


def test_a_missing_library_is_the_answer_and_no_failure(monkeypatch, capsys, tmp_path):
    def absent():
        raise BackendUnavailable("backend 'tensorrt' needs TensorRT")

    monkeypatch.setattr(rtx_probe, "find_tensorrt", absent)
    lines, document = run(capsys, "--json", str(tmp_path / "p.json"))
    assert json.loads((tmp_path / "p.json").read_text()) == document
    assert document["runs"] is False
    assert list(document["steps"]) == ["find"]
    assert "BackendUnavailable: backend 'tensorrt' needs" in document["steps"]["find"]["error"]
    assert lines[0].startswith("find")


def test_the_step_that_fails_is_the_last_one_and_has_the_librarys_word(monkeypatch, capsys):
    class Library:
        flavour, version, last_error = "tensorrt_rtx", "1.7", "no kernel for this GPU"

    def refuse(*_):
        raise RuntimeError("cannot\nbuild")

    monkeypatch.setattr(rtx_probe, "find_tensorrt", Library)
    monkeypatch.setattr(rtx_probe, "export_onnx", lambda *_, **__: b"graph")
    monkeypatch.setattr(rtx_probe, "build_engine", refuse)
    lines, document = run(capsys)
    steps = document["steps"]
    assert list(steps) == ["find", "export", "build"]
    assert steps["export"]["bytes"] == 5
    assert steps["build"]["error"] == "RuntimeError: cannot build"
    assert steps["build"]["last_message"] == "no kernel for this GPU"
    assert all(step["seconds"] >= 0 for step in steps.values())
    assert len(lines) == 3


def test_a_size_that_is_none_is_one_line(capsys):
    assert rtx_probe.main(["--size", "48"]) == 1
    assert capsys.readouterr().err == "rtx_probe: error: expected --size WIDTHxHEIGHT, got 48\n"


@pytest.mark.slow
@pytest.mark.tensorrt
@pytest.mark.skipif(torch.cuda.is_available(), reason="there it goes on")
def test_without_a_gpu_it_builds_and_stops_at_loading(capsys):
    pytest.importorskip("tensorrt_rtx")
    _, document = run(capsys)
    steps = document["steps"]
    assert list(steps) == ["find", "export", "build", "load"]
    assert steps["build"]["bytes"] > 10_000
    assert "error" in steps["load"]


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_on_a_gpu_it_answers(capsys):
    _, document = run(capsys)
    last = list(document["steps"].values())[-1]
    assert document["runs"] == ("error" not in last)
    if document["runs"]:
        assert document["steps"]["run"]["largest_difference"] < 0.02
        assert document["steps"]["graph"]["same_result"]
