"""A simulated accelerator: it works as late as order allows, in virtual time, and fails on demand.

A copy takes place when somebody waits for an event behind it, and not before: whoever reads or
overwrites a buffer too early sees what is wrong. Memory is full of `POISON` until it is written.
Time does not pass by itself: each copy and each `spend` takes as long as the test says, begins when
its stream and all that it waits for are that far, and the device's `end` is when the last is done.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engines import graph
from vsr.transfer import Accelerator

POISON = 0xAB


class Failure(RuntimeError):
    """What an injected failure raises."""


@dataclass
class Event:
    device: Simulated
    stream: Stream | None = None
    position: int = 0
    seconds: float = 0.0

    def record(self, stream: Stream) -> None:
        with self.device.lock:
            self.device.attempt("record")
            self.stream, self.position = stream, stream.launched + 1

            def reached() -> None:
                self.seconds = stream.seconds

            stream.launch(reached)

    def synchronize(self) -> None:
        with self.device.lock:
            self.device.attempt("wait")
            assert self.stream is not None, "waited for an event that was never recorded"
            self.stream.run_to(self.position)


@dataclass
class Stream:
    device: Simulated
    name: str
    seconds: float = 0.0
    """when all that has run is done"""
    launched: int = 0
    done: int = 0
    pending: deque[Callable[[], None]] = field(default_factory=deque)

    def launch(self, work: Callable[[], None]) -> None:
        self.launched += 1
        self.pending.append(work)

    def run_to(self, position: int) -> None:
        while self.done < position:
            self.done += 1
            self.pending.popleft()()

    def wait_event(self, event: Event) -> None:
        with self.device.lock:
            assert event.stream is not None, "a stream waits for an event that was never recorded"
            other, position = event.stream, event.position

            def wait() -> None:
                other.run_to(position)
                self.seconds = max(self.seconds, event.seconds)

            self.launch(wait)

    def synchronize(self) -> None:
        with self.device.lock:
            self.device.closing += 1
            self.run_to(self.launched)


class Simulated(Accelerator):
    """An accelerator in the CPU's memory.

    Args:
        slots: see `Accelerator`.
        upload_seconds, download_seconds: of one plane.
        results_stay: see `Accelerator`.
        fails: (what, which): the n-th "copy", "record" or "wait", counted from 1, raises.
    """

    def __init__(
        self,
        *,
        slots: int = 3,
        upload_seconds: float = 0.0,
        download_seconds: float = 0.0,
        results_stay: bool = False,
        fails: tuple[str, int] | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self.streams: list[Stream] = []
        self.host: list[Tensor] = []
        self.decoded: list[Tensor] = []
        self.closing = 0
        self.counted = dict.fromkeys(("copy", "record", "wait"), 0)
        self._seconds = {True: upload_seconds, False: download_seconds}
        self._fails = fails
        self._current = threading.local()
        super().__init__(slots=slots, results_stay=results_stay)

    def attempt(self, what: str) -> None:
        self.counted[what] += 1
        if (what, self.counted[what]) == self._fails:
            raise Failure(f"{what} {self.counted[what]} failed")

    @property
    def end(self) -> float:
        """When the last work is done."""
        return max(stream.seconds for stream in self.streams)

    def stream(self) -> Stream:
        self.streams.append(Stream(self, f"stream {len(self.streams)}"))
        return self.streams[-1]

    def event(self) -> Event:
        return Event(self)

    @contextmanager
    def using(self, stream: Stream):
        before = getattr(self._current, "stream", None)
        self._current.stream = stream
        if stream is self.compute:  # the tensors' arithmetic is the CPU's, which does not wait:
            with self.lock:  # whatever the stream waits for must be there
                stream.run_to(stream.launched)
        try:
            yield
        finally:
            self._current.stream = before

    def spend(self, seconds: float) -> None:
        """Take the device's time for work in the stream in use."""
        with self.lock:
            stream = self._current.stream
            stream.run_to(stream.launched)
            stream.seconds += seconds

    def host_memory(self, like: Tensor) -> Tensor:
        self.host.append(_poisoned(like))
        return self.host[-1]

    def memory(self, like: Tensor) -> Tensor:
        return _poisoned(like)

    def holds(self, tensor: Tensor) -> bool:
        return any(tensor is plane for plane in self.decoded)

    def copy(self, target: Tensor, source: Tensor) -> None:
        stream = self._current.stream
        assert stream is not self.compute, "a copy would hold up the next frame"
        assert target.is_contiguous()
        assert source.is_contiguous()
        up = any(source is buffer for buffer in self.host)
        assert up or any(target is buffer for buffer in self.host), "neither end is host memory"
        with self.lock:
            self.attempt("copy")

            def move() -> None:
                target.copy_(source)
                stream.seconds += self._seconds[up]

            stream.launch(move)


def _poisoned(like: Tensor) -> Tensor:
    memory = torch.empty(like.shape, dtype=like.dtype)
    memory.view(torch.uint8).fill_(POISON) if memory.ndim else memory.fill_(1)
    return memory


# --------------------------------------------------------------------------------------------------
# PyTorch's interface to a GPU, for engines
# --------------------------------------------------------------------------------------------------


class GpuStream:
    """Notes whom it waits for; work on it is the CPU's and done at once."""

    cuda_stream = 7

    def __init__(self, device=None) -> None:
        self.waited_for: list[object] = []
        self.waits = 0

    def wait_stream(self, other) -> None:
        self.waited_for.append(other)

    def synchronize(self) -> None:
        self.waits += 1


class Graph:
    """Runs what was captured when it is replayed, and not before."""

    capturing: Graph | None = None
    refuse = ""
    """at which end of a capture it fails: "begin", "end" or neither"""
    replays = 0

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def replay(self) -> None:
        Graph.replays += 1
        for kernels in self.work:
            kernels()


@contextmanager
def capture(graph: Graph, *, pool: str, stream: GpuStream, capture_error_mode: str):
    assert (pool, capture_error_mode) == ("pool", "thread_local")
    if Graph.refuse == "begin":
        raise RuntimeError("operation not permitted when stream is capturing")
    Graph.capturing = graph
    try:
        yield
    finally:
        Graph.capturing = None
    if Graph.refuse == "end":
        raise RuntimeError("operation failed due to a previous error during capture")


class CapturedNet(torch.nn.Module):
    """A network whose work, while a graph is captured, is left for the replays."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, frames: Tensor) -> Tensor:
        if Graph.capturing is None:
            return self.net(frames)
        output = torch.zeros_like(self.net(frames))
        Graph.capturing.work.append(lambda: output.copy_(self.net(frames)))
        return output


def simulate_cuda(monkeypatch) -> GpuStream:
    """Let PyTorch believe in a GPU; return its current stream."""
    caller = GpuStream()
    monkeypatch.setattr(graph, "_free", defaultdict(list))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", GpuStream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: caller)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(Graph, "refuse", "")
    monkeypatch.setattr(Graph, "replays", 0)
    return caller
