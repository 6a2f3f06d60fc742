"""What is each part of the training recipe worth?

    python benchmarks/ablation.py [--data FOLDER] [--eval FOLDER] [--features FOLDER]
                                  [--steps N] [--gan-steps N] [--out FOLDER] [--json FILE] [--smoke]

Trains the same short run again and again, each time with one flag of `train.srgan` changed, and
scores what comes out. Two stages, as training has them:

- fidelity: a small network of the srgan kind (4 blocks, 32 channels) from random weights, with the
  pixel loss alone, `--steps` steps (900). PSNR-Y.
- gan: srgan-lite from its shipped fidelity end, `--gan-steps` steps (300) against the
  discriminator, in bfloat16, at three times the recipe's rate, so that they get somewhere. PSNR-Y,
  LPIPS over AlexNet and over VGG16, DISTS, which no flag trains on, and two faults: `grid`, the
  pattern locked to the pixel shuffle's grid, and `colour`, how far 4x4 means are from the
  original's; both in 8-bit levels.

All runs of a stage begin alike and see the same patches, but for `--degradation bicubic`, which
draws them otherwise. Scores are means over the pictures of Set5 and Set14, on bicubic input. A
short run shows which way a flag pulls, not how far it goes. Without VGG19's last layers VGG16
conv5_3 stands in for VGG54.

Runs lie in `--out` (default: runs/ablation) and are resumed there: a killed benchmark loses little.
Prints an environment card and a table; the last line of stdout is one JSON document, which goes to
`--json` too.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.report import environment, publish  # noqa: E402
from engines.weights import BUILT_IN, load_model  # noqa: E402
from train.checkpoint import load_checkpoint  # noqa: E402
from train.config import RECIPES, TrainConfig  # noqa: E402
from train.data import (  # noqa: E402
    find_photos,
    shrink_bicubic,
    to_frame,
)
from train.losses import grid_loss  # noqa: E402
from train.metrics import load_original, psnr, to_luma, to_picture  # noqa: E402
from train.perceptual import find_feature_files, load_dists, load_lpips  # noqa: E402
from train.srgan import Pace, RunPaths, train  # noqa: E402

SCALE = 4
SETS = ("Set5", "Set14")
SHARED = ROOT.parent / "shared" / "data"

FIDELITY = TrainConfig(
    network="srgan",
    blocks=4,
    channels=32,
    norm="none",
    gan_steps=0,
    loss="l1",
    luma_weight=0.9,
    optimizer="muon",
    learning_rate=2e-3,
    warmup_steps=50,
    batch=8,
    ema=0.99,
)
GAN = TrainConfig(
    **{**RECIPES["cpu"], "norm": "none", "steps": 0, "gan_steps": 1, "crop": 96, "ema": 0.99},
    gan_learning_rate=3e-4,
    degradation="video",
    amp=True,
)
# by the flag that is changed; the first of a stage is what the others are compared with
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "fidelity": {
        "the recipe": {},
        "--norm batch": {"norm": "batch"},
        "--optimizer adam": {"optimizer": "adam", "learning_rate": 1e-3},
        "--loss mse": {"loss": "mse"},
        "--luma-weight 0": {"luma_weight": 0.0},
        "--ema 0": {"ema": 0.0},
    },
    "gan": {
        "the recipe": {},
        "--adversarial-weight 0": {"adversarial_weight": 0.0},
        "--lpips-weight 0": {"lpips_weight": 0.0},
        "--lpips-network alex": {"lpips_network": "alex"},
        "--content vgg54": {"content": "vgg54", "content_weight": 40.0},
        "--pixel-weight 0": {"pixel_weight": 0.0},
        "--grid-weight 0": {"grid_weight": 0.0},
        "--ema 0": {"ema": 0.0},
        "--spectral-norm": {"spectral_norm": True},
        "--discriminator unet": {"discriminator": "unet"},
        "--r1-weight 1": {"r1_weight": 1.0},
        "--degradation bicubic": {"degradation": "bicubic"},
    },
}
LPIPS_COLUMNS: dict[str, Any] = {"lpips": "alex", "lpips_vgg": "vgg"}
COLUMNS = ("psnr_y", "lpips", "lpips_vgg", "dists", "grid", "colour")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, default=SHARED / "photos", metavar="FOLDER")
    p.add_argument("--eval", type=Path, default=SHARED / "eval", metavar="FOLDER")
    p.add_argument("--features", type=Path, default=SHARED / "perceptual", metavar="FOLDER")
    p.add_argument("--steps", type=int, default=900, metavar="N")
    p.add_argument("--gan-steps", type=int, default=300, metavar="N")
    p.add_argument("--out", type=Path, default=ROOT / "runs" / "ablation", metavar="FOLDER")
    p.add_argument("--json", type=Path, metavar="FILE")
    p.add_argument("--smoke", action="store_true", help="two steps on one picture, for tests")
    options = p.parse_args(argv)
    return publish("ablation", lambda: run(options), options.json)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train and score each variant, print the tables, return the whole document."""
    steps, out = {"fidelity": options.steps, "gan": options.gan_steps}, options.out
    if options.smoke:
        steps = dict.fromkeys(steps, 2)
        out /= "smoke"
    card = environment("numpy", "pillow")
    for name, value in card.items():
        print(f"{name:<13} {value}")
    pictures = [path for name in SETS for path in find_photos(options.eval / name)]
    pairs = [load_pair(path) for path in (pictures[:1] if options.smoke else pictures)]
    files = find_feature_files([options.features])
    networks: dict[str, nn.Module] = {
        name: load_lpips(files, network=key) for name, key in LPIPS_COLUMNS.items()
    }
    networks["dists"] = load_dists(files)
    rows = []
    for stage, variants in VARIANTS.items():
        print(f"\n{stage:<26}" + "".join(f"{name:>11}" for name in COLUMNS))
        for name, changes in variants.items():
            folder = out / f"{stage} {name}".replace(" ", "_")
            net = trained(stage, changes, steps[stage], options, folder)
            row = {"stage": stage, "flag": name, **scored(net, pairs, networks)}
            rows.append(row)
            print(f"{name:<26}" + "".join(f"{row[column]:>11.4f}" for column in COLUMNS))
            sys.stdout.flush()
    return {"benchmark": "ablation", "environment": card, "steps": steps, "rows": rows}


