"""Where chroma lies: read, computed with, and said again."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import av
import av.logging
import pytest
import torch
from conftest import write_clip

import vsr
from vsr.video import Reader

SITINGS = {
    "left": "left", "centre": "center", "topleft": "topleft", "top": "top",
    "bottomleft": "bottomleft", "bottom": "bottom",
}  # fmt: skip


def write_sited(path: Path, siting: str, *, codec: str = "libx264", colour: bool = False) -> Path:
    """Two frames that say where their chroma lies, by FFmpeg's name; grey, or half of it red."""
    with av.open(str(path), "w") as container:
        options = {"chroma_sample_location": siting, "crf": "5"}
        stream = container.add_stream(codec, rate=25, width=64, height=48, options=options)
        stream.pix_fmt = "yuv420p"
        for index in range(2):
            frame = av.VideoFrame(64, 48, "yuv420p")
            for plane, level in zip(frame.planes, (100 + index, 128, 128), strict=True):
                levels = torch.full((plane.height, plane.line_size), level, dtype=torch.uint8)
                if colour and level == 128:
                    levels[: plane.height // 2] += 60
                plane.update(levels.numpy().tobytes())
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def siting_of(path: Path) -> str:
    with Reader(path) as reader:
        return reader.info.layout.siting


@pytest.mark.parametrize("siting", SITINGS)
@pytest.mark.parametrize("encoder", ["libx264", "libx265"])
def test_the_siting_is_kept(siting, encoder, tiny_weights, tmp_path):
    source = write_sited(tmp_path / "in.mp4", SITINGS[siting])
    assert siting_of(source) == siting
    vsr.upscale(
        source, tmp_path / "out.mp4", model=tiny_weights, backend="pytorch", encoder=encoder,
        preset="ultrafast",
    )  # fmt: skip
    assert siting_of(tmp_path / "out.mp4") == siting


@pytest.mark.parametrize(
    ("encoder", "siting", "expected"),
    [("libsvtav1", "topleft", "topleft"), ("libsvtav1", "bottom", "left"), ("ffv1", "top", "left")],
)
def test_where_an_encoder_cannot_say_it_chroma_is_moved(
    encoder, siting, expected, tiny_weights, tmp_path
):
    """An edge of colour stays on the same luma row, at twice the size."""
    source = write_sited(tmp_path / "in.mp4", SITINGS[siting], colour=True)
    vsr.upscale(
        source, tmp_path / "out.mkv", model=tiny_weights, backend="pytorch", encoder=encoder,
        crf=None if encoder == "ffv1" else 4,
    )  # fmt: skip
    assert siting_of(tmp_path / "out.mkv") == expected
    edges = [edge_row(path) for path in (source, tmp_path / "out.mkv")]
    assert edges[1] == pytest.approx(2 * edges[0] + 0.5, abs=0.2)


def edge_row(path: Path) -> float:
    """The luma row in whose middle the colour changes by half, as the clip's siting has it."""
    with Reader(path) as reader:
        chroma = next(reader.frames()).value[1].float().mean(1)
        place = reader.info.layout.chroma_position[0]
    half = (chroma[0] + chroma[-1]) / 2
    after = int((chroma < half).nonzero()[0])
    share = (chroma[after - 1] - half) / (chroma[after - 1] - chroma[after])
    return 2 * (after - 1 + float(share)) + place


@pytest.mark.parametrize(
    ("codec", "pixel_format", "name", "expected"),
    [
        ("mjpeg", "yuvj420p", "in.avi", "centre"),
        ("libvpx", "yuv420p", "in.webm", "centre"),
        ("mpeg2video", "yuv420p", "in.mkv", "left"),
        ("libx264", "yuv422p", "in.mp4", "left"),
        ("libx264", "yuv444p", "in.mp4", "left"),
    ],
)
def test_a_clip_that_says_nothing_has_its_codecs(codec, pixel_format, name, expected, tmp_path):
    path = write_clip(
        tmp_path / name, codec=codec, pixel_format=pixel_format, pts=(0, 1, 2),
        time_base=Fraction(1, 25),
    )  # fmt: skip
    assert siting_of(path) == expected


def test_looking_leaves_the_log_as_it_was(plain_clip, caplog):
    caplog.set_level(logging.DEBUG)
    before = av.logging.get_level()
    siting_of(plain_clip)
    assert av.logging.get_level() == before
    assert "showinfo" not in caplog.text
