"""The call contract of an engine, and what every engine does the same way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from engines.errors import BackendUnavailable, UnsupportedShape
from engines.finish import Finish
from engines.weights import Model

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True, slots=True)
class Building:
    """How far the build of a compiled engine is."""

    shape: tuple[int, int, int]
    """(N, H, W) of the frames that it is for"""
    share: float
    """0 to 1"""


class Engine(ABC):
    """A network with its weights on a back end, called like a function.

    ``engine(frames)``:

        frames: (N, 3, H, W) RGB in [0, 1], `engine.dtype`, on `engine.device`; N, H and W at least
            1, any memory layout. It is read only during the call.
        Returns (N, 3, H*scale, W*scale), same dtype and device, every value clamped to
            [0, 1]; a fresh contiguous tensor, safe to keep.

    The frames of a batch do not influence one another. An engine is called from one thread at a
    time; it may use several threads inside. What `begin` returns may be called in another thread.

    Raises:
        TypeError: not a tensor, or of another dtype.
        ValueError: another number of dimensions or channels, or another device.
        UnsupportedShape: an empty batch or frame, or one larger than the back end can take.
    """

    backend: str
    """name in `engines.BACKENDS`"""
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    """what the back end can compute in; "auto" takes the first, or what this machine is best at"""
    clamps: ClassVar[bool] = False
    """whether `_run` itself keeps to [0, 1]"""
    lanes: int = 1
    """frames that `begin` computes at once, each with an equal share of the threads and memory of
    its own; to be set, to one of `lane_counts`"""
    lane_counts: tuple[int, ...] = (1,)
    """how many lanes there can be, rising; only of a back end, not of what wraps one"""

    def __init__(
        self,
        model: Model,
        *,
        device: torch.device,
        dtype: torch.dtype,
        precision: Precision = "fp32",
    ) -> None:
        self.model = model
        self.scale = model.scale
        self.device = device
        self.dtype = dtype
        self.precision = precision
        """what it computes in, never "auto"; frames are of `dtype` all the same"""

    @property
    def description(self) -> str:
        """What runs where, for people: "openvino fp32 on cpu"."""
        return f"{self.backend} {self.precision} on {self.device}"

    def __call__(self, frames: Tensor) -> Tensor:
        """Upscale frames (the contract is in the class's docstring)."""
        self._check(frames)
        result = self._run(frames)
        return result if self.clamps else result.clamp_(0, 1)

    def fuses(self, finish: Finish) -> bool:
        """Tell whether `finished` runs network and finish as one, which takes less work."""
        del finish
        return False

    def finished(self, frames: Tensor, finish: Finish) -> list[Tensor]:
        """Upscale one frame, and return what `finish` makes of the result.

        Args:
            frames: (1, 3, H, W), as the contract has it.
            finish: is called with the result in float32; where the back end fuses it, values differ
                by the rounding of float32 sums.

        Returns:
            Fresh contiguous tensors on the device.

        Raises:
            As a call.
        """
        return finish(self(frames).float())

    def begin(self, frames: Tensor, finish: Finish | None = None) -> Callable[[], list[Tensor]]:
        """Begin to upscale frames, one where there is a finish, and return a call that waits.

        One more than there are `lanes` may be begun and not waited for, so that no lane is idle;
        they are waited for in their order, once each. With one lane the call does the work.

        Args:
            frames: as the contract has them; left as they are until they were waited for.
            finish: see `finished`; None: the call gives the enlarged frames alone.

        Raises:
            As a call; here, or where it is waited for.
        """
        if finish is None:
            return lambda: [self(frames)]
        return lambda: self.finished(frames, finish)

    def verdict(self) -> Tensor | None:
        """Whether any result since the last verdict is spoilt, (1,) bool on the device.

        None where nobody looks.
        """
        return None

    def frame_begins(self, number: int) -> None:  # noqa: B027
        """Take note that what is computed from now on belongs to a frame of the job.

        Args:
            number: of the frame, from 0, in this run; repeated frames, which are not computed,
                are counted.
        """

    def forget_shapes(self) -> None:  # noqa: B027
        """Give back what is kept for shapes of frames, before others are made in less memory."""

    def cancel(self) -> None:  # noqa: B027
        """Give up what takes long, from any thread; the engine must only be closed afterwards."""

    def close(self) -> None:  # noqa: B027 - most back ends have nothing to give back
        """Give back what the back end holds; the engine must not be called afterwards."""

    def _check(self, frames: Tensor) -> None:
        if not isinstance(frames, Tensor):
            raise TypeError(f"frames must be a torch.Tensor, got {type(frames).__name__}")
        if frames.dtype != self.dtype:
            raise TypeError(f"frames must be {self.dtype}, got {frames.dtype}")
        if frames.ndim != 4 or frames.shape[1] != 3:
            raise ValueError(f"frames must be (N, 3, H, W), got {tuple(frames.shape)}")
        if frames.device.type != self.device.type:
            raise ValueError(f"frames must be on {self.device}, got {frames.device}")
        if 0 in frames.shape:
            raise UnsupportedShape(f"frames must not be empty, got {tuple(frames.shape)}")

    @abstractmethod
    def _run(self, frames: Tensor) -> Tensor:
        """Run the network on checked frames; the result is fresh, and in [0, 1] if `clamps`."""


class CompiledEngine(Engine):
    """An engine that is compiled for a shape of frames, which may take minutes, and kept."""

    @abstractmethod
    def prepare(self, shape: tuple[int, int, int]) -> None:
        """Do now what the first call with frames of (N, H, W) would have to do first.

        `cancel`, from another thread, ends it.

        Raises:
            As a call.
        """

    @abstractmethod
    def takes_long(self, shape: tuple[int, int, int]) -> bool:
        """Tell whether `prepare` has more to do than to load what is on the disk."""


def choose_precision(
    backend: str, wanted: Precision, offered: Sequence[Precision], *, here: str = ""
) -> Precision:
    """Return the precision to compute in: the one that is wanted, or for "auto" the first.

    Args:
        backend: its name, for the message.
        wanted: "auto", or one that is used or raises.
        offered: by the back end on this machine, never empty.
        here: what of this machine limits the offer, for the message.

    Raises:
        BackendUnavailable: the back end does not offer it.
    """
    if wanted == "auto":
        return offered[0]
    if wanted not in offered:
        has = " and ".join(offered)
        raise BackendUnavailable(f"backend {backend!r} computes in {has}{here}, not in {wanted}")
    return wanted
