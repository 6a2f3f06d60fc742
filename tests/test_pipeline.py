"""Whole jobs: what goes in comes out, larger, and nothing is left behind when it fails."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from dataclasses import replace
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from conftest import write_clip
from media import probe
from PIL import Image

import vsr
from engines import create_engine, load_model
from engines.base import Engine
from engines.errors import MediaError, UnsupportedShape, WeightsError
from engines.int8 import cpu_flags
from engines.ov import BF16_FLAGS, OpenVINOEngine
from vsr import stages
from vsr.choices import needs_float32
from vsr.config import UpscaleConfig
from vsr.convert import PlaneLayout
from vsr.job_key import job_key
from vsr.output import default_output, output_size
from vsr.pixels import read_layout
from vsr.segments import SegmentedWriter
from vsr.video import Reader

# PyTorch starts quicker than OpenVINO compiles; that all engines agree is tested elsewhere
upscale = partial(vsr.upscale, backend="pytorch", preset="ultrafast")

# what yuv420p and x264 at crf 0..16 may do to a flat area, in 8-bit code values
CODEC_NOISE = 3


def read_first_rgb(path: Path, matrix: str, *, full: bool) -> np.ndarray:
    """Decode the first frame to RGB with swscale, which knows nothing of our converter."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    frame = frame.reformat(
        format="rgb24", src_colorspace=matrix, src_color_range=2 if full else 1,
        dst_color_range=2,
    )  # fmt: skip
    return frame.to_ndarray().astype(int)


def test_a_clip_doubles_in_size_and_keeps_its_frames_and_sound(plain_clip, tiny_weights, tmp_path):
    seen = []
    result = upscale(plain_clip, tmp_path / "out.mp4", model=tiny_weights, progress=seen.append)
    before, after = probe(plain_clip), probe(tmp_path / "out.mp4")
    assert after.size == (76, 100) == result.output_size
    assert after.pts_seconds == before.pts_seconds
    assert after.packets == before.packets
    assert len(after.packets["audio"][0]) > 10
    assert (result.frames, result.model, result.input_size) == (10, "tiny", (38, 50))
    assert [progress.frames for progress in seen] == list(range(1, 11))
    assert {progress.total for progress in seen} == {10}
    assert result.seconds > 0
    assert result.peak_bytes > 10_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_uneven_timestamps_are_carried_exactly(uneven_clip, tiny_weights, tmp_path):
    upscale(uneven_clip, tmp_path / "out.mp4", model=tiny_weights)
    assert probe(tmp_path / "out.mp4").pts_seconds == probe(uneven_clip).pts_seconds


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_containers_keep_time_and_sound(suffix, plain_clip, tiny_weights, tmp_path):
    upscale(plain_clip, tmp_path / f"out{suffix}", model=tiny_weights)
    before, after = probe(plain_clip), probe(tmp_path / f"out{suffix}")
    # Matroska counts in milliseconds and from 0: the sound's priming moves the whole clip
    tick = Fraction(1, 1000) if suffix == ".mkv" else 0
    shift = after.pts_seconds[0] - before.pts_seconds[0]
    assert shift == 0 or suffix == ".mkv"
    for old, new in zip(before.pts_seconds, after.pts_seconds, strict=True):
        assert abs(old + shift - new) <= tick
    for old, new in zip(before.packets["audio"][0], after.packets["audio"][0], strict=True):
        assert abs(old + shift - new) <= tick


@pytest.mark.parametrize(
    ("tags", "matrix"),
    [
        ((1, 1, 1, 1), "itu709"),
        ((6, 6, 6, 1), "itu601"),
        ((5, 6, 5, 1), "itu601"),
        ((1, 1, 1, 2), "itu709"),
        ((9, 16, 9, 1), "bt2020"),
    ],
)
def test_colour_tags_and_colours_are_kept(tags, matrix, tiny_weights, tmp_path):
    source = write_clip(tmp_path / "in.mp4", tags=tags, size=(40, 64), pts=(0, 500, 1000))
    upscale(source, tmp_path / "out.mp4", model=tiny_weights, crf=0)
    before, after = probe(source), probe(tmp_path / "out.mp4")
    assert before.tags == after.tags == tags
    old, new = (
        read_first_rgb(path, matrix, full=tags[3] == 2) for path in (source, tmp_path / "out.mp4")
    )
    # corner by corner: the gradient runs from green to red
    for rows in (slice(0, 20), slice(20, 40)):
        for columns in (slice(0, 32), slice(32, 64)):
            larger = new[2 * rows.start : 2 * rows.stop, 2 * columns.start : 2 * columns.stop]
            difference = old[rows, columns].mean((0, 1)) - larger.mean((0, 1))
            assert np.abs(difference).max() <= CODEC_NOISE


