from __future__ import annotations

import csv
import logging
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import train.srgan as train_module
from engines.networks import build_network, fold
from engines.weights import load_model, save_weights
from train.account import describe_command
from train.checkpoint import load_checkpoint
from train.config import RECIPES, TrainConfig, combine
from train.data import PatchSampler, find_photos
from train.discriminator import DISCRIMINATORS
from train.metrics import score
from train.parallel import World
from train.perceptual import IMAGENET, LPIPS, LPIPS_SCALING, ContentFeatures, FeatureNetwork
from train.report import Report
from train.srgan import (
    Adversary,
    Pace,
    RunPaths,
    discriminator_step,
    generator_terms,
    main,
    make_adversary,
    make_optimizers,
    train,
    update_average,
)

REPOSITORY = Path(__file__).parents[1]

# one multiplication and one addition in float32
LERP_TOLERANCE = 1e-6

TINY = TrainConfig(
    network="srgan-lite",
    channels=8,
    blocks=1,
    steps=4,
    gan_steps=0,
    learning_rate=1e-3,
    batch=2,
    crop=16,
    warmup_steps=3,
    cooldown_steps=2,
    ema=0.999,
)
# four steps of pixel loss, four against a discriminator
TINY_GAN = replace(TINY, gan_steps=4, content="mse", pixel_weight=0.5, discriminator_channels=4)
MSE_ALONE = ["--gan-steps", "1", "--content", "mse", "--lpips-weight", "0"]
TINY_ARGUMENTS = ["--network", "srgan-lite", "--channels", "8", "--blocks", "1", "--batch", "2"]
TINY_ARGUMENTS += ["--crop", "16", "--gan-steps", "0"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of three random but smooth photos."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
        photo = Image.fromarray(noise).resize((48, 48), Image.Resampling.BICUBIC)
        photo.save(folder / f"{seed}.png")
    return folder


def equal_states(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- configuration --------------------------------------------------------------------------------


def test_the_rate_rises_stays_and_falls():
    config = TrainConfig(steps=10, learning_rate=1.0, warmup_steps=4, cooldown_steps=3)
    assert [config.rate_at(step) for step in range(10)] == pytest.approx(
        [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]
    )


def test_a_recipe_cut_short_still_begins_at_the_full_rate():
    config = TrainConfig(**(RECIPES["cpu"] | {"steps": 200}))
    rates = [config.rate_at(step) for step in range(200)]
    assert max(rates) == pytest.approx(config.learning_rate, rel=0.02)
    assert rates[-1] < 0.02 * config.learning_rate


def test_the_rate_is_constant_without_warm_up_and_cool_down():
    config = TrainConfig(steps=5, learning_rate=0.5, warmup_steps=0, cooldown_steps=0)
    assert [config.rate_at(step) for step in range(5)] == [0.5] * 5


def test_the_rate_of_the_gan_falls_to_a_tenth_half_way():
    config = TrainConfig(steps=2, gan_steps=4, gan_learning_rate=1.0)
    rates = [config.rate_at(step) for step in range(2, 6)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1])


def test_the_defaults_are_those_of_the_paper():
    config = TrainConfig()
    assert (config.network, config.loss, config.optimizer) == ("srgan", "mse", "adam")
    assert (config.steps, config.learning_rate) == (1_000_000, 1e-4)
    assert (config.gan_steps, config.content, config.adversarial_weight) == (200_000, "vgg54", 1e-3)
    assert [config.rate_at(1_000_000 + at) for at in (0, 99_999, 100_000)] == pytest.approx(
        [1e-4, 1e-4, 1e-5]
    )
    assert (config.batch, config.crop, config.degradation) == (16, 96, "bicubic")


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_is_a_configuration_that_names_itself(name):
    assert TrainConfig(**RECIPES[name]).recipe == name


@pytest.mark.parametrize("recipe", [None, *RECIPES])
@pytest.mark.parametrize(
    ("name", "network", "content", "gan"),
    [
        ("srcnn", "srcnn", None, False),
        ("srresnet-mse", "srgan", None, False),
        ("srgan-mse", "srgan", "mse", True),
        ("srgan-vgg22", "srgan", "vgg22", True),
        ("srgan-vgg54", "srgan", "vgg54", True),
    ],
)
def test_each_system_has_the_papers_losses_whatever_the_recipe(recipe, name, network, content, gan):
    given = {"gan_steps": 5} if gan else {}
    config = combine(recipe, name, given, resumed={})
    assert (config.network, config.loss, config.gan_steps > 0) == (network, "mse", gan)
    assert (config.luma_weight, config.adversarial_weight) == (0, 1e-3)
    added = (config.pixel_weight, config.lpips_weight, config.grid_weight, config.r1_weight)
    assert added == (0, 0, 0, 0)
    assert (config.content_weight, config.discriminator) == (1, "paper")
    assert not config.spectral_norm
    assert content in (None, config.content)
    assert config.recipe == (recipe or "paper")


def test_a_system_that_is_a_gan_is_refused_without_a_gan_stage():
    with pytest.raises(ValueError, match="srgan-mse has a GAN stage and this run none"):
        combine("cpu", "srgan-mse", {}, resumed={})
    assert combine("cpu", "srgan-mse", {"gan_steps": 0}, resumed={}).gan_steps == 0


def test_a_single_value_goes_over_a_system_over_a_recipe():
    config = combine("cpu", "srresnet-mse", {"luma_weight": 0.5}, resumed={})
    assert (config.batch, config.crop) == (8, 128)
    assert (config.network, config.loss, config.luma_weight) == ("srgan", "mse", 0.5)


@pytest.mark.parametrize("system", [None, "srgan-vgg54"])
@pytest.mark.parametrize("recipe", [None, "paper"])
def test_a_resumed_run_keeps_its_own_values(recipe, system):
    resumed = asdict(TrainConfig(channels=8, learning_rate=3e-4))
    config = combine(recipe, system, {"seed": 7}, resumed=resumed)
    assert asdict(config) == resumed | {"seed": 7}


def test_a_run_of_another_version_lacks_options_or_has_too_many():
    resumed = asdict(TrainConfig(steps=7))
    del resumed["half_size"]
    assert combine(None, None, {"gan_steps": 3}, resumed=resumed).steps == 7
    assert combine(None, "srgan-vgg54", {}, resumed=resumed).half_size is False
    with pytest.raises(ValueError, match="options that this version does not have: cutmix, zeal"):
        combine(None, None, {}, resumed={**resumed, "zeal": 1, "cutmix": True})


@pytest.mark.parametrize(
    ("recipe", "system", "message"),
    [
        ("cpu", None, "the run to resume is of the recipe paper, not cpu"),
        (None, "srgan-vgg54", r"the run to resume is not of srgan-vgg54: its loss is l1"),
    ],
)
def test_a_set_that_a_run_to_resume_is_not_of_is_refused(recipe, system, message):
    with pytest.raises(ValueError, match=message):
        combine(recipe, system, {"seed": 7}, resumed=asdict(TrainConfig(loss="l1")))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("network", "esrgan", "unknown network 'esrgan'; known: srgan, srgan-lite, srcnn"),
        ("steps", -1, "steps must not be negative, got -1"),
        ("batch", -2, "batch must be at least 1, got -2"),
        ("crop", 0, "crop must be at least 1, got 0"),
        ("warmup_steps", -1, "warmup_steps must not be negative, got -1"),
        ("cooldown_steps", -1, "cooldown_steps must not be negative, got -1"),
        ("learning_rate", 0.0, r"learning_rate must be above 0, got 0\.0"),
        ("learning_rate", float("nan"), "learning_rate must be above 0, got nan"),
        ("content", "vgg33", "unknown content 'vgg33'; known: mse, vgg22, vgg54, none"),
        ("discriminator", "x", "unknown discriminator 'x'; known: paper, unet"),
        ("lpips_network", "squeeze", "unknown lpips_network 'squeeze'; known: alex, vgg, both"),
        ("lpips_weight", -1.0, "lpips_weight must not be negative, got -1"),
        ("r1_weight", float("nan"), "r1_weight must not be negative, got nan"),
        ("luma_weight", 1.5, r"luma_weight must be in \[0, 1\], got 1\.5"),
        ("ema", 1.0, r"ema must be in \[0, 1\), got 1\.0"),
    ],
)
def test_a_bad_configuration_is_refused_with_both_numbers(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


# --- the parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["srgan", "srgan-lite"])
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("gan", [False, True])
def test_every_parameter_has_exactly_one_optimizer(network, optimizer, gan):
    net = build_network(network, {"channels": 8, "blocks": 1})
    optimizers = make_optimizers(replace(TINY, optimizer=optimizer), net, gan=gan)
    held = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, net.parameters()))


