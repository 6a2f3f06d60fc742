"""Clips made for the benchmarks: small, the same on each run, one property at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.subtitles.subtitle import SubtitleSet
from numpy.typing import NDArray

MILLISECOND = Fraction(1, 1000)
RATE = 48_000
_FRAME_SAMPLES = 1024
_HDR10 = (
    "hdr10=1:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)"
    "L(10000000,50):max-cll=987,432"
)
_ASS_HEADER = (
    "[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\n"
    "Format: Name, Fontname, Fontsize, PrimaryColour\nStyle: Default,Arial,16,&Hffffff\n\n"
    "[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A clip of one property, and how it is upscaled."""

    name: str
    """of the file"""
    holds: str
    """what the clip is there for"""
    codec: str = "libx264"
    size: tuple[int, int] = (64, 80)
    """(height, width)"""
    pixel_format: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    """of the encoder"""
    times: Sequence[int] = range(0, 480, 40)
    time_base: Fraction = MILLISECOND
    tags: tuple[int, int, int, int] = (2, 2, 2, 0)
    """primaries, transfer, matrix, range: numbers of ITU-T H.273"""
    aspect: Fraction = Fraction(1)
    turn: tuple[int, bool] | None = None
    """degrees counter-clockwise, and whether it is mirrored"""
    sounds: Sequence[dict[str, str]] = ()
    """tags of each sound stream; the first is the default one"""
    sound_codec: str = "aac"
    sound_seconds: float = 0.48
    sound_start_seconds: float = 0.0
    text: str | None = None
    """codec of subtitles"""
    raw: str | None = None
    """codec of a stream of bytes that no player has to understand: pictures of text, or data"""
    attachment: bool = False
    cover: bool = False
    """whether a picture stands for the clip"""
    chapters: bool = False
    tags_of_clip: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    """of `vsr.upscale`"""
    output: str | None = None
    """suffix of the output; None: the default"""

    def write(self, folder: Path) -> Path:
        """Write the clip, always the same."""
        path = folder / self.name
        with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
            stream = add_picture(
                container, codec=self.codec, size=self.size, time_base=self.time_base,
                pixel_format=self.pixel_format, options=self.options,
            )  # fmt: skip
            context = stream.codec_context
            context.sample_aspect_ratio = self.aspect
            context.color_primaries, context.color_trc = self.tags[:2]
            context.colorspace, context.color_range = self.tags[2:]
            if self.turn is not None:
                stream.set_display_rotation(self.turn[0], hflip=self.turn[1])
            container.metadata.update(self.tags_of_clip)
            writers = [self._add_text(container), self._add_raw(container)]
            sounds = self._add_sounds(container)
            if self.attachment:
                container.add_attachment("font.ttf", "font/ttf", bytes(range(200)))
            cover = self._cover(container) if self.cover else None
            if self.chapters:
                container.set_chapters(
                    [
                        {"id": n, "start": 200 * n, "end": 200 * n + 200, "time_base": MILLISECOND,
                         "metadata": {"title": title}}
                        for n, title in enumerate(("One", "Two"))
                    ]
                )  # fmt: skip
            container.start_encoding()
            for index, at in enumerate(self.times):
                frame = picture(self.size, index, at, self.time_base, self.pixel_format)
                frame.color_primaries, frame.color_trc = self.tags[:2]
                frame.colorspace, frame.color_range = self.tags[2:]
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
            for packets in writers:
                container.mux(packets)
            if cover is not None:
                container.mux(cover)
            for number, sound in enumerate(sounds):
                for frame in tones(
                    self.sound_seconds, 440.0 * (number + 1), self.sound_start_seconds
                ):
                    container.mux(sound.encode(frame))
                container.mux(sound.encode(None))
        return path

    def _cover(self, container: Any) -> Any:
        """Add the picture: an attachment in Matroska, elsewhere a stream; return its packet."""
        encoder: Any = av.CodecContext.create("png", "w")
        encoder.width = encoder.height = 32
        encoder.pix_fmt, encoder.time_base = "rgb24", MILLISECOND
        frame = picture((32, 32), 0, 0, MILLISECOND, "rgb24")
        data = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
        if container.format.name == "matroska":
            container.add_attachment("cover.png", "image/png", data)
            return None
        stream = container.add_stream("png", rate=1, width=32, height=32)
        stream.pix_fmt = "rgb24"
        stream.disposition = av.stream.Disposition.attached_pic
        return _timed(av.Packet(data), 0, stream)

    def _add_sounds(self, container: Any) -> list[Any]:
        found = []
        for number, tags in enumerate(self.sounds):
            sound = container.add_stream(self.sound_codec, rate=RATE)
            sound.layout = "stereo"
            sound.metadata.update(tags)
            sound.disposition = (
                av.stream.Disposition.default if number == 0 else av.stream.Disposition.comment
            )
            found.append(sound)
        return found

    def _add_text(self, container: Any) -> list[Any]:
        if self.text is None:
            return []
        stream = container.add_stream(self.text)
        stream.metadata.update({"language": "fra", "title": "Words"})
        context = stream.codec_context
        context.subtitle_header = _ASS_HEADER.encode()
        context.time_base = stream.time_base = MILLISECOND
        container.start_encoding()
        packets = []
        for number, start in enumerate((40, 280)):
            words = f"{number},0,Default,,0,0,0,,Line {number}".encode()
            subtitle = SubtitleSet.create(words, 0, 120, start)
            packet = av.Packet(bytes(context.encode_subtitle(subtitle)))
            packet.duration = 120
            packets.append(_timed(packet, start, stream))
        return packets

    def _add_raw(self, container: Any) -> list[Any]:
        if self.raw is None:
            return []
        add = container.add_data_stream if self.raw == "klv" else container.add_mux_stream
        stream = add(self.raw)
        stream.time_base = MILLISECOND
        # for PGS, a composition of nothing and its end; for data, as good as any bytes
        data = bytes([0x16, 0, 11, *range(11), 0x80, 0, 0])
        return [_timed(av.Packet(data), at, stream) for at in (0, 160, 320)]


