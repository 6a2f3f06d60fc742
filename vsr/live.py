"""Live streams: their newest frames, over connections that break.

    address ─▸ receive ─▸ LatestFrames ─▸ the stages ─▸ recording
               thread      at most `depth` frames are in here or there

The thread connects, decodes at the stream's pace, and connects again. It never waits for the
stages: where they are too slow, the oldest waiting frame is dropped. Nothing here waits without a
limit: opening, reading, the first picture and the end of the thread each have theirs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any, Generic, Protocol, TypeVar

import av
from av.error import FFmpegError
from torch import Tensor

from engines.errors import MediaError
from vsr.address import Address
from vsr.threads import waiting
from vsr.video import Reader, Timed, reason

log = logging.getLogger(__name__)

T = TypeVar("T")

OPEN_SECONDS = 10.0
READ_SECONDS = 5.0
"""a connection that gives nothing for so long is broken"""
PLAYLIST_SECONDS = 20.0
"""the same over HTTP, where the next segment of a playlist may take its time"""
PICTURE_SECONDS = 20.0
"""from opening to the first frame, which may have to wait for a key frame"""
_PROBE_MICROSECONDS = 2_000_000  # of stream; FFmpeg's own 5 s would all be delay
_CLOSE_SECONDS = 2.0  # for the thread to end; nobody has to wait for one that hangs in a read
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 4.0
_TICK_SECONDS = 0.1  # how often a wait looks up
_SLACK_SECONDS = 2  # by which a stream's clock and ours may differ over a broken connection
_MOST_SOUND = 20_000  # packets; some minutes


class Stopped(MediaError):
    """The recording was asked to end before there was anything to record."""


class LatestFrames(Generic[T]):
    """Hands on the newest frames from one thread to another.

    At most `depth` of them are waiting or at work, that is taken and not yet `done`. When one more
    comes, the oldest waiting is dropped; one place of several is never at work, so that there is
    always a new one to go on with.

    Args:
        depth: at least 1.
        stop: ends it from outside: those that wait are dropped.

    Attributes:
        dropped: how many, so far.
    """

    def __init__(self, depth: int, stop: threading.Event) -> None:
        self.dropped = 0
        self._depth, self._stop = depth, stop
        self._waiting: deque[T] = deque()
        self._at_work = 0
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, frame: T) -> None:
        """Add the newest; never waits."""
        with self._changed:
            self._waiting.append(frame)
            if len(self._waiting) + self._at_work > self._depth:
                self._waiting.popleft()
                self.dropped += 1
            self._changed.notify_all()

    def close(self, error: BaseException | None = None) -> None:
        """Say that no more come, or what went wrong; those that wait are still handed on."""
        with self._changed:
            self._closed, self._error = True, error
            self._changed.notify_all()

    def end(self) -> None:
        """Hand on no more."""
        with self._changed:
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._closed, self._error = True, None
            self._changed.notify_all()

    def done(self) -> None:
        """Say that a frame that was taken is at work no more."""
        with self._changed:
            self._at_work -= 1
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while (frame := self._take()) is not None:
            yield frame

    def _take(self) -> T | None:
        with self._changed:
            while True:
                if self._stop.is_set():
                    self.end()
                if self._waiting and self._at_work < max(1, self._depth - 1):
                    self._at_work += 1
                    return self._waiting.popleft()
                if self._closed and not self._waiting:
                    if self._error is not None:
                        raise self._error
                    return None
                with waiting():
                    self._changed.wait(_TICK_SECONDS)


class LiveClock:
    """One time line for all connections to a stream; it begins at 0 with the first frame.

    Times are the stream's own, moved as a whole. After a broken connection they stay where the
    stream's clock went on; where it began anew, as much time is left as has passed here.

    Args:
        tick: that all offsets are a multiple of, so that steps stay exact.
        clock: seconds, such as `time.monotonic`.

    Attributes:
        offset: seconds to add to the present connection's times.
    """

    def __init__(self, tick: Fraction, clock: Callable[[], float]) -> None:
        self.offset = Fraction(0)
        self._tick, self._clock = tick, clock
        self._last: tuple[Fraction, float] | None = None
        self._last_ticks = -1

    def connected(self, first: Fraction) -> None:
        """Begin a connection.

        Args:
            first: time of its first frame, in the stream's seconds.
        """
        if self._last is None:
            self.offset = -first
            return
        placed, came_at = self._last
        passed = max(self._tick, self.ticks(self._clock() - came_at) * self._tick)
        goes_on = placed < first + self.offset <= placed + passed + _SLACK_SECONDS
        if not goes_on:
            self.offset = placed + passed - first

    def place(self, at: Fraction) -> int:
        """Return where a frame is on the time line, in ticks; later than the one before it."""
        placed = at + self.offset
        self._last = placed, self._clock()
        self._last_ticks = max(self._last_ticks + 1, self.ticks(placed))
        return self._last_ticks

    def ticks(self, seconds: Fraction | float) -> int:
        """Return the nearest number of ticks."""
        return round(Fraction(seconds) / self._tick)


class Pace:
    """Holds back frames that come in bursts, such as those of HLS's segments, until their time.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begin: float | None = None

    def early_seconds(self, at_seconds: float) -> float:
        """Return how long to hold back a frame; after a late one, the later ones are late too."""
        now = self._clock()
        early = 0.0 if self._begin is None else self._begin + at_seconds - now
        if self._begin is None or not 0 < early < PLAYLIST_SECONDS:
            self._begin, early = now - at_seconds, 0.0
        return early


