"""HDR10: what the clip says of its grading display is said again, and grey stays grey."""

from __future__ import annotations

import struct
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import pytest
import torch
from av.sidedata.sidedata import Type

import vsr
from engines import create_engine, load_model
from vsr import hdr
from vsr.convert import PlaneLayout, from_rgb, to_rgb
from vsr.pixels import write_planes
from vsr.video import Reader

upscale = partial(vsr.upscale, backend="pytorch")

DISPLAY = hdr.MasteringDisplay(
    red=(Fraction(34000, 50000), Fraction(16000, 50000)),
    green=(Fraction(13250, 50000), Fraction(34500, 50000)),
    blue=(Fraction(7500, 50000), Fraction(3000, 50000)),
    white=(Fraction(15635, 50000), Fraction(16450, 50000)),
    luminance=(Fraction(50, 10000), Fraction(1000)),
)
LIGHT = (987, 432)


def write_hdr10(path: Path) -> Path:
    """Write three frames of PQ with metadata, by x265."""
    words = hdr.encoder_options("libx265", hdr.StaticMetadata(DISPLAY, LIGHT))
    with av.open(str(path), "w") as container:
        options = {"x265-params": "log-level=none:" + words["x265-params"]}
        stream = container.add_stream("libx265", rate=25, width=64, height=64, options=options)
        stream.pix_fmt = "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = 9, 16, 9
        context.color_range = 1
        for index in range(3):
            frame = av.VideoFrame(64, 64, "yuv420p10le")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("encoder", ["libx264", "libx265", "libsvtav1"])
def test_mastering_metadata_reaches_the_output(encoder, tiny_weights, tmp_path):
    source = write_hdr10(tmp_path / "in.mp4")
    upscale(source, tmp_path / "out.mp4", model=tiny_weights, encoder=encoder)
    with Reader(source) as before, Reader(tmp_path / "out.mp4") as after:
        assert before.info.hdr == hdr.StaticMetadata(DISPLAY, LIGHT)
        assert after.info.hdr.light == LIGHT
        found, meant = after.info.hdr.mastering, DISPLAY
        assert after.info.layout.depth == 10
    for name in ("red", "green", "blue", "white", "luminance"):
        # AV1 counts in steps of 2^-16 and, for luminance, 2^-14 and 2^-8
        assert getattr(found, name) == pytest.approx(getattr(meant, name), abs=4e-5)


def test_an_encoder_that_cannot_say_it_is_named(tiny_weights, tmp_path, caplog):
    source = write_hdr10(tmp_path / "in.mp4")
    upscale(source, tmp_path / "out.mkv", model=tiny_weights, encoder="ffv1")
    assert "HDR10 mastering metadata is not kept: ffv1" in caplog.text


def test_what_is_incomplete_is_left_out():
    rationals = [1, 2] * 10
    assert hdr.parse(None, None) == hdr.StaticMetadata()
    assert hdr.parse(struct.pack("=22i", *rationals, 0, 1), b"123") == hdr.StaticMetadata()
    whole = hdr.parse(struct.pack("=22i", *rationals, 1, 1), struct.pack("=2I", 5, 6))
    assert whole.mastering.white == (Fraction(1, 2), Fraction(1, 2))
    assert whole.light == (5, 6)
    zero = [1, 0, *rationals[2:]]
    assert hdr.parse(struct.pack("=22i", *zero, 1, 1), None).mastering is None


def test_dolby_vision_is_said_to_lose_its_layer(plain_clip, monkeypatch, caplog):
    monkeypatch.setattr("vsr.clip._side_data", lambda _: {Type.DOVI_RPU_BUFFER: b""})
    with Reader(plain_clip):
        pass
    assert "plain.mp4 is Dolby Vision: its HDR10, HLG or SDR base is upscaled" in caplog.text


@pytest.mark.parametrize(("name", "transfer"), [("PQ", 16), ("HLG", 18)])
def test_a_neutral_ramp_stays_neutral_and_rising_through_the_whole_command(
    name, transfer, tmp_path
):
    """From the darkest legal code to the brightest, by the shipped weights."""
    codes = torch.arange(64, 941, 12)
    source, output = tmp_path / f"{name}.mkv", tmp_path / "out.mkv"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=8 * len(codes), height=32)
        stream.pix_fmt = "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = 9, transfer, 9
        context.color_range = 1
        luma = codes.repeat_interleave(8).expand(32, -1)
        neutral = torch.full((16, luma.shape[1] // 2), 512)
        for index in range(2):
            planes = [luma - index, neutral, neutral]
            frame = write_planes([plane.to(torch.uint16) for plane in planes], "yuv420p10le")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    upscale(source, output, encoder="libx265", crf=4, preset="ultrafast", texture=0)
    with Reader(output) as reader:
        assert (reader.info.tags.primaries, reader.info.tags.transfer) == (9, transfer)
        assert (reader.info.tags.matrix, reader.info.layout.depth) == (9, 10)
        y, u, v = next(reader.frames()).value
    centre = y[y.shape[0] // 2].float().view(len(codes), -1).mean(1)
    assert (centre.diff() > 0).all()
    assert (centre - codes).abs().max() < 6  # half a step
    for plane in (u, v):
        assert (plane.float() - 512).abs().max() <= 8


def test_a_neutral_ramp_stays_neutral_and_rising_at_ten_bits():
    """PQ and HLG code values go through the network as they are."""
    layout = PlaneLayout("yuv", depth=10, matrix="bt2020", chroma_step=(2, 2))
    codes = torch.arange(64, 941, 4)
    luma = codes.repeat_interleave(8).expand(32, -1).to(torch.uint16)
    chroma = torch.full((16, luma.shape[1] // 2), 512, dtype=torch.uint16)
    engine = create_engine(load_model("srgan-lite"), backend="pytorch")
    y, u, v = from_rgb(engine(to_rgb([luma, chroma, chroma], layout)), layout)
    centre = y[y.shape[0] // 2].float().view(len(codes), -1).mean(1)
    assert (centre.diff() > 0).all()
    assert (centre - codes).abs().max() < 4  # less than a step of the ramp
    for plane in (u, v):
        assert (plane.float() - 512).abs().max() <= 8  # 2 of 256 levels: not to be seen