@pytest.mark.parametrize("size", [(60, 80), (720, 64)])
def test_an_untagged_clip_is_tagged_with_the_matrix_that_was_guessed(size, tiny_weights, tmp_path):
    source = write_clip(tmp_path / "in.mp4", size=size, pts=(0, 500))
    assert probe(source).tags[2] == 2
    upscale(source, tmp_path / "out.mp4", model=tiny_weights)
    assert probe(tmp_path / "out.mp4").tags[2] == (6 if size[0] < 577 else 1)


def test_sample_aspect_ratio_is_kept(tiny_weights, tmp_path):
    source = write_clip(tmp_path / "in.mp4", sample_aspect_ratio=Fraction(64, 45), pts=(0, 500))
    upscale(source, tmp_path / "out.mp4", model=tiny_weights)
    assert probe(tmp_path / "out.mp4").sample_aspect_ratio == Fraction(64, 45)


@pytest.mark.parametrize(
    "pixel_format",
    ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "gray", "nv12"],
)
def test_depth_and_chroma_are_kept_where_the_encoder_can(pixel_format, tiny_weights, tmp_path):
    source = write_clip(tmp_path / "in.mp4", pixel_format=pixel_format, pts=(0, 500, 1000))
    upscale(source, tmp_path / "out.mp4", model=tiny_weights)
    # FFmpeg decodes monochrome H.264 to 4:2:0 with empty chroma
    expected = {"nv12": "yuv420p", "gray": "yuv420p"}.get(pixel_format, pixel_format)
    assert probe(tmp_path / "out.mp4").pixel_format == expected


@pytest.mark.parametrize(
    ("codec", "pixel_format", "suffix", "expected"),
    [
        ("mjpeg", "yuvj422p", ".avi", "yuvj422p"),
        ("ffv1", "yuv410p", ".mkv", "yuv420p"),
        ("ffv1", "yuv411p", ".mkv", "yuv422p"),
        ("ffv1", "gray16le", ".mkv", "yuv420p10le"),
        ("ffv1", "bgr0", ".mkv", "yuv444p"),
        ("ffv1", "yuva420p", ".mkv", "yuv420p"),
        ("png", "rgba", ".mov", "yuv444p"),
        ("ffv1", "yuv444p16le", ".mkv", "yuv444p10le"),
    ],
)
def test_no_pixel_format_crashes(codec, pixel_format, suffix, expected, tiny_weights, tmp_path):
    source = write_clip(
        tmp_path / f"in{suffix}", codec=codec, pixel_format=pixel_format, pts=(0, 1, 2),
        time_base=Fraction(1, 25), size=(40, 64),  # whole chroma samples, for swscale's sake
    )  # fmt: skip
    result = upscale(source, tmp_path / "out.mkv", model=tiny_weights)
    after = probe(tmp_path / "out.mkv")
    assert result.frames == len(after.pts_seconds) == 3
    # yuvj is yuv with the range said in its name; mean colours tell a wrong matrix or plane order
    assert read_layout(after.pixel_format)[:3] == read_layout(expected)[:3]
    full = pixel_format.startswith(("yuvj", "gray"))
    old = read_first_rgb(source, "itu601", full=full).mean((0, 1))
    new = read_first_rgb(tmp_path / "out.mkv", "itu601", full=full).mean((0, 1))
    assert np.abs(old - new).max() <= CODEC_NOISE


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (37, 51)])
def test_odd_sizes_work(size, tiny_weights, tmp_path):
    source = write_clip(
        tmp_path / "in.nut", size=size, codec="rawvideo", pts=(0, 1), time_base=Fraction(1, 25)
    )
    result = upscale(source, tmp_path / "out.mkv", model=tiny_weights)
    assert probe(tmp_path / "out.mkv").size == (size[0] * 2, size[1] * 2) == result.output_size


# --- scale and size -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({"scale": 2}, (76, 100)),
        ({"scale": 1.5}, (56, 76)),
        ({"scale": 1}, (38, 50)),
        ({"scale": 0.01}, (2, 2)),
        ({"size": (76, 100)}, (76, 100)),
        ({"size": (50, 66)}, (50, 66)),
    ],
)
def test_any_factor_up_to_the_models(arguments, size, plain_clip, tiny_weights, tmp_path):
    upscale(plain_clip, tmp_path / "out.mp4", model=tiny_weights, **arguments)
    after = probe(tmp_path / "out.mp4")
    assert after.size == size
    if min(size) > 10:
        assert after.sample_aspect_ratio == 1