def test_the_average_moves_towards_the_network_with_its_statistics():
    net, average = (build_network("srgan", {"channels": 8, "blocks": 1}) for _ in range(2))
    net.train()(torch.rand(2, 3, 6, 6))  # moves the statistics of batch normalisation
    before = {name: value.clone() for name, value in average.state_dict().items()}
    update_average(average, net, 0.9)
    current, moved = net.state_dict(), average.state_dict()
    assert not torch.equal(moved["body_norm.running_mean"], before["body_norm.running_mean"])
    for name, value in moved.items():
        if value.is_floating_point():
            expected = 0.9 * before[name] + 0.1 * current[name]
            torch.testing.assert_close(value, expected, rtol=0, atol=LERP_TOLERANCE)
        else:
            assert value == current[name] == 1  # num_batches_tracked


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["srgan", "srgan-lite"])
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_resuming_repeats_the_losses_of_an_unbroken_run(tmp_path, photos, network, optimizer):
    config = replace(TINY, network=network, optimizer=optimizer)
    unbroken = RunPaths(data=photos, out=tmp_path / "unbroken")
    broken = RunPaths(data=photos, out=tmp_path / "broken")
    expected = train(config, unbroken)
    assert len(set(expected)) == 4

    # the schedule must be that of the whole run: stop it as Ctrl-C would, after two steps
    first = stop_after(2, config, broken)
    torch.manual_seed(99)  # a restart knows nothing of the random state
    second = train(config, broken, resume=True)
    assert (first, second) == (expected[:2], expected[2:])

    states = [load_checkpoint(paths.checkpoint) for paths in (unbroken, broken)]
    assert states[0]["step"] == states[1]["step"] == 4
    assert equal_states(states[0]["net"], states[1]["net"])
    assert equal_states(states[0]["average"], states[1]["average"])


def stop_after(steps, config, paths):
    """Train, stop it as Ctrl-C does while the given step is computed, return the losses."""
    losses = []

    def interrupt(*arguments):
        terms = generator_terms(*arguments)
        losses.append(torch.stack([*terms.values()]).sum().item())
        if len(losses) == steps:
            signal.raise_signal(signal.SIGINT)
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.srgan.generator_terms", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(config, paths)
    return losses


@pytest.mark.parametrize("discriminator", ["paper", "unet"])
@pytest.mark.parametrize("stop", [2, 4, 6])
def test_resuming_a_gan_repeats_its_losses_in_either_stage(tmp_path, photos, discriminator, stop):
    config = replace(TINY_GAN, discriminator=discriminator, spectral_norm=True, r1_weight=0.1)
    unbroken = RunPaths(data=photos, out=tmp_path / "unbroken")
    broken = RunPaths(data=photos, out=tmp_path / "broken")
    expected = train(config, unbroken)
    first = stop_after(stop, config, broken)
    torch.manual_seed(99)
    second = train(config, broken, resume=True)
    assert (first, second) == (expected[:stop], expected[stop:])
    states = [load_checkpoint(paths.checkpoint) for paths in (unbroken, broken)]
    assert equal_states(states[0]["average"], states[1]["average"])
    assert equal_states(states[0]["discriminator"], states[1]["discriminator"])


