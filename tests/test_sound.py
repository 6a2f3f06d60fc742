"""Sound and subtitles that the output's container cannot hold: converted, in sync, and said."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import InvalidDataError
from media import probe
from streaming import TcpServer, write_ts

import vsr
from vsr.mux import Muxer
from vsr.sound import sound_codec
from vsr.subtitles import OneAtATime

upscale = partial(vsr.upscale, backend="pytorch", preset="ultrafast")

RATE = 48_000
CLICK_SECONDS = 0.4
# what a lossy codec may smear of a click, and less than a frame of it
SYNC_SECONDS = 0.002


def write_with_sound(
    path: Path,
    codec: str,
    *,
    rate: int = RATE,
    start_seconds: float = 0.0,
    gap_seconds: float = 0.0,
) -> Path:
    """A second of black, and a click 0.4 s into the sound, then another 0.4 s after a gap."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=25, width=64, height=48)
        sound = container.add_stream(codec, rate=rate, options={"strict": "experimental"})
        sound.layout = "stereo"
        for index in range(25):
            frame = av.VideoFrame(64, 48, "yuv420p")
            for plane, level in zip(frame.planes, (16 + index, 128, 128), strict=True):
                plane.update(bytes([level]) * plane.buffer_size)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        samples = round(0.5 * rate)
        wave = np.zeros(samples, np.float32)
        at = round(CLICK_SECONDS * rate)
        wave[at : at + 8] = 0.9
        for begin in (start_seconds, start_seconds + 0.5 + gap_seconds):
            for k in range(0, samples, 1000):
                block = np.stack([wave[k : k + 1000]] * 2)
                frame = av.AudioFrame.from_ndarray(block, "fltp", "stereo")
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = round(begin * rate) + k
                container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


def clicks(path: Path) -> list[float]:
    """The times at which it clicks, in seconds."""
    found: list[float] = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            wave = np.abs(av.AudioResampler("fltp", "mono").resample(frame)[0].to_ndarray()[0])
            for at in np.flatnonzero(wave > 0.4):
                seconds = float(frame.pts * frame.time_base) + at / frame.sample_rate
                if not found or seconds - found[-1] > 0.05:
                    found.append(seconds)
    return found


