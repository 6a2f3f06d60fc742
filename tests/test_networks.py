from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.networks import (
    Generator,
    GeneratorConfig,
    LiteConfig,
    LiteGenerator,
    ResidualBlock,
    UpsampleStage,
    build_network,
    count_parameters,
    fold,
    icnr_,
    network_name,
)

# float32 through some forty convolutions, each summed in another order once folded
FOLD_TOLERANCE = 1e-4
# the same products summed in the same order, but vectorised differently at the edges
SUM_TOLERANCE = 1e-6

SMALL = {"channels": 8, "blocks": 2}


def randomize_norms(net: nn.Module) -> None:
    """Give batch normalisation the statistics and the affine part of a trained network."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.3, 3)
                module.weight.uniform_(0.3, 1.5)
                module.bias.normal_(0, 0.2)


def layers_in_order(net: nn.Module, frames: Tensor) -> list[tuple[Any, ...]]:
    """Run the network and list its layers as they are called, each by its shape."""
    called: list[tuple[Any, ...]] = []

    def note(module: nn.Module, *_: object) -> None:
        if isinstance(module, nn.Conv2d):
            called.append(("conv", module.in_channels, module.out_channels, module.kernel_size))
        elif isinstance(module, nn.BatchNorm2d):
            called.append(("norm", module.num_features))
        elif isinstance(module, nn.PReLU):
            called.append(("prelu", module.num_parameters))
        elif isinstance(module, nn.PixelShuffle):
            called.append(("shuffle", module.upscale_factor))

    hooks = [module.register_forward_hook(note) for module in net.modules()]
    with torch.no_grad():
        net(frames)
    for hook in hooks:
        hook.remove()
    return called


# --- the generator of the paper -------------------------------------------------------------------


def test_the_default_generator_is_the_papers_layer_by_layer():
    block = [
        ("conv", 64, 64, (3, 3)),
        ("norm", 64),
        ("prelu", 64),
        ("conv", 64, 64, (3, 3)),
        ("norm", 64),
    ]
    stage = [("conv", 64, 256, (3, 3)), ("shuffle", 2), ("prelu", 64)]
    assert layers_in_order(Generator().eval(), torch.rand(1, 3, 8, 8)) == [
        ("conv", 3, 64, (9, 9)),
        ("prelu", 64),
        *block * 16,
        ("conv", 64, 64, (3, 3)),
        ("norm", 64),
        *stage * 2,
        ("conv", 64, 3, (9, 9)),
    ]


def test_the_default_generator_has_the_parameters_counted_by_hand():
    head = 3 * 64 * 9 * 9 + 64 + 64  # kernel, bias, slopes
    block = 2 * (64 * 64 * 3 * 3 + 2 * 64) + 64  # no bias before a norm
    body_conv = 64 * 64 * 3 * 3 + 2 * 64
    stage = 64 * 256 * 3 * 3 + 256 + 64
    tail = 64 * 3 * 9 * 9 + 3
    assert count_parameters(Generator()) == head + 16 * block + body_conv + 2 * stage + tail


def test_each_block_adds_to_its_input():
    block = ResidualBlock(8, deployed=False).eval()
    assert isinstance(block.norm2, nn.BatchNorm2d)
    nn.init.zeros_(block.norm2.weight)
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_the_body_adds_to_the_head():
    net = Generator(GeneratorConfig(**SMALL)).eval()
    assert isinstance(net.body_norm, nn.BatchNorm2d)
    nn.init.zeros_(net.body_norm.weight)
    frames = torch.rand(1, 3, 6, 5)
    expected = (net.tail(net.upsample(net.head(frames))) + 1) / 2
    torch.testing.assert_close(net(frames), expected, rtol=0, atol=SUM_TOLERANCE)


def test_the_training_form_maps_minus_one_to_one_onto_zero_to_one():
    net = Generator(GeneratorConfig(**SMALL)).eval()
    nn.init.zeros_(net.tail.weight)
    for raw, mapped in ((-1.0, 0.0), (0.0, 0.5), (1.0, 1.0)):
        nn.init.constant_(net.tail.bias, raw)
        assert torch.equal(net(torch.rand(1, 3, 4, 4)), torch.full((1, 3, 16, 16), mapped))


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_generator_enlarges_by_its_scale(scale):
    net = Generator(GeneratorConfig(channels=8, blocks=1, scale=scale)).eval()
    assert net(torch.rand(2, 3, 5, 7)).shape == (2, 3, 5 * scale, 7 * scale)


def test_a_fresh_upsample_stage_has_no_checkerboard():
    stage = UpsampleStage(8)
    out = stage(torch.randn(1, 8, 6, 5))
    nearest = F.interpolate(out[:, :, ::2, ::2], scale_factor=2, mode="nearest")
    torch.testing.assert_close(out, nearest, rtol=0, atol=SUM_TOLERANCE)
    assert out.std() > 0.1  # it does pass its input on


@pytest.mark.parametrize("deployed", [False, True])
def test_the_generator_starts_close_to_the_nearest_enlargement(deployed):
    torch.manual_seed(0)
    frames = torch.rand(2, 3, 16, 16)
    out = build_network("srgan", deployed=deployed)(frames)
    nearest = F.interpolate(frames, scale_factor=4, mode="nearest")
    assert (out - nearest).abs().mean() < 0.1  # two unrelated noises differ by 0.33
    assert torch.corrcoef(torch.stack([out.flatten(), nearest.flatten()]))[0, 1] > 0.9


def test_icnr_gives_the_kernels_of_one_output_channel_equal_values():
    weight = torch.empty(3 * 16, 8, 3, 3)
    assert icnr_(weight, 4) is weight
    groups = weight.view(3, 16, 8, 3, 3)
    assert torch.equal(groups, groups[:, :1].expand_as(groups))
    assert not torch.equal(groups[0, 0], groups[1, 0])


# --- the lite generator ---------------------------------------------------------------------------


def test_the_lite_generator_keeps_to_its_budget():
    assert count_parameters(LiteGenerator()) <= 100_000
    assert count_parameters(LiteGenerator()) == 98_320  # what the docstring of LiteConfig says


def test_the_lite_generator_is_only_3x3_convolutions_and_one_shuffle():
    called = layers_in_order(LiteGenerator(), torch.rand(1, 3, 8, 8))
    middle = [("conv", 32, 32, (3, 3)), ("prelu", 32)]
    assert called == [
        ("conv", 3, 32, (3, 3)),
        ("prelu", 32),
        *middle * 9,
        ("conv", 32, 48, (3, 3)),
        ("shuffle", 4),
    ]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_lite_generator_adds_to_the_nearest_enlargement(scale):
    net = LiteGenerator(LiteConfig(channels=8, blocks=1, scale=scale))
    nn.init.zeros_(net.tail.weight)
    nn.init.zeros_(net.tail.bias)
    frames = torch.rand(2, 3, 5, 7)
    assert torch.equal(net(frames), F.interpolate(frames, scale_factor=scale, mode="nearest"))


def test_the_middle_of_a_fresh_lite_generator_starts_near_the_identity():
    net = LiteGenerator()
    for layer in net.body:
        if isinstance(layer, nn.Conv2d) and layer.in_channels == layer.out_channels:
            centre = layer.weight[:, :, 1, 1] - torch.eye(layer.in_channels)
            assert centre.abs().max() < 0.1  # PyTorch's own start: 1/sqrt(32*9) = 0.059 at most


# --- folding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [GeneratorConfig(**SMALL), GeneratorConfig()])
def test_folding_batch_norm_keeps_the_outputs(config):
    net = Generator(config).eval()
    randomize_norms(net)
    folded = fold(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    frames = torch.rand(1, 3, 12, 9)
    with torch.no_grad():
        expected = net(frames)
        assert (folded(frames) - expected).abs().max() < FOLD_TOLERANCE
        assert expected.std() > 10 * FOLD_TOLERANCE  # the comparison is of something


def test_folding_leaves_its_input_unchanged():
    net = Generator(GeneratorConfig(**SMALL)).train()
    randomize_norms(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    folded = fold(net)
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.add_(1)  # shares no memory with the input either
    assert net.training
    assert not net.deployed
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["srgan", "srgan-lite"])
def test_the_folded_network_is_the_deploy_form_in_eval_mode(name):
    net = build_network(name, SMALL)
    folded = fold(net)
    assert folded.deployed
    assert not folded.training
    assert folded.config == net.config
    assert network_name(folded) == name


@pytest.mark.parametrize("name", ["srgan", "srgan-lite"])
def test_folding_a_deploy_form_copies_it(name):
    net = build_network(name, SMALL, deployed=True)
    copy = fold(net)
    assert copy is not net
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in copy.state_dict().items())


@pytest.mark.parametrize("deployed", [False, True])
def test_folding_draws_no_random_numbers(deployed):
    net = build_network("srgan", SMALL, deployed=deployed)
    before = torch.get_rng_state()
    fold(net)
    assert torch.equal(torch.get_rng_state(), before)


# --- building by name -----------------------------------------------------------------------------


def test_build_network_takes_the_defaults_for_what_is_left_out():
    assert build_network("srgan", {"blocks": 1}).config == GeneratorConfig(channels=64, blocks=1)
    assert build_network("srgan-lite").config == LiteConfig()


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("srgan", {"channels": 0}, "channels must be at least 1, got 0"),
        ("srgan", {"blocks": -1}, "blocks must be at least 1, got -1"),
        ("srgan", {"scale": 3}, "scale must be 2, 4 or 8 .*got 3"),
        ("srgan", {"depth": 5}, "bad configuration for network 'srgan'.*depth"),
        ("srgan", {"channels": "many"}, "bad configuration for network 'srgan'"),
        ("srgan-lite", {"blocks": 0}, "blocks must be at least 1, got 0"),
        ("srgan-lite", {"scale": 8}, "scale must be 2, 3 or 4, got 8"),
        ("esrgan", {}, "unknown network 'esrgan'; known: srgan, srgan-lite, srcnn"),
    ],
)
def test_a_bad_configuration_is_refused_with_both_numbers(name, config, message):
    with pytest.raises(ValueError, match=message):
        build_network(name, config)
