"""What lies beside the picture: tags and further pictures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest

import vsr
from vsr.unkept import stream_metadata


def write_tagged(path: Path, tags: dict[str, str], *, pictures: int = 1) -> Path:
    options = {"movflags": "use_metadata_tags"} if path.suffix == ".mov" else {}
    with av.open(str(path), "w", container_options=options) as container:
        container.metadata.update(tags)
        streams = [
            container.add_stream("libx264", rate=25, width=64, height=48) for _ in range(pictures)
        ]
        for stream in streams:
            for index in range(3):
                frame = av.VideoFrame(64, 48, "yuv420p")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


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
