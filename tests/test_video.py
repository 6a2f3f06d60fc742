"""Reading: what a clip is, what is kept of a damaged one, and what is refused."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from conftest import write_clip

from engines.errors import MediaError
from vsr.convert import PlaneLayout
from vsr.ffmpeg import other_packets
from vsr.pixels import (
    format_name,
    guess_matrix,
    planar_format,
    read_layout,
    read_planes,
    write_planes,
)
from vsr.timeline import Timeline
from vsr.video import Reader


def test_info_says_what_the_clip_is(tmp_path):
    path = write_clip(
        tmp_path / "in.mp4",
        tags=(1, 1, 1, 2),
        sample_aspect_ratio=Fraction(4, 3),
        audio_seconds=0.2,
    )
    with Reader(path) as reader:
        info = reader.info
    assert info.size == (38, 50)
    assert info.layout == PlaneLayout("yuv", full_range=True, chroma_step=(2, 2))
    assert info.sample_aspect_ratio == Fraction(4, 3)
    assert info.frames == 10
    assert float(info.average_rate) == pytest.approx(25.6, rel=0.01)  # 500 of 12800 ticks a frame
    assert info.time_base == Fraction(1, 12800)
    assert not info.is_still
    assert not info.alpha


def test_packets_of_other_streams_come_in_order(plain_clip):
    packets = list(other_packets(plain_clip, {1}))
    times = [packet.pts for packet in packets]
    assert {packet.stream_index for packet in packets} == {1}
    assert times == sorted(times)
    assert len(times) > 10
    assert not list(other_packets(plain_clip, set()))


def test_frames_are_the_decoders(plain_clip):
    with av.open(str(plain_clip)) as container:
        expected = [frame.to_ndarray() for frame in container.decode(video=0)]
    with Reader(plain_clip) as reader:
        found = [[plane.clone() for plane in frame.value] for frame in reader.frames()]
    for array, planes in zip(expected, found, strict=True):
        assert np.array_equal(array[:38], planes[0].numpy())
        flat = np.concatenate([plane.numpy().ravel() for plane in planes])
        assert np.array_equal(array.ravel(), flat)


def test_a_clip_cut_short_gives_what_is_left(tmp_path, caplog):
    whole = write_clip(
        tmp_path / "whole.mkv", pts=tuple(range(0, 2000, 40)), time_base=Fraction(1, 1000)
    )
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with Reader(cut) as reader:
        count = sum(1 for _ in reader.frames())
    assert 5 < count < 50


def test_damage_in_the_middle_is_counted_and_passed_over(tmp_path, caplog):
    whole = write_clip(tmp_path / "whole.mp4", pts=tuple(range(0, 25600, 512)))
    data = bytearray(whole.read_bytes())
    start = data.index(b"mdat")
    middle = start + (len(data) - start) // 3
    data[middle : middle + 300] = bytes(300)
    (tmp_path / "bad.mp4").write_bytes(data)
    with Reader(tmp_path / "bad.mp4") as reader:
        frames = list(reader.frames())
    assert reader.lost_packets + reader.damaged_frames > 0
    assert reader.lost_packets + len(frames) >= 50
    assert "is damaged" in caplog.text


def test_timestamps_stay_as_they_are_while_they_increase():
    timeline = Timeline(jump=1000)
    assert [timeline.place(t, 40) for t in (-80, 0, 40, 43, 5000)] == [-80, 0, 40, 43, 5000]
    assert timeline.moved == 0


def test_a_missing_or_late_timestamp_follows_its_predecessor():
    timeline = Timeline(jump=1000)
    assert [timeline.place(t, 40) for t in (None, None, 70, 80, 80, 120)] == [
        0,
        40,
        70,
        80,
        81,
        120,
    ]
    assert timeline.moved == 3


def test_subtitles_may_share_a_time():
    timeline = Timeline(jump=1000, repeats=True)
    assert [timeline.place(t, 40) for t in (0, 50, 50, 90)] == [0, 50, 50, 90]
    assert timeline.moved == 0


def test_what_follows_a_jump_back_moves_on_together():
    timeline = Timeline(jump=1000)
    times = (9000, 9040, 9080, 0, 40, 90, 200)
    assert [timeline.place(t, 40) for t in times] == [9000, 9040, 9080, 9120, 9160, 9210, 9320]
    assert (timeline.moved, timeline.jumps) == (0, 1)


def test_a_stream_without_timestamps_is_spaced_by_its_rate(tmp_path, caplog):
    path = write_clip(tmp_path / "raw.h264", pts=tuple(range(0, 5120, 512)))
    with Reader(path) as reader:
        times = [frame.pts * reader.info.time_base for frame in reader.frames()]
        rate = reader.info.average_rate
    assert len(times) == 10
    for before, after in pairwise(times):
        assert float((after - before) * rate) == pytest.approx(1, rel=0.01)


def test_a_clip_that_breaks_off_is_said_to(tmp_path, caplog):
    whole = write_clip(
        tmp_path / "whole.mkv", pts=tuple(range(0, 4000, 40)), time_base=Fraction(1, 1000)
    )
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with Reader(cut) as reader:
        list(reader.frames())
    assert re.search(r"cut.mkv breaks off at [12]\.\d s of 4.0 s", caplog.text)


def test_names_are_names_not_patterns_or_protocols(tmp_path):
    for name in ("a:b.mp4", "p%03d.mp4", "we ird ünï.mp4"):
        with Reader(write_clip(tmp_path / "x.mp4").rename(tmp_path / name)) as reader:
            assert reader.info.size == (38, 50)


def test_tags_in_another_encoding_are_no_obstacle(tmp_path):
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Caf__ du Nord"
        stream = container.add_stream("ffv1", rate=25, width=16, height=16)
        container.mux([*stream.encode(av.VideoFrame(16, 16, "yuv420p")), *stream.encode(None)])
    path.write_bytes(path.read_bytes().replace(b"Caf__", b"Caf\xe9 "))
    with Reader(path) as reader:
        assert reader.container.metadata["title"] == "Caf\ufffd  du Nord"


def test_a_change_of_size_in_the_middle_is_resized_and_said(tmp_path, caplog):
    parts = [
        write_clip(tmp_path / f"{s[0]}.h264", size=s, pts=(0, 500)) for s in ((38, 50), (60, 80))
    ]
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    with Reader(joined) as reader:
        sizes = [tuple(frame.value[0].shape) for frame in reader.frames()]
    assert sizes == [(38, 50)] * 4
    assert "changes its frame size from 50x38 to 80x60" in caplog.text


def test_cover_art_is_not_taken_for_the_picture(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=48000)
        cover = container.add_stream("mjpeg", rate=1, width=16, height=16, pix_fmt="yuvj420p")
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame(16, 16, "yuvj420p")
        container.mux(cover.encode(frame))
        container.mux(cover.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        silence.sample_rate = 48000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    with pytest.raises(MediaError, match=r"song.mp4 has no video stream \(found: audio, video\)"):
        Reader(path)


def test_what_is_no_clip_is_refused(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("this is not a video\n" * 100)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    ansi = tmp_path / "notes.txt"
    ansi.write_text("this is not a video either\n" * 100)
    for path, message in [
        (text, r"cannot read .*notes.mp4: invalid data"),
        (empty, r"empty.mp4 is empty"),
        (tmp_path / "missing.mp4", r"cannot read .*missing.mp4: no such file"),
        (ansi, r"notes.txt is text, expected a video"),
        (tmp_path / "IMG_1.HEIC", r"HEIF pictures cannot be read yet"),
        (tmp_path, r"is a folder, expected a video or a picture"),
    ]:
        with pytest.raises(MediaError, match=message):
            Reader(path)


# --- pixel formats --------------------------------------------------------------------------------

FORMATS = [
    ("yuv420p", "yuv420p"),
    ("yuvj422p", "yuvj422p"),
    ("nv12", "yuv420p"),
    ("nv16", "yuv422p"),
    ("p010le", "yuv420p10le"),
    ("yuyv422", "yuv422p"),
    ("yuv420p10be", "yuv420p10le"),
    ("gray", "gray"),
    ("gray16be", "gray16le"),
    ("monow", "gray"),
    ("rgb24", "gbrp"),
    ("bgra", "gbrap"),
    ("rgb48be", "gbrp16le"),
    ("pal8", "gbrap"),
    ("ya8", "gbrap"),
    ("gbrp10le", "gbrp10le"),
]


@pytest.mark.parametrize(("name", "planar"), FORMATS)
def test_every_format_has_a_planar_one_of_its_depth(name, planar):
    assert planar_format(av.VideoFormat(name, 64, 64)) == planar
    read_layout(planar)


def test_all_formats_of_ffmpeg_have_a_planar_one():
    from av.video.frame import supported_np_pix_fmts

    for name in sorted(supported_np_pix_fmts):
        kind, depth, *_ = read_layout(planar_format(av.VideoFormat(name, 64, 64)))
        bits = max(component.bits for component in av.VideoFormat(name).components)
        assert depth >= min(bits, 16), name
        assert kind in ("yuv", "rgb", "grey")


@pytest.mark.parametrize("name", ["yuv420p", "yuv444p10le", "gbrp", "gbrp16le", "gray", "gray12le"])
def test_planes_survive_a_frame(name):
    kind, depth, step, full, _ = read_layout(name)
    layout = PlaneLayout(kind, depth=depth, chroma_step=step, full_range=full)
    assert format_name(layout) == name
    planes = [
        torch.randint(0, 1 << depth, size).to(layout.dtype) for size in layout.plane_sizes(9, 13)
    ]
    for before, after in zip(planes, read_planes(write_planes(planes, name)), strict=True):
        assert torch.equal(before.int(), after.int())


def test_what_swscale_brings_to_planes_is_whole(tmp_path):
    """Its slice threads left 16 bytes of one row in another, in one frame of three."""
    path = tmp_path / "in.nut"
    grey = [torch.full(size, 400, dtype=torch.uint16) for size in ((38, 50), (38, 25), (38, 25))]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25, width=50, height=38)
        stream.codec_context.pix_fmt = "y210le"  # packed 4:2:2 of 10 bits
        for index in range(60):
            frame = write_planes(grey, "yuv422p10le").reformat(format="y210le", threads=1)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with Reader(path) as reader:
        frames = [[plane.clone() for plane in timed.value] for timed in reader.frames()]
    assert len(frames) == 60
    assert all(torch.equal(a, b) for planes in frames for a, b in zip(planes, grey, strict=True))


def test_rgb_planes_are_red_green_blue():
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[..., 0], picture[..., 2] = 200, 50
    frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="gbrp", threads=1)
    assert [int(plane[0, 0]) for plane in read_planes(frame)] == [200, 0, 50]


@pytest.mark.parametrize(
    ("size", "matrix"),
    [((480, 720), "bt601"), ((576, 1024), "bt601"), ((577, 720), "bt709"), ((720, 1280), "bt709")],
)
def test_the_guess_follows_the_size(size, matrix):
    assert guess_matrix(*size) == matrix
