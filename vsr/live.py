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
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor

from engines.errors import MediaError
from vsr.address import Address
from vsr.connection import OPEN_SECONDS, PICTURE_SECONDS, Connection, Stopped, connections
from vsr.latest import LatestFrames
from vsr.liveclock import LiveClock, Pace
from vsr.timeline import Timed
from vsr.video import Reader

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 2.0  # for the thread to end; nobody has to wait for one that hangs in a read
_TICK_SECONDS = 0.1  # how often a wait looks up
_MOST_SOUND = 20_000  # packets; some minutes


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
        self._first: Connection | Exception | None = None
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
        if isinstance(self._first, Connection):
            return self._first.reader
        assert self._first is not None
        raise self._first

    def begin(self) -> Iterator[Timed[list[Tensor]]]:
        """Let the frames of the opened stream come."""
        self._begun.set()
        return iter(self.latest)

    def sound(self) -> Iterator[tuple[int, Any]]:
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

    def _receive_all(self, first: Connection) -> None:
        line = LiveClock(first.reader.info.time_base, time.monotonic)
        lost_at, before = 0.0, first
        for connection in connections(
            first, self._connect, give_up_seconds=self._reconnect_seconds,
            clock=time.monotonic, pause=self._pause,
        ):  # fmt: skip
            if connection is not first:
                connection.join(first)
            pace, is_new = Pace(time.monotonic), connection is not first
            for frame in connection.frames(line):
                if is_new and connection.begins_as(before):
                    log.warning("%s: the stream starts anew each time: it is a file", self.address)
                    return
                if is_new:
                    self.reconnects += 1
                    log.warning(
                        "%s: connected again after %.1f s",
                        self.address, time.monotonic() - lost_at,
                    )  # fmt: skip
                    is_new = False
                if connection.is_bursty:
                    self._pause(pace.early_seconds(float(frame.pts * first.reader.info.time_base)))
                self.latest.put(frame)
                if self._is_ended():
                    return
            before = connection
            if connection.is_finite and connection.reader.broke_off is None:
                self._say_that_it_was_a_file()
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

    def _say_that_it_was_a_file(self) -> None:
        if self.address.scheme.startswith("http"):  # which gives a file as fast as it can
            log.warning(
                "%s: it is a file, which has ended: downloaded first, it is upscaled whole",
                self.address,
            )

    def _why(self, connection: Connection) -> str:
        return self.address.scrub(connection.reader.broke_off or "its sender has closed it")

    def _connect(self, seconds: float) -> Connection:
        if self._is_ended():
            raise Stopped(f"{self.address}: ended")
        return Connection(self.address, seconds, self._hear, self._is_ended, self._settings)

    def _hear(self, number: int, packet: Any) -> None:
        self.sound_lost += len(self._sound) == _MOST_SOUND
        self._sound.append((number, packet))

    def _is_ended(self) -> bool:
        return self._stop.is_set() or self._closed.is_set()

    def _pause(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not self._is_ended() and (left := until - time.monotonic()) > 0:
            self._stop.wait(min(left, _TICK_SECONDS))
        return self._is_ended()