def test_a_run_on_degraded_video_resumes_exactly(tmp_path, photos):
    config = replace(TINY, degradation="video")
    expected = train(config, RunPaths(data=photos, out=tmp_path / "unbroken"))
    broken = RunPaths(data=photos, out=tmp_path / "broken")
    first = stop_after(2, config, broken)
    assert first + train(config, broken, resume=True) == expected


@pytest.mark.parametrize("before", ["bicubic", "video"])
def test_a_run_goes_on_with_another_degradation(tmp_path, photos, before):
    after = "video" if before == "bicubic" else "bicubic"
    paths = RunPaths(data=photos, out=tmp_path)
    train(replace(TINY, degradation=before), paths)
    losses = train(replace(TINY, degradation=after, steps=6), paths, resume=True)
    assert len(losses) == 2


@pytest.fixture
def lpips_config(gan, monkeypatch):
    """A run with LPIPS, which is seen from random places."""
    monkeypatch.setattr("train.srgan.load_lpips", lambda *_, **__: gan[2].lpips)
    return replace(TINY_GAN, crop=32, lpips_weight=1.0)


def test_resuming_repeats_the_places_that_lpips_is_seen_from(tmp_path, photos, lpips_config):
    expected = train(lpips_config, RunPaths(data=photos, out=tmp_path / "unbroken"))
    broken = RunPaths(data=photos, out=tmp_path / "broken")
    first = stop_after(5, lpips_config, broken)
    torch.manual_seed(99)
    assert first + train(lpips_config, broken, resume=True) == expected


def test_a_run_is_the_same_however_often_it_is_evaluated(tmp_path, photos, lpips_config):
    often, seldom = (
        train(lpips_config, RunPaths(data=photos, out=tmp_path / str(n)), pace=Pace(evaluate=n))
        for n in (1, 100)
    )
    assert often == seldom


def test_resuming_repeats_the_losses_after_a_crash(tmp_path, photos, lpips_config):
    """The last checkpoint is of a step that was evaluated too."""
    pace = Pace(evaluate=2, save=2)
    expected = train(lpips_config, RunPaths(data=photos, out=tmp_path / "unbroken"), pace=pace)
    broken = RunPaths(data=photos, out=tmp_path / "broken")
    crash_in(8, lpips_config, broken, pace)
    torch.manual_seed(99)
    assert train(lpips_config, broken, pace=pace, resume=True) == expected[6:]


