"""Times that go with things: integers in a clip's time base, which pass through untouched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

JUMP_SECONDS = 0.2  # a timestamp that far back is no late one but a new beginning


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """Something to be shown at a time."""

    value: T
    pts: int
    """presentation time, in ticks of the clip's time base"""
    duration: int
    """ticks; 0 when the clip does not say"""


class Timeline:
    """Keeps timestamps increasing: as they are while they do, moved where they do not.

    One that is missing, or a little late, follows its predecessor. Where they jump back by more
    than `jump`, as in joined recordings, they and all that follow move on together.

    Args:
        jump: ticks.
        repeats: whether two may have the same time, as subtitles may.

    Attributes:
        moved: timestamps that could not be kept, those after a jump aside.
        jumps: how often they jumped back.
    """

    def __init__(self, *, jump: int, repeats: bool = False) -> None:
        self.moved = 0
        self.jumps = 0
        self._jump = jump
        self._least = 0 if repeats else 1
        self._offset = 0
        self._next: int | None = None
        self._last: int | None = None

    def place(self, time: int | None, duration: int) -> int:
        """Return where to put something that wants to be at `time`, for `duration` ticks."""
        placed = None if time is None else time + self._offset
        if self._last is not None and placed is not None and placed < self._last + self._least:
            if self._last - placed > self._jump and time is not None and self._next is not None:
                self.jumps += 1
                self._offset = self._next - time
                placed = self._next
            else:
                placed = self._last + self._least
                self.moved += 1
        if placed is None:
            placed = self._next if self._next is not None else 0
            self.moved += 1
        self._last, self._next = placed, placed + max(1, duration)
        return placed
