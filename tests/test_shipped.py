"""What ships: each built-in model has its card, and the README's numbers are those of the JSON."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from engines import create_engine
from engines.int8 import INT8_FLAGS, cpu_flags
from engines.weights import BUILT_IN, load_model

ROOT = Path(__file__).parents[1]
MOST_LEVELS = {0: 6, 1: 26}  # by texture
QUALITY = ROOT / "benchmarks" / "results" / "quality.json"


ENDS = [
    (name, texture)
    for name, built_in in BUILT_IN.items()
    for texture in ((0, 1) if built_in.texture_file else (0,))
]


@pytest.mark.parametrize(("name", "texture"), ENDS)
def test_a_built_in_model_has_a_card_and_an_account_of_its_training(name, texture):
    card = " ".join((ROOT / "engines" / "weights" / f"{name}.md").read_text().split())
    training = load_model(name, texture=texture).training
    assert {"commands", "data", "steps", "commit", "config", "scores"} <= training.keys()
    assert f"{training['steps']:,} steps" in card
    for score in training["scores"].values():
        assert f"{score['psnr_y']:.2f}" in card
        if score["lpips"] is not None:
            assert f"{score['lpips']:.3f}" in card


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("engines/weights/*.safetensors"), *ROOT.glob("benchmarks/baselines/*.safetensors")],
    ids=lambda path: path.name,
)
def test_no_account_tells_where_files_lay_on_the_machine_that_trained(path):
    with safe_open(path, "pt") as file:
        account = json.dumps(file.metadata())
    assert not re.search(r"""(^|[\s"'=])(/|~/|[A-Z]:)[\w.]""", account)


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_step_was_made_on_the_folder_of_photos(name):
    for texture in (0, 1):
        training = load_model(name, texture=texture).training
        while training:
            assert training["data"].startswith("photos, ")
            training = (training.get("start") or {}).get("training")


CORNERS = [*itertools.product((0, 255), repeat=3)]
BAR = 12  # pixels of the input


def worst_colour(upscale: Callable[[Tensor], Tensor]) -> float:
    """How far, in levels, bars in the corners of the RGB cube come out from what they are.

    Each corner is beside each other one; what is within 4 pixels of the input of an edge, or 8 of
    the picture's, is not looked at.
    """
    colours = [colour for pair in itertools.combinations(CORNERS, 2) for colour in pair]
    bars = torch.tensor(colours, dtype=torch.float32).T / 255
    frame = bars[None, :, None, :, None].expand(1, 3, 24, -1, BAR).flatten(3).contiguous()
    result = upscale(frame).clamp(0, 1)
    parts = result.unflatten(3, (len(colours), 4 * BAR))[:, :, 32:-32, :, 16:-16]
    return float((parts - bars[None, :, None, :, None]).abs().max() * 255)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("name", "texture"), ENDS)
def test_screens_and_slides_keep_their_colours(name, texture, precision):
    """A network that has seen photographs alone makes black and white patterns of a flat blue."""
    model = load_model(name, texture=texture)
    if precision == "int8" and not cpu_flags() & INT8_FLAGS:
        pytest.skip("a CPU without VNNI and AMX")
    with closing(create_engine(model, backend="openvino", precision=precision)) as engine:
        assert worst_colour(engine) <= MOST_LEVELS[texture]


def test_the_published_quality_is_that_of_the_shipped_weights():
    document = json.loads(QUALITY.read_text())
    rows = {row["name"]: row for row in document["rows"]}
    readme = (ROOT / "README.md").read_text()
    for name, built_in in BUILT_IN.items():
        assert rows[name]["sha256"] == built_in.sha256
        assert rows[f"{name} texture 1"]["sha256"] == built_in.texture_sha256
    for row in rows.values():
        for score in row["scores"].values():
            cell = f"{score['psnr_y']:.2f} / {score['ssim_y']:.4f} / {score['lpips']:.3f}"
            assert cell in readme
        small = [row["scores"][name] for name in ("Set5", "Set14")]
        cells = [
            " / ".join(f"{score[key]:.3f}" for score in small) for key in ("lpips_vgg", "dists")
        ]
        assert f"| {' | '.join(cells)} |" in readme
    for row in document["clips"]:
        for score in row["scores"].values():
            distances = f"{score['lpips']:.3f} / {score['dists']:.3f}"
            assert f"{score['psnr_y']:.2f} / {distances} / {score['flicker']:.2f}" in readme


@pytest.mark.parametrize("file", ["fps.json", "fps_srgan.json"])
def test_the_published_speed_is_that_of_the_results(file):
    document = json.loads((ROOT / "benchmarks" / "results" / file).read_text())
    readme = (ROOT / "README.md").read_text()
    for row in document["rows"]:
        ends = row["end_to_end"]
        figures = (row["engine_alone"], ends["null sink"], ends["encoder"])
        name = f"{row['model']}, {row['backend']} {row['precision']}"
        cells = [name, *(f"{figure['fps']:.2f}" for figure in figures)]
        cells.append(f"{row['roofline']['share_reached']:.0%}".replace("%", " %"))
        assert f"| {' | '.join(cells)} |" in readme


def test_the_published_precisions_are_those_of_the_results():
    document = json.loads((ROOT / "benchmarks" / "results" / "precision.json").read_text())
    readme = (ROOT / "README.md").read_text()
    model = load_model(document["model"], texture=document["texture"])
    assert document["sha256"] == model.sha256
    for row in document["rows"]:
        lost = row.get("loss_db", {})
        cells = [row["precision"], f"{row['cpu_ms']:.1f}", f"{row['times_fp32']:.2f}"]
        cells.append(" / ".join(f"{lost[name]:.3f}" for name in ("Set5", "Set14")) if lost else "-")
        assert f"| {' | '.join(cells)} |" in readme


def test_the_published_worth_of_a_flag_is_that_of_the_results():
    document = json.loads((ROOT / "benchmarks" / "results" / "ablation.json").read_text())
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for row in document["rows"]:
        name = row["flag"] if row["flag"] == "the recipe" else f"`{row['flag']}`"
        first = f"| {name} | {row['psnr_y']:.2f} |"
        assert any(
            line.startswith(first) and f"| {row['dists']:.3f} |" in line
            for line in text.splitlines()
        )