def crash_in(step, config, paths, pace):
    """Train, and die while the given step, counted from 1, is computed."""
    count = 0

    def die(*arguments):
        nonlocal count
        count += 1
        if count == step:
            raise MemoryError
        return generator_terms(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.srgan.generator_terms", die)
        with pytest.raises(MemoryError):
            train(config, paths, pace=pace)


def test_the_gan_stage_goes_on_from_the_average_with_optimizers_of_its_own(tmp_path, photos):
    config = replace(TINY_GAN, optimizer="muon", learning_rate=0.1, gan_learning_rate=1e-12)
    paths = RunPaths(data=photos, out=tmp_path)
    train(config, paths, pace=Pace(save=4))
    state = load_checkpoint(paths.checkpoint)
    began = load_model(paths.fidelity).net.state_dict()
    ended = build_network("srgan-lite", {"channels": 8, "blocks": 1}, deployed=True)
    folded = build_network("srgan-lite", {"channels": 8, "blocks": 1})
    folded.load_state_dict(state["net"])
    ended.load_state_dict(fold(folded).state_dict())
    for name, value in ended.state_dict().items():  # not where the last step of Muon was
        torch.testing.assert_close(value, began[name], rtol=0, atol=1e-6)
    assert len(state["optimizers"]) == 1  # Adam's alone


def test_the_gan_stage_begins_from_the_averaged_weights_and_keeps_them(tmp_path, photos):
    paths = RunPaths(data=photos, out=tmp_path)
    train(TINY_GAN, paths, pace=Pace(evaluate=100))
    fidelity, texture = (load_model(tmp_path / f"{n}.safetensors") for n in ("fidelity", "weights"))
    assert (fidelity.training["steps"], texture.training["steps"]) == (4, 8)
    assert not equal_states(fidelity.net.state_dict(), texture.net.state_dict())
    alone = RunPaths(data=photos, out=tmp_path / "alone")
    train(TINY, alone)
    assert equal_states(load_model(alone.weights).net.state_dict(), fidelity.net.state_dict())
    with (tmp_path / "log.csv").open(newline="") as file:
        first, last = csv.DictReader(file)
    assert first["discriminator"] == ""
    assert float(last["discriminator"]) > 0
    parts = sum(float(last[name]) for name in ("content", "pixel", "adversarial"))
    assert float(last["loss"]) == pytest.approx(parts, abs=1e-5)  # six decimals each


def test_busy_is_the_share_of_the_time_that_no_step_waited_for_data(tmp_path, photos, monkeypatch):
    take, score = PatchSampler.batch, train_module.score
    slow = 0.0

    def batch(*arguments, **options):
        time.sleep(slow)
        return take(*arguments, **options)

    monkeypatch.setattr(PatchSampler, "batch", batch)
    monkeypatch.setattr(train_module, "score", lambda *args: (time.sleep(1), score(*args))[1])
    shares = []
    for slow in (0.0, 0.2):
        train(TINY, RunPaths(data=photos, out=tmp_path / str(slow)), pace=Pace(evaluate=2))
        with (tmp_path / str(slow) / "log.csv").open(newline="") as file:
            shares.append([float(row["busy"]) for row in csv.DictReader(file)][-1])
    assert shares[0] > shares[1]
    assert shares[1] < 0.5  # the second of looking up does not count as work


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_run_starts_from_a_weights_file(tmp_path, photos, norm):
    small = {"channels": 8, "blocks": 1}
    net = build_network("srgan", small, deployed=True)
    before = {"steps": 7}
    save_weights(tmp_path / "start.safetensors", net, network="srgan", training=before)
    paths = RunPaths(data=photos, out=tmp_path / "out", start=tmp_path / "start.safetensors")
    config = replace(TINY, network="srgan", norm=norm, steps=1, ema=0.0, learning_rate=1e-9)
    if norm == "batch":
        with pytest.raises(ValueError, match="a network with batch norm starts from one with"):
            train(config, paths)
        return
    train(config, paths)
    assert load_model(paths.weights).training["start"]["training"] == before
    for name, value in load_model(paths.weights).net.state_dict().items():
        torch.testing.assert_close(value, net.state_dict()[name], rtol=0, atol=1e-6)


def test_a_resumed_run_remembers_where_it_began(tmp_path, photos):
    net = build_network("srgan-lite", {"channels": 8, "blocks": 1}, deployed=True)
    start = tmp_path / "start.safetensors"
    save_weights(start, net, network="srgan-lite", training={"steps": 7})
    stop_after(2, TINY, RunPaths(data=photos, out=tmp_path / "out", start=start))
    paths = RunPaths(data=photos, out=tmp_path / "out")
    train(TINY, paths, resume=True)
    assert load_model(paths.weights).training["start"]["training"] == {"steps": 7}


def test_half_precision_learns_too(tmp_path, photos):
    losses = train(replace(TINY, amp=True), RunPaths(data=photos, out=tmp_path / "half"))
    exact = train(TINY, RunPaths(data=photos, out=tmp_path / "exact"))
    assert losses != exact
    assert losses == pytest.approx(exact, rel=0.05)  # bfloat16 has 8 bits


def test_weights_of_another_network_are_no_start(tmp_path, photos):
    net = build_network("srcnn", {"channels": 8}, deployed=True)
    save_weights(tmp_path / "start.safetensors", net, network="srcnn", training={})
    paths = RunPaths(data=photos, out=tmp_path / "out", start=tmp_path / "start.safetensors")
    with pytest.raises(ValueError, match="is of srcnn, this run of srgan-lite"):
        train(TINY, paths)


# --- the two kinds of step ------------------------------------------------------------------------

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def gan():
    """A generator, an adversary with every kind of term, a batch."""
    net = build_network("srgan", {"channels": 8, "blocks": 1}).train()
    config = replace(
        TINY_GAN,
        network="srgan",
        content="vgg22",
        lpips_weight=1.0,
        grid_weight=1.0,
        crop=32,
        gan_learning_rate=1e-3,
    )
    torch.manual_seed(4)
    discriminator = DISCRIMINATORS["paper"](32, channels=4)
    shapes = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128)}
    weights = {}
    for index, (out, into) in shapes.items():
        weights[f"features.{index}.weight"] = torch.randn(out, into, 3, 3) * 0.1
        weights[f"features.{index}.bias"] = torch.zeros(out)
    vgg = FeatureNetwork("vgg19", weights, taps=[8], preprocessing=IMAGENET)
    seen = FeatureNetwork("vgg19", weights, taps=[1, 8], preprocessing=LPIPS_SCALING)
    lpips = LPIPS(seen, [torch.ones(1, 64, 1, 1), torch.ones(1, 128, 1, 1)])
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    adversary = Adversary(discriminator, optimizer, ContentFeatures(vgg, "VGG19"), lpips)
    return config, net, adversary, torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_the_lpips_term_is_of_the_network_that_was_asked_for(network, gan, monkeypatch):
    asked = {}

    def load(files, *, network):
        asked[network] = gan[2].lpips
        return gan[2].lpips

    monkeypatch.setattr("train.srgan.load_lpips", load)
    config = replace(TINY_GAN, crop=32, lpips_weight=1.0, lpips_network=network)
    assert make_adversary(config, [], ALONE).lpips is asked[network]
    assert make_adversary(replace(config, lpips_weight=0.0), [], ALONE).lpips is None


def test_the_lpips_term_over_both_networks_is_the_mean_of_the_two(gan, monkeypatch):
    seen = gan[2].lpips.features
    small, large = ([torch.full((1, c, 1, 1), s) for c in (64, 128)] for s in (1.0, 3.0))
    found = {"alex": LPIPS(seen, small), "vgg": LPIPS(seen, large)}
    monkeypatch.setattr("train.srgan.load_lpips", lambda _, *, network: found[network])
    config = replace(TINY_GAN, crop=32, lpips_weight=1.0, lpips_network="both")
    lpips = make_adversary(config, [], ALONE).lpips
    a, b = torch.rand(2, 2, 3, 32, 32)
    assert lpips(a, b).shape == (2,)
    torch.testing.assert_close(lpips(a, b), 2 * found["alex"](a, b))


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("term", ["pixel", "content", "lpips", "grid", "adversarial"])
def test_the_gradient_of_each_term_reaches_every_part_of_the_generator(gan, term):
    config, net, adversary, lr, hr = gan
    generator_terms(config, adversary, net(lr), hr)[term].backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_every_term_is_there_with_its_weight(gan):
    config, net, adversary, lr, hr = gan
    sr = net(lr).detach()
    torch.manual_seed(0)  # LPIPS is seen from a random place
    once = generator_terms(config, adversary, sr, hr)
    kinds = ("pixel", "content", "lpips", "grid", "adversarial")
    weights = tuple(f"{kind}_weight" for kind in kinds)
    double = replace(config, **{name: 2 * getattr(config, name) for name in weights})
    torch.manual_seed(0)
    twice = generator_terms(double, adversary, sr, hr)
    assert sorted(once) == sorted(kinds)
    for name, term in once.items():
        assert twice[name].item() == pytest.approx(2 * term.item())
    with pytest.raises(ValueError, match="every term of the generator's loss has the weight 0"):
        replace(config, **dict.fromkeys(weights, 0.0), content="none")


