"""Putting a finished picture and all else that the clip held into one file."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Iterable, Set
from contextlib import closing, suppress
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import Any, cast

import av
import av.logging
from av.codec.context import Flags
from av.error import FFmpegError
from av.format import Flags as Format

from engines.errors import MediaError
from vsr.encode import PictureEncoding
from vsr.ffmpeg import file_url, is_refusal, log_lines, other_packets, reason
from vsr.others import OtherStreams
from vsr.packets import Packet
from vsr.span import chapters_within, moved_timecode, packets_within
from vsr.unkept import QUICKTIME_SUFFIXES, TIMECODES, encoded_metadata, kept_metadata
from vsr.video import Reader

log = logging.getLogger(__name__)

# their timestamps can be read back as they were written, from the first one on
EXACT_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv"})
# FFmpeg's names of the containers that keep each frame's time, if not all from the first one on
_TIMED = frozenset(
    {"3g2", "3gp", "f4v", "flv", "ipod", "matroska", "mov", "mp4", "mpegts", "nut", "webm"}
)
_HINTS = {".webm": "; libvpx-vp9 and libsvtav1 fit it, and .mkv fits any"}


class Muxer:
    """A container with the picture's encoded packets, and the input's other streams and tags.

    Nothing in it depends on the moment: the same packets make the same file.

    Args:
        path: the file to write, which must not have its final name yet.
        output: what it will be called, for messages; its suffix names the container.
        reader: of the input.
        encoding: of the picture.
        first_pts: of its first frame, in ticks of the clip; needed for what is muxed.

    Attributes:
        global_header: whether the container wants the encoder's parameter sets in its header.
        extradata: the encoder's parameter sets.
        tick_seconds: unit of the container's clock, where no two frames may have the same time.
        left_out: what the container does not hold as it was, a sentence each.

    Raises:
        MediaError: the container is unknown, the encoder does not open or does not fit it.
    """

    def __init__(
        self,
        path: Path,
        output: Path,
        reader: Reader,
        encoding: PictureEncoding,
        *,
        first_pts: int = 0,
    ) -> None:
        self._first_pts = first_pts
        self._path, self._output, self._reader = path, output, reader
        self._others = OtherStreams(reader, output)
        self._shift_seconds = Fraction(0)
        ways = self._others.ways
        while (error := self._open(encoding)) is not None:
            if ways == self._others.ways and not self._give_way(encoding):
                raise MediaError(
                    f"cannot write {output} with encoder {encoding.name}: {reason(error)}"
                    f"{_HINTS.get(output.suffix.lower(), '')}"
                ) from error
            ways = self._others.ways
        context = self._stream.codec_context
        self.left_out = self._others.sentences
        self.global_header = bool(context.flags & Flags.global_header)
        self.extradata = bytes(context.extradata or b"")
        is_strict = not self._container.format.flags & cast(Any, Format.ts_nonstrict).value
        self.tick_seconds = Fraction(self._stream.time_base or 0) if is_strict else None

    def _open(
        self, encoding: PictureEncoding, *, only: Set[int] | None = None
    ) -> FFmpegError | OSError | ValueError | None:
        """Open the container and write its header; return why it cannot be, and remove the file.

        Args:
            encoding: of the picture.
            only: the other streams to take in; None: all.
        """
        options = {"fflags": "+bitexact"}  # no random numbers, such as Matroska's identifiers
        if self._output.suffix.lower() in QUICKTIME_SUFFIXES:
            options["movflags"] = "+faststart"
            if self._output.suffix.lower() == ".mov" and any(
                key.startswith("com.") for key in self._reader.container.metadata
            ):  # beside QuickTime's usual place for tags, not in it as in MP4
                options["movflags"] += "+use_metadata_tags"
            options["movie_timescale"] = str(_movie_timescale(self._reader))
        try:
            self._container = av.open(file_url(self._path), "w", container_options=options)
        except (FFmpegError, OSError, ValueError) as error:
            self._path.unlink(missing_ok=True)
            said = reason(error)
            if isinstance(error, ValueError) and not isinstance(error, FFmpegError):  # PyAV's own
                said = "its suffix names no container, use .mp4, .mkv or .mov"
            raise MediaError(f"cannot write {self._output}: {said}") from error
        if self._container.format.name not in _TIMED:
            self.abort()
            raise MediaError(
                f"cannot write {self._output}: {self._container.format.long_name} is none of the "
                "containers that are known to keep each frame's time, use .mp4, .mkv or .mov"
            )
        reader, source = self._reader, self._reader.container
        try:
            self._stream = encoding.add_stream(self._container)
            tags = encoded_metadata(reader.stream.metadata, self._output)
            self._stream.metadata.update(self._moved(tags))
            self._stream.disposition = reader.stream.disposition
            if reader.info.display_matrix:
                self._stream.set_display_matrix(reader.info.display_matrix)
            self._others.add_to(self._container, only=only)
            self._container.metadata.update(self._moved(kept_metadata(source.metadata)))
            if chapters := self._chapters():
                self._container.set_chapters(chapters)
            with log_lines(av.logging.ERROR):  # errors carry what FFmpeg says of them
                self._container.start_encoding()
        except (FFmpegError, OSError, ValueError) as error:
            self.abort()
            return error
        except BaseException:
            self.abort()
            raise
        return None

    def _moved(self, tags: dict[str, str]) -> dict[str, str]:
        """Return tags; of a span with the timecode of its first frame, and none that is no time."""
        reader = self._reader
        if reader.span is None or not reader.span.start:
            return tags
        passed_seconds = self._first_pts * reader.info.time_base - reader.begin_seconds
        rate = reader.info.average_rate
        frames = max(0, round(passed_seconds * rate))
        kept = {name: value for name, value in tags.items() if name not in TIMECODES}
        for name in tags.keys() & TIMECODES:
            if (moved := moved_timecode(tags[name], frames, rate)) is not None:
                kept[name] = moved
        return kept

    def _give_way(self, encoding: PictureEncoding) -> bool:
        """Find out which other streams the header refuses; False: the fault is not with them."""
        if self._open(encoding, only=frozenset()) is not None:
            return False
        self.abort()
        taken: set[int] = set()
        ways = self._others.ways
        for index in self._others.open_to_refusal:
            error = self._open(encoding, only={*taken, index})
            if error is None:
                self.abort()
                taken.add(index)
            else:
                self._others.refuse(index, reason(error))
        return ways != self._others.ways

    def mux(self, packets: Iterable[tuple[Packet, int]]) -> None:
        """Write the picture's packets, the other streams' beside them, and close the file.

        Args:
            packets: all of the picture, each with its dts, in order of decoding; times in ticks of
                the clip.

        Raises:
            MediaError: the disk refuses.
        """
        time_base = self._reader.info.time_base
        self._shift_seconds = self._shift()
        packets_of_others = self._other_packets()
        try:
            waiting = next(packets_of_others, None)
            for packet, dts in packets:
                self._mux_picture(packet, dts)
                now_seconds = float(dts * time_base)
                while waiting is not None and _dts_seconds(waiting) <= now_seconds:
                    self._mux_other(waiting)
                    waiting = next(packets_of_others, None)
            while waiting is not None:
                self._mux_other(waiting)
                waiting = next(packets_of_others, None)
            for index, last in self._others.rest():
                self._mux_or_count(index, last)
            self._container.close()
        except (FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"cannot write {self._output}: {reason(error)}") from error
        finally:
            packets_of_others.close()
        for sentence in self._others.refused():
            log.warning("%s", sentence)

    def _chapters(self) -> list[Any]:
        """Return the input's chapters, of a span those in it."""
        reader = self._reader
        chapters: list[Any] = list(reader.container.chapters())
        if reader.span is None:
            return chapters
        end = reader.begin_seconds + reader.span.end_seconds
        if not reader.span.start:
            return chapters_within(chapters, Fraction(-1), end, zero_seconds=Fraction(0))
        begin = self._first_pts * reader.info.time_base
        return chapters_within(chapters, begin, end, zero_seconds=begin)

    def _other_packets(self) -> Generator[av.Packet[Any], None, None]:
        """Yield the other streams' packets, of a span those from its first frame on."""
        reader, wanted = self._reader, self._others.wanted
        texts = self._others.of_kind("subtitle")
        lasting = texts | self._others.of_kind("data")
        begin: Fraction | float = -inf
        end: Fraction | float = inf
        near_seconds = None
        if reader.span is not None:
            end = reader.begin_seconds + reader.span.end_seconds
            if reader.span.start:
                begin = self._first_pts * reader.info.time_base
                # where times jump one cannot seek, and text may have begun long before
                if not _has_own_clock(reader) and not wanted & lasting:
                    near_seconds = float(begin)
        with closing(other_packets(reader.info.path, wanted, near_seconds=near_seconds)) as packets:
            moved = map(self._others.kept_increasing, packets)
            within = packets_within(moved, begin, end, lasting=lasting)
            if not _has_own_clock(reader):
                yield from within
                return
            for packet in within:  # text from before picture and sound would delay them
                if packet.stream_index in texts:
                    yield from packets_within([packet], reader.begin_seconds, end, lasting=texts)
                else:
                    yield packet

    def abort(self) -> None:
        """Close and remove the file; harmless where it is gone."""
        with suppress(OSError):  # Windows removes no open file: again below
            self._path.unlink()
        try:
            self._container.close()
        except (FFmpegError, OSError) as error:
            log.debug("closing %s: %s", self._path, error)
        self._path.unlink(missing_ok=True)

    def _shift(self) -> Fraction:
        """Return by how many seconds all streams move on.

        A span begins at zero with its first frame, and so does a recording whose clock began
        anywhere, as in broadcasts and on DVDs, with its first stream. And none of the picture is
        cut off: an edit list does that to what lies below zero, which is right for the samples that
        prime a sound decoder, and wrong for frames; the other containers move on by themselves.
        """
        begin, first_pts = self._reader.begin_seconds, self._first_pts
        tick = self._reader.info.time_base
        if self._reader.span is not None and self._reader.span.start:
            return -first_pts * tick
        if begin > 0 and _has_own_clock(self._reader):
            return -math.floor(begin / tick) * tick
        if first_pts >= 0 or self._output.suffix.lower() not in QUICKTIME_SUFFIXES:
            return Fraction(0)
        return max(-first_pts, math.ceil(-begin / tick)) * tick

    def _shifted(self, packet: av.Packet[Any]) -> av.Packet[Any]:
        ticks = round(self._shift_seconds / packet.time_base) if self._shift_seconds else 0
        packet.pts = None if packet.pts is None else packet.pts + ticks
        packet.dts = None if packet.dts is None else packet.dts + ticks
        return packet

    def _mux_picture(self, packet: Packet, dts: int) -> None:
        encoded: av.Packet[Any] = av.Packet(packet.data)
        encoded.pts, encoded.dts, encoded.duration = packet.pts, dts, packet.duration
        encoded.time_base = self._reader.info.time_base
        encoded.is_keyframe = packet.is_key
        encoded.stream = self._stream
        self._container.mux(self._shifted(encoded))

    def _mux_other(self, packet: av.Packet[Any]) -> None:
        index = packet.stream_index
        for taken in self._others.converted(packet):
            self._mux_or_count(index, taken)

    def _mux_or_count(self, index: int, taken: av.Packet[Any]) -> None:
        """Write a packet of the stream `index` of the input, or take note that it is refused."""
        try:
            self._container.mux(self._shifted(taken))
        except (FFmpegError, ValueError) as error:
            if not is_refusal(error):
                raise
            self._others.count_refused(index, reason(error))