class Connected(Protocol):
    """One connection to a stream."""

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

    Args:
        first: connection.
        connect: makes another within so many seconds, or raises a MediaError.
        give_up_seconds: after which, without a connection, this ends.
        clock: seconds.
        pause: waits for so many seconds; true: stop.
    """
    connection: C | None = first
    while connection is not None:
        try:
            yield connection
        finally:
            connection.close()
        connection = None
        until, wait = clock() + give_up_seconds, _FIRST_PAUSE_SECONDS
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


class LiveStream:
    """Receives a stream, in a thread of its own, from `open` on until `close`.

    Args:
        address: of the stream.
        depth: see `LatestFrames`.
        reconnect_seconds: how long to try to get a broken connection back.
        stop: ends it from outside, within a moment.
        threads, deinterlace: see `Reader`.

    Attributes:
        latest: the frames, in ticks of the first connection; to be told of each that is done.
        reconnects: how often a broken connection came back.
        sound_lost: packets of sound that could not be kept.
    """

    def __init__(
        self,
        address: Address,
        *,
        depth: int,
        reconnect_seconds: float,
        stop: threading.Event,
        threads: int | None = None,
        deinterlace: bool | None = None,
    ) -> None:
        self.latest: LatestFrames[Timed[list[Tensor]]] = LatestFrames(depth, stop)
        self.reconnects = self.sound_lost = 0
        self.address, self._reconnect_seconds = address, reconnect_seconds
        self._settings = {"threads": threads, "deinterlace": deinterlace}
        self._stop, self._closed = stop, threading.Event()
        self._sound: deque[tuple[int, Any]] = deque(maxlen=_MOST_SOUND)
        self._opened, self._begun = threading.Event(), threading.Event()
        self._first: _Connection | Exception | None = None
        self._thread = threading.Thread(target=self._receive, name="receive", daemon=True)

    def __enter__(self) -> LiveStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> Reader:
        """Connect, and return the reader, for what it knows of the stream; it is the thread's.

        Raises:
            MediaError: there is no connection, or no picture in it, within the time limit.
            Stopped: asked to end before that.
        """
        self._thread.start()
        until = time.monotonic() + OPEN_SECONDS + PICTURE_SECONDS
        while not self._opened.wait(_TICK_SECONDS):
            if self._stop.is_set():
                raise Stopped(f"{self.address}: ended before its first frame")
            if time.monotonic() > until:
                raise MediaError(
                    f"{self.address} gave no picture within {OPEN_SECONDS + PICTURE_SECONDS:g} s"
                )
        if isinstance(self._first, _Connection):
            return self._first.reader
        assert self._first is not None
        raise self._first

    def begin(self) -> Iterator[Timed[list[Tensor]]]:
        """Let the frames of the opened stream come."""
        self._begun.set()
        return iter(self.latest)

    def sound(self) -> Iterator[tuple[int, av.Packet[Any]]]:
        """Yield what has come of the sound: number of the sound stream, packet on the time line."""
        with suppress(IndexError):
            while True:
                yield self._sound.popleft()

    def close(self) -> None:
        """Stop receiving, and wait a moment for the thread, which is at the end of its read."""
        self._closed.set()
        self._begun.set()
        self.latest.end()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)
            if self._thread.is_alive():  # it is a daemon: it holds nobody up
                log.debug("%s: its thread is still waiting for the network", self.address)

    def _receive(self) -> None:
        try:
            self._first = self._connect(OPEN_SECONDS)
        except Exception as error:  # carried to `open`
            self._first = error
            return
        finally:
            self._opened.set()
        self._begun.wait()  # for `begin` or `close`, one of which comes
        try:
            self._receive_all(self._first)
            self.latest.close()
        except Stopped:
            self.latest.close()
        except BaseException as error:  # carried to the stages
            self.latest.close(error)

    def _receive_all(self, first: _Connection) -> None:
        line = LiveClock(first.reader.info.time_base, time.monotonic)
        lost_at = 0.0
        for connection in connections(
            first, self._connect, give_up_seconds=self._reconnect_seconds,
            clock=time.monotonic, pause=self._pause,
        ):  # fmt: skip
            if connection is not first:
                self.reconnects += 1
                log.warning(
                    "%s: connected again after %.1f s",
                    self.address, time.monotonic() - lost_at,
                )  # fmt: skip
                connection.join(first)
            pace = Pace(time.monotonic)
            for frame in connection.frames(line):
                if connection.is_bursty:
                    self._pause(pace.early_seconds(float(frame.pts * first.reader.info.time_base)))
                self.latest.put(frame)
                if self._is_ended():
                    return
            if connection.is_finite and connection.reader.broke_off is None:
                return  # to ask again would be to begin anew
            if self._is_ended():
                return
            lost_at = time.monotonic()
            log.warning(
                "%s: the stream broke off (%s)%s",
                self.address, self._why(connection),
                f": trying for {self._reconnect_seconds:g} s" * (self._reconnect_seconds > 0),
            )  # fmt: skip
        if not self._is_ended():
            log.warning("%s: no connection any more, the recording ends", self.address)

    def _why(self, connection: _Connection) -> str:
        return self.address.scrub(connection.reader.broke_off or "its sender has closed it")

    def _connect(self, seconds: float) -> _Connection:
        if self._is_ended():
            raise Stopped(f"{self.address}: ended")
        return _Connection(self.address, seconds, self._hear, self._is_ended, self._settings)

    def _hear(self, number: int, packet: av.Packet[Any]) -> None:
        self.sound_lost += len(self._sound) == _MOST_SOUND
        self._sound.append((number, packet))

    def _is_ended(self) -> bool:
        return self._stop.is_set() or self._closed.is_set()

    def _pause(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not self._is_ended() and (left := until - time.monotonic()) > 0:
            self._stop.wait(min(left, _TICK_SECONDS))
        return self._is_ended()


class _Connection:
    """One connection: frames by `frames`, packets of sound by a call.

    Attributes:
        reader: of it.
        codecs: of its sound.
        is_bursty: whether it comes faster than it is to be shown, in pieces.
        is_finite: whether it says how long it is: something recorded that a server plays.

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
        self.is_finite = bool(container.duration)
        if self.is_finite and address.scheme.startswith("http"):
            duration_seconds = (container.duration or 0) / av.time_base
            container.close()
            raise MediaError(
                f"{address} is a clip of {duration_seconds:.1f} s, not live: to be downloaded, "
                "and the file upscaled"
            )
        self._sounds = [stream.index for stream in container.streams.audio]
        self.codecs = [(s.name, s.rate, s.channels) for s in container.streams.audio]
        self.reader = Reader(address, container=container, watch=self._watch, **settings)

    def join(self, first: _Connection) -> None:
        """Give what another connection gave: frames of its shape, those sounds that it had."""
        self.reader.conform(first.reader)
        if self.codecs != first.codecs:
            log.warning("%s: its sound has changed, and is left out from here", self._address)
            self._sounds = []

    def frames(self, line: LiveClock) -> Iterator[Timed[list[Tensor]]]:
        """Yield the frames, in ticks of the time line."""
        time_base = self.reader.info.time_base
        frames = self.reader.frames()
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
                line.connected(at)
                self._line = line
                for number, packet in self._early:
                    self._place(number, packet, line)
                self._early.clear()
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
