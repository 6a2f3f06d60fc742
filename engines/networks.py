"""The generators: low-resolution RGB in, RGB `scale` times as large out.

All networks share one call: ``net(frames)`` takes (N, 3, H, W) RGB in [0, 1] and returns
(N, 3, H*scale, W*scale) RGB, nominally in [0, 1] and not clamped.

Each exists in two forms with the same outputs. The *training* form holds what only learning needs:
batch normalisation, which the lite generator does without. The *deploy* form is what an engine runs
and what a weights file holds: plain convolutions and PReLU. `fold` turns the first into the second.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --------------------------------------------------------------------------------------------------
# Configurations
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """Shape of the generator of Ledig et al. 2017; the defaults are the paper's."""

    channels: int = 64
    blocks: int = 16  # residual blocks, "B" in the paper
    scale: int = 4

    def __post_init__(self) -> None:
        _check_positive(self, "channels", "blocks")
        if self.scale not in (2, 4, 8):
            raise ValueError(f"scale must be 2, 4 or 8 (each stage doubles), got {self.scale}")


@dataclass(frozen=True, slots=True)
class LiteConfig:
    """Shape of the lite generator; the defaults deploy to 98,320 parameters."""

    channels: int = 32
    blocks: int = 9  # 3x3 convolutions between the first and the last one
    scale: int = 4

    def __post_init__(self) -> None:
        _check_positive(self, "channels", "blocks")
        if self.scale not in (2, 3, 4):
            raise ValueError(f"scale must be 2, 3 or 4, got {self.scale}")


@dataclass(frozen=True, slots=True)
class SRCNNConfig:
    """Shape of SRCNN (Dong et al. 2014), 9-1-5; the defaults are its authors'."""

    channels: int = 64  # of the first layer; the second has half
    scale: int = 4

    def __post_init__(self) -> None:
        _check_positive(self, "channels", "scale")
        if self.channels % 2:
            raise ValueError(f"channels must be even, got {self.channels}")


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


# --------------------------------------------------------------------------------------------------
# The generator of the paper: SRResNet, trained as SRGAN
# --------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """3x3, BN, PReLU, 3x3, BN and the sum (Ledig et al. 2017, figure 4)."""

    def __init__(self, channels: int, *, deployed: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=deployed)
        self.norm1 = nn.Identity() if deployed else nn.BatchNorm2d(channels)
        self.act = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=deployed)
        self.norm2 = nn.Identity() if deployed else nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        y = self.act(self.norm1(self.conv1(x)))
        return x + cast(Tensor, self.norm2(self.conv2(y)))


class UpsampleStage(nn.Module):
    """3x3 to four times the channels, pixel shuffle by 2, PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * 4, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.act = nn.PReLU(channels)
        icnr_(self.conv.weight, 2)
        nn.init.zeros_(cast(Tensor, self.conv.bias))  # unequal ones would be a checkerboard too

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 2H, 2W)."""
        return cast(Tensor, self.act(self.shuffle(self.conv(x))))  # (N, C, 2H, 2W)


