"""Connections to a live stream: one, with its time limits, and the next one when it breaks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any, Protocol, TypeVar

import av
import torch
from av.error import FFmpegError
from torch import Tensor

from engines.errors import MediaError
from vsr.address import Address
from vsr.ffmpeg import reason
from vsr.liveclock import LiveClock
from vsr.timeline import Timed
from vsr.video import Reader

log = logging.getLogger(__name__)

OPEN_SECONDS = 10.0
READ_SECONDS = 5.0
"""a connection that gives nothing for so long is broken"""
PLAYLIST_SECONDS = 20.0
"""the same over HTTP, where the next segment of a playlist may take its time"""
PICTURE_SECONDS = 20.0
"""from opening to the first frame, which may have to wait for a key frame"""
_PLAYLISTS = {"hls", "dash"}
_PROBE_MICROSECONDS = 2_000_000  # of stream; FFmpeg's own 5 s would all be delay
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 4.0
_LASTING_SECONDS = 3.0  # of stream; a connection that brings less has not come back


class Stopped(MediaError):
    """The recording was asked to end before there was anything to record."""


class Connection:
    """One connection: frames by `frames`, packets of sound by a call.

    Attributes:
        reader: of it.
        codecs: of its sound.
        is_bursty: whether it comes faster than it is to be shown, in pieces.
        is_finite: whether it says how long it is, in seconds or in bytes: something recorded that
            a server plays.
        brought_seconds: from the first frame to the newest, in the stream's time.

    Args:
        address: of the stream.
        seconds: to open it in.
        hear: told each packet of sound, on the time line, and the number of its stream.
        is_ended: asked now and then.
        settings: of the reader.

    Raises:
        MediaError: no connection, or no picture in it, or a file that no server gives a pace.
        Stopped: `is_ended`.
    """

    def __init__(
        self,
        address: Address,
        seconds: float,
        hear: Callable[[int, av.Packet[Any]], None],
        is_ended: Callable[[], bool],
        settings: dict[str, Any],
    ) -> None:
        self._address, self._hear, self._is_ended = address, hear, is_ended
        self._line: LiveClock | None = None
        self._early: list[tuple[int, av.Packet[Any]]] = []
        self._until = time.monotonic() + PICTURE_SECONDS
        container = _open(address, seconds)
        self.is_bursty = container.format.name == "hls"
        self._is_http = address.scheme.startswith("http")
        self.is_finite = bool(container.duration)
        if self.is_finite and self._is_http:
            duration_seconds = (container.duration or 0) / av.time_base
            container.close()
            raise MediaError(
                f"{address} is a clip of {duration_seconds:.1f} s, not live: to be downloaded, "
                "and the file upscaled"
            )
        if self._is_http and container.format.name not in _PLAYLISTS:
            self.is_finite = container.size > 0  # with a playlist it is that of the list
        self.brought_seconds = 0.0
        self._first_frame: tuple[Fraction, list[Tensor]] | None = None
        self._sounds = [stream.index for stream in container.streams.audio]
        self.codecs = [(s.name, s.rate, s.channels) for s in container.streams.audio]
        self.reader = Reader(address, container=container, watch=self._watch, **settings)

    def join(self, first: Connection) -> None:
        """Give what another connection gave: frames of its shape, those sounds that it had."""
        self.reader.conform(first.reader)
        if self.codecs != first.codecs:
            log.warning("%s: its sound has changed, and is left out from here", self._address)
            self._sounds = []

    def begins_as(self, other: Connection) -> bool:
        """Tell whether a server of files gave the same one again: same first time and picture.

        A live stream may do so too, where it begins with the last key frame and was cut at once:
        hence only after one that lasted, or that has a length.
        """
        if self.is_bursty or self._first_frame is None or other._first_frame is None:
            return False
        if other.brought_seconds < _LASTING_SECONDS and not other.is_finite:
            return False
        (at, planes), (other_at, other_planes) = self._first_frame, other._first_frame
        return at == other_at and all(map(torch.equal, planes, other_planes))

    def frames(self, line: LiveClock) -> Iterator[Timed[list[Tensor]]]:
        """Yield the frames, in ticks of the time line."""
        time_base = self.reader.info.time_base
        frames, began = self.reader.frames(), Fraction(0)
        while True:
            try:
                frame = next(frames, None)
            except FFmpegError as error:  # nothing in a stream is worth losing the recording for
                self.reader.broke_off = reason(error)
                return
            if frame is None:
                return
            at = frame.pts * time_base
            if self._line is None:
                began = at
                line.connected(at)
                self._line = line
                if self._is_http:
                    self._first_frame = at, [plane.clone() for plane in frame.value]
                for number, packet in self._early:
                    self._place(number, packet, line)
                self._early.clear()
            self.brought_seconds = float(at - began)
            yield Timed(frame.value, line.place(at), line.ticks(frame.duration * time_base))

    def close(self) -> None:
        """Let go of the network."""
        with suppress(FFmpegError, OSError):
            self.reader.container.close()

    def _watch(self, packet: av.Packet[Any]) -> None:
        if self._is_ended():
            raise Stopped(f"{self._address}: ended")
        if self._line is None and time.monotonic() > self._until:
            raise MediaError(f"{self._address} gave no picture within {PICTURE_SECONDS:g} s")
        if packet.stream_index in self._sounds and packet.dts is not None:
            number = self._sounds.index(packet.stream_index)
            if self._line is None:
                self._early.append((number, packet))
            else:
                self._place(number, packet, self._line)

    def _place(self, number: int, packet: av.Packet[Any], line: LiveClock) -> None:
        assert packet.dts is not None
        moved = round(line.offset / packet.time_base)
        packet.dts += moved
        packet.pts = packet.dts if packet.pts is None else packet.pts + moved
        if packet.dts >= 0:  # what was before the first frame is not wanted
            self._hear(number, packet)


def _open(address: Address, seconds: float) -> av.container.InputContainer:
    """Open a stream, within a time limit that holds for each later read too.

    Raises:
        MediaError: it cannot be.
    """
    options = {"analyzeduration": str(_PROBE_MICROSECONDS)}
    microseconds = str(round(READ_SECONDS * 1e6))
    read_seconds = PLAYLIST_SECONDS if address.scheme.startswith("http") else READ_SECONDS
    options["rw_timeout"] = microseconds
    if not address.scheme.startswith("rtmp"):  # where it would mean to wait for a caller
        options["timeout"] = microseconds
    if address.scheme.startswith("rtsp"):
        options["rtsp_flags"] = "prefer_tcp"  # no frames torn by lost packets, and through routers
    if address.scheme == "udp":
        options["overrun_nonfatal"] = "1"
    try:
        return av.open(
            address.url, "r", container_options=options, metadata_errors="replace",
            timeout=(min(seconds, OPEN_SECONDS), read_seconds),
        )  # fmt: skip
    except (FFmpegError, OSError, ValueError) as error:
        said = address.scrub(reason(error))
    raise MediaError(f"cannot open {address}: {said}")  # without a trace, which holds the URL


class Connected(Protocol):
    """One connection to a stream."""

    brought_seconds: float

    def close(self) -> None:
        """End it."""


C = TypeVar("C", bound=Connected)


def connections(
    first: C,
    connect: Callable[[float], C],
    *,
    give_up_seconds: float,
    clock: Callable[[], float],
    pause: Callable[[float], bool],
) -> Iterator[C]:
    """Yield one connection after the other; the next is wanted when the one before has ended.

    Those in a row that bring less than some seconds of stream share one time to give up after, and
    the pauses grow on over them.

    Args:
        first: connection.
        connect: makes another within so many seconds, or raises a MediaError.
        give_up_seconds: after which, without a connection, this ends.
        clock: seconds.
        pause: waits for so many seconds; true: stop.
    """
    connection: C | None = first
    until: float | None = None
    wait = _FIRST_PAUSE_SECONDS
    while connection is not None:
        try:
            yield connection
        finally:
            connection.close()
        if until is None or connection.brought_seconds >= _LASTING_SECONDS:
            until, wait = clock() + give_up_seconds, _FIRST_PAUSE_SECONDS
        connection = None
        while connection is None and (left := until - clock()) > 0:
            if pause(min(wait, left)):
                return
            try:
                connection = connect(max(1.0, until - clock()))
            except Stopped:
                return
            except MediaError as error:
                log.debug("%s", error)
            wait = min(2 * wait, _LONGEST_PAUSE_SECONDS)
