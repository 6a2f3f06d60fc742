"""How close are the enlarged pictures to their originals?

    python benchmarks/quality.py [--eval FOLDER] [--weights FILE]... [--json FILE]

Scores bicubic interpolation, each built-in model and each `--weights` file on each test set: a
folder of high-resolution pictures in the folder `--eval` (default: shared/data/eval beside the
checkout, with Set5, Set14 and BSD100).

Protocol: the papers' at x4. Input: the original, cropped to a multiple of 4, shrunk by Pillow's
antialiased bicubic. PSNR and SSIM (Wang et al. 2004) on Y of BT.601 in studio range, 8 bits, a
border of 4 pixels left out, the mean over the pictures. Networks run in float32 on the CPU, without
tiling. Bicubic is Pillow's, from the 8-bit input.

MACs are the multiplications of the convolutions, a pixel of the input.

Prints an environment card and a table; the last line of stdout is one JSON document with all of it.
The same goes to `--json` (default: benchmarks/results/quality.json).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from engines.errors import VSRError, WeightsError  # noqa: E402
from engines.networks import count_parameters  # noqa: E402
from engines.weights import BUILT_IN, Model, load_model  # noqa: E402
from train.data import find_photos, to_frame  # noqa: E402
from train.metrics import Score, evaluate, to_picture  # noqa: E402
from train.srgan import describe_commit  # noqa: E402

SCALE = 4
USUAL_ORDER = ("Set5", "Set14", "BSD100")
PROTOCOL = {
    "scale": SCALE,
    "input": "original cropped to a multiple of 4, shrunk by Pillow bicubic (antialiased), 8 bits",
    "metrics": "PSNR and SSIM (Wang et al. 2004) on Y of BT.601 studio range, 8-bit pictures",
    "shave_pixels": SCALE,
    "mean": "over the pictures of a set",
}
# Ledig et al. 2017, table 2: PSNR-Y, SSIM. Its SSIM is the daala package's, not comparable
PAPER = {
    "bicubic": {"Set5": (28.43, 0.8211), "Set14": (25.99, 0.7486), "BSD100": (25.94, 0.6935)},
    "SRResNet": {"Set5": (32.05, 0.9019), "Set14": (28.49, 0.8184), "BSD100": (27.58, 0.7620)},
}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    options = parse_arguments(argv)
    try:
        sets = find_sets(options.eval)
        models = [load_model(name) for name in BUILT_IN] + [load_model(p) for p in options.weights]
        for model in models:
            if model.scale != SCALE:
                raise WeightsError(f"{model.name} is x{model.scale}, this benchmark is x{SCALE}")
        document = run(sets, models)
        write_atomically(options.json, json.dumps(document, indent=2) + "\n")
    except (VSRError, OSError, ValueError) as error:
        print(f"quality: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(document, separators=(",", ":")))
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--eval", type=Path, default=ROOT.parent / "shared" / "data" / "eval")
    p.add_argument("--weights", type=Path, default=[], action="append", metavar="FILE")
    p.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "quality.json")
    return p.parse_args(argv)


def find_sets(folder: Path) -> list[Path]:
    """List the test sets of a folder, the usual ones first and in their usual order.

    Raises:
        FileNotFoundError: the folder does not exist, holds no set, or a set holds no picture.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder of test sets {folder} does not exist: give --eval FOLDER")
    sets = sorted(path for path in folder.iterdir() if path.is_dir())
    if not sets:
        raise FileNotFoundError(f"no test sets (folders of pictures) in {folder}")
    for path in sets:
        find_photos(path)
    place = {name: i for i, name in enumerate(USUAL_ORDER)}
    return sorted(sets, key=lambda path: place.get(path.name, len(place)))


def run(sets: list[Path], models: list[Model]) -> dict[str, Any]:
    """Score bicubic and the models, print the table row by row, return the whole document."""
    card = environment()
    for name, value in card.items():
        print(f"{name:<13} {value}")
    print(f"\n{'':<16}{'':>12}{'MACs a':>12}" + "".join(f"{s.name:^18}" for s in sets))
    print(f"{'':<16}{'parameters':>12}{'LR pixel':>12}" + f"{'PSNR-Y':>9}{'SSIM':>8} " * len(sets))
    bicubic: dict[str, Any] = {"name": "bicubic", "parameters": 0, "macs_per_lr_pixel": None}
    rows = [scored(bicubic, enlarge_bicubic, sets)]
    for model in models:
        about = {
            "name": model.name,
            "network": model.network,
            "sha256": model.sha256,
            "parameters": count_parameters(model.net),
            "macs_per_lr_pixel": macs_per_lr_pixel(model.net),
        }
        rows.append(scored(about, model.net, sets))
    print(f"\n{reference_line(sets)}")
    return {
        "benchmark": "quality",
        "environment": card,
        "protocol": PROTOCOL,
        "rows": rows,
        "reference": {
            "source": "Ledig et al. 2017, table 2; SSIM of the daala package, not comparable",
            "rows": [
                {"name": name, "scores": {s: asdict(Score(*pair)) for s, pair in scores.items()}}
                for name, scores in PAPER.items()
            ],
        },
    }


def scored(
    about: dict[str, Any], upscale: Callable[[Tensor], Tensor], sets: list[Path]
) -> dict[str, Any]:
    """Score an upscaler on each set, print its row, return the row for the document."""
    macs = about["macs_per_lr_pixel"]
    counts = "".join(f"{n:>12,}" if n else f"{'':>12}" for n in (about["parameters"], macs))
    print(f"{about['name']:<16}{counts}", end="", flush=True)
    scores: dict[str, Score] = {}
    for path in sets:
        score = scores[path.name] = evaluate(upscale, path, scale=SCALE)
        print(f"{score.psnr_y:>9.2f}{score.ssim_y:>8.4f} ", end="", flush=True)
    print()
    return {
        **about,
        "scores": {
            name: {"psnr_y": round(score.psnr_y, 4), "ssim_y": round(score.ssim_y, 6)}
            for name, score in scores.items()
        },
    }


def reference_line(sets: list[Path]) -> str:
    """Return the paper's figures as one line, for the sets that it has too."""
    parts = [
        " ".join(
            [name, *("{:.2f}/{:.4f}".format(*scores[s.name]) for s in sets if s.name in scores)]
        )
        for name, scores in PAPER.items()
    ]
    return f"paper: {', '.join(parts)} (its SSIM is the daala package's: not comparable)"


def enlarge_bicubic(frame: Tensor) -> Tensor:
    """Enlarge a (1, 3, H, W) frame in [0, 1] as a viewer would: 8 bits in, 8 bits out."""
    picture = to_picture(frame)
    height, width = picture.shape[:2]
    large = Image.fromarray(picture).resize(
        (width * SCALE, height * SCALE), Image.Resampling.BICUBIC
    )
    return to_frame(np.asarray(large))


def macs_per_lr_pixel(net: nn.Module) -> int:
    """Count the multiplications of the convolutions, a pixel of the input."""
    side, macs = 8, 0

    def count(conv: nn.Module, _: object, output: Tensor) -> None:
        nonlocal macs
        assert isinstance(conv, nn.Conv2d)
        macs += conv.weight.numel() * output.shape[2] * output.shape[3]

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        net(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return macs // side**2


def environment() -> dict[str, str]:
    """Describe what the figures were made with, without naming the machine."""
    return {
        "commit": describe_commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "pillow", "scikit-image")},
        "device": f"CPU, {torch.get_num_threads()} threads, float32",
    }


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a crash leaves either the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


if __name__ == "__main__":
    sys.exit(main())
