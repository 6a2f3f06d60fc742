"""Damaged clips: as far as they decode, or one clear line; no traceback, no hang, nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from conftest import write_clip
from mutating import MUTATIONS, mutate, top_level_atoms

TIMES = tuple(range(0, 1000, 40))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    """A second each, in the containers and codecs that people have."""
    folder = tmp_path_factory.mktemp("clips")
    milliseconds, frames = Fraction(1, 1000), Fraction(1, 25)
    return [
        write_clip(folder / "a.mp4", audio_seconds=1),
        write_clip(
            folder / "b.mkv", pts=TIMES, time_base=milliseconds, codec="libx265", size=(64, 80)
        ),
        write_clip(
            folder / "c.avi", pts=tuple(range(25)), time_base=frames, codec="mpeg4",
            audio_seconds=1,
        ),
        write_clip(folder / "d.webm", pts=TIMES, time_base=milliseconds, codec="libvpx-vp9"),
        write_clip(folder / "e.ts", pts=tuple(range(0, 90000, 3600)), time_base=Fraction(1, 90000)),
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
@pytest.mark.parametrize(
    "count", [20, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(1600)])]
)
def test_a_damaged_clip_is_no_disaster(count, clips, tiny_weights, tmp_path):
    script = Path(__file__).with_name("mutating.py")
    environment = os.environ | {"PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, tiny_weights, str(count), "6", *clips],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=5 * count,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert sum(found["codes"].values()) == count
    assert min(found["codes"][code] for code in "01") >= count // 10  # it meets both ends


def test_each_mutation_changes_the_clip(clips):
    data = clips[0].read_bytes()
    assert len(top_level_atoms(data)) >= 3
    for kind in MUTATIONS:
        mutants = {mutate(data, kind, Random(seed)) for seed in range(5)}
        assert len(mutants - {data}) >= 3, kind
