"""Interlaced clips: noticed, refused with advice, made whole on demand."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import write_clip
from media import probe

import vsr
from engines.errors import MediaError
from vsr.deinterlace import deinterlaced
from vsr.video import Reader

upscale = partial(vsr.upscale, backend="pytorch", preset="ultrafast")

TIMES = (0, 3, 5, 9, 10, 16)


def combed(index: int) -> np.ndarray:
    """A bright bar that is 8 pixels further in the second field of each frame."""
    picture = np.full((48, 96, 3), 40, np.uint8)
    for field in (0, 1):
        left = 16 + 8 * (2 * index + field) % 64
        picture[field::2, left : left + 16] = 220
    return picture


def write_interlaced(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=25, width=96, height=48, time_base=Fraction(1, 1000),
            options={"x264-params": "tff=1", "crf": "5"},
        )  # fmt: skip
        stream.pix_fmt = "yuv420p"
        for index, time in enumerate(TIMES):
            frame = av.VideoFrame.from_ndarray(combed(index), "rgb24").reformat(
                format="yuv420p", threads=1
            )
            frame.pts, frame.time_base = time * 40, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def combing(path: Path) -> float:
    """Mean difference of a row from the two beside it, in levels, of the frames in the middle."""
    with av.open(str(path)) as container:
        luma = [
            f.reformat(format="gray", threads=1).to_ndarray().astype(float)
            for f in container.decode(video=0)
        ]
    rows = np.stack(luma[1:-1])
    return float(np.abs(rows[:, 1:-1] - (rows[:, :-2] + rows[:, 2:]) / 2).mean())


def test_an_interlaced_clip_is_refused_with_advice(tiny_weights, tmp_path):
    source = write_interlaced(tmp_path / "in.mkv")
    with pytest.raises(MediaError, match=r"in.mkv is interlaced: --deinterlace makes whole frames"):
        upscale(source, tmp_path / "out.mkv", model=tiny_weights)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def test_deinterlacing_keeps_each_frame_and_its_time(tiny_weights, tmp_path):
    source = write_interlaced(tmp_path / "in.mkv")
    for choice in (True, False):
        upscale(source, tmp_path / f"{choice}.mkv", model=tiny_weights, scale=1, deinterlace=choice)
    before, after = probe(source), probe(tmp_path / "True.mkv")
    assert after.pts_seconds == before.pts_seconds
    assert combing(tmp_path / "False.mkv") > 0.5 * combing(source)
    assert combing(tmp_path / "True.mkv") < 0.2 * combing(source)


def test_fields_that_begin_later_are_said(tmp_path, caplog):
    whole = write_clip(tmp_path / "whole.h264", size=(48, 96), pts=(0, 500, 1000))
    fields = write_interlaced(tmp_path / "fields.h264")
    both = tmp_path / "both.h264"
    both.write_bytes(whole.read_bytes() + fields.read_bytes())
    with Reader(both) as reader:
        count = sum(1 for _ in reader.frames())
    assert count == 9
    assert caplog.text.count("both.h264 is interlaced from frame 3 on: --deinterlace") == 1


def test_a_change_of_size_loses_no_frame():
    frames = []
    for index in range(6):
        frame = av.VideoFrame(64 if index < 3 else 32, 32, "yuv420p")
        frame.pts, frame.time_base = index * 5, Fraction(1, 25)
        frames.append(frame)
    found = list(deinterlaced(iter(frames), Fraction(1, 25)))
    assert [frame.pts for frame in found] == [0, 5, 10, 15, 20, 25]
    assert [frame.width for frame in found] == [64] * 3 + [32] * 3
    assert list(deinterlaced([], Fraction(1))) == []


@pytest.mark.parametrize("choice", [True, False])
def test_a_progressive_clip_passes_either_way(choice, tiny_weights, tmp_path):
    source = write_clip(tmp_path / "in.mp4", pts=(0, 500, 1500))
    upscale(source, tmp_path / "out.mp4", model=tiny_weights, deinterlace=choice)
    assert probe(tmp_path / "out.mp4").pts_seconds == probe(source).pts_seconds
