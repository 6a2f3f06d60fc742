from __future__ import annotations

import re

import numpy as np
import torch
from PIL import Image

from engines.networks import build_network
from engines.weights import load_model, save_weights
from train.average import main, mean_network


def save(path, seed, **config):
    torch.manual_seed(seed)
    net = build_network("srgan-lite", {"channels": 4, "blocks": 1, **config}, deployed=True)
    save_weights(
        path, net, network="srgan-lite", training={"steps": seed, "data": "photos, 1 photos"}
    )
    return net


def test_the_mean_of_weights_is_scored_and_keeps_the_account_of_each(tmp_path):
    nets = [save(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2, 6)]
    (tmp_path / "sets" / "Mine").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "sets" / "Mine" / "a.png")
    files = [str(tmp_path / f"{seed}.safetensors") for seed in (1, 2, 6)]
    out = tmp_path / "mean.safetensors"
    assert main([*files, "--out", str(out), "--eval", str(tmp_path / "sets")]) == 0
    mean = load_model(out)
    for name, value in mean.net.state_dict().items():
        expected = sum(net.state_dict()[name] for net in nets) / 3
        torch.testing.assert_close(value, expected)
    accounts = mean.training["mean_of"]
    assert [account["training"]["steps"] for account in accounts] == [1, 2, 6]
    assert [account["sha256"] for account in accounts] == [load_model(f).sha256 for f in files]
    assert (mean.training["steps"], mean.training["data"]) == (6, "photos, 1 photos")
    assert 0 < mean.training["scores"]["Mine"]["psnr_y"] < 60


def test_the_weights_that_a_mean_is_of_stay_as_they_are(tmp_path):
    nets = [save(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    models = [load_model(tmp_path / f"{seed}.safetensors") for seed in (1, 2)]
    mean = mean_network(models).net.state_dict()
    for net, model in zip(nets, models, strict=True):
        for name, value in model.net.state_dict().items():
            assert torch.equal(value, net.state_dict()[name])
    assert any(not torch.equal(mean[n], value) for n, value in nets[0].state_dict().items())


def test_what_has_no_mean_is_one_line(tmp_path, caplog):
    save(tmp_path / "a.safetensors", 1)
    save(tmp_path / "b.safetensors", 2, blocks=2)
    out = tmp_path / "mean.safetensors"
    for names, message in (
        (["a"], "a mean takes two files or more"),
        (["a", "b"], r"b is of srgan-lite \(.*blocks=2.*\), a of srgan-lite"),
        (["a", "c"], "no model or weights file"),
    ):
        files = [str(tmp_path / f"{name}.safetensors") for name in names]
        assert main([*files, "--out", str(out)]) == 1
        (record,) = caplog.records
        assert re.search(message, record.getMessage())
        caplog.clear()
    assert not out.exists()
