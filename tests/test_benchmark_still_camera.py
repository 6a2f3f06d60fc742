from __future__ import annotations

import importlib
import json
from pathlib import Path

import av
import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def still_camera(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("still_camera")


def test_the_files_are_the_same_with_and_without(still_camera, tmp_path, capsys):
    assert still_camera.main(["--smoke", "--json", str(tmp_path / "s.json")]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert json.loads((tmp_path / "s.json").read_text()) == document
    assert [row["noise"] for row in document["rows"]] == [0, 1, 2]
    for row in document["rows"]:
        assert row["same_file"]
        assert row["factor"] == pytest.approx(
            row["whole_seconds"] / row["changed_only_seconds"], rel=0.1
        )
        assert row["threshold_psnr_y"] is None or row["threshold_psnr_y"] > 30
        assert sum(line.startswith(f"{row['noise']} ") for line in table) == 1


def test_someone_walks_through_a_view_that_stands_still(still_camera, tmp_path):
    path = still_camera.write_scene(tmp_path / "scene.mp4", (128, 160), 40, 0)
    with av.open(str(path)) as container:
        frames = [
            frame.to_ndarray(format="gray").astype(int) for frame in container.decode(video=0)
        ]
    assert len(frames) == 40
    quiet, walking = abs(frames[5] - frames[4]), abs(frames[21] - frames[19])
    assert quiet.max() <= 3
    assert walking[50:].max() > 20
    assert np.median(walking) == 0


def test_too_few_frames_are_one_line(still_camera, capsys):
    assert still_camera.main(["--frames", "3"]) == 1
    assert capsys.readouterr().err == "still_camera: error: frames must be at least 4, got 3\n"
