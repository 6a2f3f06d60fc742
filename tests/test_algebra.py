"""The rewrites for compilers: proven to be the same function."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engines.algebra import NONE, LowTail, Rewrites, moved_below_shuffle, rewrite
from engines.networks import GeneratorConfig, LiteConfig, build_network, fold

# float32 sums in another order
TOLERANCE = 1e-4

ALL = [
    NONE,
    Rewrites(slopes=True, tail_below=0, clamp=False),
    Rewrites(slopes=True, tail_below=1, clamp=False),
    Rewrites(slopes=True, tail_below=2, clamp=False),
]


def folded(network: str = "srgan", **config: int):
    """A deploy form in which everything differs from channel to channel."""
    net = build_network(network, config)
    for module in net.modules():
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 0.9)
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    net = fold(net)
    net.tail.weight.data.mul_(6)  # far beyond [0, 1], so that a clamp shows
    return net


def test_the_papers_generator_is_the_same_function_in_every_form():
    net = folded(blocks=2)
    assert net.config.channels == GeneratorConfig().channels
    frames = torch.rand(1, 3, 13, 18)
    with torch.no_grad():
        expected = net(frames)
        assert expected.std() > 0.3  # something that could be missed
        for rewrites in ALL:
            result = rewrite(net, rewrites)(frames)
            torch.testing.assert_close(result, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 2)])
@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("tail_below", [1, 2])
@torch.no_grad()
def test_borders_of_tiny_frames_are_kept(size, scale, tail_below):
    if scale == 2 and tail_below == 2:
        pytest.skip("has one pixel shuffle: refused, see below")
    net = folded(channels=5, blocks=1, scale=scale)
    frames = torch.rand(2, 3, *size)
    moved = rewrite(net, Rewrites(tail_below=tail_below, clamp=False))
    torch.testing.assert_close(moved(frames), net(frames), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("size", "moved_size"), [(1, 1), (3, 3), (5, 3), (7, 5), (9, 5)])
@torch.no_grad()
def test_a_convolution_of_any_size_can_be_moved(size, moved_size):
    conv = nn.Conv2d(3, 2, size, padding=size // 2)
    moved = moved_below_shuffle(conv)
    x, shuffle = torch.randn(1, 12, 6, 7), nn.PixelShuffle(2)
    assert moved.kernel_size == (moved_size, moved_size)
    torch.testing.assert_close(shuffle(moved(x)), conv(shuffle(x)), atol=TOLERANCE, rtol=0)


def test_the_forms_are_what_their_names_say():
    net = folded(blocks=1)
    shapes = [next(iter(rewrite(net, r).tail.state_dict().values())).shape for r in ALL]
    assert shapes == [(3, 64, 9, 9), (3, 64, 9, 9), (12, 256, 5, 5), (48, 1024, 3, 3)]
    slopes = [
        [m.num_parameters for m in rewrite(net, r).upsample.modules() if isinstance(m, nn.PReLU)]
        for r in ALL[:2]
    ]
    assert slopes == [[64, 64], [256, 256]]


@pytest.mark.parametrize("network", ["srgan", "srgan-lite"])
@torch.no_grad()
def test_the_clamp_can_be_part_of_the_network(network):
    net = folded(network, channels=6, blocks=1)
    frames = torch.rand(1, 3, 8, 8)
    expected = net(frames)
    assert expected.min() < 0
    assert expected.max() > 1
    clamped = rewrite(net, Rewrites())(frames)
    torch.testing.assert_close(clamped, expected.clamp(0, 1), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_the_original_is_left_as_it_was():
    net = folded(channels=4, blocks=1)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    rewrite(net, Rewrites(tail_below=2))
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_what_cannot_be_rewritten_is_refused():
    with pytest.raises(ValueError, match="tail_below 1 needs slopes"):
        Rewrites(slopes=False)
    with pytest.raises(ValueError, match="tail_below must be 0, 1 or 2, got 3"):
        Rewrites(tail_below=3)
    with pytest.raises(ValueError, match="below 2 pixel shuffles: a generator of scale 2 has 1"):
        rewrite(folded(channels=4, blocks=1, scale=2), Rewrites(tail_below=2))
    with pytest.raises(ValueError, match="takes the deploy form"):
        rewrite(build_network("srgan", {"channels": 4, "blocks": 1}))


def test_the_lite_generator_has_no_tail_to_move():
    net = folded("srgan-lite", channels=4, blocks=1)
    assert net.config == LiteConfig(channels=4, blocks=1)
    same = rewrite(net, Rewrites(tail_below=2, clamp=False))
    assert same.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("deployed", [False, True])
def test_the_form_that_is_trained_gives_the_networks_own_result_and_gradients(scale, deployed):
    config = {"channels": 3, "blocks": 1, "scale": scale}
    net = build_network("srgan", config, deployed=deployed).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    frames = torch.rand(2, 3, 6, 7, dtype=torch.float64)
    results, gradients = [], []
    for form in (net, LowTail(net)):
        net.zero_grad()
        results.append(form(frames))
        (results[-1] ** 2).sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    torch.testing.assert_close(results[1], results[0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-9, rtol=1e-9)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


def test_the_form_that_is_trained_can_be_compiled():
    net = build_network("srgan", {"channels": 4, "blocks": 1}, deployed=True)
    form, frames = LowTail(net), torch.rand(2, 3, 8, 8)
    gradients = []
    for compiled in (False, True):
        if compiled:
            form.compile(backend="aot_eager")
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            result = form(frames)
        result.float().square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-3, rtol=0.05)
