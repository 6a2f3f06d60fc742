"""The durability benchmark can tell a wrong from a right."""

from __future__ import annotations

import sys
from itertools import count

import pytest

from benchmarks import durability
from benchmarks.durability import long_clip, unlike_one_line, without


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_growing_memory_and_files_are_found(tmp_path, monkeypatch):
    megabytes, files = count(100 << 20, 4 << 20), count(5)
    monkeypatch.setattr(durability, "SAMPLE_SECONDS", 0.005)
    monkeypatch.setattr(durability, "resident_bytes", lambda _: next(megabytes))
    monkeypatch.setattr(durability, "open_files", lambda _: next(files))
    found = long_clip(tmp_path, 600)
    memory, opened = found["wrong"]
    assert memory.startswith("memory grew from ")
    assert opened.startswith("open files grew from ")
    assert found["frames"] == 600


def test_an_error_is_one_line_and_no_output(tmp_path):
    line = "vsr: error: cannot write out.mp4: no space left on device"
    output = tmp_path / "out.mp4"
    assert unlike_one_line(1, f"vsr: warning: 250 frames are kept\n{line}", output) == []
    for code, said in ((0, line), (1, f"{line}\n{line}"), (1, ""), (1, f"Traceback\n{line}")):
        assert len(unlike_one_line(code, said, output)) == 1
    output.touch()
    assert unlike_one_line(1, line, output) == ["an output in spite of the error"]


def test_messages_do_not_name_a_temporary_folder(tmp_path):
    assert without(f"vsr: error: {tmp_path}/a.mp4 is no clip", tmp_path) == (
        "vsr: error: a.mp4 is no clip"
    )