def trained(
    stage: str, changes: dict[str, Any], steps: int, options: argparse.Namespace, folder: Path
) -> nn.Module:
    """Train one variant, or go on with it, and return its network in deploy form."""
    if stage == "fidelity":
        config = replace(FIDELITY, steps=steps, cooldown_steps=2 * steps // 3, **changes)
        start = None
    else:
        config = replace(GAN, gan_steps=steps, **changes)
        start = ROOT / "engines" / "weights" / BUILT_IN["srgan-lite"].file
    paths = RunPaths(options.data, folder, start=start, features=(options.features,))
    resume = paths.checkpoint.exists()
    if resume and load_checkpoint(paths.checkpoint)["config"] != asdict(config):
        raise ValueError(f"{folder} holds a run with other settings: remove it, or give --out")
    if not paths.weights.exists() or load_model(paths.weights).training["steps"] < steps:
        every = Pace(evaluate=10 * config.total_steps, save=100)
        train(config, paths, resume=resume, pace=every)
    return load_model(paths.weights).net


def load_pair(path: Path) -> tuple[Tensor, Tensor]:
    """Load a picture: a quarter of its size, and itself; (1, 3, H, W) RGB in [0, 1]."""
    original = load_original(path, scale=SCALE)
    return to_frame(shrink_bicubic(original, SCALE)), to_frame(original)


@torch.inference_mode()
def scored(
    net: nn.Module, pairs: list[tuple[Tensor, Tensor]], networks: dict[str, nn.Module]
) -> dict[str, float]:
    """Return the mean of each of COLUMNS over pictures."""
    scores = []
    for lr, hr in pairs:
        picture = to_picture(net(lr))
        sr = to_frame(picture)
        means = [F.avg_pool2d(x, SCALE) for x in (sr, hr)]
        luma = [to_luma(x, shave=SCALE) for x in (picture, to_picture(hr))]
        scores.append(
            {
                "psnr_y": psnr(*luma),
                **{name: float(network(sr, hr)) for name, network in networks.items()},
                "grid": 255 * float(grid_loss(sr, hr, scale=SCALE)),
                "colour": 255 * float((means[0] - means[1]).abs().mean()),
            }
        )
    return {name: fmean(score[name] for score in scores) for name in COLUMNS}


if __name__ == "__main__":
    sys.exit(main())
