"""Frames on their way to the device and back: slots, of which one computes while others move.

    decoder ─▸ pinned ─▸ device ─▸ to RGB, engine, to planes ─▸ pinned ─▸ encoder
               └ upload, the slot's stream      └ the device's one stream    └ download, the slot's

A `Slot` is a frame's place from its planes to those of its result. An accelerator has few of them
and uses them over and over, so they bound its memory; raw planes cross the bus, 1.5 bytes a pixel
for 8-bit 4:2:0. Planes that a hardware decoder left on the device are taken as they are, and
results can stay there for a hardware encoder (`vsr.hardware`). Nobody waits for the device but who
reads a result, and only for the event behind its own download. On the `Host` a slot passes on what
it is given: nothing is copied, nothing waits.

Nobody has run `Cuda` on a GPU yet; everything above it is tested on a simulated device.
"""

from __future__ import annotations

import logging
import queue
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from engines.graph import own_stream

log = logging.getLogger(__name__)


class Slot(ABC):
    """One frame's place on a device, used by one thread at a time.

    In this order: `upload`, any number of `work`, `download`, `result`; and again from the start
    once what `result` returned has been read, or from `work` to compute the frame again.
    """

    planes: Sequence[Tensor]
    """the uploaded planes, on the device; to be read within `work` only"""

    @abstractmethod
    def upload(self, planes: Sequence[Tensor]) -> None:
        """Send a frame's planes, (H, W) each, on their way to the device.

        They may be read later still: where they are the caller's memory, it must stay as it is
        until the slot is free again. An accelerator has copied them when this returns, unless they
        are in its own memory: these are complete, and nobody writes to them any more.
        """

    @abstractmethod
    def work(self) -> AbstractContextManager[Any]:
        """Launch what is called within on the device, after the upload and after earlier work.

        Tensors made within may be used in `work` of other slots of the same device, and nowhere
        else before `result`.
        """

    @abstractmethod
    def download(self, tensors: Sequence[Tensor]) -> None:
        """Send tensors that were made in `work` on their way to the host."""

    @abstractmethod
    def result(self) -> list[Tensor]:
        """Wait until the download is there, and return it: CPU tensors, in a fresh list.

        Where the device's `results_stay`, they are those that `download` was given.

        They are the slot's: valid until it is given back. On the host they are fresh and stay.
        """

    def vacate(self) -> None:  # noqa: B027 - an accelerator's buffers are its own
        """Let go of what is somebody else's memory."""

    @abstractmethod
    def close(self) -> None:
        """Wait for what is under way, and give back the memory."""


class Device(ABC):
    """Where frames are computed."""

    slots: int
    """frames that may be at work at once"""
    stages_overlap: bool
    """whether a thread for each step makes it faster; else launching takes no time"""

    @abstractmethod
    def slot(self) -> Slot:
        """Make a slot."""


class Slots:
    """The slots of a device: taken, filled, emptied and given back, in any thread.

    Args:
        device: has them.
    """

    def __init__(self, device: Device) -> None:
        self._all = [device.slot() for _ in range(device.slots)]
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        for slot in self._all:
            self._free.put(slot)

    def take(self) -> Slot | None:
        """Wait for a slot that is free; None once `stop` has been called."""
        slot = self._free.get()
        if slot is None:
            self._free.put(None)  # for whoever else waits
        return slot

    def give_back(self, slot: Slot) -> None:
        """Let the next frame have a slot whose result has been read."""
        slot.vacate()
        self._free.put(slot)

    def stop(self) -> None:
        """Wake whoever waits for a slot: there will be none."""
        while True:
            try:
                self._free.get_nowait()
            except queue.Empty:
                break
        self._free.put(None)

    def close(self) -> None:
        """Wait for what is under way, and give back the memory; nobody may use a slot any more."""
        for slot in self._all:
            slot.close()


# --------------------------------------------------------------------------------------------------
# The host
# --------------------------------------------------------------------------------------------------


class Host(Device):
    """The CPU: planes are where they are needed.

    Args:
        slots: more than the queues between the stages hold, so that it is they who bound memory.
    """

    stages_overlap = True

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def slot(self) -> Slot:
        return _HostSlot()