class Generator(nn.Module):
    """The generator of Ledig et al. 2017, figure 4, layer by layer.

    The paper trains on high-resolution images in [-1, 1]; `forward` maps that to [0, 1], and `fold`
    puts the mapping into the last convolution.

    Args:
        config: widths and depths.
        deployed: build the deploy form: no batch normalisation, biases everywhere.
    """

    def __init__(self, config: GeneratorConfig | None = None, *, deployed: bool = False) -> None:
        super().__init__()
        self.config = config or GeneratorConfig()
        self.deployed = deployed
        channels = self.config.channels
        self.head = nn.Sequential(nn.Conv2d(3, channels, 9, padding=4), nn.PReLU(channels))
        self.body = nn.Sequential(
            *(ResidualBlock(channels, deployed=deployed) for _ in range(self.config.blocks))
        )
        self.body_conv = nn.Conv2d(channels, channels, 3, padding=1, bias=deployed)
        self.body_norm = nn.Identity() if deployed else nn.BatchNorm2d(channels)
        stages = self.config.scale.bit_length() - 1
        self.upsample = nn.Sequential(*(UpsampleStage(channels) for _ in range(stages)))
        self.tail = nn.Conv2d(channels, 3, 9, padding=4)
        self._start_as_nearest()

    @torch.no_grad()
    def _start_as_nearest(self) -> None:
        """Initialise so that the network begins close to the nearest-neighbour enlargement.

        The first channels carry R, G and B through to the tail, the residual branches begin small.
        The paper does not say how it starts; this saves the first thousands of steps, and thanks to
        ICNR the enlargement has no checkerboard.
        """
        carried = range(min(3, self.config.channels))
        head = cast(nn.Conv2d, self.head[0])
        stages = [cast(UpsampleStage, stage).conv for stage in self.upsample]
        for c in carried:
            head.weight[c] = 0
            head.weight[c, c, 4, 4] = 1
            cast(Tensor, head.bias)[c] = 0
            for conv in stages:
                conv.weight[4 * c : 4 * c + 4] = 0
                conv.weight[4 * c : 4 * c + 4, c, 1, 1] = 1
        self.tail.weight *= 0.1
        cast(Tensor, self.tail.bias).zero_()
        for c in carried:
            self.tail.weight[c, c, 4, 4] += 1
        branches = [cast(ResidualBlock, block) for block in self.body]
        lasts = [(block.conv2, block.norm2) for block in branches]
        for conv, norm in [*lasts, (self.body_conv, self.body_norm)]:
            cast(Tensor, (conv if self.deployed else norm).weight).mul_(0.1)
        if not self.deployed:  # the tail speaks [-1, 1]
            self.tail.weight *= 2
            cast(Tensor, self.tail.bias).sub_(1)

    def forward(self, frames: Tensor) -> Tensor:
        """Upscale frames (see the module's docstring)."""
        return self.ranged(self.tail(self.upsample(self.features(frames))))  # (N, 3, sH, sW)

    def features(self, frames: Tensor) -> Tensor:
        """Return what the upsampling stages start from, (N, C, H, W)."""
        x = self.head(frames)
        return cast(Tensor, x + self.body_norm(self.body_conv(self.body(x))))

    def ranged(self, large: Tensor) -> Tensor:
        """Map what the tail makes, in [-1, 1] where the form is for training, to [0, 1]."""
        return large if self.deployed else (large + 1) / 2


# --------------------------------------------------------------------------------------------------
# The lite generator: at most 100,000 parameters, all of it at low resolution
# --------------------------------------------------------------------------------------------------


class LiteGenerator(nn.Module):
    """A plain stack of 3x3 convolutions and PReLU at low resolution, then one pixel shuffle.

    The stack predicts the difference to the nearest-neighbour enlargement. Each convolution between
    the first and the last starts as the identity plus noise, so the untrained stack passes its
    input on.

    Args:
        config: widths and depths.
        deployed: accepted for symmetry with `Generator`; both forms are the same.
    """

    def __init__(self, config: LiteConfig | None = None, *, deployed: bool = False) -> None:
        super().__init__()
        self.config = config or LiteConfig()
        self.deployed = deployed
        channels, scale = self.config.channels, self.config.scale
        widths = [3] + [channels] * (self.config.blocks + 1)
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            conv = nn.Conv2d(width_in, width_out, 3, padding=1)
            if width_in == width_out:
                with torch.no_grad():
                    conv.weight[:, :, 1, 1] += torch.eye(width_out)
            layers += [conv, nn.PReLU(width_out)]
        self.body = nn.Sequential(*layers)
        self.tail = nn.Conv2d(channels, 3 * scale * scale, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)
        with torch.no_grad():
            for parameter in self.tail.parameters():
                parameter.mul_(0.1)  # start close to the nearest-neighbour enlargement

    def forward(self, frames: Tensor) -> Tensor:
        """Upscale frames (see the module's docstring)."""
        copies = self.config.scale**2
        nearest = frames[:, :, None].expand(-1, -1, copies, -1, -1).flatten(1, 2)
        x = self.tail(self.body(frames)) + nearest  # (N, 3*s*s, H, W)
        return cast(Tensor, self.shuffle(x))  # (N, 3, s*H, s*W)


# --------------------------------------------------------------------------------------------------
# The ancestor: SRCNN
# --------------------------------------------------------------------------------------------------


