"""The newest frames of a live stream, on their way from the thread that receives to the stages."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from vsr.threads import waiting

T = TypeVar("T")

_TICK_SECONDS = 0.1  # how often a wait looks up


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