def _timed(packet: Any, at: int, stream: Any) -> Any:
    packet.pts = packet.dts = at
    packet.time_base, packet.stream = MILLISECOND, stream
    return packet


def write_clip(path: Path, *, sound_seconds: float = 0.0, **properties: Any) -> Path:
    """Write a clip of moving bars, with a tone if asked for; see `Recipe` for its properties."""
    sounds = ({},) if sound_seconds else ()
    recipe = Recipe(path.name, "", sounds=sounds, sound_seconds=sound_seconds, **properties)
    return recipe.write(path.parent)


def add_picture(
    container: Any,
    *,
    codec: str,
    size: tuple[int, int],
    time_base: Fraction,
    pixel_format: str,
    options: dict[str, str],
) -> Any:
    """Add a stream for `picture`; H.264 and H.265 in haste."""
    chosen = dict(options)
    if codec in ("libx264", "libx265"):
        chosen = {"preset": "ultrafast", "crf": "18"} | options
    if codec == "libx265":
        chosen["x265-params"] = ":".join(["log-level=none", *chosen.get("x265-params", "").split()])
    stream = container.add_stream(codec, rate=25, width=size[1], height=size[0], options=chosen)
    stream.pix_fmt = pixel_format
    stream.codec_context.time_base = time_base
    return stream


