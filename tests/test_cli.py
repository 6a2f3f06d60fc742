"""The command as a person meets it: results on stdout, one line on stderr, an exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import write_clip
from media import probe
from PIL import Image, ImageOps

from vsr.cli import main
from vsr.config import UpscaleConfig
from vsr.encode import ENCODERS
from vsr.stages import QUEUE_DEPTH, upscaled
from vsr.version import __version__

ROOT = Path(__file__).parents[1]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failure(capsys, *arguments: object) -> tuple[int, str]:
    """Run the command line; return its exit code and its one line of stderr."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return code, err.strip()


def test_upscale_writes_beside_the_input_and_says_so(tmp_path, tiny_weights, capsys):
    source = write_clip(tmp_path / "in.mp4")
    assert main(["upscale", str(source), "--weights", str(tiny_weights)]) == 0
    out, err = capsys.readouterr()
    assert re.search(
        r"in_x2.mp4: 10 frames, 50x38 to 100x76, .* fps\), tiny on \w+ (fp32|bf16)$", out
    )
    assert err == ""  # no bar where stderr is no terminal
    assert names_in(tmp_path) == ["in.mp4", "in_x2.mp4"]


def test_json_is_the_last_line_and_has_the_documented_fields(tmp_path, tiny_weights, capsys):
    source = write_clip(tmp_path / "in.mp4")
    output = tmp_path / "out.mkv"
    arguments = ["upscale", source, "-o", output, "--weights", tiny_weights, "--json"]
    arguments += ["--backend", "pytorch", "--threads", 1, "--crf", 20, "--preset", "ultrafast"]
    assert main([str(argument) for argument in arguments]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.pop("seconds") > 0
    assert found.pop("fps") > 0
    assert found.pop("peak_bytes") > 0
    assert found == {
        "input": str(source),
        "output": str(output),
        "frames": 10,
        "input_size": [50, 38],
        "output_size": [100, 76],
        "model": "tiny",
        "texture": 0.0,
        "precision": "fp32",
        "backend": "pytorch",
        "resumed": 0,
        "reused": 0,
        "recomputed": 0,
        "dropped": 0,
        "reconnects": 0,
        "switched_at": None,
    }


def test_quiet_says_nothing(tmp_path, tiny_weights, capsys):
    source = write_clip(tmp_path / "in.mp4")
    assert main(["upscale", str(source), "--weights", str(tiny_weights), "-q"]) == 0
    assert capsys.readouterr() == ("", "")


def test_the_bar_shows_frames_percent_and_speed(tmp_path, tiny_weights):
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    source = write_clip(tmp_path / "in.mp4")
    command = [sys.executable, "-m", "vsr", "upscale", source, "--weights", tiny_weights]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with subprocess.Popen(command, cwd=ROOT, stderr=theirs, stdout=subprocess.DEVNULL) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # how a closed terminal reads on Linux
            pass
    os.close(ours)
    assert process.returncode == 0
    assert re.search(r"100%.* 10/10 .*frame/s", shown.decode())


def test_progress_for_programs_is_json_a_line(tmp_path, tiny_weights, capsys, monkeypatch):
    monkeypatch.setattr("vsr.progress._EVERY_SECONDS", 0)
    monkeypatch.setattr("vsr.segments.SEGMENT_FRAMES", 4)
    source = write_clip(tmp_path / "in.mp4")
    arguments = ["upscale", source, "--weights", tiny_weights, "--progress", "json"]
    assert main([str(argument) for argument in arguments]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["frame"] for line in lines] == list(range(1, 11))
    assert [line["segment"] for line in lines] == [0] * 4 + [1] * 4 + [2] * 2
    assert {line["frames"] for line in lines} == {10}
    assert (lines[0]["fps"], lines[0]["eta_seconds"]) == (None, None)
    assert all(line["fps"] > 0 for line in lines[1:])
    assert lines[-1]["eta_seconds"] == 0
    stages = ["decode", "to-rgb", "engine", "to-planes", "encode"]
    for line in lines:
        assert list(line["stage_shares"]) == stages
        assert min(line["stage_shares"].values()) > 0
        assert sum(line["stage_shares"].values()) == pytest.approx(1, abs=1e-3)
        assert list(line["queue_depths"]) == stages[:-1]
        assert all(0 <= depth <= QUEUE_DEPTH + 1 for depth in line["queue_depths"].values())


def test_a_slow_stage_has_the_larger_share_and_the_queues_before_it_are_full(
    tmp_path, tiny_weights, capsys, monkeypatch
):
    def slow_upscaled(frames, *more):
        for frame in upscaled(frames, *more):
            time.sleep(0.03)
            yield frame

    monkeypatch.setattr("vsr.progress._EVERY_SECONDS", 0)
    monkeypatch.setattr("vsr.stages.upscaled", slow_upscaled)
    source = write_clip(tmp_path / "in.mp4")
    arguments = ["upscale", source, "--weights", tiny_weights, "--progress", "json"]
    assert main([str(argument) for argument in arguments]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    shares = lines[-1]["stage_shares"]
    assert shares["engine"] == max(shares.values())
    assert max(line["queue_depths"]["to-rgb"] for line in lines) == QUEUE_DEPTH


def test_progress_for_programs_comes_twice_a_second_at_most(tmp_path, tiny_weights, capsys):
    source = write_clip(tmp_path / "in.mp4")
    arguments = ["upscale", source, "--weights", tiny_weights, "--progress", "json"]
    assert main([str(argument) for argument in arguments]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[-1]["frame"] == 10  # the last is always told
    assert len(lines) < 8


def test_models_lists_scores_and_licence(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"srgan-lite: ", out)
    assert re.search(r"x4, [\d,]+ parameters, MIT", out)
    assert re.search(r"Set5: PSNR-Y \d\d\.\d\d dB, SSIM 0\.\d{4}", out)


def test_help_names_the_defaults_of_the_default_encoder(capsys):
    with pytest.raises(SystemExit):
        main(["upscale", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    kind = ENCODERS[UpscaleConfig(source=Path("x")).encoder]
    assert f"encoder preset (default: {kind.default_preset} for libx264)" in text
    worst, default = kind.worst_quality, kind.default_quality
    assert f"0 to {worst} for libx264 (default: {default:g})" in text


def test_version_and_help_answer_without_loading_pytorch():
    for arguments, expected in (
        (["--version"], f"vsr {__version__}"),
        (["-h"], "vsr upscale clip"),
    ):
        code = (
            f"import sys, vsr.cli\ntry: vsr.cli.main({arguments!r})\n"
            "finally: print('torch' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert expected in done.stdout
        assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["upscale"],
        ["upscale", "a.mp4", "--scale", "2", "--size", "4x4"],
        ["upscale", "a.mp4", "--size", "big"],
        ["upscale", "a.mp4", "--model", "a", "--weights", "b"],
        ["upscale", "a.mp4", "--backend", "magic"],
        ["upscale", "a.mp4", "-q", "-v"],
    ],
)
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--scale", "--crf", "--texture", "--reconnect"])
def test_what_is_no_number_is_answered_with_an_example(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["upscale", "a.mp4", option, "abc"])
    said = rf"argument {option}: expected a number, for example \d.*, got abc"
    assert re.search(said, capsys.readouterr().err)


def test_a_precision_and_standard_output_are_named_in_the_last_line(tmp_path, tiny_weights, capfd):
    source = write_clip(tmp_path / "in.mp4")
    arguments = ["upscale", str(source), "-o", "-", "--weights", str(tiny_weights)]
    assert main([*arguments, "--backend", "pytorch", "--precision", "fp32"]) == 0
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("standard output: 10 frames, ")
    assert last.endswith(", tiny on pytorch fp32")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--texture", "2", "texture must be 0 to 1, got 2"),
        ("--crf", "-1", "crf must be 0 or more, got -1"),
        ("--crf", "99", "crf of libx264 must be 0 to 51, got 99"),
        ("--scale", "0", "scale must be above 0 and finite, got 0"),
        ("--scale", "-1", "scale must be above 0 and finite, got -1"),
    ],
)
def test_values_out_of_range_exit_2(option, value, said, capsys, plain_clip):
    assert failure(capsys, "upscale", plain_clip, option, value) == (2, f"vsr: error: {said}")


def bad_inputs() -> list[str]:
    return [
        "missing", "folder", "text", "empty", "sound only", "no frames", "output exists",
        "output folder missing", "encoder unknown", "encoder of sound",
        "preset unknown", "model unknown", "pickle", "foreign weights", "container unknown",
        "too large", "size too large", "crf for an encoder without",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", bad_inputs())
def test_bad_input_is_one_line_and_leaves_nothing(kind, tmp_path, tiny_weights, capsys):
    source, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
    more: list[object] = ["--weights", tiny_weights]
    named, expected = "in.mp4", ""
    if kind == "folder":
        source.mkdir()
    elif kind == "text":
        source.write_text("hello " * 1000)
    elif kind == "empty":
        source.touch()
    elif kind == "sound only":
        with av.open(str(source), "w") as container:
            stream = container.add_stream("aac", rate=48000)
            sound = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
            sound.sample_rate = 48000
            container.mux([*stream.encode(sound), *stream.encode(None)])
    elif kind == "no frames":
        data = bytearray(write_clip(source).read_bytes())
        start = data.index(b"mdat") + 4
        data[start:] = bytes(len(data) - start) if data.index(b"moov") < start else data[start:]
        end = data.index(b"moov") - 4 if data.index(b"moov") > start else len(data)
        data[start:end] = bytes(end - start)
        source.write_bytes(data)
    elif kind != "missing":
        write_clip(source)
    match kind:
        case "output exists":
            output.write_text("precious")
            named, expected = "out.mp4", "exists"
        case "output folder missing":
            output = tmp_path / "nowhere" / "out.mp4"
            named, expected = "nowhere", "does not exist"
        case "encoder unknown":
            more += ["--encoder", "h999"]
            named, expected = "h999", "unknown encoder"
        case "encoder of sound":
            more += ["--encoder", "aac"]
            named, expected = "aac", "no video encoder"
        case "preset unknown":
            more += ["--preset", "warp9"]
            named, expected = "warp9", "known: ultrafast, superfast"
        case "crf for an encoder without":
            more += ["--encoder", "mpeg4", "--crf", 3]
            named, expected = "mpeg4", "--crf is not known"
        case "model unknown":
            more = ["--model", "esrgan"]
            named, expected = "esrgan", "built-in models: srgan-lite"
        case "pickle":
            (tmp_path / "x.pth").write_bytes(b"\x80\x02}q\x00.")
            more = ["--weights", tmp_path / "x.pth"]
            named, expected = "x.pth", "is a pickle"
        case "foreign weights":
            (tmp_path / "x.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
            more = ["--weights", tmp_path / "x.safetensors"]
            named, expected = "x.safetensors", "not one of our weights files"
        case "container unknown":
            output = tmp_path / "out.xyz"
            named, expected = "out.xyz", "names no container, use .mp4, .mkv or .mov"
        case "too large":
            more += ["--scale", 3]
            named, expected = "--scale 3", "more than 2, the largest"
        case "size too large":
            more += ["--size", "102x76"]
            named, expected = "--size 102x76", "more than 2 times 50x38: the largest"
    before = sorted(tmp_path.rglob("*"))
    code, line = failure(capsys, "upscale", source, "-o", output, *more)
    assert code == 1
    assert line.startswith("vsr: error: ")
    assert named in line
    assert expected in line
    assert sorted(tmp_path.rglob("*")) == before
    if kind == "output exists":
        assert output.read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_a_folder_without_permission_is_named(tmp_path, tiny_weights, capsys, plain_clip):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    output = tmp_path / "out.mp4"
    code, line = failure(capsys, "upscale", plain_clip, "-o", output, "--weights", tiny_weights)
    tmp_path.chmod(stat.S_IRWXU)
    assert code == 1
    assert "permission denied" in line


def test_verbose_shows_the_traceback(capsys):
    assert main(["upscale", "missing.mp4", "-v"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("vsr: error: cannot read missing.mp4")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(sys.platform == "win32", reason="signals there are others")
def test_ctrl_c_in_the_middle_leaves_nothing(number, tmp_path, tiny_weights):
    source = write_clip(tmp_path / "in.mp4", size=(240, 320), pts=tuple(range(0, 512 * 600, 512)))
    command = [sys.executable, "-m", "vsr", "upscale", source, "--weights", tiny_weights]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not any(path.stat().st_size > 1000 for path in tmp_path.glob("*.partial/*.packets")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "vsr: interrupted, no output was written\n"
    assert names_in(tmp_path) == ["in.mp4"]


def test_a_damaged_clip_is_upscaled_as_far_as_it_decodes(tmp_path, tiny_weights, capsys):
    data = bytearray(write_clip(tmp_path / "in.mp4", pts=tuple(range(0, 25600, 512))).read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 3
    data[middle : middle + 300] = bytes(300)
    (tmp_path / "in.mp4").write_bytes(data)
    code = main(["upscale", str(tmp_path / "in.mp4"), "--weights", str(tiny_weights)])
    assert code == 0
    assert re.search(r"vsr: warning: .*in.mp4 is damaged: \d+ packets", capsys.readouterr().err)
    assert 40 < len(probe(tmp_path / "in_x2.mp4").pts_seconds) <= 50


# --- stills ---------------------------------------------------------------------------------------


def write_png(path: Path, pixels: np.ndarray, pixel_format: str) -> Path:
    encoder = av.CodecContext.create("png", "w")
    frame = av.VideoFrame.from_ndarray(pixels, pixel_format)
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, pixel_format
    encoder.time_base = Fraction(1)
    path.write_bytes(b"".join(bytes(p) for p in [*encoder.encode(frame), *encoder.encode(None)]))
    return path


def read_png(path: Path) -> tuple[str, np.ndarray]:
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    if frame.format.name.startswith("ya"):
        wide = "16" in frame.format.name
        flat = np.frombuffer(frame.planes[0], ">u2" if wide else np.uint8)
        rows = flat.reshape(frame.height, -1)[:, : frame.width * 2]
        return frame.format.name, rows.reshape(frame.height, frame.width, 2)
    return frame.format.name, frame.to_ndarray()


@pytest.mark.parametrize("pixel_format", ["rgb24", "rgba", "gray", "rgb48be", "gray16be"])
def test_a_picture_keeps_its_kind_and_its_levels(pixel_format, tmp_path, tiny_weights, capsys):
    wide = "16" in pixel_format or "48" in pixel_format
    channels = {"gray": 1, "gray16be": 1, "rgba": 4}.get(pixel_format, 3)
    top = 65535 if wide else 255
    levels = np.array([0.8, 0.4, 0.2, 0.6])[:channels] * top
    pixels = np.broadcast_to(levels, (9, 13, channels)).astype(np.uint16 if wide else np.uint8)
    pixels = pixels[..., 0] if channels == 1 else pixels
    source = write_png(tmp_path / "in.png", np.ascontiguousarray(pixels), pixel_format)
    assert main(["upscale", str(source), "--weights", str(tiny_weights)]) == 0
    found, result = read_png(tmp_path / "in_x2.png")
    assert found == pixel_format
    assert result.shape[:2] == (18, 26)
    middle = np.atleast_1d(result[8, 13]).astype(float) / top
    assert np.abs(middle - levels / top).max() < 0.02
    assert len(set(middle[:3])) == min(channels, 3)


def test_grey_with_alpha_stays_both(tmp_path, tiny_weights):
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 16, 8, "ya8", Fraction(1)
    frame = av.VideoFrame(16, 8, "ya8")
    rows = np.frombuffer(frame.planes[0], np.uint8).reshape(-1, frame.planes[0].line_size)
    rows[:, 0:32:2], rows[:, 1:32:2] = 60, 200
    data = b"".join(bytes(p) for p in [*encoder.encode(frame), *encoder.encode(None)])
    (tmp_path / "in.png").write_bytes(data)
    assert main(["upscale", str(tmp_path / "in.png"), "--weights", str(tiny_weights)]) == 0
    found, result = read_png(tmp_path / "in_x2.png")
    assert found == "ya8"
    assert result.shape == (16, 32, 2)
    assert np.abs(result[8, 16].astype(int) - (60, 200)).max() <= 4  # of the tiny network


def test_a_picture_is_never_distorted_and_never_lossy(tmp_path, tiny_weights, capsys):
    pixels = np.zeros((10, 20, 3), np.uint8)
    source = write_png(tmp_path / "in.png", pixels, "rgb24")
    more = ["--weights", tiny_weights]
    code, line = failure(capsys, "upscale", source, "--size", "20x20", *more)
    assert (code, "would change the shape" in line) == (1, True)
    code, line = failure(capsys, "upscale", source, "-o", tmp_path / "out.jpg", *more)
    assert (code, "a still is written as .png, .tif or .tiff" in line) == (1, True)
    assert names_in(tmp_path) == ["in.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_comes_out_upright(orientation, tmp_path, tiny_weights, capsys):
    corner = np.zeros((24, 40, 3), np.uint8)
    corner[:8, :12] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = tmp_path / "photo.jpg"
    Image.fromarray(corner).save(source, quality=95, subsampling=0, exif=exif)
    with Image.open(source) as image:
        upright = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    assert main(["upscale", str(source), "--weights", str(tiny_weights)]) == 0
    _, result = read_png(tmp_path / "photo_x2.png")
    assert result.shape == (upright.shape[0] * 2, upright.shape[1] * 2, 3)
    difference = np.abs(result[::2, ::2].astype(int) - upright)
    assert difference.mean() < 4


def test_a_reader_of_stdout_that_went_away_is_no_error(tmp_path, tiny_weights):
    source = write_clip(tmp_path / "in.mp4")
    command = [sys.executable, "-m", "vsr", "upscale", source, "--weights", tiny_weights, "--json"]
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        command, cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(probe(tmp_path / "in_x2.mp4").pts_seconds) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--changed-threshold", "8"], "changed threshold needs changed_only"),
        (["--changed-only", "--changed-threshold", "-1"], "changed threshold must be 0 to 255"),
        (["--changed-only", "--changed-threshold", "nan"], "changed threshold must be 0 to 255"),
    ],
)
def test_a_changed_threshold_out_of_place_is_wrong_usage(arguments, message, plain_clip, capsys):
    assert main(["upscale", str(plain_clip), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--star", "--over", "--changed"])
def test_no_flag_is_taken_for_a_longer_one(flag, plain_clip, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["upscale", str(plain_clip), flag])
    assert ended.value.code == 2
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused_at_once(tmp_path, tiny_weights, capsys):
    os.mkfifo(tmp_path / "p.y4m")
    code, line = failure(capsys, "upscale", tmp_path / "p.y4m", "--weights", tiny_weights)
    assert code == 1
    assert line.endswith("is no regular file: what comes through a pipe is read from -")


@pytest.mark.skipif(os.name == "nt", reason="its names are text")
def test_a_name_that_standard_output_cannot_write_is_no_failure(tmp_path, tiny_weights):
    clip = write_clip(tmp_path / "a.mp4").rename(tmp_path / "字幕.mp4")
    command = [sys.executable, "-m", "vsr", "upscale", clip, "--weights", tiny_weights]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "latin-1"}
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u5b57\\u5e55_x2.mp4: 10 frames" in done.stdout


def test_a_quality_out_of_the_range_of_an_encoder_by_another_name(plain_clip, capsys):
    code, line = failure(capsys, "upscale", plain_clip, "--encoder", "h264", "--crf", 60)
    assert code == 2
    assert line.endswith("crf of libx264 must be 0 to 51, got 60")
