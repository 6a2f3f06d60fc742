"""When the frames of a live stream are to be shown, and when they may come."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

_SLACK_SECONDS = 2  # by which a stream's clock and ours may differ over a broken connection
_LONGEST_EARLY_SECONDS = 20.0  # what is earlier is not early, but a stream that jumps


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
        if self._begin is None or not 0 < early < _LONGEST_EARLY_SECONDS:
            self._begin, early = now - at_seconds, 0.0
        return early
