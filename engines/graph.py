"""Work on a GPU at addresses that never change, captured in a CUDA graph once and replayed.

Nobody has run this on a GPU yet: the order of streams is that of PyTorch's documentation, and the
tests run it on a simulated device.
"""

from __future__ import annotations

import logging
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_WARM_UP_RUNS = 3
_CAPTURING = Lock()  # PyTorch captures one graph at a time
_TAKING = Lock()
_free: defaultdict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)


def own_stream(owner: object, device: torch.device) -> torch.cuda.Stream:
    """Return a stream that nobody else has as long as `owner` lives.

    PyTorch deals out the same 32 of a GPU over and over, and what somebody else does in a stream
    that is captured would become part of the graph. Given back they are dealt out again here, so
    that holds as long as no more than 32 are in use at once.
    """
    with _TAKING:
        free = _free[device]
        stream = free.pop() if free else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    weakref.finalize(owner, free.append, stream).atexit = False
    return stream


class GraphedRun:
    """One launch, with a stream of its own.

    Args:
        static: the input, whose address the launch knows; (N, 3, H, W) on the GPU, in any layout.
        launch: enqueues the work on the stream that it is given, which is the current one, and
            returns its output; it must not wait for the GPU.

    Raises:
        torch.OutOfMemoryError: the GPU has no memory left for it.
    """

    def __init__(self, static: Tensor, launch: Callable[[torch.cuda.Stream], Tensor]) -> None:
        self._input, self._launch = static, launch
        self._stream = own_stream(self, static.device)
        self._stream.wait_stream(torch.cuda.current_stream(static.device))
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP_RUNS):  # what is allocated or chosen late is now
                self._output = launch(self._stream)
        self.wait()
        del self._output  # what the capture makes takes its memory
        self._graph = self._capture()

    @property
    def captured(self) -> bool:
        """Whether a graph is replayed, and not one kernel after the other launched."""
        return self._graph is not None

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle()
        # the outer `stream`: where the end of a capture fails, `graph` leaves its own in place
        with _CAPTURING, torch.cuda.stream(self._stream):
            try:
                # thread_local: what the pipeline's other threads do meanwhile must not spoil it
                with torch.cuda.graph(
                    graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    output = self._launch(self._stream)
            except RuntimeError as error:
                _end_allocations(self._input.device, pool)
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                log.warning("no CUDA graph, each frame is launched kernel by kernel: %s", error)
                return None
        self._output = output
        return graph

    def wait(self) -> None:
        """Wait for all that has been launched."""
        self._stream.synchronize()

    def __call__(self, frames: Tensor) -> Tensor:
        """Run on frames of the input's shape and dtype, in order with the caller's stream.

        Returns:
            The output; a fresh contiguous tensor. It may not be computed yet, but whatever the
            caller's stream does next comes after it.
        """
        caller = torch.cuda.current_stream(self._input.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            self._input.copy_(frames, non_blocking=True)
            if self._graph is not None:
                self._graph.replay()
            else:
                self._output = self._launch(self._stream)
            result = self._output.clone(memory_format=torch.contiguous_format)
        caller.wait_stream(self._stream)
        frames.record_stream(self._stream)  # their memory is not reused before it is read
        result.record_stream(caller)
        return result


def _end_allocations(device: torch.device, pool: Any) -> None:
    """Tell PyTorch's allocator that a capture is over whose end has failed.

    It does so itself only where the end succeeds (up to 2.11 at least, PyTorch #180395), and keeps
    what is freed meanwhile.
    """
    with suppress(RuntimeError, AttributeError):  # of the second too: no capture, no pool
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