def test_a_step_of_the_discriminator_moves_it_and_nothing_else(gan):
    config, net, adversary, lr, hr = gan
    sr = net(lr)
    others = (net, adversary.content.network, adversary.lpips)
    before = [snapshot(module) for module in others]
    judge = snapshot(adversary.discriminator)
    terms = discriminator_step(replace(config, r1_weight=1.0), adversary, sr, hr, ALONE)
    assert terms["discriminator"] > 0
    assert terms["r1"] > 0
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(equal_states(snapshot(m), b) for m, b in zip(others, before, strict=True))
    after = snapshot(adversary.discriminator)
    assert all(not torch.equal(after[name], judge[name]) for name in judge if "weight" in name)


@pytest.mark.parametrize("name", ["paper", "unet"])
def test_the_discriminator_learns_which_are_the_photographs(gan, name):
    config, _, adversary, _, hr = gan
    torch.manual_seed(0)
    judge = DISCRIMINATORS[name](32, channels=4)
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
    adversary = replace(adversary, discriminator=judge, optimizer=optimizer)
    sr = hr.roll(1, 0) * 0.5
    for _ in range(20):
        told = discriminator_step(config, adversary, sr, hr, ALONE)
    with torch.no_grad():
        assert judge(hr).mean() > judge(sr).mean() + 0.1
    assert told["discriminator"] < 2 * np.log(2)  # that of one who guesses


def test_a_step_of_the_generator_moves_it_and_nothing_else(gan):
    config, net, adversary, lr, hr = gan
    (optimizer,) = make_optimizers(config, net, gan=True)
    others = (adversary.discriminator, adversary.content.network, adversary.lpips)
    before = [snapshot(module) for module in others]
    weights = snapshot(net)
    terms = generator_terms(config, adversary, net(lr), hr)
    sum(terms.values()).backward()
    optimizer.step()
    assert all(p.grad is None for module in others for p in module.parameters())
    assert all(equal_states(snapshot(m), b) for m, b in zip(others, before, strict=True))
    assert not torch.equal(net.state_dict()["tail.weight"], weights["tail.weight"])


def test_the_frozen_networks_stay_frozen_when_the_discriminator_thaws(gan):
    config, net, adversary, lr, hr = gan
    generator_terms(config, adversary, net(lr), hr)
    assert not any(p.requires_grad for p in adversary.discriminator.parameters())
    discriminator_step(config, adversary, net(lr), hr, ALONE)
    assert all(p.requires_grad for p in adversary.discriminator.parameters())
    assert not any(p.requires_grad for p in adversary.content.network.parameters())
    assert not adversary.content.network.training


def test_a_trained_generator_folds_to_the_same_outputs(tmp_path, photos):
    config = replace(TINY_GAN, network="srgan", ema=0.5, learning_rate=1e-2, optimizer="muon")
    paths = RunPaths(data=photos, out=tmp_path)
    train(config, paths)
    average = build_network("srgan", config.network_config())
    average.load_state_dict(load_checkpoint(paths.checkpoint)["average"])
    frames = torch.rand(1, 3, 9, 7)
    with torch.inference_mode():
        torch.testing.assert_close(
            load_model(paths.weights).net(frames), average.eval()(frames), rtol=0, atol=1e-4
        )


def test_the_signal_handlers_are_put_back_after_a_run(tmp_path, photos):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop_after(1, TINY, RunPaths(data=photos, out=tmp_path))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("network", ["srgan", "srgan-lite"])
def test_a_run_leaves_a_checkpoint_a_log_and_weights(tmp_path, photos, network):
    config = replace(TINY, network=network, crop=32)
    sets = tmp_path / "eval"
    (sets / "Two").mkdir(parents=True)
    for photo in sorted(photos.iterdir())[:2]:
        (sets / "Two" / photo.name).write_bytes(photo.read_bytes())
    paths = RunPaths(data=photos, out=tmp_path / "out", eval=sets)
    losses = train(config, paths, pace=Pace(evaluate=2, save=3), command="the command")
    assert sorted(path.name for path in paths.out.iterdir()) == [
        "checkpoint.pt",
        "log.csv",
        "weights.safetensors",
    ]

    state = torch.load(paths.checkpoint, weights_only=True)
    assert state["step"] == 4
    assert TrainConfig(**state["config"]) == config

    with (paths.out / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    for row, part in zip(rows, (losses[:2], losses[2:]), strict=True):
        assert float(row["loss"]) == pytest.approx(sum(part) / 2, abs=1e-6)  # six decimals

    model = load_model(paths.weights)
    assert (model.network, model.scale) == (network, 4)
    assert model.training["commands"] == ["the command"]
    assert model.training["data"] == f"{paths.data.name}, {len(find_photos(paths.data))} photos"
    assert model.training["steps"] == 4
    assert model.training["config"] == asdict(config)
    scores = model.training["scores"]["Two"]
    assert f"{scores['psnr_y']:.3f}" == rows[-1]["Two PSNR-Y"]
    assert 0 < scores["ssim_y"] < 1
    average = build_network(network, config.network_config())
    average.load_state_dict(state["average"])
    assert equal_states(model.net.state_dict(), fold(average).state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"degradation": "video"},
        {"candidates": 4},
        {"half_size": True},
        {"discriminator_channels": 8},
        {"spectral_norm": True},
        {"discriminator": "unet"},
        {"luma_weight": 1.0},
        {"loss": "l1"},
        {"optimizer": "muon"},
        {"norm": "batch", "network": "srgan"},
        {"adversarial_weight": 1.0},
        {"content_weight": 2.0},
        {"pixel_weight": 2.0},
        {"grid_weight": 1.0},
        {"r1_weight": 1.0},
        {"amp": True},
        {"gan_learning_rate": 1e-2},
        {"warmup_steps": 1},
        {"cooldown_steps": 0},
        {"ema": 0.0},
        {"seed": 1},
    ],
    ids=str,
)
def test_each_flag_makes_another_run(tmp_path, photos, changes):
    network = changes.get("network", "srgan-lite")
    base = replace(TINY_GAN, network=network, norm="none", warmup_steps=2)
    texts = []
    for index, config in enumerate((base, replace(base, **changes))):
        paths = RunPaths(data=photos, out=tmp_path / str(index))
        losses = train(config, paths)
        with (paths.out / "log.csv").open(newline="") as file:
            log = [{k: v for k, v in row.items() if k != "busy"} for row in csv.DictReader(file)]
        weights = load_model(paths.weights).net.state_dict()
        sums = {name: value.double().abs().sum().item() for name, value in weights.items()}
        texts.append(str((losses, log, sums)))
    assert texts[0] != texts[1]


