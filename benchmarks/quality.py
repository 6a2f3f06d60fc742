"""How close are the enlarged pictures to their originals?

    python benchmarks/quality.py [--eval FOLDER] [--features FOLDER] [--clips FOLDER]
                                 [--baselines FOLDER] [--weights FILE]... [--json FILE] [--keep]
                                 [--figure PNG [--figure-of PICTURE]]

Scores bicubic interpolation; the systems of the paper's tables 1 and 2, as trained here, which lie
in `--baselines` (default: benchmarks/baselines, with a card); each built-in model with texture 0, a
half and 1; and each `--weights` file. `--keep` takes over from the JSON, with the commit that
measured them, the rows of weights that have not changed.

Pictures: each test set, a folder of high-resolution pictures in `--eval` (default: shared/data/eval
beside the checkout, with Set5, Set14 and BSD100). Protocol: the papers' at x4. Input: the original,
cropped to a multiple of 4, shrunk by Pillow's antialiased bicubic. PSNR and SSIM (Wang et al. 2004)
on Y of BT.601 in studio range, 8 bits, a border of 4 pixels left out, the mean over the pictures.
Networks run in float32 on the CPU, without tiling. Bicubic is Pillow's, from the 8-bit input.

With `--features` (default: shared/data/perceptual): LPIPS 0.1 over AlexNet, and on the small sets
LPIPS over VGG16 and DISTS (Ding et al. 2020), of whole pictures; on the clips LPIPS over AlexNet
and DISTS. Built-in texture ends were trained on LPIPS, most of their steps over VGG16, the first
ones over AlexNet; on DISTS nothing was, but it looks through VGG16 too.

Clips: with `--clips` (default: shared/data/clips), the middle of each clip, shrunk and put through
x264; see benchmarks/compressed.py. `--figure` draws one crop with all systems side by side.

MACs are the multiplications of the convolutions, a pixel of the input.

Prints an environment card and a table; the last line of stdout is one JSON document with all of it.
The same goes to `--json` (default: benchmarks/results/quality.json).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.compressed import read_clips, score_clips  # noqa: E402
from benchmarks.figure import draw_figure  # noqa: E402
from benchmarks.report import environment, publish  # noqa: E402
from engines.errors import WeightsError  # noqa: E402
from engines.networks import count_parameters, macs_per_lr_pixel  # noqa: E402
from engines.weights import BUILT_IN, Model, load_model  # noqa: E402
from train.config import SYSTEMS  # noqa: E402
from train.data import find_photos, find_sets, to_frame  # noqa: E402
from train.metrics import Distance, Score, evaluate, to_picture  # noqa: E402
from train.perceptual import find_feature_files, load_dists, load_lpips  # noqa: E402

SCALE = 4
USUAL_ORDER = ("Set5", "Set14", "BSD100")
BASELINES = dict.fromkeys(SYSTEMS)  # in the order of the paper
MOST_FOR_VGG = 20  # pictures in a set that what looks through VGG16 is measured on: seconds each
SHARED = ROOT.parent / "shared" / "data"
PROTOCOL = {
    "scale": SCALE,
    "input": "original cropped to a multiple of 4, shrunk by Pillow bicubic (antialiased), 8 bits",
    "metrics": "PSNR and SSIM (Wang et al. 2004) on Y of BT.601 studio range, 8-bit pictures",
    "shave_pixels": SCALE,
    "lpips": "version 0.1, whole pictures; texture ends are trained on it, over AlexNet and VGG16",
    "dists": "Ding et al. 2020, whole pictures; nothing is trained on it",
    "mean": "over the pictures of a set",
}
# Ledig et al. 2017, tables 1 and 2: PSNR-Y, SSIM. Its SSIM is the daala package's, not comparable
PAPER = {
    "bicubic": {"Set5": (28.43, 0.8211), "Set14": (25.99, 0.7486), "BSD100": (25.94, 0.6935)},
    "SRCNN": {"Set5": (30.07, 0.8627), "Set14": (27.18, 0.7861), "BSD100": (26.68, 0.7291)},
    "SRGAN-MSE": {"Set5": (30.64, 0.8701), "Set14": (26.92, 0.7611)},
    "SRGAN-VGG22": {"Set5": (29.84, 0.8468), "Set14": (26.44, 0.7518)},
    "SRResNet": {"Set5": (32.05, 0.9019), "Set14": (28.49, 0.8184), "BSD100": (27.58, 0.7620)},
    "SRGAN": {"Set5": (29.40, 0.8472), "Set14": (26.02, 0.7397), "BSD100": (25.16, 0.6688)},
}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    options = parse_arguments(argv)
    return publish("quality", lambda: run(options), options.json)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--eval", type=Path, default=SHARED / "eval", metavar="FOLDER")
    p.add_argument("--features", type=Path, default=SHARED / "perceptual", metavar="FOLDER")
    p.add_argument("--clips", type=Path, default=SHARED / "clips", metavar="FOLDER")
    p.add_argument(
        "--baselines", type=Path, default=ROOT / "benchmarks" / "baselines", metavar="FOLDER"
    )
    p.add_argument("--keep", action="store_true", help="rows whose weights have not changed")
    p.add_argument("--weights", type=Path, default=[], action="append", metavar="FILE")
    p.add_argument("--figure", type=Path, metavar="PNG")
    p.add_argument("--figure-of", type=Path, metavar="PICTURE", help="default: the first of a set")
    p.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "quality.json")
    return p.parse_args(argv)


def in_usual_order(sets: list[Path]) -> list[Path]:
    """Put the usual test sets first, in their usual order."""
    place = {name: i for i, name in enumerate(USUAL_ORDER)}
    return sorted(sets, key=lambda path: place.get(path.name, len(place)))


def find_systems(baselines: Path, files: list[Path]) -> dict[str, Model]:
    """Load baselines, both ends of the built-in models, and weights files, by the name of the row.

    Raises:
        WeightsError: a file cannot be loaded, or is of another scale.
    """
    there = {path.stem: path for path in baselines.glob("*.safetensors")}
    ordered = [*(name for name in BASELINES if name in there), *sorted(there.keys() - BASELINES)]
    systems: dict[str, Model] = {name: load_model(there[name]) for name in ordered}
    for name, built_in in BUILT_IN.items():
        systems[name] = load_model(name, texture=0)
        if built_in.texture_file is not None:
            for texture in (0.5, 1.0):
                systems[f"{name} texture {texture:g}"] = load_model(name, texture=texture)
    systems |= {path.stem: load_model(path) for path in files}
    for name, model in systems.items():
        if model.scale != SCALE:
            raise WeightsError(f"{name} is x{model.scale}, this benchmark is x{SCALE}")
    return systems


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Score bicubic and the systems, print the tables row by row, return the whole document."""
    sets = in_usual_order(find_sets(options.eval))
    systems = find_systems(options.baselines, options.weights)
    kept = find_kept(options.json) if options.keep else {}
    card = environment("numpy", "pillow", "scikit-image")
    for name, value in card.items():
        print(f"{name:<13} {value}")
    distances = find_distances(options.features)
    print(f"\n{'':<24}{'':>12}{'MACs a':>12}" + "".join(f"{s.name:^27}" for s in sets))
    head = f"{'PSNR-Y':>9}{'SSIM':>8}{'LPIPS':>8}  "
    print(f"{'':<24}{'parameters':>12}{'LR pixel':>12}" + head * len(sets))
    bicubic: dict[str, Any] = {"name": "bicubic", "parameters": 0, "macs_per_lr_pixel": None}
    upscalers: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": enlarge_bicubic}
    rows = [scored(bicubic, enlarge_bicubic, sets, distances)]
    for name, model in systems.items():
        about = {
            "name": name,
            "network": model.network,
            "texture": model.texture,
            "sha256": model.sha256,
            "parameters": count_parameters(model.net),
            "macs_per_lr_pixel": macs_per_lr_pixel(model.net),
            "features": model.training.get("features"),
        }
        old = kept.get(about["sha256"], {}).get("row")
        if old is not None and is_complete(old["scores"], sets, distances):
            rows.append({**about, "scores": old["scores"], "commit": old["commit"]})
            print(f"{name:<24}kept, measured at {old['commit']}")
        else:
            rows.append(scored(about, model.net, sets, distances) | {"commit": card["commit"]})
        upscalers[name] = model.net
    print(f"\n{reference_line(sets)}")
    for name, features in stand_ins(systems).items():
        print(f"{name}: {features}")
    document = {
        "benchmark": "quality",
        "environment": card,
        "protocol": PROTOCOL,
        "rows": rows,
        "reference": {
            "source": "Ledig et al. 2017, tables 1, 2; SSIM of the daala package, not comparable",
            "rows": [
                {
                    "name": name,
                    "scores": {
                        s: {"psnr_y": pair[0], "ssim_y": pair[1]} for s, pair in scores.items()
                    },
                }
                for name, scores in PAPER.items()
            ],
        },
    }
    if options.clips.is_dir():
        clips = read_clips(options.clips)
        document["clip_frames"] = {name: len(frames) for name, frames in clips.items()}
        old_clips = {
            name: kept[model.sha256]["clips"]
            for name, model in systems.items()
            if kept.get(model.sha256, {}).get("clips")
            and kept[model.sha256]["clip_frames"] == document["clip_frames"]
        }
        document["clips"] = score_clips(clips, upscalers, distances, kept=old_clips)
    if options.figure is not None:
        photo = options.figure_of or find_photos(sets[0])[0]
        labels = {name: f"{name} ({text.split()[0]})" for name, text in stand_ins(systems).items()}
        shown = {labels.get(name, name): upscale for name, upscale in upscalers.items()}
        draw_figure(options.figure, photo, shown, distances.get("lpips"))
    return document


