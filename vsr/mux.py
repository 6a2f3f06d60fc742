"""Putting a finished picture and all else that the clip held into one file."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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
from vsr.packets import Packet
from vsr.video import JUMP_SECONDS, Reader, Timeline, file_url, other_packets, reason

log = logging.getLogger(__name__)

# their timestamps can be read back as they were written, from the first one on
EXACT_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv"})
_QUICKTIME_SUFFIXES = frozenset({".mp4", ".m4v", ".mov"})


class Muxer:
    """A container with the picture's encoded packets, and the input's other streams and tags.

    Nothing in it depends on the moment: the same packets make the same file.

    Args:
        path: the file to write, which must not have its final name yet.
        output: what it will be called, for messages; its suffix names the container.
        reader: of the input.
        encoding: of the picture.

    Attributes:
        global_header: whether the container wants the encoder's parameter sets in its header.
        extradata: the encoder's parameter sets.
        tick_seconds: unit of the container's clock, where no two frames may have the same time.
        left_out: what the container cannot hold, a sentence each.

    Raises:
        MediaError: the container is unknown, the encoder does not open or does not fit it.
    """

    def __init__(self, path: Path, output: Path, reader: Reader, encoding: PictureEncoding) -> None:
        self.left_out: list[str] = []
        self._path, self._output, self._reader = path, output, reader
        self._copies: dict[int, Any] = {}
        self._timelines: dict[int, Timeline] = {}
        options = {"fflags": "+bitexact"}  # no random numbers, such as Matroska's identifiers
        if output.suffix.lower() in _QUICKTIME_SUFFIXES:
            options["movflags"] = "+faststart"
            options["movie_timescale"] = str(_movie_timescale(reader))
        try:
            self._container = av.open(file_url(path), "w", container_options=options)
        except (FFmpegError, OSError, ValueError) as error:
            path.unlink(missing_ok=True)
            raise MediaError(f"cannot write {output}: {reason(error)}") from error
        try:
            self._stream = encoding.add_stream(self._container)
            self._stream.metadata.update(_kept_metadata(reader.stream.metadata))
            self._stream.disposition = reader.stream.disposition
            if reader.info.display_matrix:
                self._stream.set_display_matrix(reader.info.display_matrix)
            self._add_copies()
            with _reasons():
                self._container.start_encoding()
        except (FFmpegError, OSError, ValueError) as error:
            self.abort()
            raise MediaError(
                f"cannot write {output} with encoder {encoding.name}: {reason(error)}"
            ) from error
        except BaseException:
            self.abort()
            raise
        context = self._stream.codec_context
        self.global_header = bool(context.flags & Flags.global_header)
        self.extradata = bytes(context.extradata or b"")
        is_strict = not self._container.format.flags & cast(Any, Format.ts_nonstrict).value
        self.tick_seconds = Fraction(self._stream.time_base or 0) if is_strict else None

    def mux(self, packets: Iterable[tuple[Packet, int]]) -> None:
        """Write the picture's packets, the other streams' beside them, and close the file.

        Args:
            packets: all of the picture, each with its dts, in order of decoding; times in ticks of
                the clip.

        Raises:
            MediaError: the disk refuses.
        """
        time_base = self._reader.info.time_base
        others = other_packets(self._reader.info.path, self._copies.keys())
        try:
            waiting = next(others, None)
            for packet, dts in packets:
                self._mux_picture(packet, dts)
                now_seconds = float(dts * time_base)
                while waiting is not None and _dts_seconds(waiting) <= now_seconds:
                    self._mux_other(waiting)
                    waiting = next(others, None)
            while waiting is not None:
                self._mux_other(waiting)
                waiting = next(others, None)
            self._container.close()
        except (FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"cannot write {self._output}: {reason(error)}") from error
        finally:
            others.close()

    def abort(self) -> None:
        """Close and remove the file; harmless where it is gone."""
        with suppress(OSError):  # Windows removes no open file: again below
            self._path.unlink()
        try:
            self._container.close()
        except (FFmpegError, OSError) as error:
            log.debug("closing %s: %s", self._path, error)
        self._path.unlink(missing_ok=True)

    def _mux_picture(self, packet: Packet, dts: int) -> None:
        encoded: av.Packet[Any] = av.Packet(packet.data)
        encoded.pts, encoded.dts, encoded.duration = packet.pts, dts, packet.duration
        encoded.time_base = self._reader.info.time_base
        encoded.is_keyframe = packet.is_key
        encoded.stream = self._stream
        self._container.mux(encoded)

    def _mux_other(self, packet: av.Packet[Any]) -> None:
        self._keep_increasing(packet)
        packet.stream = self._copies[packet.stream_index]
        self._container.mux(packet)

    def _keep_increasing(self, packet: av.Packet[Any]) -> None:
        """Move a packet on where its stream jumps back, as the picture is moved."""
        if packet.dts is None:
            return
        kind = self._reader.container.streams[packet.stream_index].type
        repeats = kind in ("subtitle", "data")
        timeline = self._timelines.setdefault(
            packet.stream_index,
            Timeline(jump=round(JUMP_SECONDS / packet.time_base), repeats=repeats),
        )
        dts = timeline.place(packet.dts, packet.duration or 1)
        if packet.pts is not None:
            packet.pts += dts - packet.dts
        packet.dts = dts

    def _add_copies(self) -> None:
        container, source = self._container, self._reader.container
        for stream in source.streams:
            if stream.index == self._reader.stream.index:
                continue
            label = f"{stream.type} stream {stream.index} ({stream.name or 'unknown'})"
            try:
                if stream.type == "video":
                    raise ValueError("a second picture")
                if stream.type == "attachment":
                    attachment = cast(Any, stream)
                    container.add_attachment(
                        stream.metadata.get("filename", f"attachment{stream.index}"),
                        attachment.mimetype or "application/octet-stream",
                        attachment.data,
                    )
                    continue
                copy = container.add_stream_from_template(stream)
            except (FFmpegError, ValueError) as error:
                hint = (
                    "" if self._output.suffix.lower() == ".mkv" else "; an .mkv output may hold it"
                )
                self.left_out.append(f"{label} is not kept: {reason(error)}{hint}")
                continue
            copy.metadata.update(_kept_metadata(stream.metadata))
            copy.disposition = stream.disposition
            self._copies[stream.index] = copy
        container.metadata.update(_kept_metadata(source.metadata))
        if chapters := source.chapters():
            container.set_chapters(chapters)


@contextmanager
def _reasons() -> Iterator[None]:
    """Let errors carry what libav says of them, which is often more than their name."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture():
            yield
    finally:
        av.logging.set_level(level)


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
    options = {"ignore_editlist": "1"} if path.suffix.lower() in _QUICKTIME_SUFFIXES else {}
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


# tags that a container writes of itself
_OWN_METADATA = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "handler_name", "vendor_id"}
    | {"DURATION", "duration", "rotate"}
)


def _kept_metadata(metadata: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key not in _OWN_METADATA}
