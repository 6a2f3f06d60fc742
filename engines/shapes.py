"""What a back end has made ready for the last few shapes of frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from engines.errors import OutOfMemory

T = TypeVar("T")

KEPT_SHAPES = 2
"""whole frames and their tiles"""


class LastShapes(Generic[T]):
    """Keeps the `KEPT_SHAPES` that were asked for last.

    Args:
        close: gives back what one of them holds.
    """

    def __init__(self, close: Callable[[T], None]) -> None:
        self._close = close
        self._made: dict[tuple[int, ...], T] = {}

    @property
    def newest(self) -> T:
        """What was asked for last."""
        return next(reversed(self._made.values()))

    def get(self, shape: tuple[int, ...], make: Callable[[], T]) -> T:
        """Return what there is for a shape, or make it.

        The oldest gives its memory back first; where that is not enough, all others do.

        Raises:
            OutOfMemory, torch.OutOfMemoryError: there is no memory for it alone.
        """
        found = self._made.pop(shape, None)
        while found is None and len(self._made) >= KEPT_SHAPES:
            self._close(self._made.pop(next(iter(self._made))))
        while found is None:
            try:
                found = make()
            except (OutOfMemory, torch.OutOfMemoryError):
                if not self._made:
                    raise
            if found is None:  # no longer in `except`: the error's trace holds memory too
                self.clear()
        self._made[shape] = found
        return found

    def clear(self) -> None:
        """Give all back."""
        while self._made:
            self._close(self._made.popitem()[1])
