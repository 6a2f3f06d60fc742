"""Exact rewrites of a deploy form: the same function, in a form that suits a compiler better.

Three convolutions hold most of what makes the generator of the paper slow on matrix units: the last
ones, which work at two and four times the size, with 64 channels in and only 3 out. A convolution
after a pixel shuffle equals a smaller one before it, with four times the channels on both sides:

    shuffle ─▸ PReLU ─▸ 9x9, 64 to 3     at 4x
    PReLU ─▸ 5x5, 256 to 12 ─▸ shuffle   at 2x   (`tail_below` 1)
    3x3, 1024 to 48, two shuffles        at 1x   (`tail_below` 2)

The moved kernel holds the weights of the old one, each once for every position within a pixel, and
zeros elsewhere. It multiplies more zeros, and fills the matrix units instead of leaving all but 3
of their columns idle. Whether that is faster is a question to the machine.

`LowTail` is the first of these moves for a generator that is trained, in either form.

`without_shuffle` leaves out the last pixel shuffle: what follows it can then be made before it,
where the pixels that share a place of the input lie side by side as channels (`engines.finish`).

The lite generator adds its input, copied 16 times, to what its last convolution makes. As a second,
1x1 convolution the copying stays in the layout of the first, and the sum becomes part of it. And
its shuffle is written as three of one channel, for which a compiler leaves the channels-last layout
before it rather than after.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.networks import Generator, LiteGenerator, Network, UpsampleStage


@dataclass(frozen=True, slots=True)
class Rewrites:
    """Which rewrites to make; the first two concern the generator of the paper only."""

    slopes: bool = True
    """PReLU before each pixel shuffle, straight after its convolution, with replicated slopes"""
    tail_below: Literal[0, 1, 2] = 1
    """how many pixel shuffles the tail is moved below, counted from the last; needs `slopes`"""
    clamp: bool = True
    """clamp to [0, 1] as the last step"""
    nearest: bool = False
    """the lite generator's copying as a convolution"""

    def __post_init__(self) -> None:
        if self.tail_below not in (0, 1, 2):
            raise ValueError(f"tail_below must be 0, 1 or 2, got {self.tail_below}")
        if self.tail_below and not self.slopes:
            raise ValueError(f"tail_below {self.tail_below} needs slopes: PReLU is in its way")


NONE = Rewrites(slopes=False, tail_below=0, clamp=False)


@torch.no_grad()
def rewrite(net: Network, rewrites: Rewrites | None = None) -> nn.Module:
    """Return a rewritten copy of a deploy form.

    Args:
        net: a deploy form (see `engines.networks.fold`); left unchanged.
        rewrites: None makes all that are on by default.

    Returns:
        A module with the call of the network. Where the rewrites clamp, its output lies in [0, 1].

    Raises:
        ValueError: the network is in training form, or has fewer shuffles than `tail_below`.
    """
    rewrites = rewrites or Rewrites()
    if not net.deployed:
        raise ValueError("rewrite takes the deploy form: call engines.networks.fold first")
    result: nn.Module = copy.deepcopy(net)
    if isinstance(result, LiteGenerator) and rewrites.nearest:
        result = ConvolutionalLite(result)
    if isinstance(result, Generator):
        if rewrites.tail_below > len(result.upsample):
            raise ValueError(
                f"the tail cannot be moved below {rewrites.tail_below} pixel shuffles: a generator "
                f"of scale {result.config.scale} has {len(result.upsample)}"
            )
        if rewrites.slopes:
            stages = [_early_slopes(cast(UpsampleStage, stage)) for stage in result.upsample]
            result.upsample = nn.Sequential(*stages)
        _move_tail(result, rewrites.tail_below)
    return (nn.Sequential(result, nn.Hardtanh(0, 1)) if rewrites.clamp else result).eval()


