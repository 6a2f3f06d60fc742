"""Train a generator: `python -m train.srgan`.

Examples:
    The lite network, on a CPU (resumes where it stopped when run again with --resume):
        python -m train.srgan --network srgan-lite --data photos/ --eval eval/ --out runs/lite

    The SRResNet of the paper (Ledig et al. 2017, section 3.2), pixel MSE at 1e-4:
        python -m train.srgan --network srgan --loss mse --learning-rate 1e-4 --steps 1000000 \
            --data photos/ --out runs/srresnet

    A look at whether it works at all, two minutes:
        python -m train.srgan --network srgan-lite --steps 200 --data photos/ --out runs/try

What it writes to --out: `checkpoint.pt` (everything a resume needs), `log.csv` (one line an
evaluation, to plot), `weights.safetensors` (the deploy form, for `vsr upscale --weights`).
"""

from __future__ import annotations

import argparse
import copy
import csv
import logging
import math
import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from engines.networks import NETWORKS, Network, build_network, fold
from engines.weights import save_weights
from train.data import PatchSampler, find_photos
from train.metrics import Score, evaluate
from train.muon import Muon

log = logging.getLogger("train")

CHECKPOINT_VERSION = 1
LUMA = (0.299, 0.587, 0.114)  # Y of R, G, B (ITU-R BT.601)
LossName = Literal["l1", "mse"]
NormName = Literal["batch", "none"]  # none: the deploy form itself is trained
OptimizerName = Literal["adam", "muon"]

# --------------------------------------------------------------------------------------------------
# Configuration
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that shapes a run; stored in each checkpoint."""

    network: str = "srgan-lite"
    channels: int | None = None  # None: the network's own default
    blocks: int | None = None
    norm: NormName = "batch"
    loss: LossName = "l1"
    luma_weight: float = 0.0  # share of the loss taken on Y alone, 0 to 1
    optimizer: OptimizerName = "adam"
    steps: int = 60_000
    batch: int = 16
    crop: int = 96  # side of the high-resolution patch, pixels
    candidates: int = 1  # of so many random patches the most detailed is taken
    learning_rate: float = 1e-3
    warmup_steps: int = 100  # the rate rises linearly from 0
    cooldown_steps: int = 0  # the rate falls linearly to 0 over the last steps
    ema: float = 0.999  # decay of the averaged weights, a step; 0 turns averaging off
    seed: int = 0

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"unknown network {self.network!r}; known: {', '.join(NETWORKS)}")
        if self.loss not in get_args(LossName):
            raise ValueError(f"unknown loss {self.loss!r}; known: {', '.join(get_args(LossName))}")
        if self.norm not in get_args(NormName):
            raise ValueError(f"unknown norm {self.norm!r}; known: {', '.join(get_args(NormName))}")
        if self.optimizer not in get_args(OptimizerName):
            known = ", ".join(get_args(OptimizerName))
            raise ValueError(f"unknown optimizer {self.optimizer!r}; known: {known}")
        for name in ("steps", "batch", "crop", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "cooldown_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.luma_weight <= 1:
            raise ValueError(f"luma_weight must be in [0, 1], got {self.luma_weight}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")

    def network_config(self) -> dict[str, int]:
        """Return the fields of the network's configuration that this run sets."""
        chosen = {"channels": self.channels, "blocks": self.blocks}
        return {name: value for name, value in chosen.items() if value is not None}

    def rate_at(self, step: int) -> float:
        """Return the factor on the learning rate at a step counted from 0."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = (self.steps - step) / self.cooldown_steps if self.cooldown_steps else 1.0
        return warmup * min(1.0, left)


# --------------------------------------------------------------------------------------------------
# The parts: losses, optimizers, averaged weights
# --------------------------------------------------------------------------------------------------


def pixel_loss(name: LossName, sr: Tensor, hr: Tensor, *, luma_weight: float = 0.0) -> Tensor:
    """Mean pixel difference of two (N, 3, H, W) batches in [0, 1].

    Args:
        name: absolute or squared difference.
        sr: what the generator made.
        hr: what it should have made.
        luma_weight: share of the difference of Y (BT.601, full range) beside that of R, G and B.
            Detail is seen in luma, and video carries chroma at half the size: a small network
            does better with its capacity there.
    """
    difference = F.l1_loss if name == "l1" else F.mse_loss
    loss = difference(sr, hr)
    if luma_weight:
        luma = sr.new_tensor(LUMA).view(1, 3, 1, 1)
        on_luma = difference((sr * luma).sum(1), (hr * luma).sum(1))
        loss = torch.lerp(loss, on_luma, luma_weight)
    return loss


def make_optimizers(config: TrainConfig, net: Network) -> list[torch.optim.Optimizer]:
    """Build the optimizers of a generator.

    Adam everywhere, or Muon for the kernels and Adam for biases, slopes and normalisation.
    """
    rate = config.learning_rate
    if config.optimizer == "adam":
        return [torch.optim.Adam(net.parameters(), lr=rate, betas=(0.9, 0.999))]
    kernels = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim == 1]
    return [Muon(kernels, lr=rate), torch.optim.Adam(others, lr=rate, betas=(0.9, 0.999))]


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Move the averaged parameters and floating-point buffers towards the network's.

    Buffers are averaged like parameters: batch normalisation's statistics belong to its weights.
    """
    current = net.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(current[name], 1 - decay)
        else:
            value.copy_(current[name])


