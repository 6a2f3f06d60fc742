"""What is made of a frame straight after the network, before anybody sees it.

Planes for an encoder, say. The engines know nothing of them, but can run them with the network: a
back end that compiles makes one graph of both, in which the enlarged frame in float32, four times
as large as all else, is never written down.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Protocol

from torch import Tensor, nn


class CellFinish(nn.Module, ABC):
    """A finish before a pixel shuffle by `factor`: the sums as a module, then the order of bytes.

    The module takes (1, 3*factor*factor, h, w) float32 RGB in [0, 1] and returns a tuple of
    tensors, of any shape. A compiler moves bytes slower than it multiplies: `assembled` does that
    afterwards.
    """

    @abstractmethod
    def assembled(self, made: Sequence[Tensor]) -> list[Tensor]:
        """Make of what the module returned, which may be written to, what the `Finish` makes.

        Equal up to the rounding of float32 sums; fresh contiguous tensors.
        """


class Finish(Hashable, Protocol):
    """Makes tensors of an enlarged frame. Equal ones make the same."""

    def __call__(self, rgb: Tensor) -> list[Tensor]:
        """Make them.

        Args:
            rgb: (1, 3, H, W) float32 RGB in [0, 1], on any device.

        Returns:
            Fresh contiguous tensors on that device. The last two dimensions of each are H and W, or
            whole fractions of them, and what lies near a place of the frame depends on what is
            near it, at most `reach` pixels away.
        """

    @property
    def reach(self) -> int:
        """How far a value of the result sees, in pixels of the enlarged frame."""

    def before_shuffle(self, factor: int) -> CellFinish | None:
        """Return what makes the same before a pixel shuffle by `factor`, or None."""

    def is_black(self, results: list[Tensor]) -> Tensor:
        """Tell whether nothing of a frame is lit, from what was made of it: () bool."""
