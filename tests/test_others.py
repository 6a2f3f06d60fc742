"""What lies beside the picture: tags and further pictures."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import pytest
from av.sidedata.sidedata import Type as SideDataType

import vsr
from vsr.others import OtherStreams
from vsr.unkept import stream_metadata
from vsr.video import Reader


def write_tagged(path: Path, tags: dict[str, str], *, pictures: int = 1) -> Path:
    options = {"movflags": "use_metadata_tags"} if path.suffix == ".mov" else {}
    with av.open(str(path), "w", container_options=options) as container:
        container.metadata.update(tags)
        streams = [
            container.add_stream("libx264", rate=25, width=64, height=48) for _ in range(pictures)
        ]
        for stream in streams:
            write_black(container, stream, 3)
    return path


def write_black(container, stream, frames: int) -> None:
    for index in range(frames):
        frame = av.VideoFrame(64, 48, "yuv420p")
        frame.pts, frame.time_base = index, Fraction(1, 25)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


APPLE = {"com.apple.quicktime.make": "Apple", "com.apple.quicktime.model": "iPhone 6"}


@pytest.mark.parametrize(("suffix", "expected"), [(".mov", APPLE), (".mkv", APPLE), (".mp4", {})])
def test_a_phones_tags_are_kept_where_the_container_has_a_place(
    suffix, expected, tiny_weights, tmp_path
):
    source = write_tagged(tmp_path / "in.mov", APPLE | {"title": "Sea"})
    vsr.upscale(source, tmp_path / f"out{suffix}", model=tiny_weights, backend="pytorch")
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        found = {key.lower(): value for key, value in container.metadata.items()}
    assert found["title"] == "Sea"
    assert {key: value for key, value in found.items() if key.startswith("com.")} == expected


def test_a_second_picture_is_named_without_false_advice(tiny_weights, tmp_path, caplog):
    source = write_tagged(tmp_path / "in.mp4", {}, pictures=2)
    vsr.upscale(source, tmp_path / "out.mp4", model=tiny_weights, backend="pytorch")
    assert "video stream 1 (h264) is not kept: a second picture" in caplog.text
    assert ".mkv" not in caplog.text


def test_an_encoder_that_does_not_fit_webm_gets_advice(plain_clip, tiny_weights, tmp_path):
    with pytest.raises(vsr.VSRError, match=r"libvpx-vp9 and libsvtav1 fit it, and .mkv fits any"):
        vsr.upscale(plain_clip, tmp_path / "out.webm", model=tiny_weights, backend="pytorch")
    assert not list(tmp_path.iterdir())


def test_the_statistics_of_what_is_encoded_anew_are_dropped(tiny_weights, tmp_path):
    stale = {
        "BPS-eng": "740450", "NUMBER_OF_BYTES": "89502", "NUMBER_OF_FRAMES-eng": "3",
        "_STATISTICS_WRITING_APP-eng": "mkvmerge", "ENCODER": "Lavc61 libx264",
    }  # fmt: skip
    source = write_tagged(tmp_path / "in.mkv", {})
    with av.open(str(source)) as before, av.open(str(tmp_path / "tagged.mkv"), "w") as after:
        copy = after.add_stream_from_template(before.streams.video[0])
        copy.metadata.update(stale | {"title": "Sea", "BPSX": "mine"})
        for packet in before.demux(video=0):
            if packet.size:
                packet.stream = copy
                after.mux(packet)
    vsr.upscale(
        tmp_path / "tagged.mkv", tmp_path / "out.mkv", model=tiny_weights, backend="pytorch"
    )
    with av.open(str(tmp_path / "out.mkv")) as container:
        found = dict(container.streams.video[0].metadata)
    assert (found.pop("title"), found.pop("BPSX")) == ("Sea", "mine")
    assert found.keys() <= {"DURATION", "language"}


def test_a_streams_tags_take_the_containers_form():
    tags = {"title": "Ton", "language": "deu", "handler_name": "SoundHandler", "DURATION": "1"}
    assert stream_metadata(tags, Path("a.mkv")) == {"title": "Ton", "language": "deu"}
    assert stream_metadata(tags, Path("a.mp4"))["handler_name"] == "Ton"
    assert stream_metadata(tags, Path("a.mp4"))["language"] == "deu"
    assert stream_metadata(tags, Path("a.mov"))["language"] == "ger"
    assert stream_metadata({"handler_name": "Director"}, Path("a.mp4")) == {
        "handler_name": "Director"
    }


def write_with_timecode(path: Path) -> Path:
    """A second of black, whose first frame is number 14 of 01:02:03."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, width=64, height=48)
        stream.metadata["timecode"] = "01:02:03:14"
        write_black(container, stream, 25)
    return path