def picture(
    size: tuple[int, int], index: int, at: int, time_base: Fraction, pixel_format: str = "yuv420p"
) -> av.VideoFrame:
    """Draw frame `index` of colour bars that move, to be shown at `at` ticks."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    waves = [(x + (3 + k) * index) * (k + 1) * 6 + y * (3 - k) for k in range(3)]
    levels = np.stack([(wave % 200 + 28).astype(np.uint8) for wave in waves], axis=-1)
    frame = av.VideoFrame.from_ndarray(levels, "rgb24").reformat(format=pixel_format, threads=1)
    frame.pts, frame.time_base = at, time_base
    return frame


def tones(seconds: float, hertz: float = 440.0, start_seconds: float = 0.0) -> list[av.AudioFrame]:
    """Return a stereo tone, in frames as AAC takes them."""
    frames = []
    for start in range(0, round(seconds * RATE), _FRAME_SAMPLES):
        time = np.arange(start, start + _FRAME_SAMPLES) / RATE
        wave: NDArray[np.float32] = (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), "fltp", "stereo")
        frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
        frame.pts = start + round(start_seconds * RATE)
        frames.append(frame)
    return frames


_SITINGS = ("center", "topleft", "top", "bottomleft", "bottom")
_TAGS = {
    "bt601_525": (6, 6, 6, 1),
    "bt601_625": (5, 6, 5, 1),
    "bt709": (1, 1, 1, 1),
    "bt709_full": (1, 1, 1, 2),
    "bt2020": (9, 14, 9, 1),
    "p3_srgb": (12, 13, 1, 2),
}
_INTERLACED = {"x264-params": "tff=1"}
_WRAPPING = range(2**33 - 18_000, 2**33 + 25_200, 3600)
RECIPES = (
    Recipe("vfr.mp4", "uneven frame times", times=(0, 40, 41, 130, 131, 400, 2000, 2040)),
    Recipe("vfr.mkv", "uneven frame times", times=(0, 40, 41, 130, 131, 400, 2000, 2040)),
    Recipe("edit_list.mp4", "an edit list", options={"bf": "2", "preset": "medium"},
           times=range(0, 480, 40), sounds=({},)),
    Recipe("late.mp4", "a picture that begins 1.5 s after the sound", times=range(1500, 1980, 40),
           sounds=({},)),
    Recipe("late.mkv", "a picture that begins 1.5 s after the sound", times=range(1500, 1980, 40),
           sounds=({},)),
    Recipe("late.ts", "times that begin far from zero", times=range(90_000, 130_000, 3600),
           time_base=Fraction(1, 90_000), sounds=({},)),
    Recipe("negative.ts", "timestamps below zero: a clock that wraps round soon after the start",
           times=_WRAPPING, time_base=Fraction(1, 90_000), sounds=({},), sound_codec="mp2",
           sound_start_seconds=_WRAPPING[0] / 90_000),
    Recipe("negative_to.ts", "timestamps below zero, in Matroska", times=_WRAPPING,
           time_base=Fraction(1, 90_000), sounds=({},), sound_codec="mp2",
           sound_start_seconds=_WRAPPING[0] / 90_000, output=".mkv"),
    Recipe("ntsc.mp4", "30000/1001 frames a second", times=range(0, 12_012, 1001),
           time_base=Fraction(1, 30_000)),
    Recipe("turned.mp4", "rotation by 90 degrees", turn=(90, False)),
    Recipe("upside_down.mov", "rotation by 180 degrees", turn=(180, False)),
    Recipe("mirrored.mp4", "a mirrored picture", turn=(0, True)),
    Recipe("turned_and_mirrored.mkv", "rotation and a mirror", turn=(270, True)),
    Recipe("anamorphic.mp4", "a sample aspect ratio of 64:45", aspect=Fraction(64, 45)),
    *(Recipe(f"tags_{name}.mp4", "colour tags", tags=tags) for name, tags in _TAGS.items()),
    *(Recipe(f"chroma_{name}.mp4", "a chroma location", options={"chroma_sample_location": name})
      for name in _SITINGS),
    Recipe("chroma_topleft_x265.mp4", "a chroma location, by libx265", codec="libx265",
           options={"chroma_sample_location": "topleft"}, arguments={"encoder": "libx265"}),
    Recipe("422.mp4", "4:2:2", pixel_format="yuv422p"),
    Recipe("444.mp4", "4:4:4", pixel_format="yuv444p"),
    Recipe("10bit.mp4", "10 bits", pixel_format="yuv420p10le"),
    Recipe("10bit_422.mov", "10 bits, 4:2:2", pixel_format="yuv422p10le"),
    Recipe("12bit.mp4", "12 bits by libx265", codec="libx265", pixel_format="yuv420p12le",
           arguments={"encoder": "libx265"}),
    Recipe("12bit_444.mp4", "12 bits, 4:4:4 by libx265", codec="libx265",
           pixel_format="yuv444p12le", arguments={"encoder": "libx265"}),
    Recipe("12bit_by_default.mp4", "12 bits by libx264, which has 10", codec="libx265",
           pixel_format="yuv420p12le"),
    Recipe("prores.mov", "10 bits, 4:2:2, in ProRes", codec="prores_ks",
           pixel_format="yuv422p10le"),
    Recipe("hdr10.mp4", "HDR10: mastering display and light levels, by libx265", codec="libx265",
           pixel_format="yuv420p10le", tags=(9, 16, 9, 1), options={"x265-params": _HDR10},
           arguments={"encoder": "libx265"}),
    Recipe("hdr10_by_default.mkv", "HDR10 by libx264", codec="libx265",
           pixel_format="yuv420p10le", tags=(9, 16, 9, 1), options={"x265-params": _HDR10}),
    Recipe("hlg.mp4", "HLG", codec="libx265", pixel_format="yuv420p10le", tags=(9, 18, 9, 1)),
    Recipe("interlaced.mp4", "fields, without a word of what to do", options=_INTERLACED),
    Recipe("deinterlaced.mp4", "fields, with --deinterlace", options=_INTERLACED,
           arguments={"deinterlace": True}),
    Recipe("sounds.mp4", "two sounds with languages, dispositions and titles",
           sounds=({"language": "deu", "title": "Ton"}, {"language": "eng", "title": "Comment"})),
    Recipe("sounds.mkv", "two sounds with languages, dispositions and titles",
           sounds=({"language": "deu", "title": "Ton"}, {"language": "eng", "title": "Comment"})),
    Recipe("flac.mkv", "sound that .mov refuses", sounds=({"language": "deu"},),
           sound_codec="flac", output=".mov"),
    Recipe("words.mkv", "text subtitles: srt", text="srt"),
    Recipe("words_to.mkv", "text subtitles that .mp4 refuses", text="srt", output=".mp4"),
    Recipe("words.mp4", "text subtitles: mov_text", text="mov_text"),
    Recipe("words_ass.mkv", "text subtitles: ass", text="ass"),
    Recipe("bitmaps.mkv", "pictures of text", raw="pgssub"),
    Recipe("bitmaps_to.mkv", "pictures of text that .mp4 refuses", raw="pgssub", output=".mp4"),
    Recipe("data.ts", "data that .mp4 refuses", raw="klv", times=range(90_000, 130_000, 3600),
           time_base=Fraction(1, 90_000)),
    Recipe("data_kept.ts", "data in its own container", raw="klv", output=".ts",
           times=range(90_000, 130_000, 3600), time_base=Fraction(1, 90_000)),
    Recipe("attachment.mkv", "an attached font", attachment=True),
    Recipe("cover.mp4", "a cover picture", cover=True),
    Recipe("cover.mkv", "a cover picture", cover=True),
    Recipe("cover_to.mp4", "a cover picture, to Matroska", cover=True, output=".mkv"),
    Recipe("cover_to.mkv", "a cover picture that .mov refuses", cover=True, output=".mov"),
    Recipe("chapters.mp4", "chapters", chapters=True),
    Recipe("chapters.mkv", "chapters", chapters=True),
    Recipe("tags.mp4", "tags of the clip and of its streams", sounds=({"language": "deu"},),
           tags_of_clip={"title": "Some Clip", "artist": "Nobody", "comment": "made here"}),
    Recipe("tags.mkv", "tags of the clip and of its streams", sounds=({"title": "Ton"},),
           tags_of_clip={"title": "Some Clip", "artist": "Nobody", "my_own": "made here"}),
)  # fmt: skip
