"""What ships: each built-in model has its card, and the README's numbers are those of the JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.weights import BUILT_IN, load_model

ROOT = Path(__file__).parents[1]
QUALITY = ROOT / "benchmarks" / "results" / "quality.json"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_model_has_a_card_and_an_account_of_its_training(name):
    card = (ROOT / "engines" / "weights" / f"{name}.md").read_text()
    training = load_model(name).training
    assert {"commands", "data", "steps", "commit", "config", "scores"} <= training.keys()
    assert f"{training['steps']:,}" in card
    for score in training["scores"].values():
        assert f"{score['psnr_y']:.2f}" in card


def test_the_published_quality_is_that_of_the_shipped_weights():
    rows = {row["name"]: row for row in json.loads(QUALITY.read_text())["rows"]}
    readme = (ROOT / "README.md").read_text()
    for name in BUILT_IN:
        assert rows[name]["sha256"] == BUILT_IN[name].sha256
    for row in rows.values():
        for score in row["scores"].values():
            assert f"{score['psnr_y']:.2f} / {score['ssim_y']:.4f}" in readme