class _HostSlot(Slot):
    def __init__(self) -> None:
        self.planes = ()
        self._result: list[Tensor] = []

    def upload(self, planes: Sequence[Tensor]) -> None:
        self.planes = planes

    def work(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def download(self, tensors: Sequence[Tensor]) -> None:
        self._result = list(tensors)

    def result(self) -> list[Tensor]:
        result, self._result = self._result, []  # the memory is the caller's from now on
        return result

    def vacate(self) -> None:
        self.planes = ()

    def close(self) -> None:
        self.planes, self._result = (), []


# --------------------------------------------------------------------------------------------------
# Accelerators
# --------------------------------------------------------------------------------------------------


class Accelerator(Device):
    """A device that works while the host does something else: streams, events and its own memory.

    One stream computes all frames, one after the other; each slot has one of its own to move them.
    """

    stages_overlap = False
    compute: Any
    """the stream that all frames are computed in"""
    results_stay: bool
    """whether downloads are none: results are wanted on the device"""

    def __init__(self, *, slots: int = 3, results_stay: bool = False) -> None:
        if slots < 2:
            raise ValueError(f"one slot computes while another moves: got {slots} slots")
        self.slots, self.results_stay = slots, results_stay
        self.compute = self.stream()

    def slot(self) -> Slot:
        return _MovingSlot(self)

    @abstractmethod
    def stream(self) -> Any:
        """Make a stream; it has `wait_event` and `synchronize`."""

    @abstractmethod
    def event(self) -> Any:
        """Make an event; it has `record(stream)` and `synchronize`."""

    @abstractmethod
    def using(self, stream: Any) -> AbstractContextManager[Any]:
        """Launch in a stream what this thread calls within."""

    @abstractmethod
    def host_memory(self, like: Tensor) -> Tensor:
        """Make a contiguous tensor of the host that the device itself can read and write."""

    @abstractmethod
    def memory(self, like: Tensor) -> Tensor:
        """Make a contiguous tensor of the device."""

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether a tensor of somebody else is in the device's memory."""
        del tensor
        return False

    @abstractmethod
    def copy(self, target: Tensor, source: Tensor) -> None:
        """Launch a copy between `host_memory` and the device's, in the stream in use."""


class _MovingSlot(Slot):
    """A frame's buffers on both sides of the bus, and the stream and events that keep order."""

    def __init__(self, device: Accelerator) -> None:
        self._device = device
        self._stream = device.stream()
        self._uploaded, self._computed, self._downloaded = (device.event() for _ in range(3))
        self._host_in: list[Tensor] = []
        self._device_in: list[Tensor] = []
        self._host_out: list[Tensor] = []
        self._leaving: Sequence[Tensor] = ()
        self.planes: list[Tensor] = []

    def upload(self, planes: Sequence[Tensor]) -> None:
        # the slot is free: its last upload, work and download are all done
        if all(map(self._device.holds, planes)):
            self.planes = list(planes)  # which lives until the slot is free again
            self._uploaded.record(self._stream)
            return
        with self._device.using(self._stream):
            if not _fit(self._host_in, planes):
                self._host_in = [self._device.host_memory(plane) for plane in planes]
                self._device_in = [self._device.memory(plane) for plane in planes]
            self.planes = self._device_in
            for decoded, waiting, arriving in zip(planes, self._host_in, self.planes, strict=True):
                waiting.copy_(decoded)  # from the decoder's rows, which have gaps
                self._device.copy(arriving, waiting)
            self._uploaded.record(self._stream)

    def work(self) -> AbstractContextManager[Any]:
        self._device.compute.wait_event(self._uploaded)
        return self._device.using(self._device.compute)

    def download(self, tensors: Sequence[Tensor]) -> None:
        self._computed.record(self._device.compute)
        if self._device.results_stay:
            self._leaving = tensors
            return
        if not _fit(self._host_out, tensors):
            self._host_out = [self._device.host_memory(tensor) for tensor in tensors]
        self._stream.wait_event(self._computed)
        with self._device.using(self._stream):
            for ready, landing in zip(tensors, self._host_out, strict=True):
                self._device.copy(landing, ready)
            self._downloaded.record(self._stream)
        # kept until the copies are done: the memory is the compute stream's, which does not wait
        self._leaving = tensors

    def result(self) -> list[Tensor]:
        if self._device.results_stay:
            self._computed.synchronize()
            return list(self._leaving)
        self._downloaded.synchronize()
        self._leaving = ()
        return list(self._host_out)

    def vacate(self) -> None:
        self.planes, self._leaving = self._device_in, ()

    def close(self) -> None:
        try:
            self._device.compute.synchronize()
            self._stream.synchronize()
        except RuntimeError as error:  # the device has failed, and whoever used it has said so
            log.debug("a slot is closed on a device that has failed: %s", error)
        self._leaving = ()
        self.planes, self._device_in, self._host_in, self._host_out = [], [], [], []


def _fit(buffers: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
    return len(buffers) == len(tensors) and all(
        buffer.shape == tensor.shape and buffer.dtype == tensor.dtype
        for buffer, tensor in zip(buffers, tensors, strict=True)
    )


class Cuda(Accelerator):
    """An NVIDIA GPU.

    Args:
        device: "cuda" or one with an index.
        slots: see `Device`.
        results_stay: see `Accelerator`.
    """

    def __init__(self, device: torch.device, *, slots: int = 3, results_stay: bool = False) -> None:
        self._device = device
        super().__init__(slots=slots, results_stay=results_stay)

    def stream(self) -> Any:
        return own_stream(self, self._device)

    def event(self) -> Any:
        # blocking: whoever waits sleeps, and leaves the core to the decoder and the encoder
        return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream)

    def host_memory(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def memory(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device=self._device)

    def holds(self, tensor: Tensor) -> bool:
        return tensor.is_cuda

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)