class ConvolutionalLite(nn.Module):
    """The lite generator with its nearest-neighbour enlargement as a 1x1 convolution.

    Args:
        net: its layers are taken over.
    """

    def __init__(self, net: LiteGenerator) -> None:
        super().__init__()
        self.body, self.tail, self.shuffle = net.body, net.tail, net.shuffle
        copies = net.config.scale**2
        self.nearest = nn.Conv2d(3, 3 * copies, 1, bias=False)
        kernels = torch.eye(3).repeat_interleave(copies, 0)[:, :, None, None]
        self.nearest.weight = nn.Parameter(kernels, requires_grad=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Upscale frames (see `engines.networks`)."""
        x = self.tail(self.body(frames)) + self.nearest(frames)  # (N, 3*s*s, H, W)
        if isinstance(self.shuffle, nn.Identity):
            return cast(Tensor, x)
        batch, channels, height, width = x.shape
        x = self.shuffle(x.reshape(batch * 3, channels // 3, height, width))
        return cast(Tensor, x).reshape(batch, 3, *x.shape[2:])  # (N, 3, s*H, s*W)


def without_shuffle(module: nn.Module) -> tuple[nn.Sequential, int] | None:
    """Leave out the pixel shuffle that a rewritten network ends in; the names of its layers stay.

    Args:
        module: what `rewrite` returned, clamping; left unchanged, and its weights are shared.

    Returns:
        The module, (N, 3, H, W) to (N, 3*k*k, m*H, m*W) in [0, 1], and k: a shuffle by it would
        give the network's result. None where the network ends otherwise.
    """
    if not isinstance(module, nn.Sequential) or not isinstance(module[-1], nn.Hardtanh):
        return None
    net = copy.copy(module[0])
    net._modules = dict(net._modules)  # not those of the original
    if isinstance(net, ConvolutionalLite):
        factor, net.shuffle = net.shuffle.upscale_factor, nn.Identity()  # type: ignore[assignment]
    elif isinstance(net, Generator) and isinstance(net.tail, nn.Sequential):
        factor, net.tail = net.tail[-1].upscale_factor, net.tail[:-1]  # type: ignore[assignment]
    else:
        return None
    return nn.Sequential(net, module[-1]), int(factor)


def moved_below_shuffle(conv: nn.Conv2d) -> nn.Conv2d:
    """Return the convolution that does before a pixel shuffle by 2 what `conv` does after it.

    ``conv(shuffle(x)) == shuffle(moved(x))`` for every x, borders included: zero padding at one
    size is zero padding at the other.

    Args:
        conv: odd square kernel, stride 1, "same" zero padding, with a bias.
    """
    kernel = conv.weight.detach()
    weight = moved_kernel(kernel, moved_taps(kernel.shape[-1]).to(kernel.device))
    out_channels, in_channels, size, _ = weight.shape
    moved = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)
    moved.weight = nn.Parameter(weight, requires_grad=False)
    bias = cast(Tensor, conv.bias).detach().repeat_interleave(4)
    moved.bias = nn.Parameter(bias, requires_grad=False)
    return moved


def moved_taps(size: int) -> Tensor:
    """Say which tap of a kernel goes where when it is moved below a shuffle by 2, along one axis.

    Args:
        size: of the kernel, odd.

    Returns:
        (2, 2, m) int64 with m = 2 * ((size // 2 + 1) // 2) + 1: by the position of the output
        within a pixel, that of the input, and the moved tap. `size` where none goes.
    """
    reach = size // 2
    # an output pixel at 2i + position reads 2i + position + offset == 2(i + step) + sub-position
    moved_reach = (reach + 1) // 2
    taps = torch.full((2, 2, 2 * moved_reach + 1), size)
    for position in (0, 1):
        for offset in range(-reach, reach + 1):
            step, sub = divmod(position + offset, 2)
            taps[position, sub, step + moved_reach] = offset + reach
    return taps


def moved_kernel(kernel: Tensor, taps: Tensor) -> Tensor:
    """Return the kernel of `moved_below_shuffle`; gradients go back to the one given.

    Args:
        kernel: (out, in, k, k).
        taps: (2, 2, m), see `moved_taps`, on the same device.

    Returns:
        (out*4, in*4, m, m), each number of the kernel four times.
    """
    padded = F.pad(kernel, (0, 1, 0, 1))  # where no tap goes, the index finds a zero
    spread = padded[:, :, taps][..., taps]  # (out, in, row, sub-row, m, column, sub-column, m)
    out_channels, in_channels = kernel.shape[:2]
    spread = spread.permute(0, 2, 5, 1, 3, 6, 4, 7)
    return spread.reshape(out_channels * 4, in_channels * 4, *taps.shape[2:] * 2)


class LowTail(nn.Module):
    """The generator of the paper to be trained: tail and last PReLU come before the last shuffle.

    The parameters stay the generator's, and gradients reach them: the same function as its own
    call. The kernel of 9x9 that makes 3 channels at full size is what it spares.

    Args:
        net: in training or deploy form, with at least one pixel shuffle.
    """

    def __init__(self, net: Generator) -> None:
        super().__init__()
        self.net = net
        taps = moved_taps(net.tail.kernel_size[0]).to(net.tail.weight.device)
        self.register_buffer("taps", taps, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Upscale frames (see `engines.networks`)."""
        net = self.net
        x = net.features(frames)  # (N, C, H, W)
        *stages, last = (cast(UpsampleStage, stage) for stage in net.upsample)
        for stage in stages:
            x = stage(x)
        x = F.prelu(last.conv(x), last.act.weight.repeat_interleave(4))  # (N, 4*C, H*s/2, W*s/2)
        kernel = moved_kernel(net.tail.weight, cast(Tensor, self.taps))
        bias = cast(Tensor, net.tail.bias).repeat_interleave(4)
        x = last.shuffle(F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2))
        return net.ranged(x)  # (N, 3, H*s, W*s)


def _early_slopes(stage: UpsampleStage) -> nn.Sequential:
    act = nn.PReLU(stage.act.num_parameters * 4)
    act.weight = nn.Parameter(stage.act.weight.repeat_interleave(4), requires_grad=False)
    return nn.Sequential(stage.conv, act, stage.shuffle)


def _move_tail(net: Generator, shuffles: int) -> None:
    """Move the tail of a generator whose stages end with their shuffles."""
    if not shuffles:
        return
    conv = net.tail
    for _ in range(shuffles):
        conv = moved_below_shuffle(conv)
    last = cast(nn.Sequential, net.upsample[-1])
    net.upsample[-1] = last[:-1]
    before = [nn.PixelUnshuffle(2) for _ in range(shuffles - 1)]
    after = [nn.PixelShuffle(2) for _ in range(shuffles)]
    net.tail = nn.Sequential(*before, conv, *after)  # type: ignore[assignment]