def _has_own_clock(reader: Reader) -> bool:
    """Tell whether a clip's clock may begin anywhere, and jump, as that of broadcasts and DVDs."""
    return bool(reader.container.format.flags & cast(Any, Format.ts_discont).value)


def _dts_seconds(packet: av.Packet[Any]) -> float:
    return -inf if packet.dts is None else float(packet.dts * packet.time_base)


def compare_times(path: Path, times: Iterable[int], reader: Reader) -> None:
    """Read a file back and compare its picture's timestamps with those that were meant.

    Args:
        path: of a container in `EXACT_SUFFIXES`.
        times: pts of all frames, in order of decoding, in the clip's time base.
        reader: of the input.

    Raises:
        MediaError: a frame is missing, or one too many, or at another time.
    """
    options = {"ignore_editlist": "1"} if path.suffix.lower() in QUICKTIME_SUFFIXES else {}
    with av.open(file_url(path), "r", options=options) as container:
        stream = container.streams.video[0]
        tick = stream.time_base or 0
        found = (packet.pts for packet in container.demux(stream) if packet.size)
        begin: tuple[int, int] | None = None
        count = 0
        for count, meant in enumerate(times, 1):
            pts = next(found, None)
            if pts is None:
                raise MediaError(f"{path} was not written whole: frame {count} is missing")
            begin = begin or (meant, pts)
            passed_seconds = (meant - begin[0]) * reader.info.time_base
            if abs((pts - begin[1]) * tick - passed_seconds) > tick:
                raise MediaError(f"{path} has frame {count} at another time than the input")
        if next(found, None) is not None:
            raise MediaError(f"{path} has more than the {count} frames that were encoded")


def _movie_timescale(reader: Reader) -> int:
    """Choose ticks a second in which the start of each stream is a whole number.

    An edit list shifts a stream's start in these ticks; libavformat's 1000 would round it.
    """
    scales = [reader.info.time_base.denominator]
    scales += [s.time_base.denominator for s in reader.container.streams if s.time_base]
    common = math.lcm(*scales)
    return common if common < 1 << 31 else scales[0]
