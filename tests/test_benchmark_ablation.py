from __future__ import annotations

import importlib
import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.weights import load_model
from train.config import TrainConfig
from train.srgan import generator_terms

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def ablation(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("ablation")


@pytest.fixture
def folders(ablation, tmp_path):
    """The arguments that name a photo, two sets of one picture, and the feature networks."""
    features = ablation.SHARED / "perceptual"
    if not features.is_dir():
        pytest.skip("the feature networks are not beside the checkout")
    rng = np.random.default_rng(0)
    for name, side in (("data", 112), ("eval/Set5", 72), ("eval/Set14", 72)):
        (tmp_path / name).mkdir(parents=True)
        noise = rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        picture = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(tmp_path / name / "a.png")
    named = {name: str(tmp_path / name) for name in ("data", "eval", "out")} | {
        "features": str(features)
    }
    return [part for name, value in named.items() for part in (f"--{name}", value)]


def test_every_variant_is_trained_scored_and_not_trained_twice(
    ablation, folders, tmp_path, capsys, monkeypatch
):
    few = {
        "fidelity": {"the recipe": {}, "--ema 0": {"ema": 0.0}},
        "gan": {"the recipe": {}, "--lpips-network alex": {"lpips_network": "alex"}},
    }
    monkeypatch.setattr(ablation, "VARIANTS", few)
    assert ablation.main([*folders, "--smoke", "--json", str(tmp_path / "a.json")]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert json.loads((tmp_path / "a.json").read_text()) == document
    assert [(row["stage"], row["flag"]) for row in document["rows"]] == [
        (stage, flag) for stage, flags in few.items() for flag in flags
    ]
    scores = [tuple(row[name] for name in ablation.COLUMNS) for row in document["rows"]]
    assert len(set(scores)) == len(scores)  # each flag reaches the training
    assert not [path for path in (tmp_path / "out").iterdir() if path.name != "smoke"]
    monkeypatch.setattr(ablation, "train", None)
    assert ablation.main([*folders, "--smoke"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == document["rows"]


def test_a_run_cut_short_is_gone_on_with_and_one_of_other_settings_is_refused(
    ablation, folders, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(ablation, "VARIANTS", {"fidelity": {"the recipe": {}}})
    monkeypatch.setattr(ablation, "FIDELITY", replace(ablation.FIDELITY, crop=32, batch=1))

    def interrupt(*arguments):
        signal.raise_signal(signal.SIGINT)
        return generator_terms(*arguments)

    arguments = [*folders, "--steps", "2", "--gan-steps", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.srgan.generator_terms", interrupt)
        assert ablation.main(arguments) == 130
    weights = tmp_path / "out" / "fidelity_the_recipe" / "weights.safetensors"
    assert load_model(weights).training["steps"] == 1
    assert ablation.main(arguments) == 0
    assert load_model(weights).training["steps"] == 2
    capsys.readouterr()
    arguments[-3] = "3"
    assert ablation.main(arguments) == 1
    assert "holds a run with other settings" in capsys.readouterr().err


def test_each_variant_is_one_flag_of_the_trainer(ablation):
    for stage, base in (("fidelity", ablation.FIDELITY), ("gan", ablation.GAN)):
        first, *others = ablation.VARIANTS[stage].items()
        assert first == ("the recipe", {})
        for flag, changes in others:
            name = flag.split()[0].removeprefix("--").replace("-", "_")
            assert name in changes
            assert all(getattr(base, field) != value for field, value in changes.items())
            assert TrainConfig(**changes)


def test_a_missing_folder_is_one_line(ablation, tmp_path, capsys):
    assert ablation.main(["--eval", str(tmp_path / "none"), "--smoke"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("ablation: error: ")
    assert message.count("\n") == 1
