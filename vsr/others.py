"""The input's streams beside its picture: copied, else converted, else left out and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, cast

import av
from av.error import FFmpegError

from vsr import unkept
from vsr.ffmpeg import other_packets, reason
from vsr.sound import SoundConverter, known_layout, sound_codec
from vsr.subtitles import SubtitleConverter, loses_style, subtitle_codec
from vsr.timeline import JUMP_SECONDS, Timeline
from vsr.unkept import TIMECODE_SUFFIXES, TIMECODES
from vsr.video import Reader

Way = Literal["copy", "convert", "leave"]


class OtherStreams:
    """Takes the streams into an output, each in the first way that the output agrees to.

    Args:
        reader: of the input.
        output: what the output will be called.

    Attributes:
        sentences: what the output does not hold as it was, as of the last `add_to`.
    """

    def __init__(self, reader: Reader, output: Path) -> None:
        self.sentences: list[str] = []
        self._output = output
        self._source, self._is_cut = reader.container, reader.span is not None
        self._why: dict[int, str] = {}
        # as a tag, of which MP4 and MOV make such a track
        keeps_timecode = output.suffix.lower() in TIMECODE_SUFFIXES and bool(
            TIMECODES & reader.stream.metadata.keys()
        )
        self._ways: dict[int, Way] = {
            stream.index: "copy"
            for stream in self._source.streams
            if stream.index != reader.stream.index
            and not _is_chapter_track(self._source, stream)
            and not (_is_timecode(stream) and keeps_timecode)
        }
        for index in self._ways:
            if _is_timecode(self._source.streams[index]):  # MOV takes it, and fails at its end
                self._ways[index] = "leave"
                self._why[index] = "its timecode is no tag of the picture, or not in the output"
        self._copies: dict[int, Any] = {}
        self._converters: dict[int, SoundConverter | SubtitleConverter] = {}
        self._timelines: dict[int, Timeline] = {}
        self._refused = Counter[int]()
        self._why_refused: dict[int, str] = {}

    @property
    def wanted(self) -> Set[int]:
        """Indices of the input's streams whose packets the output takes."""
        return self._copies.keys() | self._converters.keys()

    def of_kind(self, *kinds: str) -> Set[int]:
        """Return the indices of the input's streams of some of FFmpeg's kinds."""
        return {stream.index for stream in self._source.streams if stream.type in kinds}

    @property
    def ways(self) -> tuple[Way, ...]:
        """What is to become of the streams, as far as it is known."""
        return tuple(self._ways.values())

    @property
    def open_to_refusal(self) -> list[int]:
        """Indices of the streams that the output has been offered, and might refuse."""
        return [index for index, way in self._ways.items() if way != "leave"]

    def refuse(self, index: int, why: str) -> None:
        """Take the next way with a stream that the output's header refused."""
        self._ways[index] = "convert" if self._ways[index] == "copy" else "leave"
        if self._source.streams[index].type == "data":  # what is said of it is of no use
            why = f"{self._output.suffix} does not take it"
        self._why.setdefault(index, why)

    def add_to(self, container: Any, *, only: Set[int] | None = None) -> None:
        """Add the streams to an output, or only some of them.

        Raises:
            FFmpegError, ValueError: one cannot be converted; the next output will be without it.
        """
        self.sentences = []
        self._copies.clear()
        self._converters.clear()
        for index in self._ways:
            if only is None or index in only:
                self._add(container, self._source.streams[index])

    def _take_over(self, stream: Any, copy: Any, *, encoded: bool = False) -> None:
        tags = unkept.encoded_metadata if encoded else unkept.stream_metadata
        copy.metadata.update(tags(stream.metadata, self._output))
        copy.disposition = stream.disposition

    def _add(self, container: Any, stream: Any) -> None:
        index = stream.index
        if self._ways[index] == "copy":
            try:
                copy = _copied(container, stream)
            except (FFmpegError, ValueError) as error:
                self.refuse(index, reason(error))
            else:
                if copy is not None:
                    self._copies[index] = copy
                    self._take_over(stream, copy, encoded=self._is_cut)
                return
        if self._ways[index] == "convert":
            try:
                converter = _converter(container, stream)
            except (FFmpegError, ValueError) as error:
                self._ways[index] = "leave"
                self._why[index] = f"{self._why[index]}, nor converted: {reason(error)}"
                raise  # half of it may be in the container: it has to be opened anew
            if converter is not None:
                self._converters[index] = converter
                self._take_over(stream, converter.stream, encoded=True)
                self.sentences.append(
                    unkept.converted(
                        stream, converter.stream.name, self._why[index], self._output,
                        loses_style=stream.type == "subtitle" and loses_style(stream.name),
                    )
                )  # fmt: skip
                return
            self._ways[index] = "leave"
        self.sentences.append(unkept.left_out(stream, self._why[index], self._output))

    def converted(self, packet: Any) -> Iterator[Any]:
        """Yield what the output takes for a packet of the input."""
        index = packet.stream_index
        if (converter := self._converters.get(index)) is not None:
            for found in converter.convert(packet):
                found.stream = converter.stream
                yield found
        elif not self._is_gap(packet):
            packet.stream = self._copies[index]
            yield packet

    def _is_gap(self, packet: Any) -> bool:
        """Tell whether a packet is the emptiness between two subtitles, which MP4 writes itself."""
        stream = self._source.streams[packet.stream_index]
        return stream.name == "mov_text" and bytes(packet)[:2] == b"\0\0"

    def rest(self) -> Iterator[tuple[int, Any]]:
        """Yield what the converters still hold, with the index of the stream that it is of."""
        for index, converter in self._converters.items():
            for found in converter.rest():
                found.stream = converter.stream
                yield index, found

    def count_refused(self, index: int, why: str) -> None:
        """Take note of a packet that the output did not take, though it took its stream."""
        self._refused[index] += 1
        self._why_refused.setdefault(index, why)

    def refused(self) -> list[str]:
        """Say which packets the output did not take."""
        return [
            unkept.refused_packets(self._source.streams[index], count, self._why_refused[index])
            for index, count in self._refused.items()
        ]

    def kept_increasing(self, packet: av.Packet[Any]) -> av.Packet[Any]:
        """Move a packet on where its stream jumps back, as the picture is moved."""
        if packet.dts is None:
            return packet
        kind = self._source.streams[packet.stream_index].type
        repeats = kind in ("subtitle", "data")
        timeline = self._timelines.setdefault(
            packet.stream_index,
            Timeline(jump=round(JUMP_SECONDS / packet.time_base), repeats=repeats),
        )
        dts = timeline.place(packet.dts, packet.duration or 1)
        if packet.pts is not None:
            packet.pts += dts - packet.dts
        packet.dts = dts
        return packet