@pytest.mark.parametrize(
    ("codec", "source", "output", "expected"),
    [
        ("adpcm_ms", "in.avi", "out.mp4", "aac"),
        ("pcm_u8", "in.avi", "out.mp4", "alac"),
        ("pcm_alaw", "in.mov", "out.mkv", "aac"),
        ("flac", "in.mkv", "out.mov", "alac"),  # refused by the header alone
        ("aac", "in.mp4", "out.webm", "opus"),
        ("pcm_s16le", "in.mkv", "out.ts", "aac"),  # taken, but not to be read back
    ],
)
def test_sound_that_a_container_refuses_is_converted_in_sync(
    codec, source, output, expected, tiny_weights, tmp_path, caplog
):
    clip = write_with_sound(tmp_path / source, codec)
    encoder = "libvpx-vp9" if output.endswith("webm") else "libx264"
    upscale(
        clip, tmp_path / output, model=tiny_weights, encoder=encoder,
        preset=None if encoder == "libvpx-vp9" else "ultrafast",
    )  # fmt: skip
    with av.open(str(tmp_path / output)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.codec.canonical_name == expected
    assert f"audio stream 1 ({codec}) is converted to" in caplog.text
    before, after = clicks(clip), clicks(tmp_path / output)
    shift = first_picture_seconds(tmp_path / output)  # MPEG-TS begins later, with all streams
    assert len(before) == 2
    assert [at - shift for at in after] == pytest.approx(before, abs=SYNC_SECONDS)


def first_picture_seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return float(frame.pts * frame.time_base)


def test_a_late_start_and_a_gap_stay_where_they_are(tiny_weights, tmp_path):
    clip = write_with_sound(tmp_path / "in.mkv", "flac", start_seconds=0.2, gap_seconds=0.3)
    before = clicks(clip)
    assert before == pytest.approx([0.6, 1.4], abs=SYNC_SECONDS)
    upscale(clip, tmp_path / "out.mov", model=tiny_weights)
    assert clicks(tmp_path / "out.mov") == pytest.approx(before, abs=SYNC_SECONDS)


def test_converted_lossless_sound_has_the_same_samples(tiny_weights, tmp_path):
    clip = write_with_sound(tmp_path / "in.mkv", "flac")
    upscale(clip, tmp_path / "out.mov", model=tiny_weights)
    waves = []
    for path in (clip, tmp_path / "out.mov"):
        resampler = av.AudioResampler("s16p", "stereo", RATE)
        with av.open(str(path)) as container:
            parts = [
                part.to_ndarray()
                for frame in container.decode(audio=0)
                for part in resampler.resample(frame)
            ]
        waves.append(np.concatenate(parts, axis=1))
    length = waves[0].shape[1]
    assert np.array_equal(waves[0], waves[1][:, :length])
    assert not waves[1][:, length:].any()


def test_channels_without_names_fit_mp4(tiny_weights, tmp_path, caplog):
    """AVI counts channels and does not name them; MP4's header for PCM must."""
    clip = write_with_sound(tmp_path / "in.avi", "pcm_s16le")
    upscale(clip, tmp_path / "out.mp4", model=tiny_weights)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "pcm_s16le"
    assert clicks(tmp_path / "out.mp4") == pytest.approx(clicks(clip), abs=1e-4)
    assert "converted" not in caplog.text


def test_packets_that_a_container_refuses_are_counted_and_fail_nothing(
    tiny_weights, tmp_path, caplog, monkeypatch
):
    clip = write_with_sound(tmp_path / "in.mp4", "aac")
    real, seen = Muxer._mux_other, []

    class Refusing:
        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def mux(self, packet):
            seen.append(packet)
            if len(seen) % 2:
                raise InvalidDataError(-1094995529, "invalid data", "")
            self._container.mux(packet)

    def refusing(muxer, packet):
        container = muxer._container
        muxer._container = Refusing(container)
        real(muxer, packet)
        muxer._container = container

    monkeypatch.setattr(Muxer, "_mux_other", refusing)
    result = upscale(clip, tmp_path / "out.mp4", model=tiny_weights)
    assert result.frames == 25
    assert f"audio stream 1 (aac): {-(-len(seen) // 2)} packets are not kept" in caplog.text


def test_sound_that_cannot_be_converted_either_is_left_out(
    tiny_weights, tmp_path, caplog, monkeypatch
):
    """As where its encoder does not take so many channels."""
    clip = write_with_sound(tmp_path / "in.avi", "adpcm_ms")
    monkeypatch.setattr("vsr.sound.known_layout", lambda _: "no such layout")
    assert upscale(clip, tmp_path / "out.mp4", model=tiny_weights).frames == 25
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    assert "audio stream 1 (adpcm_ms) is not kept: " in caplog.text
    assert "nor converted: invalid layout: no such layout" in caplog.text


def test_a_container_without_a_codec_for_it_leaves_sound_out():
    assert sound_codec("gif", "aac") is None
    assert sound_codec("mp4", "pcm_u8") == "alac"
    assert sound_codec("mp4", "pcm_alaw") == "aac"


# --- subtitles ------------------------------------------------------------------------------------


WORDS = [(100, 300, "Hello"), (500, 200, "there, you"), (800, 100, "end")]


def write_with_subtitles(path: Path, codec: str) -> Path:
    """Half a second of picture and three subtitles: (start, duration) in ms, text."""
    header = (
        "[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\n"
        "Format: Name, Fontname, Fontsize, PrimaryColour\nStyle: Default,Arial,16,&Hffffff\n\n"
        "[Events]\n"
        "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
    )
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=25, width=64, height=48)
        stream = container.add_stream(codec)
        stream.metadata["language"] = "fra"
        stream.codec_context.subtitle_header = header.encode()
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        container.start_encoding()
        for index in range(5):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        for number, (start, duration, text) in enumerate(WORDS):
            words = f"{number},0,Default,,0,0,0,,{text}".encode()
            encoded = stream.codec_context.encode_subtitle(
                av.subtitles.subtitle.SubtitleSet.create(words, 0, duration, start)
            )
            packet = av.Packet(bytes(encoded))
            packet.pts = packet.dts = start
            packet.duration, packet.time_base, packet.stream = duration, Fraction(1, 1000), stream
            container.mux(packet)
    return path