def test_another_shape_is_not_distorted_and_said(plain_clip, tiny_weights, tmp_path, caplog):
    upscale(plain_clip, tmp_path / "out.mp4", model=tiny_weights, size=(76, 76))
    after = probe(tmp_path / "out.mp4")
    assert after.size == (76, 76)
    displayed = after.sample_aspect_ratio * Fraction(76, 76)
    assert float(displayed) == pytest.approx(50 / 38, rel=1e-3)
    assert "is not distorted" in caplog.text


@pytest.mark.parametrize("arguments", [{"scale": 2.5}, {"size": (100, 80)}])
def test_more_than_the_model_gives_is_refused(arguments, plain_clip, tiny_weights, tmp_path):
    with pytest.raises(UnsupportedShape, match=r"more than 2[, ].* the model reaches"):
        upscale(plain_clip, tmp_path / "out.mp4", model=tiny_weights, **arguments)
    assert not list(tmp_path.iterdir())


def test_an_odd_size_for_subsampled_chroma_is_refused(plain_clip, tiny_weights, tmp_path):
    with pytest.raises(MediaError, match=r"cannot encode 51x39 .* use 52x40"):
        upscale(plain_clip, tmp_path / "out.mp4", model=tiny_weights, size=(39, 51))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 2, "size": (2, 2)}, "give scale or size, not both"),
        ({"scale": 0}, "scale must be above 0 and finite, got 0"),
        ({"scale": float("nan")}, "scale must be above 0 and finite, got nan"),
        ({"scale": float("inf")}, "scale must be above 0 and finite, got inf"),
        ({"size": (0, 4)}, "size must be at least 1x1, got 4x0"),
        ({"crf": -1}, "crf must be 0 or more, got -1"),
        ({"crf": 52}, "crf of libx264 must be 0 to 51, got 52"),
        ({"crf": 64, "encoder": "libsvtav1"}, "crf of libsvtav1 must be 0 to 63, got 64"),
        ({"crf": float("nan")}, "crf must be 0 or more, got nan"),
        ({"threads": 0}, "threads must be 1 to 256, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message, plain_clip):
    with pytest.raises(ValueError, match=message):
        upscale(plain_clip, **arguments)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "arguments", "name"),
    [
        ("clip.mp4", {}, "clip_x4.mp4"),
        ("clip.avi", {}, "clip_x4.mp4"),
        ("clip.webm", {}, "clip_x4.mkv"),
        ("clip.MKV", {"scale": 2}, "clip_x2.mkv"),
        ("clip.mov", {"scale": 1.5}, "clip_x1.5.mov"),
        ("clip.mp4", {"size": (720, 1280)}, "clip_1280x720.mp4"),
    ],
)
def test_the_default_name_lies_beside_the_source(source, arguments, name, plain_clip):
    with Reader(plain_clip) as reader:
        info = reader.info
    config = UpscaleConfig(source=Path("folder") / source, **arguments)
    assert default_output(config, info, 4) == Path("folder") / name
    still = replace(info, is_still=True)
    assert default_output(config, still, 4).suffix == ".png"


# --- failures leave nothing -----------------------------------------------------------------------


def test_an_existing_output_is_kept_unless_told(plain_clip, tiny_weights, tmp_path):
    output = tmp_path / "out.mp4"
    output.write_text("precious")
    with pytest.raises(MediaError, match=r"out.mp4 exists: --overwrite replaces it"):
        upscale(plain_clip, output, model=tiny_weights)
    assert output.read_text() == "precious"
    upscale(plain_clip, output, model=tiny_weights, overwrite=True)
    assert len(probe(output).pts_seconds) == 10


def test_the_source_is_never_overwritten(tiny_weights, tmp_path):
    source = write_clip(tmp_path / "in.mp4")
    with pytest.raises(MediaError, match="is the input itself"):
        upscale(source, source, model=tiny_weights, overwrite=True)


