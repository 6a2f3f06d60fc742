from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_clip
from PIL import Image

from engines.networks import build_network
from engines.weights import BUILT_IN, save_weights
from train.metrics import evaluate

REPOSITORY = Path(__file__).parents[1]

# the document rounds to four decimals of a decibel
ROUNDING_DB = 1e-4
# float32 convolutions in another number of threads, before rounding to 8 bits
THREADS_DB = 0.01


@pytest.fixture
def sets(tmp_path):
    """Two test sets of one small picture each; the later name is usually scored first."""
    folder = tmp_path / "sets"
    for seed, name in enumerate(("Mine", "Set5")):
        (folder / name).mkdir(parents=True)
        noise = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
        picture = Image.fromarray(noise).resize((50, 42), Image.Resampling.BICUBIC)
        picture.save(folder / name / "a.png")
    return folder


@pytest.fixture
def clips(tmp_path):
    """A folder of one clip of 16 frames of 80x64."""
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "a.mp4", size=(64, 80), pts=tuple(range(0, 16 * 512, 512)))
    return tmp_path / "clips"


@pytest.fixture
def quality(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("quality")


def save_lite(path, **config):
    net = build_network("srgan-lite", {"channels": 8, "blocks": 1, **config}, deployed=True)
    save_weights(path, net, network="srgan-lite", training={})
    return net


def test_it_scores_bicubic_the_built_in_models_and_the_given_weights(tmp_path, sets, clips):
    net = save_lite(tmp_path / "tiny.safetensors")
    command = [sys.executable, "benchmarks/quality.py", "--eval", sets]
    command += ["--weights", tmp_path / "tiny.safetensors", "--json", tmp_path / "q.json"]
    command += ["--clips", clips, "--features", tmp_path, "--figure", tmp_path / "figure.png"]
    command += ["--baselines", tmp_path / "none"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    *table, last = result.stdout.splitlines()
    document = json.loads(last)
    assert json.loads((tmp_path / "q.json").read_text()) == document
    assert not list(tmp_path.glob("*.partial"))
    assert str(tmp_path) not in last  # a result names no path of the machine

    rows = {row["name"]: row for row in document["rows"]}
    ends = [
        row
        for name, built_in in BUILT_IN.items()
        for row in (
            name,
            *([f"{name} texture {t}" for t in (0.5, 1)] if built_in.texture_file else ()),
        )
    ]
    assert list(rows) == ["bicubic", *ends, "tiny"]
    for row in rows.values():
        assert list(row["scores"]) == ["Set5", "Mine"]
        line, _ = (line for line in table if line.startswith(row["name"] + "   "))
        for score in row["scores"].values():
            assert f"{score['psnr_y']:.2f} " in line + " "

    tiny = rows["tiny"]
    data = (tmp_path / "tiny.safetensors").read_bytes()
    assert tiny["sha256"] == hashlib.sha256(data).hexdigest()
    # kernels 3 to 8, 8 to 8, 8 to 48 of 3x3 pixels; biases and PReLU slopes
    macs = 9 * (3 * 8 + 8 * 8 + 8 * 48)
    assert tiny["macs_per_lr_pixel"] == macs
    assert tiny["parameters"] == macs + (8 + 8 + 48) + (8 + 8)
    with torch.inference_mode():
        expected = evaluate(net, sets / "Mine")
    assert tiny["scores"]["Mine"]["psnr_y"] == pytest.approx(expected.psnr_y, abs=THREADS_DB)

    assert rows["bicubic"]["parameters"] == 0
    assert rows["bicubic"]["scores"]["Set5"]["psnr_y"] == pytest.approx(
        bicubic_psnr(sets / "Set5" / "a.png"), abs=ROUNDING_DB
    )
    assert document["environment"]["torch"] == torch.__version__
    assert document["protocol"]["scale"] == 4
    clip_rows = {row["name"]: row["scores"] for row in document["clips"]}
    assert list(clip_rows) == list(rows)
    for scores in clip_rows.values():
        assert scores["crf 23"]["psnr_y"] > scores["crf 28"]["psnr_y"] > 20
        assert 0 < scores["crf 23"]["flicker"] < 5
    with Image.open(tmp_path / "figure.png") as figure:
        columns = -(-(len(rows) + 1) // 2)  # two rows, with the original
        assert figure.size == (columns * (48 + 6) - 6, 2 * (40 + 44))
    (line,) = (line for line in table if line.startswith("paper"))
    assert "bicubic 28.43/0.8211" in line
    assert "SRResNet 32.05/0.9019" in line
    assert "not comparable" in line


def test_rows_of_weights_that_have_not_changed_are_kept(tmp_path, sets, quality, monkeypatch):
    (tmp_path / "own").mkdir()
    for name in ("srcnn", "srgan-mse", "later"):
        save_lite(tmp_path / "own" / f"{name}.safetensors")
    monkeypatch.setattr(quality, "BUILT_IN", {})
    scored = []
    original = quality.scored
    monkeypatch.setattr(
        quality, "scored", lambda row, *more: (scored.append(row["name"]), original(row, *more))[1]
    )
    path = tmp_path / "q.json"
    options = ["--eval", sets, "--json", path, "--clips", tmp_path / "absent", "--features", sets]
    options = [str(option) for option in (*options, "--baselines", tmp_path / "own")]
    assert quality.main(options) == 0
    assert scored == ["bicubic", "srcnn", "srgan-mse", "later"]  # the paper's order
    before = json.loads(path.read_text())
    save_lite(tmp_path / "own" / "later.safetensors", blocks=2)
    scored.clear()
    assert quality.main([*options, "--keep"]) == 0
    assert scored == ["bicubic", "later"]
    after = json.loads(path.read_text())
    assert after["rows"][:3] == before["rows"][:3]
    assert after["rows"][3]["sha256"] != before["rows"][3]["sha256"]


def test_clips_are_scored_by_each_distance_on_its_own_frames(quality, clips, monkeypatch, capsys):
    calls = {"lpips": 0, "dists": 0}

    def counted(name):
        def distance(a, b):
            calls[name] += 1
            return torch.tensor([float((a - b).abs().mean())])

        return distance

    distances = {name: counted(name) for name in (*calls, "lpips_vgg")}
    compressed = importlib.import_module("benchmarks.compressed")
    score, clips = compressed.score_clips, compressed.read_clips(clips)
    rows = score(clips, {"bicubic": quality.enlarge_bicubic}, distances)
    assert calls == {"lpips": 2 * 3, "dists": 2 * 2}  # of 6 frames, in two qualities
    found = rows[0]["scores"]["crf 23"]
    assert found["lpips"] > 0
    assert list(found) == ["psnr_y", "flicker", "lpips", "dists"]
    monkeypatch.setattr("benchmarks.compressed.score_clip", None)
    assert score(clips, {"bicubic": None}, distances, kept={"bicubic": rows[0]["scores"]}) == rows
    capsys.readouterr()


def test_kept_scores_that_lack_a_distance_are_measured_anew(quality, clips, capsys):
    compressed = importlib.import_module("benchmarks.compressed")
    score, clips = compressed.score_clips, compressed.read_clips(clips)
    few = {"lpips": lambda a, b: torch.ones(1)}
    upscalers = {"bicubic": quality.enlarge_bicubic}
    rows = score(clips, upscalers, few)
    more = few | {"dists": lambda a, b: torch.ones(1)}
    again = score(clips, upscalers, more, kept={"bicubic": rows[0]["scores"]})
    assert again[0]["scores"]["crf 28"]["dists"] == 1
    capsys.readouterr()


def test_kept_scores_of_other_clips_are_measured_anew(tmp_path, sets, clips, quality, monkeypatch):
    save_lite(tmp_path / "own.safetensors")
    monkeypatch.setattr(quality, "BUILT_IN", {})
    monkeypatch.setattr(quality, "BASELINES", {})
    kept = []
    original = quality.score_clips

    def score(*arguments, **options):
        kept.append([*options["kept"]])
        return original(*arguments, **options)

    monkeypatch.setattr(quality, "score_clips", score)
    options = ["--eval", sets, "--json", tmp_path / "q.json", "--clips", clips, "--features", sets]
    options += ["--weights", tmp_path / "own.safetensors", "--baselines", tmp_path / "absent"]
    options = [*map(str, options), "--keep"]
    for _ in range(2):
        assert quality.main(options) == 0
    write_clip(clips / "b.mp4", size=(64, 80), pts=tuple(range(0, 13 * 512, 512)))
    assert quality.main(options) == 0
    assert kept == [[], ["own"], []]
    document = json.loads((tmp_path / "q.json").read_text())
    assert document["clip_frames"] == {"a": 6, "b": 3}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("README.md", b"# Clips", "README.md cannot be read as a clip"),
        ("short.mp4", 11, "short.mp4 is too short: it needs 12 frames"),
    ],
)
def test_a_file_that_is_no_clip_to_score_is_named(clips, name, content, message):
    if isinstance(content, bytes):
        (clips / name).write_bytes(content)
    else:
        write_clip(clips / name, size=(64, 80), pts=tuple(range(0, content * 512, 512)))
    read_clips = importlib.import_module("benchmarks.compressed").read_clips
    with pytest.raises(ValueError, match=message):
        read_clips(clips)


def test_what_stood_in_for_a_feature_network_is_told(tmp_path, sets, quality, monkeypatch, capsys):
    net = build_network("srgan-lite", {"channels": 8, "blocks": 1}, deployed=True)
    features = "VGG16 conv5_3, standing in for VGG19 conv5_4"
    training = {"features": features}
    save_weights(tmp_path / "own.safetensors", net, network="srgan-lite", training=training)
    monkeypatch.setattr(quality, "BUILT_IN", {})
    monkeypatch.setattr(quality, "BASELINES", {})
    options = ["--eval", sets, "--json", tmp_path / "q.json", "--clips", tmp_path / "absent"]
    options += ["--weights", tmp_path / "own.safetensors", "--features", sets]
    options += ["--baselines", tmp_path / "absent"]
    assert quality.main([str(option) for option in options]) == 0
    assert f"own: {features}" in capsys.readouterr().out
    assert json.loads((tmp_path / "q.json").read_text())["rows"][1]["features"] == features


def bicubic_psnr(path):
    """The protocol again, in as few lines."""
    with Image.open(path) as opened:
        original = opened.crop((0, 0, 48, 40))  # of 50x42
    large = original.resize((12, 10), Image.Resampling.BICUBIC).resize(
        (48, 40), Image.Resampling.BICUBIC
    )
    difference = np.asarray(large, np.float64) - np.asarray(original, np.float64)
    luma = difference @ np.array([65.481, 128.553, 24.966]) / 255
    return 10 * np.log10(255**2 / (luma[4:-4, 4:-4] ** 2).mean())


def test_macs_are_counted_at_the_size_where_they_happen(quality):
    net = build_network("srgan", {"channels": 8, "blocks": 2}, deployed=True)
    low = 3 * 8 * 81 + 5 * 8 * 8 * 9  # head; two blocks of two and the one after them
    stage = 8 * 32 * 9  # one at 1x, one at 2x in each direction
    assert quality.macs_per_lr_pixel(net) == low + stage + 4 * stage + 16 * 8 * 3 * 81


@pytest.mark.parametrize("case", ["no folder", "no sets", "no pictures", "another scale"])
def test_what_cannot_be_scored_is_one_line_and_exit_code_1(tmp_path, sets, quality, capsys, case):
    arguments = ["--eval", sets, "--json", tmp_path / "q.json", "--clips", tmp_path / "absent"]
    if case == "no folder":
        arguments[1], message = tmp_path / "absent", "absent does not exist: give --eval FOLDER"
    elif case == "no sets":
        arguments[1], message = sets / "Mine", "no test sets (folders of pictures) in"
    elif case == "no pictures":
        (sets / "Empty").mkdir()
        message = f"no photos below {sets / 'Empty'}"
    else:
        save_lite(tmp_path / "x2.safetensors", scale=2)
        arguments += ["--weights", tmp_path / "x2.safetensors"]
        message = "x2 is x2, this benchmark is x4"
    assert quality.main([str(argument) for argument in arguments]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("quality: error: ")
    assert message in line
    assert not (tmp_path / "q.json").exists()
