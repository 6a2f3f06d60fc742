"""The terms of the losses, each a function of batches (N, 3, H, W) of RGB in [0, 1].

Ledig et al. 2017, section 2.2: the generator's loss is a content loss, pixel MSE or the squared
distance of VGG features, plus 1e-3 times -log D(G(x)).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.discriminator import to_signed
from train.perceptual import LPIPS, FeatureNetwork, MeanDistance

LossName = Literal["l1", "mse"]

LUMA = (0.299, 0.587, 0.114)  # Y of R, G, B (ITU-R BT.601)
GRID_WINDOW = 8
FEATURE_SCALE = 1 / 12.75  # makes VGG features comparable to pixels (the paper, section 3.2)


def pixel_loss(name: LossName, sr: Tensor, hr: Tensor, *, luma_weight: float = 0.0) -> Tensor:
    """Mean pixel difference.

    Args:
        name: absolute or squared difference.
        sr: what the generator made.
        hr: what it should have made.
        luma_weight: share of the difference of Y (BT.601, full range) beside that of R, G and B.
            Detail is seen in luma, and video carries chroma at half the size: a small network
            does better with its capacity there.
    """
    difference = F.l1_loss if name == "l1" else F.mse_loss
    loss = difference(sr, hr)
    if luma_weight:
        loss = torch.lerp(loss, difference(luma(sr), luma(hr)), luma_weight)
    return loss


def luma(frames: Tensor) -> Tensor:
    """Return Y of RGB, (N, H, W), in the range of the frames."""
    # by numbers: a tensor of them would have to be brought to a GPU, which waits for it
    red, green, blue = (
        channel * share for channel, share in zip(frames.unbind(1), LUMA, strict=True)
    )
    return red + green + blue


def content_mse(sr: Tensor, hr: Tensor) -> Tensor:
    """Pixel MSE as the paper's content loss (equation 4), on its range [-1, 1]."""
    return F.mse_loss(to_signed(sr), to_signed(hr))


def content_features(features: FeatureNetwork, sr: Tensor, hr: Tensor) -> Tensor:
    """Squared distance of features scaled by 1/12.75 (equation 5).

    The paper writes a sum over channels; the mean, as the known implementations have it, is what
    goes with the weight 1e-3 of the adversarial term.
    """
    with torch.no_grad():
        wanted = features(hr)[-1]
    return F.mse_loss(features(sr)[-1] * FEATURE_SCALE, wanted * FEATURE_SCALE)


def lpips_loss(lpips: LPIPS | MeanDistance, sr: Tensor, hr: Tensor) -> Tensor:
    """Mean LPIPS of a batch, seen from a random place.

    AlexNet looks at every fourth pixel, and the pixel shuffle by 4 makes patterns of that period:
    from a fixed place the generator would learn one that the network does not see.
    """
    top, left = torch.randint(4, (2,)).tolist()
    distances: Tensor = lpips(sr[..., top:, left:], hr[..., top:, left:])
    return distances.mean()


def grid_loss(sr: Tensor, hr: Tensor, *, scale: int) -> Tensor:
    """Mean size of the pattern in the difference that repeats with the pixel shuffle's grid.

    Feature losses reward fine detail wherever it comes from, and what a small network makes most
    easily is a pattern locked to the grid: a halftone on smooth areas, dots along edges. In windows
    of `GRID_WINDOW` input pixels the difference is averaged by its place in the grid; the places
    should not differ. Detail that is not locked to the grid averages out, and is free.

    Args:
        sr: what the generator made.
        hr: what it should have made.
        scale: period of the grid, pixels; 4 also holds those of 2.
    """
    places = F.pixel_unshuffle(sr - hr, scale)  # (N, 3*s*s, h, w)
    windows = F.avg_pool2d(places, min(GRID_WINDOW, *places.shape[2:]))
    means = windows.view(len(sr), 3, scale * scale, -1)
    unequal: Tensor = (means - means.mean(dim=2, keepdim=True)).abs()
    return unequal.mean()


def generator_adversarial(fake_logits: Tensor) -> Tensor:
    """-log D(G(x)) (equation 6), from log-odds."""
    return F.binary_cross_entropy_with_logits(fake_logits, torch.ones_like(fake_logits))


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log D(hr) - log(1 - D(G(x))) (equation 2), from log-odds."""
    real = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    fake = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    return real + fake


def r1_penalty(discriminator: nn.Module, hr: Tensor) -> Tensor:
    """Half the squared gradient of the log-odds at photographs (Mescheder et al. 2018, R1)."""
    hr = hr.detach().requires_grad_()
    logits = discriminator(hr)
    (gradient,) = torch.autograd.grad(
        logits.mean(dim=tuple(range(1, logits.ndim))).sum(), hr, create_graph=True
    )
    return gradient.pow(2).sum(dim=(1, 2, 3)).mean() / 2