def test_a_run_writes_curves_and_pictures_for_tensorboard(tmp_path, photos):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    arguments = [*TINY_ARGUMENTS, "--steps", "2", "--data", str(photos), "--out", str(tmp_path)]
    assert main([*arguments, "--eval-every", "1", "--tensorboard"]) == 0
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 2]
    assert [event.step for event in found.Images("input, output, original")] == [1, 2]
    picture = found.Images("input, output, original")[0]
    assert (picture.height, picture.width) == (2 * 16, 3 * 16)  # a row for each of two patches


def test_help_shows_three_worked_examples_that_the_command_line_takes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out.replace("\\\n", " ")
    commands = [line.split("train.srgan ", 1)[1] for line in text.splitlines()
                if line.strip().startswith("python -m train.srgan --")]  # fmt: skip
    assert len(commands) >= 3
    for command in commands:
        train_module.parser().parse_args(command.split())


@pytest.mark.parametrize("network", ["srgan", "srgan-lite"])
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_the_loss_falls_on_one_photo(tmp_path, photos, network, optimizer):
    (tmp_path / "one").mkdir()
    with Image.open(photos / "0.png") as photo:
        photo.resize((4, 4)).resize((16, 16)).save(tmp_path / "one" / "a.png")  # easy to learn
    config = replace(
        TINY,
        network=network,
        optimizer=optimizer,
        steps=80,
        batch=4,
        learning_rate=1e-2,
        warmup_steps=5,
        cooldown_steps=30,
    )
    losses = train(config, RunPaths(data=tmp_path / "one", out=tmp_path / "out"))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_run_tells_of_itself_ten_times(tmp_path, photos):
    paths = RunPaths(data=photos, out=tmp_path)
    train(replace(TINY, steps=20), paths)
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(2, 21, 2))


def test_without_averaging_the_average_is_the_network(tmp_path, photos):
    paths = RunPaths(data=photos, out=tmp_path)
    train(replace(TINY, network="srgan", ema=0.0), paths)
    state = load_checkpoint(paths.checkpoint)
    assert equal_states(state["average"], state["net"])


def test_a_run_that_diverges_says_so_and_keeps_the_last_good_checkpoint(tmp_path, photos):
    paths = RunPaths(data=photos, out=tmp_path)
    config = replace(TINY, steps=20, cooldown_steps=0)
    stop_after(2, config, paths)
    with pytest.raises(FloatingPointError, match=r"loss not finite at step \d+ \(pixel (inf|nan)"):
        train(replace(config, learning_rate=1e30), paths, resume=True)
    bad = safetensors.torch.load_file(tmp_path / "bad_batch.safetensors")
    assert bad["lr"].shape == (2, 3, 4, 4)
    assert bad["hr"].shape == (2, 3, 16, 16)
    state = load_checkpoint(paths.checkpoint)
    assert state["step"] == 2
    assert all(torch.isfinite(value).all() for value in state["net"].values())


def test_a_gradient_that_is_not_finite_moves_no_weight(tmp_path, photos, monkeypatch):
    paths = RunPaths(data=photos, out=tmp_path)
    count = 0

    def terms(*arguments):
        nonlocal count
        count += 1
        (found,) = generator_terms(*arguments).values()
        if count == 3:  # a finite loss whose gradient is not
            found = found + 0 * (found - found.detach()).sqrt()
        return {"pixel": found}

    monkeypatch.setattr(train_module, "generator_terms", terms)
    with pytest.raises(FloatingPointError, match=r"step 2 \(pixel 0\.\d+, gradient nan, loss"):
        train(TINY, paths, pace=Pace(save=1))
    state = load_checkpoint(paths.checkpoint)
    assert state["step"] == 2
    assert all(torch.isfinite(value).all() for value in state["net"].values())


def test_an_earlier_run_is_not_written_over(tmp_path, photos):
    paths = RunPaths(data=photos, out=tmp_path)
    train(replace(TINY, steps=1), paths)
    before = paths.checkpoint.read_bytes()
    with pytest.raises(FileExistsError, match="is of an earlier run: go on with it by --resume"):
        train(TINY, paths)
    assert paths.checkpoint.read_bytes() == before


@pytest.mark.parametrize("steps", [2, 12])
def test_a_stage_that_is_over_cannot_change_its_length(tmp_path, photos, steps):
    paths = RunPaths(data=photos, out=tmp_path)
    train(TINY_GAN, paths)
    with pytest.raises(ValueError, match=rf"at step 8 .* --steps 4: too late for --steps {steps}"):
        train(replace(TINY_GAN, steps=steps), paths, resume=True)


def test_a_log_takes_columns_that_come_later(tmp_path, photos):
    paths = RunPaths(data=photos, out=tmp_path / "out")
    train(replace(TINY, steps=1), paths)
    (tmp_path / "eval").mkdir()
    shutil.copytree(photos, tmp_path / "eval" / "Own")
    train(replace(TINY, steps=2), replace(paths, eval=tmp_path / "eval"), resume=True)
    with (paths.out / "log.csv").open(newline="") as file:
        first, last = csv.DictReader(file)
    assert (first["step"], first["Own PSNR-Y"]) == ("1", "")
    assert (last["step"], last["Own SSIM"] != "") == ("2", True)