def stand_ins(systems: dict[str, Model]) -> dict[str, str]:
    """Return what stood in for the paper's feature network, by the system trained on it."""
    features = {name: model.training.get("features") or "" for name, model in systems.items()}
    return {name: text for name, text in features.items() if "standing in" in text}


def find_kept(path: Path) -> dict[str, dict[str, Any]]:
    """Return what an earlier document has of each weights file, by its SHA-256.

    "row" and "clips" are the scores, "clip_frames" tells which clips those are of. Nothing where
    the protocol was another, or there is no document.
    """
    if not path.exists():
        return {}
    document = json.loads(path.read_text())
    if document.get("protocol") != PROTOCOL:
        return {}
    clips = {row["name"]: row["scores"] for row in document.get("clips", [])}
    measured = {"commit": document["environment"]["commit"]}
    return {
        row["sha256"]: {
            "row": measured | row,
            "clips": clips.get(row["name"]),
            "clip_frames": document.get("clip_frames"),
        }
        for row in document["rows"]
        if "sha256" in row
    }


def is_complete(
    scores: dict[str, dict[str, float]], sets: list[Path], distances: dict[str, Any]
) -> bool:
    """Tell whether kept scores have all that would be measured."""
    return scores.keys() == {path.name for path in sets} and all(
        distances_for(path, distances).keys() <= scores[path.name].keys() for path in sets
    )


