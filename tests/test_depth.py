"""More than eight bits: kept as far as the encoder goes, and said where it goes less far."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import pytest
import torch
from conftest import write_clip
from media import probe

import vsr
from engines.errors import MediaError
from vsr.convert import PlaneLayout
from vsr.pixels import write_planes
from vsr.video import Reader

upscale = partial(vsr.upscale, backend="pytorch")


def write_ramp(path: Path, pixel_format: str, depth: int) -> Path:
    """Write three frames of a grey ramp in steps of one code value, without loss."""
    layout = PlaneLayout("yuv", depth=depth, chroma_step=(2, 2))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=256, height=32)
        stream.pix_fmt = pixel_format
        for index in range(3):
            luma = (torch.arange(256) + (1 << (depth - 2)) + index).expand(32, -1)
            planes = [luma, *(torch.full((16, 128), 1 << (depth - 1)) for _ in range(2))]
            frame = write_planes([plane.to(layout.dtype) for plane in planes], pixel_format)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("encoder", "pixel_format"), [("libx265", "yuv420p12le"), ("libx264", "yuv420p10le")]
)
def test_twelve_bits_are_kept_or_become_ten_and_never_eight(
    encoder, pixel_format, tiny_weights, tmp_path, caplog
):
    """A ramp in steps of one 12-bit code still has more levels than the next lower depth."""
    source = write_ramp(tmp_path / "in.mkv", "yuv420p12le", 12)
    upscale(source, tmp_path / "out.mkv", model=tiny_weights, encoder=encoder, crf=1)
    assert probe(tmp_path / "out.mkv").pixel_format == pixel_format
    said = "in.mkv: libx264: 12-bit samples become 10-bit; libx265 takes up to 12 bits"
    assert (said in caplog.text) == (encoder == "libx264")
    with Reader(tmp_path / "out.mkv") as reader:
        depth, row = reader.info.layout.depth, next(reader.frames()).value[0][32].float()
    assert row.unique().numel() > (256 >> (12 - depth)) * 0.75
    middle = row.view(256, 2).mean(1) * 2 ** (12 - depth)
    assert (middle - torch.arange(1024, 1280)).abs().max() < 6 + 2 ** (12 - depth)


def test_chroma_that_an_encoder_cannot_hold_is_said(tiny_weights, tmp_path, caplog):
    source = write_clip(tmp_path / "in.mp4", pixel_format="yuv422p10le", pts=(0, 500))
    upscale(source, tmp_path / "out.mp4", model=tiny_weights, encoder="libsvtav1")
    assert "yuv422p10le becomes yuv420p10le, with less chroma" in caplog.text
    assert probe(tmp_path / "out.mp4").pixel_format == "yuv420p10le"


@pytest.mark.parametrize("before", ["yuv444p", "yuv422p10le", "gbrp"])
def test_the_pixel_format_that_is_asked_for_is_made(before, tiny_weights, tmp_path, caplog):
    source = write_clip(
        tmp_path / "in.mkv",
        pixel_format="bgr0" if before == "gbrp" else before,
        codec="ffv1",
        pts=(0, 500),
        time_base=Fraction(1, 1000),
    )
    upscale(source, tmp_path / "out.mp4", model=tiny_weights, pixel_format="yuv420p", crf=1)
    assert probe(tmp_path / "out.mp4").pixel_format == "yuv420p"
    assert "becomes" not in caplog.text  # it was meant
    values = []
    for path in (source, tmp_path / "out.mp4"):
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
        values.append(float(frame.to_ndarray(format="rgb24").mean()))
    assert values[1] == pytest.approx(values[0], abs=1.5)


def test_a_pixel_format_that_cannot_be_is_one_line(plain_clip, tiny_weights, tmp_path):
    with pytest.raises(MediaError, match=r"'libx264' takes no 'pal8' here, but yuv420p, yuv4"):
        upscale(plain_clip, tmp_path / "out.mp4", model=tiny_weights, pixel_format="pal8")
    with pytest.raises(MediaError, match=r"takes no 'yuva420p' here, but [^a]*$"):
        upscale(
            plain_clip, tmp_path / "out.mkv", model=tiny_weights, pixel_format="yuva420p",
            encoder="ffv1",
        )  # fmt: skip
    with pytest.raises(MediaError, match="'png' takes no colours in a form that is made here"):
        upscale(plain_clip, tmp_path / "out.mov", model=tiny_weights, encoder="png")
    with pytest.raises(MediaError, match="--pixel-format is for an encoded clip"):
        upscale(plain_clip, tmp_path / "%06d.png", model=tiny_weights, pixel_format="yuv420p")
    assert not list(tmp_path.iterdir())


def test_libx265_is_not_given_pictures_that_it_cannot_hold(tiny_weights, tmp_path):
    source = write_clip(tmp_path / "in.mp4", size=(24, 64))
    with pytest.raises(MediaError, match="libx265 cannot be trusted with 128x48: it needs 64"):
        upscale(source, tmp_path / "out.mp4", model=tiny_weights, encoder="libx265")
    assert not (tmp_path / "out.mp4").exists()
