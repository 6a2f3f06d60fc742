from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from test_perceptual import random_alexnet

from engines.networks import build_network
from train.checkpoint import load_checkpoint
from train.config import TrainConfig
from train.discriminator import Discriminator
from train.parallel import World, join_world
from train.report import TERMS
from train.srgan import Adversary, RunPaths, check_finite, generator_terms, placed, train

REPOSITORY = Path(__file__).parents[1]

# float32 sums in another order, three steps of Adam
TOLERANCE = 1e-5
# the same, of one backward pass
GRADIENT_TOLERANCE = 1e-7


def test_one_process_is_its_own_mean():
    world = World(0, 1, torch.device("cpu"))
    net = torch.nn.Linear(2, 2)
    net(torch.ones(1, 2)).sum().backward()
    before = net.weight.grad.clone()
    world.average_gradients(net)
    assert torch.equal(net.weight.grad, before)
    assert world.is_first
    assert world.any(True)
    assert not world.any(False)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(2):
        noise = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(noise).resize((48, 48), Image.Resampling.BICUBIC).save(
            folder / f"{seed}.png"
        )
    return folder


def differentiate(rank, size, folder, port):
    """Compute one process's gradients of its part of a batch, and their mean over the processes."""
    torch.set_num_threads(1)
    if size > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    world = join_world()
    torch.manual_seed(0)
    config = TrainConfig(network="srgan-lite", channels=8, blocks=1, pixel_weight=1, content="mse")
    net = build_network("srgan-lite", config.network_config())
    adversary = Adversary(Discriminator(16, channels=4, spectral_norm=True), None, None, None)
    lr, hr = (torch.rand(4, 3, side, side)[rank::size] for side in (4, 16))
    sum(generator_terms(config, adversary, net(lr), hr).values()).backward()
    world.average_gradients(net)
    if world.is_first:
        torch.save([p.grad for p in net.parameters()], folder / f"{size}.pt")
    world.leave()


def test_the_gradients_of_two_processes_are_those_of_the_joint_batch(tmp_path):
    differentiate(0, 1, tmp_path, None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(differentiate, (2, tmp_path, port), nprocs=2)
    one, two = (torch.load(tmp_path / f"{size}.pt") for size in (1, 2))
    assert all(gradient.abs().max() > 100 * GRADIENT_TOLERANCE for gradient in one)
    for ours, expected in zip(two, one, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=GRADIENT_TOLERANCE)


def test_batch_norm_is_refused_where_processes_cannot_share_its_statistics():
    world = World(0, 2, torch.device("cpu"))
    with pytest.raises(ValueError, match="batch norm over several processes needs GPUs"):
        placed(build_network("srgan", {"channels": 8, "blocks": 1}), world, TrainConfig())
    deployed = build_network("srgan", {"channels": 8, "blocks": 1}, deployed=True)
    assert placed(deployed, world, TrainConfig()) is deployed


def test_a_batch_that_does_not_divide_is_refused(tmp_path, photos, monkeypatch):
    world, left = World(0, 3, torch.device("cpu")), []
    monkeypatch.setattr("train.srgan.join_world", lambda: world)
    monkeypatch.setattr(World, "leave", lambda self: left.append(self))
    with pytest.raises(ValueError, match="a batch of 16 does not divide among 3 processes"):
        train(TrainConfig(), RunPaths(data=photos, out=tmp_path / "out"))
    assert left == [world]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bad_loss_in_one_process_stops_all(tmp_path, monkeypatch, rank):
    monkeypatch.setattr(World, "any", lambda self, flag: True)
    world, batch = World(rank, 2, torch.device("cpu")), (torch.zeros(1), torch.ones(1))
    told = {"pixel": (float("nan"), 1.0)[rank], "gradient": 1.0}
    paths = RunPaths(data=tmp_path, out=tmp_path)
    message = ("pixel nan, gradient .*bad_batch.safetensors", "in another process")[rank]
    with pytest.raises(FloatingPointError, match=f"loss not finite at step 5 .*{message}"):
        check_finite(told, batch, paths, world, 5)
    assert (tmp_path / "bad_batch.safetensors").exists() == (rank == 0)


@pytest.fixture
def features(tmp_path):
    """A folder of feature networks that nobody trained: AlexNet, and the heads of LPIPS over it."""
    folder = tmp_path / "features"
    folder.mkdir()
    body = random_alexnet()
    widths = [len(body[f"features.{index}.bias"]) for index in (0, 3, 6, 8, 10)]
    heads = {
        f"alex.lin{number}.model.1.weight": torch.ones(1, width, 1, 1) / width
        for number, width in enumerate(widths)
    }
    safetensors.torch.save_file(body, folder / "alexnet.safetensors")
    safetensors.torch.save_file(heads, folder / "heads.safetensors")
    return folder


def test_two_processes_learn_what_one_learns_from_the_joint_batch(tmp_path, photos, features):
    """With every term that needs no VGG, and a look at the first of them after each step."""
    arguments = ["-m", "train.srgan", "--network", "srgan-lite", "--channels", "8", "--blocks", "1"]
    arguments += ["--steps", "2", "--gan-steps", "3", "--content", "mse", "--batch", "4"]
    arguments += ["--crop", "48", "--learning-rate", "1e-3", "--spectral-norm", "--eval-every", "1"]
    arguments += ["--lpips-weight", "1", "--grid-weight", "1", "--r1-weight", "0.1"]
    arguments += ["--features", str(features), "--discriminator-channels", "4"]
    arguments += ["--data", str(photos), "--out"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, prefix in (("one", []), ("two", torchrun)):
        command = [sys.executable, *prefix, *arguments, str(tmp_path / name)]
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
    with (tmp_path / "one" / "log.csv").open() as a, (tmp_path / "two" / "log.csv").open() as b:
        rows = [*csv.DictReader(a)], [*csv.DictReader(b)]
    for one, two in zip(*rows, strict=True):  # the losses of all processes, not of the first
        for name in TERMS:
            assert float(two[name] or 0) == pytest.approx(float(one[name] or 0), abs=2e-6)
    assert all(float(rows[0][-1][name] or 0) > 0 for name in TERMS if name != "pixel")
    one, two = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    assert one["step"] == two["step"] == 5
    assert one["config"] == two["config"]
    for part in ("net", "average", "discriminator"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=0, atol=TOLERANCE)
