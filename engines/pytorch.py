"""The PyTorch back end: runs everywhere PyTorch runs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from engines.base import Engine, Precision, choose_precision
from engines.weights import Model


class PyTorchEngine(Engine):
    """The network as PyTorch runs it, in float32 and channels_last.

    Args:
        model: the weights.
        precision: "auto" or "fp32".
        threads: unused; PyTorch's threads belong to the process (`torch.set_num_threads`).

    Raises:
        BackendUnavailable: it has not that precision.
    """

    backend = "pytorch"

    def __init__(
        self, model: Model, *, precision: Precision = "auto", threads: int | None = None
    ) -> None:
        del threads
        chosen = choose_precision(self.backend, precision, self.precisions)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(model, device=device, dtype=torch.float32, precision=chosen)
        net = copy.deepcopy(model.net).to(device)
        self._net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def _run(self, frames: Tensor) -> Tensor:
        result: Tensor = self._net(frames.contiguous(memory_format=torch.channels_last))
        return result.contiguous()
