from __future__ import annotations

import csv
import logging
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engines.networks import build_network, fold
from engines.weights import load_model
from train.data import find_photos
from train.srgan import (
    RunPaths,
    TrainConfig,
    load_checkpoint,
    main,
    make_optimizers,
    pixel_loss,
    train,
    update_average,
)

REPOSITORY = Path(__file__).parents[1]

# one multiplication and one addition in float32
LERP_TOLERANCE = 1e-6

TINY = TrainConfig(
    channels=8, blocks=1, steps=4, batch=2, crop=16, warmup_steps=3, cooldown_steps=2
)
TINY_ARGUMENTS = ["--channels", "8", "--blocks", "1", "--batch", "2", "--crop", "16"]


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
    config = TrainConfig(steps=10, warmup_steps=4, cooldown_steps=3)
    assert [config.rate_at(step) for step in range(10)] == pytest.approx(
        [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]
    )


def test_the_rate_is_constant_without_warm_up_and_cool_down():
    config = TrainConfig(steps=5, warmup_steps=0, cooldown_steps=0)
    assert [config.rate_at(step) for step in range(5)] == [1.0] * 5


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("network", "esrgan", "unknown network 'esrgan'; known: srgan, srgan-lite"),
        ("steps", 0, "steps must be at least 1, got 0"),
        ("batch", -2, "batch must be at least 1, got -2"),
        ("crop", 0, "crop must be at least 1, got 0"),
        ("warmup_steps", -1, "warmup_steps must not be negative, got -1"),
        ("cooldown_steps", -1, "cooldown_steps must not be negative, got -1"),
        ("learning_rate", 0.0, r"learning_rate must be above 0, got 0\.0"),
        ("learning_rate", float("nan"), "learning_rate must be above 0, got nan"),
        ("ema", 1.0, r"ema must be in \[0, 1\), got 1\.0"),
    ],
)
def test_a_bad_configuration_is_refused_with_both_numbers(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


# --- the parts ------------------------------------------------------------------------------------


def test_the_losses_are_the_mean_differences():
    sr, hr = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
    assert pixel_loss("l1", sr, hr).item() == 0.5
    assert pixel_loss("mse", sr, hr).item() == 0.25


def test_the_luma_share_sees_luma_and_not_chroma():
    hr = torch.full((1, 3, 2, 2), 0.5)
    # red up and blue down so that Y stays: 0.299 * 0.114 against 0.114 * 0.299
    chroma = hr + torch.tensor([0.114, 0.0, -0.299]).view(1, 3, 1, 1)
    assert pixel_loss("l1", chroma, hr, luma_weight=1.0).item() == pytest.approx(0, abs=1e-7)
    grey = pixel_loss("l1", hr + 0.1, hr, luma_weight=1.0).item()
    assert grey == pytest.approx(0.1, abs=1e-6)
    half = pixel_loss("l1", chroma, hr, luma_weight=0.5).item()
    assert half == pytest.approx((0.114 + 0.299) / 3 / 2, abs=1e-6)


@pytest.mark.parametrize("network", ["srgan", "srgan-lite"])
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_every_parameter_has_exactly_one_optimizer(network, optimizer):
    net = build_network(network, {"channels": 8, "blocks": 1})
    optimizers = make_optimizers(replace(TINY, optimizer=optimizer), net)
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
    """Train and ask it to stop, as Ctrl-C does, while the given step is computed."""
    calls = 0

    def interrupt(name, sr, hr, **options):
        nonlocal calls
        calls += 1
        if calls == steps:
            signal.raise_signal(signal.SIGINT)
        return pixel_loss(name, sr, hr, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.srgan.pixel_loss", interrupt)
        return train(config, paths)


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
    losses = train(config, paths, eval_every=2, save_every=3, command="the command")
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


def test_without_averaging_the_average_is_the_network(tmp_path, photos):
    paths = RunPaths(data=photos, out=tmp_path)
    train(replace(TINY, network="srgan", ema=0.0), paths)
    state = load_checkpoint(paths.checkpoint)
    assert equal_states(state["average"], state["net"])


def test_a_run_that_diverges_says_so_and_keeps_the_last_good_checkpoint(tmp_path, photos):
    paths = RunPaths(data=photos, out=tmp_path)
    config = replace(TINY, steps=20, cooldown_steps=0)
    stop_after(2, config, paths)
    with pytest.raises(FloatingPointError, match=r"the loss is (inf|nan) at step \d+"):
        train(replace(config, learning_rate=1e30), paths, resume=True)
    state = load_checkpoint(paths.checkpoint)
    assert state["step"] == 2
    assert all(torch.isfinite(value).all() for value in state["net"].values())


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
    with pytest.raises(ValueError, match=r"checkpoint\.pt has version 99, expected 1"):
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
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--channels", "0"], "channels must be at least 1, got 0"),
        (["--crop", "30"], "crop must be a multiple of the scale 4, got 30"),
        (["--crop", "64"], "no photo could be read that holds a crop of 64x64"),
        (["--data", "absent"], "photo folder absent does not exist"),
        (["--eval", "absent"], "folder of test sets absent does not exist"),
        (["--eval-every", "0"], "eval_every must be at least 1, got 0"),
        (["--save-every", "0"], "save_every must be at least 1, got 0"),
        (["--resume"], "No such file or directory"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_exit_code_1(
    tmp_path, photos, caplog, arguments, message
):
    assert main(["--data", str(photos), "--out", str(tmp_path / "out"), *arguments]) == 1
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
        TrainConfig(channels=8, blocks=1, steps=3, batch=2, crop=16, optimizer="muon")
    )
    first, second = load_model(tmp_path / "weights.safetensors").training["commands"]
    assert first.startswith("python -m train.srgan --data ")
    assert first.endswith("--steps 2 --optimizer muon")
    assert second.endswith("--resume --steps 3")


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
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    step = load_checkpoint(out / "checkpoint.pt")["step"]
    assert 0 < step < 10_000_000
    assert load_model(out / "weights.safetensors").training["steps"] == step
    assert not list(out.glob("*.partial"))
