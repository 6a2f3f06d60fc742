"""Several processes, one run: `torchrun --nproc-per-node N -m train.srgan ...`.

Each process computes its part of the joint batch; averaged gradients keep their networks equal.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run, seen from one of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this one writes the files and the bar."""
        return self.rank == 0

    def average_gradients(self, module: nn.Module) -> None:
        """Replace each gradient by its mean over the processes: that of the joint batch.

        The mean is exact for losses that are means over the batch, when the parts are of one size.
        """
        if self.size == 1:
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if not gradients:
            return
        joint = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(joint)
        joint /= self.size
        parts = torch.split(joint, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, numbers: dict[str, float]) -> dict[str, float]:
        """Return the means over the processes of numbers that each of them has."""
        if self.size == 1:
            return numbers
        joint = torch.tensor([*numbers.values()], device=self.device)
        dist.all_reduce(joint)
        return dict(zip(numbers, (joint / self.size).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags.item())

    def leave(self) -> None:
        """End the group."""
        if self.size > 1:
            dist.destroy_process_group()


def join_world() -> World:
    """Join the processes that torchrun started, or be the only one."""
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return World(0, 1, torch.device("cuda" if cuda else "cpu"))
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    return World(dist.get_rank(), dist.get_world_size(), device)