@pytest.mark.parametrize(
    "stage",
    [
        *("to_rgb", "engine", "from_rgb", "write", "progress"),
        pytest.param("begin", marks=pytest.mark.two_cores),
    ],
)
def test_an_error_in_any_stage_leaves_no_file_and_no_thread(
    stage, plain_clip, tiny_weights, tmp_path, monkeypatch
):
    calls = []

    def failing(*_: object, **__: object) -> None:
        calls.append(1)
        if len(calls) >= 3:
            raise RuntimeError("stage broke")

    def wrapped(function):
        def call(*args, **kwargs):
            failing()
            return function(*args, **kwargs)

        return call

    progress = failing if stage == "progress" else None
    if stage == "engine":
        monkeypatch.setattr("engines.base.Engine.__call__", wrapped(Engine.__call__))
    elif stage == "begin":
        monkeypatch.setattr(OpenVINOEngine, "begin", wrapped(OpenVINOEngine.begin))
    elif stage == "write":
        monkeypatch.setattr(SegmentedWriter, "write", wrapped(SegmentedWriter.write))
    elif stage != "progress":
        monkeypatch.setattr(stages, stage, wrapped(getattr(stages, stage)))
    with pytest.raises(RuntimeError, match="stage broke"):
        upscale(
            plain_clip, tmp_path / "out.mp4", model=tiny_weights, progress=progress,
            backend="openvino" if stage == "begin" else "pytorch",
        )  # fmt: skip
    assert not list(tmp_path.iterdir())
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"decode", "to-rgb", "engine", "to-planes"}


def test_another_precision_is_another_job(plain_clip, tiny_weights):
    """Frames of two precisions never meet in one output."""
    model = load_model(tiny_weights)
    config = UpscaleConfig(source=plain_clip, model=tiny_weights)
    engine = create_engine(model, backend="pytorch")
    key = job_key(config, model, engine, (76, 100), decoder="cpu")
    assert key["precision"] == "fp32"


def test_a_codecs_name_takes_its_usual_encoder_with_our_options(
    plain_clip, tiny_weights, tmp_path, capfd
):
    outputs = []
    for encoder in ("libx265", "hevc"):
        outputs.append(tmp_path / f"{encoder}.mkv")
        vsr.upscale(plain_clip, outputs[-1], model=tiny_weights, backend="pytorch", encoder=encoder)
    assert capfd.readouterr().err == ""  # of x265's own
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_an_empty_file_is_called_so(tiny_weights, tmp_path):
    (tmp_path / "in.mp4").touch()
    with pytest.raises(MediaError, match=r"in\.mp4 is empty"):
        vsr.upscale(tmp_path / "in.mp4", model=tiny_weights)


def test_another_openvino_or_int8_form_is_another_job(plain_clip, tmp_path, monkeypatch):
    model = replace(load_model("srgan-lite"), int8_path=tmp_path / "forms")
    config = UpscaleConfig(source=plain_clip)

    def key(precision):
        engine = SimpleNamespace(
            backend="openvino", precision=precision, device=torch.device("cpu")
        )
        return job_key(config, model, engine, (76, 100), decoder="cpu")

    model.int8_path.write_bytes(b"a form")
    before = {precision: key(precision) for precision in ("int8", "fp32")}
    assert before["int8"]["versions"]["openvino"] == version("openvino")
    model.int8_path.write_bytes(b"another")
    assert key("int8") != before["int8"]
    assert key("fp32") == before["fp32"]
    monkeypatch.setattr("vsr.job_key.version", lambda name: f"{name} of tomorrow")
    assert key("fp32")["versions"]["openvino"] == "openvino of tomorrow"


def test_a_clip_whose_look_ahead_avx512_gets_wrong_ends_in_the_same_bits(tiny_weights, tmp_path):
    # of 12 jobs mostly two kinds of output come out where x264 is left alone on a CPU with AVX-512
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    wide = np.asarray(Image.fromarray(noise).resize((130, 100), Image.Resampling.BICUBIC))
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=100, height=100)
        stream.pix_fmt = "yuv420p"
        for index in range(12):
            pixels = np.ascontiguousarray(wide[:, index : index + 100])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    outputs = set()
    for index in range(12):
        output = tmp_path / f"{index}.mp4"
        vsr.upscale(tmp_path / "in.mkv", output, model=tiny_weights, backend="pytorch", threads=2)
        outputs.add(output.read_bytes())
    assert len(outputs) == 1


def test_a_frame_lost_on_the_way_is_an_error(plain_clip, tiny_weights, tmp_path, monkeypatch):
    original = stages.upscaled

    def forgetful(frames, *more):
        for index, frame in enumerate(original(frames, *more)):
            if index != 4:
                yield frame

    monkeypatch.setattr(stages, "upscaled", forgetful)
    with pytest.raises(MediaError, match="10 frames were decoded but 9 written"):
        upscale(plain_clip, tmp_path / "out.mp4", model=tiny_weights)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file size there")
