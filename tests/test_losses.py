from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from train.losses import (
    content_features,
    content_mse,
    discriminator_loss,
    generator_adversarial,
    grid_loss,
    lpips_loss,
    pixel_loss,
    r1_penalty,
)

# a handful of float32 operations
TOLERANCE = 1e-6


def test_the_pixel_losses_are_the_mean_differences():
    sr, hr = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
    assert pixel_loss("l1", sr, hr).item() == 0.5
    assert pixel_loss("mse", sr, hr).item() == 0.25


def test_the_luma_share_sees_luma_and_not_chroma():
    hr = torch.full((1, 3, 2, 2), 0.5)
    # red up and blue down so that Y stays: 0.299 * 0.114 against 0.114 * 0.299
    chroma = hr + torch.tensor([0.114, 0.0, -0.299]).view(1, 3, 1, 1)
    assert pixel_loss("l1", chroma, hr, luma_weight=1.0).item() == pytest.approx(0, abs=1e-7)
    grey = pixel_loss("l1", hr + 0.1, hr, luma_weight=1.0).item()
    assert grey == pytest.approx(0.1, abs=TOLERANCE)
    half = pixel_loss("l1", chroma, hr, luma_weight=0.5).item()
    assert half == pytest.approx((0.114 + 0.299) / 3 / 2, abs=TOLERANCE)


def test_the_content_mse_is_on_the_papers_range():
    sr, hr = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.25)
    assert content_mse(sr, hr).item() == pytest.approx(0.25)  # 0.5 squared


class Doubler(nn.Module):
    """A feature network whose features are twice the picture."""

    def forward(self, frames):
        return [frames * 0, frames * 2]


def test_the_feature_loss_is_scaled_as_in_the_paper():
    sr, hr = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
    assert content_features(Doubler(), sr, hr).item() == pytest.approx(1 / 12.75**2)


def test_the_feature_loss_has_a_gradient_at_the_generated_picture():
    sr = torch.zeros(1, 3, 2, 2, requires_grad=True)
    content_features(Doubler(), sr, torch.ones(1, 3, 2, 2)).backward()
    assert (sr.grad < 0).all()  # towards the original


class EveryFourth(nn.Module):
    """A distance that looks at every fourth pixel only, as AlexNet does."""

    def forward(self, a, b):
        return (a - b).abs()[..., ::4, ::4].mean(dim=(1, 2, 3))


def test_lpips_is_seen_from_all_places_so_that_no_pattern_hides():
    hr = torch.zeros(1, 3, 16, 16)
    sr = torch.ones(1, 3, 16, 16)
    sr[..., ::4, ::4] = 0  # perfect, if looked at from the corner
    found = [lpips_loss(EveryFourth(), sr, hr).item() for _ in range(20)]
    assert min(found) == 0
    assert sum(found) > 10


def test_the_grid_loss_sees_a_pattern_of_its_period_and_no_other():
    hr = torch.rand(2, 3, 64, 64)
    halftone = torch.zeros(64, 64)
    halftone[::4, ::4] = 0.16  # mean 0.01: one place is 0.15 above it, fifteen 0.01 below
    found = grid_loss(hr + halftone, hr, scale=4).item()
    assert found == pytest.approx((0.15 + 15 * 0.01) / 16, abs=TOLERANCE)
    assert grid_loss(hr + 0.1, hr, scale=4).item() == pytest.approx(0, abs=TOLERANCE)
    other = torch.zeros(64, 64)
    other[::3, ::3] = 0.16
    assert grid_loss(hr + other, hr, scale=4).item() < found / 3
    noise = torch.rand(2, 3, 64, 64) * 0.16
    assert grid_loss(hr + noise, hr, scale=4).item() < found / 2
    assert grid_loss(torch.ones(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), scale=4).item() == 0


@pytest.mark.parametrize("logit", [-3.0, 0.0, 2.0])
def test_the_adversarial_losses_are_the_papers(logit):
    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    fake, real = torch.full((4, 1), logit), torch.full((4, 1), 0.7)
    assert generator_adversarial(fake).item() == pytest.approx(-math.log(sigmoid(logit)))
    expected = -math.log(sigmoid(0.7)) - math.log(1 - sigmoid(logit))
    assert discriminator_loss(real, fake).item() == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("pixels", [False, True])
def test_r1_is_half_the_squared_gradient(pixels):
    class Linear(nn.Module):
        def forward(self, frames):
            weighted = (frames * torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)).sum(
                1, keepdim=True
            )
            return weighted.expand(-1, -1, 1, 1) if pixels else weighted.flatten(1)

    hr = torch.rand(5, 3, 1, 1)
    assert r1_penalty(Linear(), hr).item() == pytest.approx((1 + 4 + 9) / 2)


def test_r1_has_a_gradient_at_the_discriminator():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 1))
    r1_penalty(net, torch.rand(2, 3, 2, 2)).backward()
    assert net[1].weight.grad.abs().sum() > 0