def read_words(path: Path) -> list[tuple[int, str]]:
    """(start in ms, text) of each subtitle."""
    found = []
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        for packet in container.demux(stream):
            for subtitle in stream.decode(packet) if packet.size else []:
                text = subtitle.dialogue.decode().strip()
                if text:
                    found.append((round(packet.pts * packet.time_base * 1000), text))
    return found


@pytest.mark.parametrize(
    ("codec", "source", "output", "expected"),
    [
        ("srt", "in.mkv", "out.mp4", "mov_text"),
        ("ass", "in.mkv", "out.mov", "mov_text"),
        ("mov_text", "in.mp4", "out.mkv", "subrip"),
        ("srt", "in.mkv", "out.webm", "webvtt"),
    ],
)
def test_text_that_a_container_refuses_is_converted(
    codec, source, output, expected, tiny_weights, tmp_path, caplog
):
    clip = write_with_subtitles(tmp_path / source, codec)
    encoder = "libvpx-vp9" if output.endswith("webm") else "libx264"
    vsr.upscale(
        clip, tmp_path / output, model=tiny_weights, backend="pytorch", encoder=encoder,
        preset=None if encoder == "libvpx-vp9" else "ultrafast",
    )  # fmt: skip
    with av.open(str(tmp_path / output)) as container:
        stream = container.streams.subtitles[0]
        assert stream.codec_context.codec.canonical_name == expected
        assert stream.language == "fra"
    assert read_words(tmp_path / output) == [(start, text) for start, _, text in WORDS]
    assert "subtitle stream 1 (" in caplog.text
    assert ("without its styles" in caplog.text) == (codec == "ass")
    assert "breaks off" not in caplog.text  # words may outlast the picture


def test_pictures_of_text_are_named_and_left_out(tiny_weights, tmp_path, caplog):
    """As are the streams of a container that has no form for text at all."""
    clip = write_with_subtitles(tmp_path / "in.mkv", "srt")
    upscale(clip, tmp_path / "out.ts", model=tiny_weights)
    assert "subtitle stream 1 (srt) is not kept: in mpegts it could not be read" in caplog.text
    assert "; an .mkv output may hold it as it is" in caplog.text