def _is_chapter_track(source: Any, stream: Any) -> bool:
    """Tell whether a stream is what MP4 makes of chapters, which are taken over as such."""
    return (
        stream.type == "data"
        and stream.name == "bin_data"
        and "mp4" in source.format.name
        and stream.frames == len(source.chapters()) > 0
    )


def _is_timecode(stream: Any) -> bool:
    """Tell whether a stream is the track that MP4 and MOV make of the tag."""
    return stream.type == "data" and bool(TIMECODES & stream.metadata.keys())


def _copied(container: Any, stream: Any) -> Any:
    """Add a stream as it is; return it, or None for an attachment, which has no packets.

    Raises:
        ValueError, FFmpegError: the container does not take it.
    """
    name = container.format.name
    if stream.type == "attachment":
        attachment = cast(Any, stream)
        container.add_attachment(
            stream.metadata.get("filename", f"attachment{stream.index}"),
            attachment.mimetype or "application/octet-stream",
            attachment.data,
        )
        return None
    context = stream.codec_context
    if stream.type == "video":
        return _copied_cover(container, stream)
    codec = context.codec.canonical_name if context is not None else stream.name
    if unkept.cannot_be_read_back(name, codec):
        raise ValueError(f"in {name} it could not be read back")
    layout = None
    if stream.type == "audio" and context is not None and context.layout.nb_channels:
        layout = known_layout(stream)
    copy = container.add_stream_from_template(stream)
    if layout is not None:  # PCM in MP4 must name its channels
        copy.codec_context.layout = layout
    return copy


def _copied_cover(container: Any, stream: Any) -> Any:
    """Add the picture that stands for the clip: a stream in MP4, an attachment in Matroska.

    Raises:
        ValueError, FFmpegError: it is no such picture, or the container does not take it.
    """
    if not stream.disposition & av.stream.Disposition.attached_pic:
        raise ValueError("a second picture")
    if container.format.name in ("mp4", "ipod"):
        return container.add_stream_from_template(stream, opaque=True)
    kind = {"png": "png", "mjpeg": "jpeg"}.get(stream.name)
    if container.format.name != "matroska" or kind is None:
        raise ValueError(f"{container.format.name} has no place for it")
    packets = other_packets(Path(stream.container.name.removeprefix("file:")), {stream.index})
    with closing(packets):
        data = bytes(next(packets))
    name = stream.metadata.get("filename", f"cover.{kind}")
    container.add_attachment(name, f"image/{kind}", data)
    return None


def _converter(container: Any, stream: Any) -> SoundConverter | SubtitleConverter | None:
    """Add a stream in another codec; None where we know none."""
    name = container.format.name
    if stream.type == "audio" and stream.codec_context is not None:
        encoder = sound_codec(name, stream.codec_context.codec.canonical_name)
        return None if encoder is None else SoundConverter(container, stream, encoder)
    if stream.type == "subtitle":
        encoder = subtitle_codec(name, stream)
        return None if encoder is None else SubtitleConverter(container, stream, encoder)
    return None
