from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from train.checkpoint import load_checkpoint
from train.parallel import World

REPOSITORY = Path(__file__).parents[1]

# float32 sums in another order, three steps of Adam
TOLERANCE = 1e-5


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


def test_two_processes_learn_what_one_learns_from_the_joint_batch(tmp_path, photos):
    arguments = ["-m", "train.srgan", "--network", "srgan-lite", "--channels", "8", "--blocks", "1"]
    arguments += ["--steps", "2", "--gan-steps", "1", "--content", "mse", "--batch", "4"]
    arguments += ["--crop", "16", "--learning-rate", "1e-3", "--spectral-norm"]
    arguments += ["--discriminator-channels", "4", "--data", str(photos), "--out"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, prefix in (("one", []), ("two", torchrun)):
        command = [sys.executable, *prefix, *arguments, str(tmp_path / name)]
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
    one, two = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    assert one["step"] == two["step"] == 3
    assert one["config"] == two["config"]
    for part in ("net", "average", "discriminator"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=0, atol=TOLERANCE)