def timecodes(path: Path) -> list[tuple[str, str | None]]:
    with av.open(str(path)) as container:
        tags = [(s.type, {k.lower(): v for k, v in s.metadata.items()}) for s in container.streams]
    return [(kind, found.get("timecode")) for kind, found in tags]


@pytest.mark.parametrize(
    ("suffix", "tracks"),
    [(".mov", ["video", "data"]), (".mp4", ["video", "data"]), (".mkv", ["video"])],
)
def test_a_timecode_comes_along_and_is_that_of_the_first_frame(
    suffix, tracks, tiny_weights, tmp_path, caplog
):
    clip = write_with_timecode(tmp_path / "in.mov")
    upscale = partial(vsr.upscale, model=tiny_weights, backend="pytorch", preset="ultrafast")
    upscale(clip, tmp_path / f"a{suffix}")
    assert timecodes(tmp_path / f"a{suffix}") == [(kind, "01:02:03:14") for kind in tracks]
    upscale(clip, tmp_path / f"b{suffix}", span=vsr.Span(0.4))
    assert timecodes(tmp_path / f"b{suffix}") == [(kind, "01:02:03:24") for kind in tracks]
    assert caplog.text == ""


def test_a_timecode_that_the_output_cannot_hold_is_said(tiny_weights, tmp_path, caplog):
    clip = write_with_timecode(tmp_path / "in.mov")
    vsr.upscale(clip, tmp_path / "out.ts", model=tiny_weights, backend="pytorch")
    assert "is not kept: its timecode is no tag of the picture, or not in the output" in caplog.text


def test_a_timecode_of_the_container_moves_on_too(tiny_weights, tmp_path):
    clip = write_tagged(tmp_path / "in.mkv", {"timecode": "01:02:03:14"})
    upscale = partial(vsr.upscale, model=tiny_weights, backend="pytorch", preset="ultrafast")
    upscale(clip, tmp_path / "out.mkv", span=vsr.Span(0.04))
    with av.open(str(tmp_path / "out.mkv")) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
    assert tags["timecode"] == "01:02:03:15"


def test_a_timecode_of_another_picture_is_left_out_and_said(
    tiny_weights, tmp_path, caplog, monkeypatch
):
    clip = write_with_timecode(tmp_path / "in.mov")
    real = OtherStreams.__init__

    def without(self, reader, output):
        reader.stream.metadata.pop("timecode", None)
        real(self, reader, output)

    monkeypatch.setattr(OtherStreams, "__init__", without)
    result = vsr.upscale(clip, tmp_path / "out.mov", model=tiny_weights, backend="pytorch")
    assert result.frames == 25
    assert "is not kept: its timecode is no tag of the picture" in caplog.text


def test_marks_within_the_picture_that_are_lost_are_said(tiny_weights, tmp_path, caplog):
    clip = write_tagged(tmp_path / "in.mkv", {})
    real = Reader.__init__

    def marked(self, *arguments, **named):
        real(self, *arguments, **named)
        self.info = replace(self.info, not_kept=("closed captions within its picture",))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "__init__", marked)
        vsr.upscale(clip, tmp_path / "out.mkv", model=tiny_weights, backend="pytorch")
    assert f"not kept of {clip}: closed captions within its picture" in caplog.text


@pytest.mark.parametrize(
    "kind", [SideDataType.A53_CC, SideDataType.SPHERICAL, SideDataType.STEREO3D]
)
def test_marks_within_the_picture_are_found(kind, tmp_path, monkeypatch):
    clip = write_tagged(tmp_path / "in.mkv", {})
    monkeypatch.setattr("vsr.clip._side_data", lambda frame: {kind: b""})
    with Reader(clip) as reader:
        assert len(reader.info.not_kept) == 1


def test_the_alpha_of_a_webm_is_missed_and_its_mark_dropped(tiny_weights, tmp_path, caplog):
    with av.open(str(tmp_path / "in.webm"), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25, width=64, height=48)
        stream.metadata["alpha_mode"] = "1"
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    vsr.upscale(tmp_path / "in.webm", tmp_path / "out.mkv", model=tiny_weights, backend="pytorch")
    assert "its alpha channel" in caplog.text
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert "alpha_mode" not in {key.lower() for key in container.streams.video[0].metadata}
