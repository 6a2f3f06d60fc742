from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def presets(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("presets")


def test_each_preset_is_measured_at_each_quality(presets, tmp_path, capsys):
    assert presets.main(["--smoke", "--json", str(tmp_path / "p.json")]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert json.loads((tmp_path / "p.json").read_text()) == document
    rows = {(row["preset"], row["crf"]): row for row in document["rows"]}
    assert list(rows) == [(p, q) for p in presets.PRESETS for q in presets.QUALITIES]
    for preset in presets.PRESETS:
        better, worse = rows[preset, 15], rows[preset, 16]
        assert better["kilobytes"] > worse["kilobytes"]
        assert better["psnr_y"] > worse["psnr_y"] > 30
        assert sum(line.startswith(f"{preset} ") for line in table) == 2


def test_no_frames_are_one_line(presets, capsys):
    assert presets.main(["--frames", "0"]) == 1
    assert capsys.readouterr().err == "presets: error: frames must be at least 1, got 0\n"
