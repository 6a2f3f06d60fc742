"""A part of a clip in time: the same frames as of the whole, with what belongs to them."""

from __future__ import annotations

from fractions import Fraction
from math import inf
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import write_clip
from media import probe

import vsr
from engines.errors import MediaError
from vsr.arguments import parser, to_config
from vsr.cli import main
from vsr.jobs import sources
from vsr.sequence import SequenceReader
from vsr.span import Span, chapters_within
from vsr.video import Reader
from vsr.y4m import Y4mReader

FRAMES = 60
TICK = Fraction(1, 90_000)


def write_noisy(path: Path, *, codec: str = "libx264", key_every: int = 12) -> Path:
    """60 frames at 25 a second, none like another, with B-frames, and sound of as long."""
    random = np.random.default_rng(3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, width=64, height=48)
        stream.pix_fmt, stream.gop_size = "yuv420p", key_every
        if codec == "libx264":  # open groups: frames before a key frame need what is before it
            stream.options = {"x264-params": "open-gop=1:bframes=3:scenecut=0", "crf": "10"}
        sound = container.add_stream("mp2", rate=48_000)
        scene = random.integers(60, 200, (48, 64, 3)).astype(np.uint8)
        for index in range(FRAMES):
            scene = np.roll(scene, 1, axis=1)
            picture = av.VideoFrame.from_ndarray(scene, "rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = index * 3600, TICK
            container.mux(stream.encode(picture))
        for index in range(100):
            tone = np.sin(np.arange(index * 1152, (index + 1) * 1152) / 20)
            frame = av.AudioFrame.from_ndarray((tone[None] * 9e3).astype(np.int16), "s16", "mono")
            frame.sample_rate, frame.time_base, frame.pts = (
                48_000,
                Fraction(1, 48_000),
                index * 1152,
            )
            container.mux(sound.encode(frame))
        for each in (stream, sound):
            container.mux(each.encode(None))
    return path


def planes_of(reader: Reader) -> list[list[torch.Tensor]]:
    return [[plane.clone() for plane in frame.value] for frame in reader.frames()]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".vob", ".y4m"])