def test_a_log_with_a_line_longer_than_its_columns_can_be_gone_on_with(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n2,0.4,30.1,0.8\n")
    Report(tmp_path, tensorboard=False, step=2).evaluation(3, {"loss": 0.3}, {}, busy=1.0)
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [(row["step"], row["loss"][:3]) for row in csv.DictReader(file)] == [
            ("1", "0.5"),
            ("2", "0.4"),
            ("3", "0.3"),
        ]


def test_a_log_forgets_what_a_crashed_run_told_of_steps_that_come_again(tmp_path, photos):
    paths = RunPaths(data=photos, out=tmp_path)
    train(TINY, paths, pace=Pace(evaluate=1))
    state = load_checkpoint(paths.checkpoint)
    with (tmp_path / "log.csv").open("a") as file:  # of steps after the last checkpoint
        file.write("5,0.1\n6,0.1\n")
    train(replace(TINY, steps=6), paths, resume=True, pace=Pace(evaluate=1))
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert state["step"] == 4
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert all(row["busy"] for row in rows)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), r"Own/1\.png: .*truncated"),
        (lambda path: Image.new("RGB", (18, 40)).save(path), r"Own/1\.png: 16x40 is too small"),
    ],
)
def test_a_picture_that_cannot_be_scored_is_named_before_the_first_step(
    tmp_path, photos, spoil, message
):
    shutil.copytree(photos, tmp_path / "eval" / "Own")
    spoil(tmp_path / "eval" / "Own" / "1.png")
    with pytest.raises(ValueError, match=message):
        train(TINY, RunPaths(data=photos, out=tmp_path / "out", eval=tmp_path / "eval"))
    assert not (tmp_path / "out").exists()


def test_fidelity_weights_are_of_the_end_of_their_stage_after_a_crash_too(tmp_path, photos):
    shutil.copytree(photos, tmp_path / "eval" / "Own")
    paths = RunPaths(data=photos, out=tmp_path / "out", eval=tmp_path / "eval")
    train(TINY, paths)
    expected = load_model(paths.weights).training["scores"]
    paths.weights.unlink()  # nothing was published, or of another step
    train(TINY_GAN, paths, resume=True)
    fidelity = load_model(paths.fidelity).training
    assert (fidelity["steps"], fidelity["scores"]) == (4, expected)
    assert load_model(paths.weights).training["steps"] == 8


def test_a_run_stopped_where_it_is_evaluated_is_evaluated_once(tmp_path, photos):
    paths = RunPaths(data=photos, out=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.srgan.Pace", lambda: Pace(evaluate=2))
        stop_after(2, TINY, paths)
    with (paths.out / "log.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2"]


def test_a_run_that_died_in_its_last_evaluation_gets_its_weights_by_resuming(
    tmp_path, photos, monkeypatch
):
    shutil.copytree(photos, tmp_path / "eval" / "Own")
    paths = RunPaths(data=photos, out=tmp_path / "out", eval=tmp_path / "eval")

    looks = 0

    def look(*arguments):
        nonlocal looks
        looks += 1
        if looks == 2:
            raise KeyboardInterrupt
        return score(*arguments)

    pace = Pace(evaluate=2)
    monkeypatch.setattr("train.srgan.score", look)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, paths, pace=pace)
    assert load_model(paths.weights).training["steps"] == 2
    assert load_checkpoint(paths.checkpoint)["step"] == 4
    assert train(TINY, paths, pace=pace, resume=True) == []
    assert load_model(paths.weights).training["steps"] == 4
    before = paths.weights.stat().st_mtime_ns
    assert train(TINY, paths, pace=pace, resume=True) == []
    assert paths.weights.stat().st_mtime_ns == before  # nothing is left to do
    with (paths.out / "log.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4"]


def test_weights_of_an_earlier_run_are_replaced(tmp_path, photos):
    paths = RunPaths(data=photos, out=tmp_path)
    train(TINY, paths)
    paths.checkpoint.unlink()
    train(replace(TINY, seed=5), paths)
    assert load_model(paths.weights).training["config"]["seed"] == 5


