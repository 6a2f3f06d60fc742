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
from vsr.span import Span, chapters_within, moved_timecode
from vsr.video import Reader
from vsr.y4m import Y4mReader

FRAMES = 60
REAL_CLIPS = Path(__file__).parents[2] / "shared" / "data" / "clips"
TICK = Fraction(1, 90_000)


def write_noisy(
    path: Path,
    *,
    codec: str = "libx264",
    x264: str = "open-gop=1:bframes=3:scenecut=0",
    sound_too: bool = True,
) -> Path:
    """60 frames at 25 a second, none like another, with B-frames, and sound of as long.

    Groups are open: frames before a key frame need what is before it.
    """
    random = np.random.default_rng(3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, width=64, height=48)
        stream.pix_fmt, stream.gop_size = "yuv420p", 12
        if codec == "libx264":
            stream.options = {"x264-params": x264, "crf": "10"}
        sound = container.add_stream("mp2", rate=48_000) if sound_too else None
        scene = random.integers(60, 200, (48, 64, 3)).astype(np.uint8)
        for index in range(FRAMES):
            scene = np.roll(scene, 1, axis=1)
            picture = av.VideoFrame.from_ndarray(scene, "rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = index * 3600, TICK
            container.mux(stream.encode(picture))
        for index in range(100 if sound else 0):
            tone = np.sin(np.arange(index * 1152, (index + 1) * 1152) / 20)
            frame = av.AudioFrame.from_ndarray((tone[None] * 9e3).astype(np.int16), "s16", "mono")
            frame.sample_rate, frame.time_base, frame.pts = (
                48_000,
                Fraction(1, 48_000),
                index * 1152,
            )
            container.mux(sound.encode(frame))
        for each in filter(None, (stream, sound)):
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


def check_span(path, span, *, deinterlace=None):
    """Compare a span with what reading the whole clip gives in it."""
    with Reader(path, deinterlace=deinterlace) as whole:
        begin, tick = whole.begin_seconds, whole.info.time_base
        every = [(frame.pts, [p.clone() for p in frame.value]) for frame in whole.frames()]
    within = [
        (pts, planes)
        for pts, planes in every
        if span.begin_seconds <= pts * tick - begin < span.end_seconds
    ]
    with Reader(path, deinterlace=deinterlace) as part:
        part.trim(span)
        found = [(frame.pts, [p.clone() for p in frame.value]) for frame in part.frames()]
    assert [pts for pts, _ in found] == [pts for pts, _ in within] != []
    for (_, ours), (_, theirs) in zip(found, within, strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("suffix", [".ts", ".flv", ".nut", ".mp4"])
@pytest.mark.parametrize("start", [0.05, 0.3, 0.48, 1.0])
def test_a_span_in_the_first_group_of_pictures(suffix, start, tmp_path):
    """The clock of decoding, by which containers seek, begins before that of presentation."""
    path = write_noisy(tmp_path / f"in{suffix}", sound_too=False)
    check_span(path, Span(start, start + 0.3))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_span_of_a_clip_without_key_frames(suffix, tmp_path):
    refreshed = "intra-refresh=1:bframes=0:scenecut=0"
    check_span(write_noisy(tmp_path / f"in{suffix}", x264=refreshed), Span(2.2))


@pytest.mark.parametrize("start", [0.48, 0.96, 1.0])
def test_a_span_of_an_interlaced_clip_knows_the_frame_before_it(start, tmp_path):
    fields = "interlaced=1:open-gop=0:bframes=0:scenecut=0"
    path = write_noisy(tmp_path / "in.mkv", x264=fields)
    check_span(path, Span(start, start + 0.3), deinterlace=True)


def test_a_span_of_a_clip_whose_edit_list_begins_within(tmp_path):
    path = REAL_CLIPS / "hard" / "iibbibb_editlist_videoonly.mp4"
    if not path.exists():
        pytest.skip("the real clips are not beside the checkout")
    check_span(path, Span(0.76, 1.07))


def test_an_end_alone_leaves_the_beginning_as_it_is(tiny_weights, tmp_path):
    source = write_clip(tmp_path / "in.mp4", audio_seconds=0.6, pts=tuple(range(0, 7500, 500)))
    outputs = [tmp_path / "whole.mp4", tmp_path / "part.mp4"]
    for output, span in zip(outputs, (None, Span(0, 0.4)), strict=True):
        vsr.upscale(source, output, model=tiny_weights, backend="pytorch", span=span)
    whole, part = (probe(output) for output in outputs)
    count = len(part.packets["audio"][0])
    assert 0 < count < len(whole.packets["audio"][0])
    assert part.packets["audio"][0] == whole.packets["audio"][0][:count]  # with what primes it
    assert part.pts_seconds == whole.pts_seconds[: len(part.pts_seconds)]


def test_chapters_count_from_the_first_frame_that_is_kept(tiny_weights, tmp_path):
    source = write_clip(
        tmp_path / "plain.mkv", pts=(0, 10_000, 20_000, 30_000), time_base=Fraction(1, 1000)
    )
    with av.open(str(source)) as clip, av.open(str(tmp_path / "in.mkv"), "w") as container:
        copy = container.add_stream_from_template(clip.streams.video[0])
        container.set_chapters(
            [
                {"id": n, "start": a, "end": b, "time_base": Fraction(1), "metadata": {}}
                for n, (a, b) in enumerate([(0, 5), (5, 12), (12, 20), (20, 35)], 1)
            ]
        )
        for packet in clip.demux():
            if packet.size:
                packet.stream = copy
                container.mux(packet)
    output = tmp_path / "out.mkv"
    vsr.upscale(tmp_path / "in.mkv", output, model=tiny_weights, backend="pytorch", span=Span(5))
    with av.open(str(output)) as container:
        times = [
            (c["start"] * c["time_base"], c["end"] * c["time_base"]) for c in container.chapters()
        ]
    assert times == [(0, 2), (2, 10), (10, 25)]


def test_a_cover_stays_with_a_span(tiny_weights, tmp_path):
    source = write_clip(tmp_path / "plain.mp4")
    picture = av.VideoFrame(16, 16, "rgb24")
    picture.save(str(tmp_path / "cover.png"))
    with (
        av.open(str(source)) as clip,
        av.open(str(tmp_path / "cover.png")) as cover,
        av.open(str(tmp_path / "in.mp4"), "w") as container,
    ):
        copy = container.add_stream_from_template(clip.streams.video[0])
        still = container.add_stream_from_template(cover.streams.video[0], opaque=True)
        still.disposition = av.stream.Disposition.attached_pic
        for packets, stream in ((clip.demux(), copy), (cover.demux(), still)):
            for packet in packets:
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
    for span in (Span(0, 0.2), Span(0.1)):
        output = tmp_path / f"{span}.mp4"
        vsr.upscale(tmp_path / "in.mp4", output, model=tiny_weights, backend="pytorch", span=span)
        with av.open(str(output)) as container:
            covers = [
                s for s in container.streams.video
                if s.disposition & av.stream.Disposition.attached_pic
            ]  # fmt: skip
        assert len(covers) == 1


def test_names_and_messages_have_all_digits():
    assert str(Span(12345.67, 99999.000001)) == "12345.67-99999.000001s"


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
    end = min(before.pts_seconds[0], before.packets["audio"][0][0]) + Fraction("1.8")
    kept = [at - begin for at in before.packets["audio"][0] if begin <= at < end]
    found = after.packets["audio"][0]
    assert len(found) == len(kept) > 30
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
    two = Fraction(2)
    assert chapters_within([chapter], two, 3.0, zero_seconds=two) == [
        chapter | {"start": 0, "end": 90}
    ]
    assert chapters_within([chapter], Fraction(5), inf, zero_seconds=two) == []


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
        (["--start", ".5", "--end", "90:00"], Span(0.5, 5400)),
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


@pytest.mark.parametrize(
    ("timecode", "frames", "rate", "expected"),
    [
        ("01:02:03:04", 10, 25, "01:02:03:14"),
        ("00:59:59:24", 1, 25, "01:00:00:00"),
        ("23:59:59:24", 1, 25, "00:00:00:00"),
        ("10:00:00:00", 24 * 3600, Fraction(24000, 1001), "11:00:00:00"),
        # 00 and 01 of a minute are left out, but of each tenth (SMPTE ST 12-1)
        ("00:00:59;29", 1, Fraction(30000, 1001), "00:01:00;02"),
        ("00:09:59;29", 1, Fraction(30000, 1001), "00:10:00;00"),
        ("00:00:00;00", 107892, Fraction(30000, 1001), "01:00:00;00"),
        ("00:00:59;59", 1, Fraction(60000, 1001), "00:01:00;04"),
        ("23:59:59;29", 1, Fraction(30000, 1001), "00:00:00;00"),
        ("no timecode", 1, 25, None),
    ],
)
def test_a_timecode_moves_on(timecode, frames, rate, expected):
    assert moved_timecode(timecode, frames, Fraction(rate)) == expected
