"""The PyTorch back end: runs everywhere PyTorch runs.

Nobody has run it on a GPU yet.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from engines.base import Engine, Precision, choose_precision
from engines.graph import GraphedRun
from engines.shapes import LastShapes
from engines.weights import Model


class PyTorchEngine(Engine):
    """The network as PyTorch runs it, in channels_last.

    On an NVIDIA GPU in float16, or float32 without TF32, as a CUDA graph for each of the last two
    sizes of frames; it takes cuDNN's repeatable algorithms, so that a job that is resumed ends in
    the same bits. On the CPU in float32.

    Args:
        model: the weights.
        precision: "auto", "fp32", or on a GPU "fp16", which is what "auto" takes there.
        threads: unused; PyTorch's threads belong to the process (`torch.set_num_threads`).
        compiled: let torch.compile fuse the network's layers: each size costs a compilation.

    Raises:
        BackendUnavailable: it has not that precision.
    """

    backend = "pytorch"
    precisions = ("fp16", "fp32")

    def __init__(
        self,
        model: Model,
        *,
        precision: Precision = "auto",
        threads: int | None = None,
        compiled: bool = False,
    ) -> None:
        del threads
        self._on_gpu = torch.cuda.is_available()
        offered: tuple[Precision, ...] = self.precisions if self._on_gpu else ("fp32",)
        here = "" if self._on_gpu else " without an NVIDIA GPU"
        chosen = choose_precision(self.backend, precision, offered, here=here)
        super().__init__(
            model,
            device=_gpu() if self._on_gpu else torch.device("cpu"),
            dtype=torch.float16 if chosen == "fp16" else torch.float32,
            precision=chosen,
        )
        net = copy.deepcopy(model.net).to(self.device, self.dtype)
        self._net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compiled:
            self._net = torch.compile(self._net, dynamic=False)
        self._graphs = LastShapes(GraphedRun.wait)

    @torch.no_grad()
    def _run(self, frames: Tensor) -> Tensor:
        if self._on_gpu:
            return self._graphs.get(frames.shape, lambda: self._graphed(frames))(frames)
        result: Tensor = self._net(frames.contiguous(memory_format=torch.channels_last))
        return result.contiguous()

    def _graphed(self, frames: Tensor) -> GraphedRun:
        static = torch.zeros_like(frames, memory_format=torch.channels_last)

        def launch(_: torch.cuda.Stream) -> Tensor:
            with exact_convolutions():
                result: Tensor = self._net(static)
            return result

        return GraphedRun(static, launch)

    def forget_shapes(self) -> None:
        """Give back the graphs and their memory on the GPU."""
        self._graphs.clear()

    def close(self) -> None:
        """Give back what it holds on the GPU."""
        self.forget_shapes()


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Let cuDNN round nothing to TF32, and choose only algorithms that repeat their sums."""
    with warnings.catch_warnings():
        # PyTorch has two interfaces for this; `flags` uses the older one, and both at once fail
        warnings.filterwarnings("ignore", "Please use the new API settings", UserWarning)
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield


def _gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())