def test_a_full_disk_is_one_clear_error(tiny_weights, tmp_path):
    """A limit on the size of files stands in for the disk: writing fails half-way."""
    source = write_clip(tmp_path / "in.mp4", size=(240, 320), pts=tuple(range(0, 25600, 512)))
    code = (
        "import resource, signal, sys; from vsr.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["upscale", source, "--weights", tiny_weights, "--backend", "pytorch", "--crf", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(r"vsr: error: cannot write .*in_x2.mp4: file too large.*\n", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_weights_of_another_network_are_refused(plain_clip, tmp_path):
    (tmp_path / "model.pth").write_bytes(b"pickle")
    with pytest.raises(WeightsError, match=r"model.pth is a pickle"):
        upscale(plain_clip, tmp_path / "out.mp4", model=tmp_path / "model.pth")


@pytest.mark.skipif(sys.platform == "win32", reason="no peak memory there")
@pytest.mark.parametrize("options", ["", ", tile=16, changed_only=True"])
def test_memory_does_not_grow_with_the_clip(options, tiny_weights, tmp_path):
    """3,000 frames take at most 5 % more memory than 100; a process each, for its own peak."""
    code = (
        "import sys, vsr; print(vsr.upscale(sys.argv[1], sys.argv[1] + '.mkv', "
        f"model=sys.argv[2], threads=1, preset='ultrafast'{options}).peak_bytes)"
    )
    peaks = []
    for count in (100, 3000):
        source = write_clip(
            tmp_path / f"{count}.mkv", pts=tuple(range(0, count * 40, 40)),
            time_base=Fraction(1, 1000), level=100,
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, source, tiny_weights],
            capture_output=True, text=True, check=True, timeout=100,
        )  # fmt: skip
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.05 * peaks[0]


def test_streams_lie_side_by_side_in_the_output(tiny_weights, tmp_path):
    """Sound is not written ahead of the picture by more than the input has it."""
    source = write_clip(tmp_path / "in.mp4", pts=tuple(range(0, 200 * 512, 512)), audio_seconds=8)
    remuxed = tmp_path / "remuxed.mkv"  # the fixture writes all sound last
    with av.open(str(source)) as old, av.open(str(remuxed), "w") as new:
        copies = {s.index: new.add_stream_from_template(s, opaque=True) for s in old.streams}
        packets = [packet for packet in old.demux() if packet.size]
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            packet.stream = copies[packet.stream_index]
            new.mux(packet)
    upscale(remuxed, tmp_path / "out.mkv", model=tiny_weights)
    with av.open(str(tmp_path / "out.mkv")) as container:
        latest = {0: 0.0, 1: 0.0}
        for packet in container.demux():
            if packet.size:
                latest[packet.stream_index] = float(packet.pts * packet.time_base)
                assert abs(latest[0] - latest[1]) < 1.5  # x264 keeps some 40 frames back


def test_deep_samples_are_computed_in_float32_unless_told(tmp_path, tiny_weights):
    source = write_clip(tmp_path / "in.mp4", pixel_format="yuv420p10le")
    with Reader(source) as reader:
        assert needs_float32(reader.info, "auto") != torch.cuda.is_available()
        assert needs_float32(reader.info, "openvino")
        assert not needs_float32(replace(reader.info, layout=PlaneLayout(kind="yuv")), "openvino")
    if cpu_flags() & BF16_FLAGS and not torch.cuda.is_available():
        made = vsr.upscale(source, model=tiny_weights, backend="openvino", precision="bf16")
        assert made.precision == "bf16"


@pytest.mark.parametrize(
    ("chroma_step", "scale", "expected"),
    [((2, 2), 3, (74, 98)), ((1, 1), 3, (75, 99)), ((1, 2), 3, (75, 98)), ((2, 2), 4, (100, 132))],
)
def test_an_odd_factor_makes_no_size_that_chroma_cannot_have(chroma_step, scale, expected):
    info = SimpleNamespace(
        size=(25, 33), is_still=False, layout=PlaneLayout(kind="yuv", chroma_step=chroma_step)
    )
    assert output_size(UpscaleConfig(source=Path("a.mp4")), info, scale) == expected
    assert output_size(UpscaleConfig(source=Path("a.mp4"), scale=scale), info, scale) == expected
    whole = (25 * scale, 33 * scale)  # of pictures, and into a pipe
    assert output_size(UpscaleConfig(source=Path("a.mp4")), info, scale, is_encoded=False) == whole