def test_texts_that_overlap_are_shown_together():
    def sample(text):
        return len(text).to_bytes(2, "big") + text

    lines = OneAtATime()
    taken = [(0, 100, b"sign"), (20, 40, b"A"), (20, 30, b"B"), (60, 70, b"C"), (200, 210, b"end")]
    found = [part for begin, end, text in taken for part in lines.add(begin, end, sample(text))]
    found += lines.rest()
    assert found == [
        (begin, end, sample(text))
        for begin, end, text in [
            (0, 20, b"sign"), (20, 30, b"sign\nA\nB"), (30, 40, b"sign\nA"), (40, 60, b"sign"),
            (60, 70, b"sign\nC"), (70, 100, b"sign"), (200, 210, b"end"),
        ]
    ]  # fmt: skip
    late = [*lines.add(250, 290, sample(b"a")), *lines.add(240, 280, sample(b"b")), *lines.rest()]
    assert late == [(250, 280, sample(b"a\nb")), (280, 290, sample(b"a"))]
    for number in range(3000):  # as of typeset signs; each is there twice
        found = [*lines.add(295, 299, sample(b"%04d" % (number // 2)))]
    ((_, _, text),) = lines.rest()
    assert text[2:].startswith(b"0000\n0001\n")
    assert len(text) < 2010
    styled = sample(b"alone") + b"styl"
    assert [*lines.add(300, 310, styled), *lines.rest()] == [(300, 310, styled)]


def test_texts_that_overlap_keep_their_times_in_mp4(tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr("test_sound.WORDS", [(0, 900, "sign"), (200, 300, "A"), (600, 100, "B")])
    clip = write_with_subtitles(tmp_path / "in.mkv", "srt")
    upscale(clip, tmp_path / "out.mp4", model=tiny_weights)
    assert [(at, text.split("\n")) for at, text in read_words(tmp_path / "out.mp4")] == [
        (0, ["sign"]), (200, ["sign", "A"]), (500, ["sign"]), (600, ["sign", "B"]), (700, ["sign"]),
    ]  # fmt: skip


def test_a_text_without_a_duration_is_shown_until_the_next(tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr("test_sound.WORDS", [(0, 900, "A"), (200, 0, "B"), (600, 100, "C")])
    clip = write_with_subtitles(tmp_path / "in.mkv", "srt")
    upscale(clip, tmp_path / "out.mp4", model=tiny_weights)
    found = dict(read_words(tmp_path / "out.mp4"))
    assert found[0] == "A"
    assert found[200] == "A\nB"
    assert found[600] == "A\nB\nC"


# --- broadcasts -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged_sound(tmp_path_factory) -> bytes:
    """4 s of MPEG-TS, in which every tenth head of a frame of sound is damaged.

    It tells of several frames with one checksum, for which FFmpeg has an error of its own.
    """
    clip = write_ts(tmp_path_factory.mktemp("ts") / "a.ts", seconds=4).read_bytes()
    packets = [bytearray(clip[at : at + 188]) for at in range(0, len(clip), 188)]
    heads = [(p, p.find(b"\xff\xf1")) for p in packets if is_sound(p)]
    for packet, at in [(p, at) for p, at in heads if 0 < at < 180][::10]:
        packet[at + 1] &= 0xFE
        packet[at + 6] |= 1
    return b"".join(packets)


def is_sound(packet: bytes) -> bool:
    return int.from_bytes(packet[1:3], "big") & 0x1FFF == 0x101  # the second stream


def test_sound_that_is_too_damaged_to_copy_fails_nothing(
    damaged_sound, tiny_weights, tmp_path, caplog
):
    """AAC goes from ADTS to MP4 through a filter of FFmpeg's that has words of its own for it."""
    (tmp_path / "a.ts").write_bytes(damaged_sound)
    assert upscale(tmp_path / "a.ts", tmp_path / "out.mkv", model=tiny_weights).frames == 100
    assert "audio stream 1 (aac): " in caplog.text
    assert "packets are not kept: not yet implemented in FFmpeg" in caplog.text
    assert len(probe(tmp_path / "out.mkv").packets["audio"][0]) > 100


def test_sound_that_is_too_damaged_to_copy_ends_no_recording(
    damaged_sound, tiny_weights, tmp_path, caplog
):
    with TcpServer(damaged_sound) as server:
        result = upscale(
            server.url, tmp_path / "out.mkv", model=tiny_weights, live=True, live_depth=500,
            reconnect_seconds=0,
        )  # fmt: skip
    assert result.frames == 100
    assert "packets of sound were damaged and left out" in caplog.text


def write_parts(path: Path, *parts: tuple[int, bool]) -> None:
    """Write MPEG-TS of parts, each so many seconds long and with or without sound."""
    first, data = 0, b""
    for number, (seconds, has_sound) in enumerate(parts):
        part = path.with_name(f"part{number}.ts")
        write_ts(part, seconds=seconds, first_seconds=first, has_sound=has_sound)
        first, data = first + seconds, data + part.read_bytes()
    path.write_bytes(data)


def test_sound_that_begins_in_the_middle_is_no_error_at_the_end(tiny_weights, tmp_path):
    write_parts(tmp_path / "a.ts", (12, False), (2, True), (24, False))
    assert upscale(tmp_path / "a.ts", tmp_path / "out.mkv", model=tiny_weights).frames == 950
    with TcpServer((tmp_path / "a.ts").read_bytes()) as server:
        result = upscale(
            server.url, tmp_path / "live.mkv", model=tiny_weights, live=True, live_depth=1000,
            reconnect_seconds=0,
        )  # fmt: skip
    assert result.frames == 950


def test_sound_of_an_unknown_kind_is_left_out(tiny_weights, tmp_path, caplog):
    """It begins at the end, where FFmpeg looks for what there is and not at how it sounds."""
    write_parts(tmp_path / "a.ts", (12, False), (2, True))
    assert upscale(tmp_path / "a.ts", tmp_path / "out.mp4", model=tiny_weights).frames == 350
    assert "nor converted: its kind of samples is unknown" in caplog.text