def distances_for(path: Path, distances: dict[str, Any]) -> dict[str, Any]:
    """Choose the distances that are measured on a test set."""
    large = len(find_photos(path)) > MOST_FOR_VGG
    return {name: net for name, net in distances.items() if name == "lpips" or not large}


def find_distances(folder: Path) -> dict[str, Distance]:
    """Load what its networks are in the folder for: both kinds of LPIPS, and DISTS."""
    files = find_feature_files([folder]) if folder.is_dir() else []
    found: dict[str, Distance] = {}
    kinds = {file.kind for file in files}
    if {"heads", "alexnet"} <= kinds:
        found["lpips"] = load_lpips(files)
    if {"heads", "vgg16"} <= kinds:
        found["lpips_vgg"] = load_lpips(files, network="vgg")
    if "vgg16" in kinds:
        found["dists"] = load_dists(files)
    return found


def scored(
    about: dict[str, Any],
    upscale: Callable[[Tensor], Tensor],
    sets: list[Path],
    distances: dict[str, Any],
) -> dict[str, Any]:
    """Score an upscaler on each set, print its row, return the row for the document."""
    macs = about["macs_per_lr_pixel"]
    counts = "".join(f"{n:>12,}" if n else f"{'':>12}" for n in (about["parameters"], macs))
    print(f"{about['name']:<24}{counts}", end="", flush=True)
    scores: dict[str, Score] = {}
    for path in sets:
        networks = distances_for(path, distances)
        score = scores[path.name] = evaluate(upscale, path, scale=SCALE, **networks)
        lpips = "-" if score.lpips is None else f"{score.lpips:.4f}"
        print(f"{score.psnr_y:>9.2f}{score.ssim_y:>8.4f}{lpips:>8}  ", end="", flush=True)
    print()
    return {
        **about,
        "scores": {
            name: {
                key: round(value, 6) for key, value in asdict(score).items() if value is not None
            }
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


if __name__ == "__main__":
    sys.exit(main())
