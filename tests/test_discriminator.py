from __future__ import annotations

import pytest
import torch
from torch import nn

from train.discriminator import DISCRIMINATORS, Discriminator, UNetDiscriminator, to_signed


def layers_of(net, kind):
    return [module for module in net.modules() if isinstance(module, kind)]


def test_the_discriminator_is_the_papers_layer_by_layer():
    net = Discriminator(96)
    found = [
        (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride)
        for conv in layers_of(net, nn.Conv2d)
    ]
    widths = [
        (3, 64),
        (64, 64),
        (64, 128),
        (128, 128),
        (128, 256),
        (256, 256),
        (256, 512),
        (512, 512),
    ]
    strides = [1, 2] * 4
    assert found == [(*w, (3, 3), (s, s)) for w, s in zip(widths, strides, strict=True)]
    assert [norm.num_features for norm in layers_of(net, nn.BatchNorm2d)] == [
        w for _, w in widths[1:]
    ]
    assert isinstance(net.body[1], nn.LeakyReLU)  # no normalisation after the first
    assert {layer.negative_slope for layer in layers_of(net, nn.LeakyReLU)} == {0.2}
    assert [(d.in_features, d.out_features) for d in layers_of(net, nn.Linear)] == [
        (512 * 6 * 6, 1024),
        (1024, 1),
    ]
    assert not layers_of(net, nn.Sigmoid)


@pytest.mark.parametrize("name", ["paper", "unet"])
def test_it_sees_pictures_in_the_papers_range(name):
    net = DISCRIMINATORS[name](16, channels=4)
    seen = []
    first = layers_of(net, nn.Conv2d)[0]
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(2, 3, 16, 16))
    assert [seen[0][:, c].unique().tolist() for c in range(3)] == [[-1], [0], [1]]


@pytest.mark.parametrize("crop", [16, 32, 96, 112])
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_any_crop_divisible_by_16_gives_one_number_a_picture(crop, spectral_norm):
    net = Discriminator(crop, channels=4, spectral_norm=spectral_norm)
    assert net(torch.rand(2, 3, crop, crop)).shape == (2, 1)


def test_the_u_net_judges_each_pixel():
    net = UNetDiscriminator(24, channels=4)
    assert net(torch.rand(2, 3, 24, 24)).shape == (2, 1, 24, 24)


@pytest.mark.parametrize(
    ("name", "crop", "factor"), [("paper", 40, 16), ("paper", 0, 16), ("unet", 20, 8)]
)
def test_a_crop_that_does_not_divide_is_refused(name, crop, factor):
    with pytest.raises(ValueError, match=f"takes crops divisible by {factor}, got {crop}"):
        DISCRIMINATORS[name](crop)


def test_spectral_norm_bounds_the_gain_and_replaces_batch_norm():
    net = Discriminator(16, channels=4, spectral_norm=True)
    assert not layers_of(net, nn.BatchNorm2d)
    for _ in range(30):  # each training pass is one power iteration
        net(torch.rand(2, 3, 16, 16))
    dense = net.head[3]
    assert torch.linalg.matrix_norm(dense.weight, ord=2).item() == pytest.approx(1, abs=0.01)


def test_the_papers_range_is_minus_one_to_one():
    assert to_signed(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_discriminator_learns_to_tell_two_kinds_apart(name):
    net = DISCRIMINATORS[name](16, channels=4)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        flat, rough = torch.rand(4, 3, 1, 1).expand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
        loss = nn.functional.softplus(-net(rough)).mean() + nn.functional.softplus(net(flat)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert net(rough).mean() > 0 > net(flat).mean()


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_it_can_be_compiled_and_learns_the_same(name):
    pictures, gradients = torch.rand(2, 3, 16, 16), []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = DISCRIMINATORS[name](16, channels=4, spectral_norm=True)
        if compiled:
            net.compile(backend="aot_eager")
        for _ in range(2):  # spectral norm goes on from its last estimate
            net.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                judged = net(pictures)
            judged.float().square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-3, rtol=0.05)
