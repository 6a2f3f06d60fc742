"""Muon (Jordan 2024) for convolution kernels: momentum, made orthogonal, is the step.

A kernel (out, in, k, k) is taken as an (out, in*k*k) matrix. `torch.optim.Muon` takes matrices only
and iterates in bfloat16, which a CPU without bf16 units has to emulate; here kernels of one shape
are iterated together, in float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Jordan's quintic: steep at zero, so that five rounds bring all singular values near 1
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix near 1, by Newton-Schulz iteration.

    Those of a rectangular matrix end between about 0.7 and 1.2; the smallest of a square one may
    stay below.

    Args:
        matrices: (..., rows, columns), float32.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Muon over convolution kernels, with Nesterov momentum and no weight decay.

    The step is scaled by 0.2 * sqrt(larger side of the matrix), so that a learning rate that suits
    Adam is a good first guess (Liu et al. 2025, "Muon is scalable", section 2.2).

    Args:
        kernels: parameters of two or more dimensions.
        lr: the learning rate.
        momentum: decay of the averaged gradient.
    """

    def __init__(
        self, kernels: Iterable[Tensor], *, lr: float = 1e-3, momentum: float = 0.95
    ) -> None:
        super().__init__(kernels, {"lr": lr, "momentum": momentum})
        for kernel in (k for group in self.param_groups for k in group["params"]):
            if kernel.ndim < 2:
                raise ValueError(
                    f"Muon takes matrices and kernels, got shape {tuple(kernel.shape)}"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move each kernel that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            directions: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for kernel in group["params"]:
                if kernel.grad is None:
                    continue
                state = self.state[kernel]
                if not state:
                    state["average"] = torch.zeros_like(kernel)
                average = state["average"].lerp_(kernel.grad, 1 - group["momentum"])
                direction = kernel.grad.lerp(average, group["momentum"]).flatten(1)
                rows, columns = direction.shape
                directions[rows, columns].append((kernel, direction))
            for (rows, columns), pairs in directions.items():
                steps = orthogonalize(torch.stack([direction for _, direction in pairs]))
                scale = -group["lr"] * 0.2 * max(rows, columns) ** 0.5
                for (kernel, _), step in zip(pairs, steps, strict=True):
                    kernel.add_(step.view_as(kernel), alpha=scale)