class SRCNN(nn.Module):
    """The network of Dong et al. 2014 on RGB: three convolutions over the bicubic enlargement.

    All of it works at high resolution, which is what the later networks do away with. A baseline.

    Args:
        config: widths.
        deployed: accepted for symmetry with `Generator`; both forms are the same.
    """

    def __init__(self, config: SRCNNConfig | None = None, *, deployed: bool = False) -> None:
        super().__init__()
        self.config = config or SRCNNConfig()
        self.deployed = deployed
        channels = self.config.channels
        self.body = nn.Sequential(
            nn.Conv2d(3, channels, 9, padding=4),
            nn.ReLU(),
            nn.Conv2d(channels, channels // 2, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 2, 3, 5, padding=2),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Upscale frames (see the module's docstring)."""
        factor = float(self.config.scale)
        # "antialias" also chooses the kernel: a = -0.5, as Pillow and MATLAB have it, not -0.75
        large = F.interpolate(frames, scale_factor=factor, mode="bicubic", antialias=True)
        return cast(Tensor, self.body(large))  # (N, 3, H*scale, W*scale)


# --------------------------------------------------------------------------------------------------
# The list of networks, and folding
# --------------------------------------------------------------------------------------------------

Network = Generator | LiteGenerator | SRCNN
Config = GeneratorConfig | LiteConfig | SRCNNConfig

NETWORKS: dict[str, tuple[type[Network], type[Config]]] = {
    "srgan": (Generator, GeneratorConfig),
    "srgan-lite": (LiteGenerator, LiteConfig),
    "srcnn": (SRCNN, SRCNNConfig),
}


def build_network(
    name: str, config: dict[str, Any] | None = None, *, deployed: bool = False
) -> Network:
    """Build a network by its name in `NETWORKS`.

    Args:
        name: a key of `NETWORKS`.
        config: fields of its configuration; what is left out takes the default.
        deployed: build the deploy form.

    Raises:
        ValueError: the name is unknown, or a field is unknown or out of range.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")
    network_type, config_type = NETWORKS[name]
    try:
        fields = config_type(**(config or {}))
    except TypeError as error:
        raise ValueError(f"bad configuration for network {name!r}: {error}") from error
    return network_type(cast(Any, fields), deployed=deployed)


def build_unfilled(name: str, config: dict[str, Any] | None = None) -> Network:
    """Build a deploy form for weights that come next (see `build_network`).

    Nothing is drawn from PyTorch's random numbers: a training run that is looked at goes on as one
    that is not.
    """
    with torch.random.fork_rng(devices=[]):
        return build_network(name, config, deployed=True)


def network_name(network: Network) -> str:
    """Return the key of `NETWORKS` that builds this network."""
    return next(name for name, (kind, _) in NETWORKS.items() if type(network) is kind)


@torch.no_grad()
def fold(network: Network) -> Network:
    """Return the deploy form of a network: same outputs, plain convolutions, in eval mode.

    Batch normalisation uses its running statistics, as in eval mode. The input is left unchanged;
    folding a deploy form copies it.
    """
    deployed = build_unfilled(network_name(network), asdict(cast(Any, network.config)))
    if isinstance(network, Generator) and not network.deployed:
        deployed.load_state_dict(_folded_state(network))
    else:
        deployed.load_state_dict(network.state_dict())
    return deployed.eval()


def _folded_state(network: Generator) -> dict[str, Tensor]:
    pairs = {"body_conv": "body_norm"}
    for i in range(network.config.blocks):
        pairs[f"body.{i}.conv1"] = f"body.{i}.norm1"
        pairs[f"body.{i}.conv2"] = f"body.{i}.norm2"
    state = {k: v for k, v in network.state_dict().items() if "norm" not in k}
    for conv_name, norm_name in pairs.items():
        norm = cast(nn.BatchNorm2d, network.get_submodule(norm_name))
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        gain = norm.weight.double() / (variance.double() + norm.eps).sqrt()
        weight = state[f"{conv_name}.weight"]
        folded = weight.double() * gain[:, None, None, None]
        state[f"{conv_name}.weight"] = folded.to(weight.dtype)
        state[f"{conv_name}.bias"] = (norm.bias - mean * gain).to(weight.dtype)
    state["tail.weight"] = state["tail.weight"] / 2  # [-1, 1] to [0, 1]
    state["tail.bias"] = (state["tail.bias"] + 1) / 2
    return state


def icnr_(weight: Tensor, factor: int) -> Tensor:
    """Initialise a sub-pixel convolution so that its output has no checkerboard at the start.

    All factor**2 kernels that pixel shuffle puts into one output channel begin equal, so the stage
    begins as a nearest-neighbour enlargement (Aitken et al. 2017).

    Args:
        weight: (C*factor*factor, C_in, k, k), changed in place.
        factor: the factor of the pixel shuffle that follows.
    """
    kernels = torch.empty(weight.shape[0] // factor**2, *weight.shape[1:])
    nn.init.kaiming_normal_(kernels)
    with torch.no_grad():
        return weight.copy_(kernels.repeat_interleave(factor**2, dim=0))


def macs_per_lr_pixel(net: nn.Module) -> int:
    """Count the multiplications of the convolutions, a pixel of the input."""
    side, macs = 8, 0

    def count(conv: nn.Module, _: object, output: Tensor) -> None:
        nonlocal macs
        assert isinstance(conv, nn.Conv2d)
        macs += conv.weight.numel() * output.shape[2] * output.shape[3]

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        net(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return macs // side**2


def count_parameters(network: nn.Module) -> int:
    """Count the trainable numbers of a module."""
    return sum(p.numel() for p in network.parameters())
