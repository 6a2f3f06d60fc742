"""Average weights: `python -m train.average A B [C ...] --out FILE`.

The mean of networks that were trained on from the same weights, with another seed or other draws,
is often better than each of them, and costs no more to run (Wortsman et al. 2022, "Model soups").
Of networks with nothing in common it is useless: the scores tell.

The metadata of what it writes keep the account of each of them; data, configuration and start are
those of the first, steps those of the longest.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from engines.errors import VSRError
from engines.weights import Model, load_model, save_weights
from train.account import describe_command, describe_commit
from train.data import find_sets
from train.metrics import score
from train.parallel import join_world
from train.perceptual import find_feature_files, find_lpips

log = logging.getLogger("train")


@torch.no_grad()
def mean_network(models: Sequence[Model]) -> Model:
    """Return the first of some models, with the mean of all their weights; none is changed.

    Raises:
        ValueError: they are fewer than two, or of different networks.
    """
    first, *others = models
    if not others:
        raise ValueError("a mean takes two files or more")
    for other in others:
        if (other.network, other.net.config) != (first.network, first.net.config):
            raise ValueError(
                f"{other.name} is of {other.network} ({other.net.config}), "
                f"{first.name} of {first.network} ({first.net.config})"
            )
    states = [model.net.state_dict() for model in models]
    mean = {name: torch.stack([s[name].double() for s in states]).mean(0) for name in states[0]}
    net = copy.deepcopy(first.net)
    net.load_state_dict(mean)
    return replace(first, net=net)


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    p = argparse.ArgumentParser(
        prog="python -m train.average",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("weights", type=Path, nargs="+", metavar="FILE", help="files of weights")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="what it writes")
    p.add_argument("--eval", type=Path, metavar="FOLDER", help="test sets, each a folder")
    p.add_argument("--features", type=Path, nargs="+", default=[], help="LPIPS, for the scores")
    options = p.parse_args(argv)
    command = describe_command("train.average", argv)
    try:
        models = [load_model(path) for path in options.weights]
        accounts = [{"sha256": m.sha256, "training": m.training} for m in models]
        sets = find_sets(options.eval) if options.eval is not None else []
        world = join_world()
        lpips = find_lpips(find_feature_files(options.features), world.device) if sets else None
        mean = mean_network(models)
        found = score(mean.net.to(world.device), sets, lpips)
        scores = {name: asdict(result) for name, result in found.items()}
        training = models[0].training | {
            "commands": [command],
            "steps": max(model.training.get("steps", 0) for model in models),
            "commit": describe_commit(),
            "mean_of": accounts,
            "scores": scores,
        }
        save_weights(options.out, mean.net, network=mean.network, training=training)
    except (VSRError, ValueError, OSError) as error:
        log.error("train.average: error: %s", error)
        return 1
    for name, result in found.items():
        log.info("%s: %.3f dB, SSIM %.4f", name, result.psnr_y, result.ssim_y)
    return 0


if __name__ == "__main__":
    sys.exit(main())
