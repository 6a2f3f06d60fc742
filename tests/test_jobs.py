"""Several inputs in one command: each a job, and a bad one is no one else's trouble."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_clip
from media import probe
from PIL import Image

from engines.errors import MediaError
from vsr import jobs
from vsr.cli import main
from vsr.jobs import sources


@pytest.fixture
def folder(tmp_path) -> Path:
    """A bad clip between two good ones, a picture, and what is neither."""
    (tmp_path / "in").mkdir()
    write_clip(tmp_path / "in" / "a.mp4")
    (tmp_path / "in" / "bad.mp4").write_bytes(b"no clip" * 100)
    write_clip(tmp_path / "in" / "c.mkv")
    Image.fromarray(np.full((8, 12, 3), 90, np.uint8)).save(tmp_path / "in" / "d.jpg")
    (tmp_path / "in" / "notes.txt").write_text("not a clip")
    (tmp_path / "in" / ".hidden.mp4").write_text("not a clip")
    return tmp_path / "in"


def names_in(path: Path) -> list[str]:
    return sorted(found.name for found in path.iterdir())


def upscale(capsys, *arguments: object) -> tuple[int, list[str], list[str]]:
    code = main(["upscale", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


def test_one_bad_clip_does_not_stop_the_rest(folder, tiny_weights, capsys):
    code, out, err = upscale(capsys, folder, "--weights", tiny_weights)
    assert code == 1
    assert [line.split(": ")[0] for line in out[:3]] == [
        str(folder / name) for name in ("a_x2.mp4", "c_x2.mkv", "d_x2.png")
    ]
    assert out[3] == "4 inputs: 3 done, 0 skipped, 1 failed"
    assert out[4].startswith(f"  failed: {folder / 'bad.mp4'}: cannot read {folder / 'bad.mp4'}")
    assert len(err) == 1
    assert err[0].startswith(f"vsr: error: cannot read {folder / 'bad.mp4'}")
    assert len(probe(folder / "c_x2.mkv").pts_seconds) == 10


def test_the_same_command_again_goes_on_with_what_is_missing(folder, tiny_weights, capsys):
    arguments = (folder, "-o", f"{folder.parent / 'out'}/", "--weights", tiny_weights)
    upscale(capsys, *arguments)
    out = folder.parent / "out"
    assert names_in(out) == ["a_x2.mp4", "c_x2.mkv", "d_x2.png"]
    before = (out / "a_x2.mp4").stat().st_mtime_ns
    (out / "c_x2.mkv").unlink()
    write_clip(folder / "bad.mp4")
    code, lines, _ = upscale(capsys, *arguments)
    assert code == 0
    assert lines[2] == "4 inputs: 2 done, 2 skipped, 0 failed"
    assert lines[3].startswith(f"  skipped: {folder / 'a.mp4'}: {out / 'a_x2.mp4'} exists")
    assert names_in(out) == ["a_x2.mp4", "bad_x2.mp4", "c_x2.mkv", "d_x2.png"]
    assert (out / "a_x2.mp4").stat().st_mtime_ns == before


def test_outputs_beside_their_inputs_are_not_upscaled_again(folder, tiny_weights, capsys):
    (folder / "bad.mp4").unlink()
    upscale(capsys, folder, "--weights", tiny_weights)
    names = names_in(folder)
    code, lines, _ = upscale(capsys, folder, "--weights", tiny_weights)
    assert (code, lines[0]) == (0, "3 inputs: 0 done, 3 skipped, 0 failed")
    assert names_in(folder) == names


def test_an_output_among_the_named_inputs_is_left_out_and_said(tmp_path, tiny_weights, capsys):
    """As `vsr upscale *.mp4` names it the second time."""
    clip = write_clip(tmp_path / "a.mp4")
    upscale(capsys, clip, "--weights", tiny_weights)
    output = tmp_path / "a_x2.mp4"
    before = output.read_bytes()
    code, _, err = upscale(capsys, clip, output, "--weights", tiny_weights, "--overwrite")
    assert code == 0
    assert names_in(tmp_path) == ["a.mp4", "a_x2.mp4"]
    assert output.read_bytes() == before
    assert "a_x2.mp4 is left out: by its name it is the output of another input" in err[0]
    assert upscale(capsys, output, "--weights", tiny_weights)[0] == 0  # alone it is meant
    (tmp_path / "b").mkdir()
    named = [tmp_path / "b_x2.mp4", write_clip(tmp_path / "b" / "c.mp4")]
    assert sources([tmp_path / "b", named[0]]) == named[::-1]  # a folder has no output


def test_what_a_killed_run_has_left_is_no_input(tmp_path, tiny_weights, capsys):
    write_clip(tmp_path / "a.mp4")
    (tmp_path / "b.0a1b2c.partial.mp4").write_bytes(b"half")
    code, lines, _ = upscale(capsys, tmp_path, "--weights", tiny_weights)
    assert (code, lines[-1]) == (0, "1 inputs: 1 done, 0 skipped, 0 failed")


def test_inputs_that_would_share_an_output_are_not_mixed_up(tmp_path, tiny_weights, capsys):
    write_clip(tmp_path / "a.mp4")
    write_clip(tmp_path / "a.avi", codec="mpeg4")
    options = ("--weights", tiny_weights, "--overwrite")
    code, lines, _ = upscale(capsys, tmp_path / "a.mp4", tmp_path / "a.avi", *options)
    assert code == 1
    assert "would get the same output" in lines[-1]
    assert lines[-2] == "2 inputs: 1 done, 0 skipped, 1 failed"


def test_several_results_are_one_line_of_json(folder, tiny_weights, capsys):
    code, lines, _ = upscale(capsys, folder, "--weights", tiny_weights, "--json")
    assert (code, len(lines)) == (1, 1)
    found = json.loads(lines[0])["jobs"]
    assert [job["status"] for job in found] == ["done", "failed", "done", "done"]
    assert found[0]["output"] == str(folder / "a_x2.mp4")
    assert found[1]["reason"].startswith("cannot read")


def test_wrong_weights_are_told_once(folder, capsys):
    code, out, err = upscale(capsys, folder, "--model", "esrgan")
    assert (code, out, len(err)) == (1, [], 1)
    assert "built-in models" in err[0]


@pytest.mark.parametrize("more", [["-o", "out.mp4"], ["-o", "missing/out/"]])
def test_the_output_of_several_inputs_must_be_a_folder(more, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    code, _, err = upscale(capsys, folder, *more)
    assert (code, len(err)) == (1, 1)
    assert names_in(folder.parent) == ["in"]


def test_one_input_may_name_a_folder_for_its_output(tmp_path, tiny_weights, capsys):
    source = write_clip(tmp_path / "a.mp4")
    for output in ("new/", "new"):
        options = ("--weights", tiny_weights, "--overwrite")
        assert upscale(capsys, source, "-o", f"{tmp_path}/{output}", *options)[0] == 0
        assert names_in(tmp_path / "new") == ["a_x2.mp4"]


def test_an_interruption_says_how_far_it_got(folder, tiny_weights, capsys, monkeypatch):
    run_all = jobs.run_all

    def interrupted(configs, run_one):
        def once(config):
            if config.source.name == "c.mkv":
                raise KeyboardInterrupt
            return run_one(replace(config))

        return run_all(configs, once)

    monkeypatch.setattr(jobs, "run_all", interrupted)
    code, _, err = upscale(capsys, folder, "--weights", tiny_weights)
    assert code == 130
    assert err[-1] == "vsr: interrupted after 2 of 4 inputs: the same command goes on"


def test_a_folder_without_media_is_refused_and_order_is_by_name(tmp_path):
    with pytest.raises(MediaError, match="without a video or a picture"):
        sources([tmp_path])
    for name in ("b.mp4", "a.MKV", "a_x4.mp4", "c_640x480.mp4", "d.jp2"):
        (tmp_path / name).touch()
    named = tmp_path / "b.mp4"
    expected = ["b.mp4", "a.MKV", "c_640x480.mp4", "d.jp2"]
    assert [p.name for p in sources([named, tmp_path])] == expected