# --------------------------------------------------------------------------------------------------
# Checkpoints
# --------------------------------------------------------------------------------------------------


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a crash leaves either the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint written by `save_checkpoint`, without running code stored in it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, foreign or of another format version.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a checkpoint of train.srgan, or damaged") from error
    if state.get("version") != CHECKPOINT_VERSION:
        found = state.get("version")
        raise ValueError(f"{path} has version {found}, expected {CHECKPOINT_VERSION}")
    return state


# --------------------------------------------------------------------------------------------------
# The run
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Where a run reads and writes."""

    data: Path
    out: Path
    eval: Path | None = None

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    @property
    def weights(self) -> Path:
        return self.out / "weights.safetensors"


def train(
    config: TrainConfig,
    paths: RunPaths,
    *,
    resume: bool = False,
    eval_every: int = 2000,
    save_every: int = 500,
    command: str = "",
) -> list[float]:
    """Train a generator with a pixel loss and return the loss of each step of this call.

    Args:
        config: the run. On resume it must name the same network.
        paths: the photos, the folder to write to, a folder of test sets (folders of pictures).
        resume: go on from the checkpoint in `paths.out`, with the same losses as an unbroken run.
        eval_every: steps between two evaluations of the averaged weights.
        save_every: steps between two checkpoints.
        command: the command line, kept in the metadata of the weights.

    Raises:
        FileNotFoundError: no photos, no test sets, or no checkpoint to resume from.
        ValueError: a number of steps is below 1, or the checkpoint is of another network.
        FloatingPointError: the loss is not finite.
    """
    for name, every in (("eval_every", eval_every), ("save_every", save_every)):
        if every < 1:
            raise ValueError(f"{name} must be at least 1, got {every}")
    if paths.eval is not None and not paths.eval.is_dir():
        raise FileNotFoundError(f"folder of test sets {paths.eval} does not exist")
    # --- set up ----------------------------------------------------------------------------------
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    paths.out.mkdir(parents=True, exist_ok=True)
    net = build_network(config.network, config.network_config(), deployed=config.norm == "none").to(
        device
    )
    average = copy.deepcopy(net)
    optimizers = make_optimizers(config, net)
    photos = find_photos(paths.data)
    sampler = PatchSampler(
        photos,
        crop=config.crop,
        scale=net.config.scale,
        seed=config.seed,
        candidates=config.candidates,
    )
    log.info("%d photos, %.0f MB in memory", len(sampler.pairs), sampler.held_bytes / 1e6)
    commit = describe_commit()
    start, seconds_before = 0, 0.0
    commands = [command]  # the one that began the run, and each that resumed it
    if resume:
        state = load_checkpoint(paths.checkpoint)
        try:
            net.load_state_dict(state["net"])
            average.load_state_dict(state["average"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (RuntimeError, ValueError) as error:
            names = ("network", "channels", "blocks", "norm", "optimizer")
            found, wanted = (
                {n: c.get(n) for n in names} for c in (state["config"], asdict(config))
            )
            raise ValueError(f"{paths.checkpoint} is of {found}, this run of {wanted}") from error
        sampler.load_state(state["sampler"])
        torch.set_rng_state(state["rng"])
        start, seconds_before = state["step"], state["seconds"]
        commands = [*state.get("commands", []), command]
        log.info("resuming at step %d", start)

    # --- the loop ------------------------------------------------------------------------------
    losses: list[float] = []
    logged = 0  # losses that are in the log
    step, began = start, time.monotonic()

    def save() -> None:
        seconds = seconds_before + time.monotonic() - began
        save_checkpoint(
            paths.checkpoint,
            {
                "version": CHECKPOINT_VERSION,
                "net": net.state_dict(),
                "average": average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "sampler": sampler.state(),
                "rng": torch.get_rng_state(),
                "step": step,
                "seconds": seconds,
                "config": asdict(config),
                "commands": commands,
                "torch": str(torch.__version__),
            },
        )

    def publish() -> None:
        nonlocal logged
        scores = score(average, paths.eval)
        append_log(paths.out / "log.csv", step, losses[logged:], scores)
        logged = len(losses)
        export(
            average,
            paths.weights,
            config,
            step=step,
            commands=commands,
            data=f"{paths.data.name}, {len(sampler.pairs)} photos",
            commit=commit,
            scores=scores,
        )

    stop = StopRequest()
    with tqdm(total=config.steps, initial=start, unit="step", disable=None) as bar, stop:
        while step < config.steps and not stop.requested:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * config.rate_at(step)
                optimizer.zero_grad(set_to_none=True)
            lr, hr = (patches.to(device) for patches in sampler.batch(config.batch))
            loss = pixel_loss(config.loss, net(lr), hr, luma_weight=config.luma_weight)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss is {losses[-1]} at step {step}")
            for optimizer in optimizers:
                optimizer.step()
            step += 1
            # a short memory at first, so that the average forgets the random start
            update_average(average, net, min(config.ema, step / (step + 10)))
            bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
            bar.update()
            if step % eval_every == 0 and step < config.steps:
                publish()
            if step % save_every == 0:
                save()
    if step > start:  # never after an exception: a step may be half done
        save()
        publish()
    return losses


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the current step."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        signal.signal(number, self._previous[number])  # a second one acts at once

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def score(net: Network, folder: Path | None) -> dict[str, Score]:
    """Score a network on each test set (a folder of pictures) of a folder, by its name."""
    if folder is None:
        return {}
    deployed = fold(net)
    device = next(deployed.parameters()).device
    sets = sorted(path for path in folder.iterdir() if path.is_dir())
    return {
        path.name: evaluate(lambda lr: deployed(lr.to(device)), path, scale=net.config.scale)
        for path in sets
    }


def append_log(path: Path, step: int, losses: list[float], scores: dict[str, Score]) -> None:
    """Add one line to the log: step, mean loss since the last line, scores."""
    row: dict[str, object] = {"step": step, "loss": f"{sum(losses) / max(1, len(losses)):.6f}"}
    for name, result in scores.items():
        row[f"{name} PSNR-Y"] = f"{result.psnr_y:.3f}"
        row[f"{name} SSIM"] = f"{result.ssim_y:.4f}"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)
    log.info("%s", ", ".join(f"{name} {value}" for name, value in row.items()))


def export(
    net: Network,
    path: Path,
    config: TrainConfig,
    *,
    step: int,
    commands: list[str],
    data: str,
    commit: str,
    scores: dict[str, Score],
) -> None:
    """Write the deploy form with the account of how it was trained."""
    save_weights(
        path,
        fold(net),
        network=config.network,
        training={
            "commands": commands,
            "data": data,
            "steps": step,
            "commit": commit,
            "config": asdict(config),
            "scores": {name: asdict(result) for name, result in scores.items()},
        },
    )


def describe_commit() -> str:
    """Return the commit of the code that trains, or "unknown" outside a checkout."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Build the command line; the defaults are those of `TrainConfig`."""
    default = TrainConfig()
    description, _, examples = (__doc__ or "").partition("\n\n")
    p = argparse.ArgumentParser(
        prog="python -m train.srgan",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    files = p.add_argument_group("files")
    files.add_argument("--data", type=Path, required=True, help="folder of photos")
    files.add_argument("--out", type=Path, required=True, help="folder for what it writes")
    files.add_argument("--eval", type=Path, help="folder of test sets, each a folder of pictures")
    files.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    files.add_argument("--eval-every", type=int, default=2000, metavar="STEPS")
    files.add_argument("--save-every", type=int, default=500, metavar="STEPS")
    run = p.add_argument_group("run (with --resume, the checkpoint's value unless given)")
    choices: dict[str, tuple[object, ...]] = {
        "network": tuple(NETWORKS),
        "norm": get_args(NormName),
        "loss": get_args(LossName),
        "optimizer": get_args(OptimizerName),
    }
    for field in fields(TrainConfig):
        value = getattr(default, field.name)
        run.add_argument(
            "--" + field.name.replace("_", "-"),
            type=int if value is None else type(value),
            choices=choices.get(field.name),
            help=f"default {'the network`s own' if value is None else value}",
        )
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    p = parser()
    arguments = vars(p.parse_args(argv))
    paths = RunPaths(data=arguments["data"], out=arguments["out"], eval=arguments["eval"])
    given = {
        field.name: arguments[field.name]
        for field in fields(TrainConfig)
        if arguments[field.name] is not None
    }
    command = "python -m train.srgan " + shlex.join(sys.argv[1:] if argv is None else argv)
    try:
        if arguments["resume"]:
            config = replace(TrainConfig(**load_checkpoint(paths.checkpoint)["config"]), **given)
        else:
            config = TrainConfig(**given)
        train(
            config,
            paths,
            resume=arguments["resume"],
            eval_every=arguments["eval_every"],
            save_every=arguments["save_every"],
            command=command,
        )
    except (OSError, ValueError, FloatingPointError) as error:
        log.error("train.srgan: error: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