@pytest.mark.parametrize(
    ("span", "first", "last"),
    [
        (Span(0, 0.39), 0, 10),
        (Span(0.98, 1.38), 25, 35),
        (Span(1.38, 1.42), 35, 36),
        (Span(1.98), 50, 60),
        (Span(0.94, inf), 24, 60),
    ],
)
def test_the_frames_are_those_of_the_whole_clip(suffix, span, first, last, tmp_path):
    codec = "mpeg2video" if suffix == ".vob" else "libx264"
    path = write_noisy(tmp_path / f"in{suffix.replace('.y4m', '.mkv')}", codec=codec)
    kind = Reader
    if suffix == ".y4m":
        path, kind = write_y4m(path), Y4mReader
    with kind(path) as whole:
        expected = planes_of(whole)[first:last]
    with kind(path) as part:
        part.trim(span)
        found = planes_of(part)
    assert len(found) == len(expected) == last - first == part.frames_read
    for ours, theirs in zip(found, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    if suffix != ".vob":  # which does not tell its length
        assert abs(part.info.frames - len(found)) <= 3
    assert (part.lost_packets, part.damaged_frames) == (0, 0)


def write_y4m(source: Path) -> Path:
    path = source.with_suffix(".y4m")
    with av.open(str(source)) as clip, path.open("wb") as file:
        file.write(b"YUV4MPEG2 W64 H48 F25:1 Ip A1:1 C420\n")
        for frame in clip.decode(video=0):
            planes = [np.frombuffer(p, np.uint8).reshape(p.height, -1) for p in frame.planes]
            rows = [r[:, : p.width] for r, p in zip(planes, frame.planes, strict=True)]
            file.write(b"FRAME\n" + b"".join(r.tobytes() for r in rows))
    return path


def test_times_are_meant_in_decimals(tmp_path):
    """As binary fractions 0.4 and 1.2 would be a little late, and 1.1 early."""
    with Reader(write_clip(tmp_path / "in.mp4", pts=tuple(range(0, 1280 * 20, 1280)))) as reader:
        reader.trim(Span(0.4, 1.2))
        assert [frame.pts for frame in reader.frames()] == list(range(1280 * 4, 1280 * 12, 1280))


def test_a_sequence_is_cut_to_its_pictures(tmp_path):
    for number in range(7, 17):
        frame = av.VideoFrame.from_ndarray(np.full((8, 8, 3), 10 * number, np.uint8), "rgb24")
        frame.save(str(tmp_path / f"{number:03d}.png"))
    with SequenceReader(tmp_path / "%03d.png", fps=Fraction(5)) as reader:
        reader.trim(Span(0.4, 1.0))
        values = [int(frame.value[0][0, 0]) for frame in reader.frames()]
    assert values == [90, 100, 110]
    assert reader.numbers == [9, 10, 11]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_begins_and_ends_with_the_picture_in_sync(suffix, tiny_weights, tmp_path):
    source = write_noisy(tmp_path / "in.ts")
    output = tmp_path / f"out{suffix}"
    vsr.upscale(source, output, model=tiny_weights, backend="pytorch", span=vsr.Span(1.0, 1.8))
    before, after = probe(source), probe(output)
    assert after.pts_seconds == [Fraction(index, 25) for index in range(20)]
    begin = before.pts_seconds[25]
    kept = [at - begin for at in before.packets["audio"][0] if begin <= at < begin + 0.8]
    found = after.packets["audio"][0]
    assert len(found) == len(kept) == pytest.approx(0.8 * 48_000 / 1152, abs=1)
    assert all(abs(a - b) <= Fraction(1, 1000) for a, b in zip(found, kept, strict=True))


def test_subtitles_and_chapters_are_cut_to_the_span(tiny_weights, tmp_path):
    source = write_noisy(tmp_path / "plain.mkv")
    words = [("0,100", "0,900", "before"), ("0,900", "2,000", "into")]
    words += [("1,400", "2,600", "beyond"), ("2,300", "2,350", "after")]
    lines = [
        f"{n}\n00:00:0{a} --> 00:00:0{b}\n{said}\n\n" for n, (a, b, said) in enumerate(words, 1)
    ]
    (tmp_path / "in.srt").write_text("".join(lines))
    with (
        av.open(str(source)) as clip,
        av.open(str(tmp_path / "in.srt")) as text,
        av.open(str(tmp_path / "in.mkv"), "w") as container,
    ):
        copies = {s.index: container.add_stream_from_template(s) for s in clip.streams}
        copy = container.add_stream_from_template(text.streams[0])
        chapters = [(0, 1000, "one"), (1000, 1500, "two"), (1500, 2400, "three")]
        container.set_chapters(
            [
                {"id": n, "start": a, "end": b, "time_base": Fraction(1, 1000),
                 "metadata": {"title": title}}
                for n, (a, b, title) in enumerate(chapters, 1)
            ]
        )  # fmt: skip
        for packet in clip.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                container.mux(packet)
        for packet in text.demux():
            if packet.size:
                packet.stream = copy
                container.mux(packet)
    output = tmp_path / "out.mkv"
    vsr.upscale(
        tmp_path / "in.mkv", output, model=tiny_weights, backend="pytorch", span=Span(1.2, 2.0)
    )
    with av.open(str(output)) as container:
        found = [
            (packet.pts, packet.duration, bytes(packet))
            for packet in container.demux(subtitles=0)
            if packet.size
        ]
        titles = [
            (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"]["title"])
            for c in container.chapters()
        ]
    assert found == [(0, 800, b"into"), (200, 600, b"beyond")]
    assert titles == [(0, Fraction(3, 10), "two"), (Fraction(3, 10), Fraction(8, 10), "three")]


def test_chapters_keep_their_own_ticks():
    chapter = {"id": 1, "start": 90, "end": 450, "time_base": Fraction(1, 90), "metadata": {}}
    assert chapters_within([chapter], Fraction(2), 3.0) == [chapter | {"start": 0, "end": 90}]
    assert chapters_within([chapter], Fraction(5), inf) == []


def test_an_interrupted_job_of_a_span_goes_on(tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr("vsr.segments.SEGMENT_FRAMES", 10)
    source = write_noisy(tmp_path / "in.mkv")

    def upscale(name, end=2.0, **more):
        return vsr.upscale(
            source,
            tmp_path / name,
            model=tiny_weights,
            backend="pytorch",
            span=Span(0.6, end),
            **more,
        )

    def stop(progress):
        if progress.frames == 25:
            raise KeyboardInterrupt

    upscale("whole.mkv")
    with pytest.raises(KeyboardInterrupt):
        upscale("out.mkv", progress=stop)
    assert upscale("out.mkv").resumed == 20
    assert (tmp_path / "out.mkv").read_bytes() == (tmp_path / "whole.mkv").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        upscale("other.mkv", progress=stop)
    assert upscale("other.mkv", end=1.9).resumed == 0


@pytest.mark.parametrize(
    ("words", "span"),
    [
        ([], None),
        (["--start", "90.5"], Span(90.5)),
        (["--end", "1:30"], Span(0, 90)),
        (["--start", "1:00:00.25", "--end", "1:01:00"], Span(3600.25, 3660)),
    ],
)
def test_the_command_line_takes_seconds_or_a_clock(words, span):
    arguments = parser().parse_args(["upscale", "clip.mp4", *words])
    assert to_config(arguments, Path("clip.mp4"), None).span == span


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--start", "1:75"], "expected seconds or [HH:]MM:SS, for example 90.5 or 1:30.5"),
        (["--start", "5", "--end", "5"], "end must be after start, 5 s, got 5 s"),
        (["--start", "9"], "has no frame in the span 9-end"),
    ],
)
def test_a_span_that_cannot_be_is_one_line(words, message, plain_clip, tmp_path, capsys):
    command = ["upscale", str(plain_clip), "-o", str(tmp_path / "out.mp4"), *words]
    try:
        code = main(command)
    except SystemExit as ended:
        code = ended.code
    assert code in (1, 2)
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_picture_has_no_span(tiny_weights, tmp_path):
    av.VideoFrame(16, 16, "rgb24").save(str(tmp_path / "in.png"))
    with pytest.raises(MediaError, match=r"in\.png is a picture, which has no start and end"):
        vsr.upscale(tmp_path / "in.png", model=tiny_weights, span=Span(1))


@pytest.mark.parametrize(("span", "name"), [(Span(0.2), "0.2-end"), (Span(0, 0.3), "0-0.3s")])
def test_the_span_is_in_the_outputs_name_which_is_no_input(span, name, tiny_weights, tmp_path):
    source = write_clip(tmp_path / "in.mp4")
    result = vsr.upscale(source, model=tiny_weights, backend="pytorch", span=span)
    assert result.output.name == f"in_{name}_x2.mp4"
    assert sources([tmp_path]) == [source]