def test_an_evaluation_after_the_last_checkpoint_is_told_of_again(tmp_path, photos):
    paths, config = RunPaths(data=photos, out=tmp_path), replace(TINY, steps=12)
    pace = Pace(evaluate=3, save=5)
    crash_in(8, config, paths, pace)
    train(config, paths, pace=pace, resume=True)
    with (paths.out / "log.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "6", "9", "12"]


def test_pictures_of_the_test_sets_are_not_trained_on(tmp_path, photos):
    shutil.copytree(photos, tmp_path / "all" / "train")
    shutil.copytree(photos, tmp_path / "all" / "eval" / "Own")
    (tmp_path / "link").symlink_to(tmp_path / "all")
    for data in ("all", "link"):
        paths = RunPaths(tmp_path / data, tmp_path / "out", eval=tmp_path / "all" / "eval")
        with pytest.raises(ValueError, match=r"3 pictures of the test sets are below --data too"):
            train(TINY, paths)
    assert not (tmp_path / "out").exists()
    train(TINY, RunPaths(tmp_path / "all" / "train", paths.out, eval=paths.eval))


@pytest.mark.skipif(sys.platform == "win32", reason="the limit on a file's size is POSIX's")
def test_a_checkpoint_that_the_disk_does_not_take_is_one_line(tmp_path, photos):
    code = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    code += "from train.srgan import main; sys.exit(main())"
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, "--data", str(photos), "--out", str(out)]
    done = subprocess.run(
        [*command, *TINY_ARGUMENTS, "--steps", "2"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "checkpoint.pt cannot be written" in done.stderr.splitlines()[-1]
    assert not list(out.glob("checkpoint*"))


def test_a_run_is_scored_where_its_network_is(photos, monkeypatch):
    devices = set()

    class Elsewhere(torch.nn.Module):
        def to(self, device):
            devices.add(("network", device))
            return self

        def forward(self, lr):
            devices.add(("input", lr.device.type))
            return torch.zeros(1, 3, 48, 48)

    def lpips(sr, hr):
        devices.update({("result", sr.device.type), ("original", hr.device.type)})
        return torch.zeros(1)

    net = build_network("srgan-lite", {"channels": 8, "blocks": 1}).to("meta")
    monkeypatch.setattr("train.metrics.fold", lambda net: Elsewhere())
    result = score(net, [photos], lpips)[photos.name]
    meta = torch.device("meta")
    assert devices == {
        ("network", meta),
        ("input", "meta"),
        ("result", "meta"),
        ("original", "meta"),
    }
    assert result.lpips == 0


@pytest.mark.parametrize(
    ("network", "form"), [("srgan-lite", "LiteGenerator"), ("srgan", "LowTail")]
)
def test_both_networks_are_compiled_but_the_discriminator_not_with_r1(
    tmp_path, photos, monkeypatch, network, form
):
    compiled = []

    def compile_as_it_is(call, *arguments, **options):
        compiled.append(type(call.__self__).__name__)
        return call

    monkeypatch.setattr(torch, "compile", compile_as_it_is)
    tiny = replace(TINY_GAN, network=network, channels=4, blocks=1, norm="none")
    config = replace(tiny, compile=True)
    plain = train(tiny, RunPaths(data=photos, out=tmp_path / "plain"))
    assert train(config, RunPaths(data=photos, out=tmp_path / "both")) == plain
    assert compiled == [form, "Discriminator"]
    compiled.clear()
    train(replace(config, r1_weight=1.0), RunPaths(data=photos, out=tmp_path / "r1"))
    assert compiled == [form]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "srgan"}, "is of .*'network': 'srgan-lite'.* this run of .*'srgan'"),
        ({"channels": 12}, "is of .*'channels': 8.* this run of .*'channels': 12"),
        ({"optimizer": "muon"}, "is of .*'optimizer': 'adam'.* this run of .*'muon'"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(tmp_path, photos, change, message):
    paths = RunPaths(data=photos, out=tmp_path)
    train(replace(TINY, steps=1), paths)
    with pytest.raises(ValueError, match=message):
        train(replace(TINY, **change), paths, resume=True)


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    torch.save({"version": 99}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt has version 99, expected 2"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a checkpoint of train\.srgan"):
        load_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a checkpoint of train\.srgan"):
        load_checkpoint(tmp_path / "checkpoint.pt")


# --- command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps and gan_steps are both 0"),
        (["--gan-steps", "1"], "content loss vgg54 needs VGG19 as far as conv5_4"),
        (["--gan-steps", "1", "--content", "none"], "LPIPS-vgg needs vgg16"),
        ([*MSE_ALONE, "--crop", "24"], "crops divisible by 16, got 24"),
        (["--features", "absent"], "feature network absent does not exist"),
        (["--start", "absent"], "no model or weights file 'absent'"),
        (["--channels", "0"], "channels must be at least 1, got 0"),
        (["--crop", "30"], "crop must be a multiple of the scale 4, got 30"),
        (["--crop", "64"], "no photo could be read that holds a crop of 64x64"),
        (["--data", "absent"], "photo folder absent does not exist"),
        (["--eval", "absent"], "folder of test sets absent does not exist"),
        (["--eval", str(REPOSITORY / "engines")], "no photos below"),
        (["--system", "srgan-mse"], "srgan-mse has a GAN stage and this run none"),
        (["--eval-every", "0"], "eval_every must be at least 1, got 0"),
        (["--save-every", "0"], "save_every must be at least 1, got 0"),
        (["--resume"], "No such file or directory"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_exit_code_1(
    tmp_path, photos, caplog, monkeypatch, arguments, message
):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)  # as if not installed
    common = ["--recipe", "cpu", "--crop", "16", "--content", "vgg54"]
    common += ["--data", str(photos), "--out", str(tmp_path / "out")]
    assert main([*common, *arguments]) == 1
    (line,) = (r.getMessage() for r in caplog.records if r.levelno == logging.ERROR)
    assert line.startswith("train.srgan: error: ")
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "esrgan"], "invalid choice: 'esrgan'"),
        (["--loss", "l3"], "invalid choice: 'l3'"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_wrong_usage_is_exit_code_2(tmp_path, photos, capsys, arguments, message):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--data", str(photos), "--out", str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_resuming_takes_the_checkpoints_configuration_unless_told(tmp_path, photos):
    common = ["--data", str(photos), "--out", str(tmp_path)]
    assert main([*common, *TINY_ARGUMENTS, "--steps", "2", "--optimizer", "muon"]) == 0
    assert main([*common, "--resume", "--steps", "3"]) == 0
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["step"] == 3
    assert state["config"] == asdict(
        TrainConfig(
            network="srgan-lite",
            channels=8,
            blocks=1,
            steps=3,
            gan_steps=0,
            batch=2,
            crop=16,
            optimizer="muon",
        )
    )
    first, second = load_model(tmp_path / "weights.safetensors").training["commands"]
    assert first.startswith("python -m train.srgan --data ")
    assert first.endswith("--steps 2 --optimizer muon")
    assert second.endswith("--resume --steps 3")


def test_the_account_of_weights_does_not_tell_where_folders_lie(tmp_path):
    argv = ["--data", str(tmp_path / "photos"), f"--out={tmp_path / 'a b'}", "--steps", "2"]
    argv += ["--eval", "../sets", "--resume"]
    assert describe_command("train.srgan", argv) == (
        "python -m train.srgan --data photos '--out=a b' --steps 2 --eval ../sets --resume"
    )


def test_ctrl_c_keeps_a_checkpoint_and_exits_cleanly(tmp_path, photos):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "train.srgan", "--data", str(photos), "--out", str(out)]
    command += [*TINY_ARGUMENTS, "--steps", "10000000", "--save-every", "1"]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not (out / "checkpoint.pt").exists() and process.poll() is None:
                assert time.monotonic() < deadline, "no checkpoint within a minute"
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "train.srgan: interrupted; --resume goes on"
    step = load_checkpoint(out / "checkpoint.pt")["step"]
    assert 0 < step < 10_000_000
    assert load_model(out / "weights.safetensors").training["steps"] == step
    assert not list(out.glob("*.partial"))
