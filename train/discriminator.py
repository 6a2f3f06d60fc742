"""Discriminators: a picture in, the log-odds out that it is a photograph and not generated.

All take (N, 3, H, W) RGB in [0, 1] and bring it to [-1, 1], the range the paper trains on. None
ends in a sigmoid: that is in the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as add_spectral_norm

# (channels in units of the first width, stride) of Ledig et al. 2017, figure 4
_STAGES = ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2))


def to_signed(frames: Tensor) -> Tensor:
    """Map [0, 1] to the paper's [-1, 1] (Ledig et al. 2017, section 3.2)."""
    return frames * 2 - 1


class Discriminator(nn.Module):
    """The discriminator of Ledig et al. 2017, figure 4.

    Eight 3x3 convolutions, LeakyReLU 0.2, batch normalisation after all but the first, then 1024
    units and one. ``discriminator(frames)`` returns (N, 1) log-odds.

    Args:
        crop: side of the pictures, pixels; a multiple of 16.
        channels: width of the first convolution, 64 in the paper; all others are multiples of it.
        spectral_norm: bound each layer's gain (Miyato et al. 2018) in place of batch normalisation.

    Raises:
        ValueError: `crop` does not divide by 16.
    """

    def __init__(self, crop: int, *, channels: int = 64, spectral_norm: bool = False) -> None:
        super().__init__()
        if crop < 16 or crop % 16:
            raise ValueError(f"the discriminator takes crops divisible by 16, got {crop}")
        wrap = _wrapper(spectral_norm)
        layers: list[nn.Module] = []
        widths = [3] + [channels * factor for factor, _ in _STAGES]
        for index, (width_in, width_out) in enumerate(pairwise(widths)):
            norm = index > 0 and not spectral_norm
            stride = _STAGES[index][1]
            layers.append(wrap(nn.Conv2d(width_in, width_out, 3, stride, 1, bias=not norm)))
            if norm:
                # it is never run in eval mode: statistics of its own would be dead weight
                layers.append(nn.BatchNorm2d(width_out, track_running_stats=False))
            layers.append(nn.LeakyReLU(0.2))
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(),
            wrap(nn.Linear(widths[-1] * (crop // 16) ** 2, 16 * channels)),
            nn.LeakyReLU(0.2),
            wrap(nn.Linear(16 * channels, 1)),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Return the log-odds, (N, 1)."""
        x = self.body(to_signed(frames))  # (N, 8*channels, H/16, W/16)
        return cast(Tensor, self.head(x))


class UNetDiscriminator(nn.Module):
    """A U-Net that judges each pixel (Wang et al. 2021, Real-ESRGAN, section 3.4).

    ``discriminator(frames)`` returns (N, 1, H, W) log-odds. Three halvings and back, with skips.

    Args:
        crop: side of the pictures, pixels; a multiple of 8.
        channels: width at full resolution, 64 in the source.
        spectral_norm: as there; False leaves the layers plain.

    Raises:
        ValueError: `crop` does not divide by 8.
    """

    def __init__(self, crop: int, *, channels: int = 64, spectral_norm: bool = True) -> None:
        super().__init__()
        if crop < 8 or crop % 8:
            raise ValueError(f"the U-Net discriminator takes crops divisible by 8, got {crop}")
        wrap = _wrapper(spectral_norm)
        widths = [channels, 2 * channels, 4 * channels, 8 * channels]
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.ModuleList(
            wrap(nn.Conv2d(a, b, 4, 2, 1, bias=False)) for a, b in pairwise(widths)
        )
        self.up = nn.ModuleList(
            wrap(nn.Conv2d(b, a, 3, padding=1, bias=False))
            for a, b in reversed([*pairwise(widths)])
        )
        self.last = nn.Sequential(
            wrap(nn.Conv2d(channels, channels, 3, padding=1, bias=False)),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 1, 3, padding=1),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Return the log-odds of each pixel, (N, 1, H, W)."""
        x = F.leaky_relu(self.first(to_signed(frames)), 0.2)
        skips = [x]
        for conv in self.down:
            x = F.leaky_relu(conv(x), 0.2)
            skips.append(x)
        skips.pop()
        for conv in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
            x = F.leaky_relu(conv(x), 0.2) + skips.pop()
        return cast(Tensor, self.last(x))


def _wrapper(spectral_norm: bool) -> Callable[[nn.Module], nn.Module]:
    return add_spectral_norm if spectral_norm else lambda layer: layer


DISCRIMINATORS: dict[str, type[Discriminator] | type[UNetDiscriminator]] = {
    "paper": Discriminator,
    "unet": UNetDiscriminator,
}
