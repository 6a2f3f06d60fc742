r"""Train a generator: `python -m train.srgan`.

Examples:
    The GAN of the paper, SRResNet by MSE and then SRGAN-VGG54, with the paper's schedule:
        python -m train.srgan --system srgan-vgg54 --data photos/ --out runs/srgan

    The lite network on a CPU, for fidelity; then its GAN stage, starting from what that gave:
        python -m train.srgan --recipe cpu --data photos/ --eval eval/ --out runs/lite
        python -m train.srgan --recipe cpu --start runs/lite/weights.safetensors --steps 0 \
            --gan-steps 4000 --features perceptual/ --data photos/ --eval eval/ --out runs/lite-gan

    A look at whether it works at all, a minute or two; then on, for as long as you like:
        python -m train.srgan --recipe cpu --steps 200 --data photos/ --out runs/try
        python -m train.srgan --resume --steps 20000 --data photos/ --out runs/try

Several GPUs: `torchrun --nproc-per-node N -m train.srgan ...`; the batch is shared among them.

What it writes to --out: `checkpoint.pt` (everything a resume needs), `log.csv` (one line an
evaluation, to plot), `weights.safetensors` (the deploy form, for `vsr upscale --weights`) and, when
the GAN stage begins, `fidelity.safetensors`: the weights before it.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from engines.algebra import LowTail
from engines.errors import VSRError, WeightsError
from engines.networks import Generator, Network, build_network, fold
from engines.weights import Model, load_model, save_weights
from train.account import describe_command, describe_commit
from train.checkpoint import load_checkpoint, save_checkpoint
from train.config import CHOICES, RECIPES, SYSTEMS, TrainConfig, combine
from train.data import Batch, PatchSampler, Prefetcher, find_photos, find_sets
from train.degrade import VideoSampler
from train.discriminator import DISCRIMINATORS
from train.losses import (
    content_features,
    content_mse,
    discriminator_loss,
    generator_adversarial,
    grid_loss,
    lpips_loss,
    pixel_loss,
    r1_penalty,
)
from train.metrics import Score, check_sets, score
from train.muon import Muon
from train.parallel import World, join_world
from train.perceptual import (
    LPIPS,
    ContentFeatures,
    FeatureFile,
    MeanDistance,
    find_feature_files,
    find_lpips,
    load_content_features,
    load_lpips,
)
from train.report import Means, Report

log = logging.getLogger("train")

# --------------------------------------------------------------------------------------------------
# The parts: optimizers, averaged weights, the adversary
# --------------------------------------------------------------------------------------------------


def make_optimizers(
    config: TrainConfig, net: nn.Module, *, gan: bool
) -> list[torch.optim.Optimizer]:
    """Build the optimizers of a generator for one of the stages.

    Adam everywhere, or Muon for the kernels and Adam for biases, slopes and normalisation. A kernel
    that makes R, G and B itself is Adam's too, at a tenth of the rate: the paper's has a fan-in of
    5,184, and steps of the usual size would move all of a picture at once.
    """
    betas = (0.9, 0.999)
    if gan or config.optimizer == "adam":
        return [torch.optim.Adam(net.parameters(), betas=betas)]
    parameters = list(net.parameters())
    kernels = [p for p in parameters if p.ndim > 1 and p.shape[0] > 3]
    groups = [
        {"params": [p for p in parameters if p.ndim == 1], "factor": 1.0},
        {"params": [p for p in parameters if p.ndim > 1 and p.shape[0] <= 3], "factor": 0.1},
    ]
    groups = [group for group in groups if group["params"]]
    return [Muon(kernels), torch.optim.Adam(groups, betas=betas)]


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


@dataclass(frozen=True, slots=True)
class Adversary:
    """What the GAN stage adds: the discriminator, and the frozen networks of the losses."""

    discriminator: nn.Module
    optimizer: torch.optim.Optimizer
    content: ContentFeatures | None
    lpips: LPIPS | MeanDistance | None


def make_adversary(config: TrainConfig, files: list[FeatureFile], world: World) -> Adversary:
    """Build the discriminator and load the feature networks that the losses need.

    Raises:
        ValueError: the crop does not suit the discriminator, or a feature network is missing.
    """
    content, layout = None, memory_layout(world, config)
    if config.content in ("vgg22", "vgg54") and config.content_weight:
        content = load_content_features(cast(Any, config.content), files)
        content.network.to(world.device, memory_format=layout)  # type: ignore[call-overload]
    lpips: LPIPS | MeanDistance | None = None
    if config.lpips_weight:
        if config.lpips_network == "both":
            lpips = MeanDistance([load_lpips(files, network=n) for n in ("alex", "vgg")])
        else:
            lpips = load_lpips(files, network=config.lpips_network)
        lpips.to(world.device, memory_format=layout)  # type: ignore[call-overload]
    discriminator: nn.Module = DISCRIMINATORS[config.discriminator](
        config.crop, channels=config.discriminator_channels, spectral_norm=config.spectral_norm
    )
    discriminator = placed(discriminator, world, config)
    optimizer = torch.optim.Adam(discriminator.parameters(), betas=(0.9, 0.999))
    return Adversary(discriminator, optimizer, content, lpips)


def placed(net: nn.Module, world: World, config: TrainConfig) -> nn.Module:
    """Put a network on this process's device, with the memory layout that is fastest there.

    Raises:
        ValueError: it has batch norm, whose statistics several CPU processes cannot share.
    """
    on_gpu = world.device.type == "cuda"
    normalised = any(isinstance(part, nn.BatchNorm2d) for part in net.modules())
    if world.size > 1 and normalised and not on_gpu:
        raise ValueError(
            "batch norm over several processes needs GPUs: on CPUs give --norm none (the "
            "generator's) and --spectral-norm (the discriminator's)"
        )
    if world.size > 1 and on_gpu:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
    layout = memory_layout(world, config)
    return net.to(world.device, memory_format=layout)  # type: ignore[call-overload, no-any-return]


def memory_layout(world: World, config: TrainConfig) -> torch.memory_format:
    """Choose the order of a batch in memory.

    bfloat16 on a CPU means its matrix instructions, which want the channels together as a GPU does.
    """
    together = world.device.type == "cuda" or config.amp
    return torch.channels_last if together else torch.contiguous_format


# --------------------------------------------------------------------------------------------------
# The two kinds of step
# --------------------------------------------------------------------------------------------------


def discriminator_step(
    config: TrainConfig, adversary: Adversary, sr: Tensor, hr: Tensor, world: World
) -> dict[str, Tensor]:
    """Teach the discriminator one batch; the generator is not touched. Return its loss terms."""
    adversary.discriminator.requires_grad_(True)
    adversary.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(world.device.type, torch.bfloat16, enabled=config.amp):
        real, fake = adversary.discriminator(hr), adversary.discriminator(sr.detach())
    terms = {"discriminator": discriminator_loss(real.float(), fake.float())}
    if config.r1_weight:
        terms["r1"] = config.r1_weight * r1_penalty(adversary.discriminator, hr)
    torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    world.average_gradients(adversary.discriminator)
    adversary.optimizer.step()
    return {name: term.detach() for name, term in terms.items()}


def generator_terms(
    config: TrainConfig, adversary: Adversary | None, sr: Tensor, hr: Tensor
) -> dict[str, Tensor]:
    """Return the weighted terms of the generator's loss.

    Args:
        config: the weights.
        adversary: None in the stage of the pixel loss. Its discriminator is frozen by this call.
        sr: (N, 3, H, W) what the generator made, with its graph.
        hr: (N, 3, H, W) the originals.
    """
    if adversary is None:
        return {"pixel": pixel_loss(config.loss, sr, hr, luma_weight=config.luma_weight)}
    terms: dict[str, Tensor] = {}
    if config.content == "mse" and config.content_weight:
        terms["content"] = config.content_weight * content_mse(sr, hr)
    elif adversary.content is not None and config.content_weight:
        features = content_features(adversary.content.network, sr, hr)
        terms["content"] = config.content_weight * features
    if config.pixel_weight:
        pixel = pixel_loss(config.loss, sr, hr, luma_weight=config.luma_weight)
        terms["pixel"] = config.pixel_weight * pixel
    if adversary.lpips is not None and config.lpips_weight:
        terms["lpips"] = config.lpips_weight * lpips_loss(adversary.lpips, sr, hr)
    if config.grid_weight:
        terms["grid"] = config.grid_weight * grid_loss(sr, hr, scale=4)
    if config.adversarial_weight:
        adversary.discriminator.requires_grad_(False)
        adversarial = generator_adversarial(adversary.discriminator(sr))
        terms["adversarial"] = config.adversarial_weight * adversarial
    return terms


def read(numbers: dict[str, Tensor]) -> dict[str, float]:
    """Bring numbers to the host, in one wait for the GPU."""
    values: list[float] = torch.stack([n.detach().float() for n in numbers.values()]).tolist()
    return dict(zip(numbers, values, strict=True))


def check_finite(
    told: dict[str, float], batch: Batch, paths: RunPaths, world: World, step: int
) -> None:
    """Stop the run, in each of its processes, where one has a loss or gradient that is not finite.

    Args:
        told: the losses, and the norm of the gradients, of this part of the batch.
        batch: low and high resolution; kept in `bad_batch.safetensors`.
        paths: of the run.
        world: its processes.
        step: the number of this step.

    Raises:
        FloatingPointError: it is so.
    """
    is_bad = not all(math.isfinite(value) for value in told.values())
    if not world.any(is_bad):
        return
    if not is_bad:
        raise FloatingPointError(f"loss not finite at step {step} in another process")
    bad = paths.out / f"bad_batch{world.rank or ''}.safetensors"
    lr, hr = (patches.cpu().contiguous() for patches in batch)
    save_file({"lr": lr, "hr": hr}, bad)
    found = ", ".join(f"{name} {value:g}" for name, value in told.items())
    raise FloatingPointError(f"loss not finite at step {step} ({found}): see {bad}")


# --------------------------------------------------------------------------------------------------
# The run
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Where a run reads and writes."""

    data: Path
    out: Path
    eval: Path | None = None
    start: Path | None = None
    """weights to begin from, in place of random ones"""
    features: tuple[Path, ...] = ()
    """feature networks (see `train.perceptual.find_feature_files`)"""

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    @property
    def weights(self) -> Path:
        return self.out / "weights.safetensors"

    @property
    def fidelity(self) -> Path:
        """Of the weights as they were before the GAN stage."""
        return self.out / "fidelity.safetensors"


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a run looks up, in steps."""

    evaluate: int | None = None
    """None: ten times a run, but at least every 2000"""
    save: int = 500

    def __post_init__(self) -> None:
        for name, every in (("eval_every", self.evaluate), ("save_every", self.save)):
            if every is not None and every < 1:
                raise ValueError(f"{name} must be at least 1, got {every}")


class Run:
    """The state of a run: its networks, their optimizers, how far it is.

    Args:
        config: what shapes it.
        world: its processes.
        start: what the generator begins from; None: random weights.
        files: feature networks, for the losses of the GAN stage.
        command: the command line, for the account of the weights.

    Raises:
        ValueError: `start` is of another network, a feature network is missing, or the crop does
            not suit the discriminator.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        *,
        start: Model | None,
        files: list[FeatureFile],
        command: str,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.step = 0
        """steps done"""
        self.net = placed(make_generator(config, start), world, config)
        self.average = copy.deepcopy(self.net)
        self.adversary = make_adversary(config, files, world) if config.gan_steps else None
        self.optimizers = make_optimizers(config, self.net, gan=False)
        self.start: dict[str, Any] | None = (
            None if start is None else {"sha256": start.sha256, "training": start.training}
        )
        """account of the weights that it began from"""
        self.commands = [command]
        """the one that began it, and each that resumed it"""
        self._seconds_before, self._began = 0.0, time.monotonic()

    @property
    def scale(self) -> int:
        """The factor of the generator."""
        return cast(Network, self.net).config.scale

    def begin_gan(self) -> None:
        """Go over to the GAN stage: from the averaged weights, with optimizers of its own."""
        self.net.load_state_dict(self.average.state_dict())
        self.optimizers = make_optimizers(self.config, self.net, gan=True)

    def set_learning_rate(self) -> None:
        """Give the optimizers the rate of the step to come."""
        rate = self.config.rate_at(self.step)
        others = [self.adversary.optimizer] if self.adversary else []
        for optimizer in [*self.optimizers, *others]:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint keeps, but for the sampler's state."""
        adversary = self.adversary
        return {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "discriminator": adversary and adversary.discriminator.state_dict(),
            "discriminator_optimizer": adversary and adversary.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "step": self.step,
            "seconds": self._seconds_before + time.monotonic() - self._began,
            "config": asdict(self.config),
            "commands": self.commands,
            "start": self.start,
            "torch": str(torch.__version__),
        }

    def resume(self, path: Path) -> Tensor:
        """Go on where a checkpoint was taken; return the sampler's state.

        Raises:
            ValueError: the checkpoint is of another network, began from other weights, or is past a
                stage that this run has made longer or shorter.
        """
        state = load_checkpoint(path)
        check_stage(path, state, self.config)
        if self.start is not None and self.start["sha256"] != (state["start"] or {}).get("sha256"):
            raise ValueError(f"{path} is of a run that did not begin from what --start names")
        self.step, self._seconds_before = state["step"], state["seconds"]
        self.start, self.commands = state["start"], [*state["commands"], *self.commands]
        self.optimizers = make_optimizers(self.config, self.net, gan=self.step > self.config.steps)
        try:
            self.net.load_state_dict(state["net"])
            self.average.load_state_dict(state["average"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            if self.adversary is not None and state["discriminator"] is not None:
                self.adversary.discriminator.load_state_dict(state["discriminator"])
                self.adversary.optimizer.load_state_dict(state["discriminator_optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(describe_mismatch(path, state["config"], self.config)) from error
        torch.set_rng_state(state["rng"])
        log.info("resuming at step %d", self.step)
        return cast(Tensor, state["sampler"])


class Output:
    """What a run leaves in its folder: checkpoints, weights, the log; of its first process alone.

    Args:
        run: whose state is written, as it is at each call.
        paths: where to.
        batches: the patches, for their state and the time that was waited for them.
        world: the run's processes.
        sets: folders of pictures to score on.
        lpips: measured on them too, if there.
        photos: how many are trained on.
        tensorboard: write for TensorBoard too.
    """

    def __init__(
        self,
        run: Run,
        paths: RunPaths,
        batches: Prefetcher,
        world: World,
        *,
        sets: list[Path],
        lpips: LPIPS | None,
        photos: int,
        tensorboard: bool,
    ) -> None:
        self._run, self._paths, self._batches = run, paths, batches
        self._sets, self._lpips = sets, lpips
        self._data = f"{paths.data.name}, {photos} photos"
        self._commit = describe_commit()
        self._report = (
            Report(paths.out, tensorboard=tensorboard, step=run.step) if world.is_first else None
        )
        is_out = run.step == steps_of(paths.weights)
        self._published_step = run.step if is_out else None
        self._scored: tuple[int, dict[str, Score]] = (0, {})
        self._began, self._looking_seconds = time.monotonic(), 0.0
        self.means = Means()
        self.patches: tuple[Tensor, Tensor, Tensor] | None = None
        """the last step's input, output and originals"""

    def save(self) -> None:
        """Write the checkpoint."""
        if self._report is not None:
            sampler = {"sampler": self._batches.state}
            save_checkpoint(self._paths.checkpoint, self._run.state_dict() | sampler)

    def publish(self) -> None:
        """Score the averaged weights, tell of it and write them, unless they are out already."""
        step = self._run.step
        if self._report is None or step in (0, self._published_step):
            return
        looked = time.monotonic()
        worked = max(1e-9, looked - self._began - self._looking_seconds)
        busy = 1 - self._batches.waited_seconds / worked
        self._report.evaluation(step, self.means.take(), self._scores(), busy=busy)
        if self.patches is not None:
            self._report.pictures(step, *(patches[:4] for patches in self.patches))
        self._write_weights(self._paths.weights)
        self._published_step = step
        self._looking_seconds += time.monotonic() - looked

    def publish_fidelity(self) -> None:
        """Write the averaged weights as they are before the GAN stage."""
        if self._report is not None:
            self._write_weights(self._paths.fidelity)

    def _scores(self) -> dict[str, Score]:
        """Score the averaged weights, once a step."""
        if self._scored[0] != self._run.step:
            average = cast(Network, self._run.average)
            self._scored = (self._run.step, score(average, self._sets, self._lpips))
        return self._scored[1]

    def _write_weights(self, path: Path) -> None:
        run = self._run
        account = {
            "commands": run.commands,
            "data": self._data,
            "steps": run.step,
            "commit": self._commit,
            "config": asdict(run.config),
            "start": run.start,
            "features": run.adversary and run.adversary.content and run.adversary.content.source,
            "scores": {name: asdict(result) for name, result in self._scores().items()},
        }
        deployed = fold(cast(Network, run.average)).cpu()
        save_weights(path, deployed, network=run.config.network, training=account)

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self._report is not None:
            self._report.close()


def steps_of(path: Path) -> int | None:
    """Return the step that a file of weights is of, or None where there is no sound one."""
    try:
        return cast(int | None, load_model(path).training.get("steps"))
    except WeightsError:
        return None


def train(
    config: TrainConfig,
    paths: RunPaths,
    *,
    resume: bool = False,
    pace: Pace | None = None,
    tensorboard: bool = False,
    command: str = "",
) -> list[float]:
    """Train a generator and return the generator's loss of each step of this call.

    Args:
        config: the run. On resume it must name the same networks.
        paths: the photos, the folder to write to, a folder of test sets (folders of pictures).
        resume: go on from the checkpoint in `paths.out`, with the same losses as an unbroken run.
        pace: steps between evaluations of the averaged weights, and between checkpoints.
        tensorboard: write for TensorBoard too.
        command: the command line, kept in the metadata of the weights.

    Raises:
        FileNotFoundError: no photos, no test sets, or no checkpoint to resume from.
        FileExistsError: not to resume, but there is a checkpoint.
        ValueError: a feature network is missing, a picture of a test set cannot be scored or is
            among the photos, or the checkpoint is of another network.
        FloatingPointError: a loss is not finite; its batch is in `bad_batch.safetensors`.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step at hand and a checkpoint.
    """
    if paths.checkpoint.exists() and not resume:
        raise FileExistsError(
            f"{paths.checkpoint} is of an earlier run: go on with it by --resume, or give another "
            "--out"
        )
    with ExitStack() as stack:
        world = join_world()
        stack.callback(world.leave)
        if config.batch % world.size:
            raise ValueError(
                f"a batch of {config.batch} does not divide among {world.size} processes"
            )
        sets = find_sets(paths.eval) if paths.eval is not None else []
        photos = find_photos(paths.data)
        files = find_feature_files(paths.features)
        start = load_model(paths.start) if paths.start else None
        run = Run(config, world, start=start, files=files, command=command)
        lpips = find_lpips(files, world.device) if sets else None
        check_sets(sets, photos=photos, scale=run.scale)
        sampler = make_sampler(config, photos, scale=run.scale)
        stack.callback(sampler.close)
        paths.out.mkdir(parents=True, exist_ok=True)
        if resume:
            sampler.load_state(run.resume(paths.checkpoint))
        part, on_gpu = (world.rank, world.size), world.device.type == "cuda"
        batches = Prefetcher(sampler, config.batch, part=part, pinned=on_gpu)
        stack.callback(batches.close)
        output = Output(
            run,
            paths,
            batches,
            world,
            sets=sets,
            lpips=lpips,
            photos=sampler.photos,
            tensorboard=tensorboard,
        )
        stack.callback(output.close)
        return loop(run, batches, output, world, paths, pace or Pace())


def loop(
    run: Run, batches: Prefetcher, output: Output, world: World, paths: RunPaths, pace: Pace
) -> list[float]:
    """Take the steps that are left; see `train`."""
    config = run.config
    evaluate_every = pace.evaluate or min(2000, max(1, config.total_steps // 10))
    layout = memory_layout(world, config)
    upscale = LowTail(run.net) if isinstance(run.net, Generator) else run.net
    if config.compile:
        upscale.compile()
        if run.adversary and not config.r1_weight:  # R1 derives twice, which cannot be
            run.adversary.discriminator.compile()
    losses: list[float] = []
    stop = StopRequest()
    bar = tqdm(
        total=config.total_steps,
        initial=run.step,
        unit="step",
        disable=None if world.is_first else True,
    )
    with bar, stop, logging_redirect_tqdm():
        while run.step < config.total_steps and not world.any(stop.requested):
            if run.step == config.steps:
                if config.steps:
                    output.publish_fidelity()
                run.begin_gan()
            run.set_learning_rate()
            gan = run.adversary if run.step >= config.steps else None
            lr, hr = (
                patches.to(world.device, non_blocking=True).contiguous(memory_format=layout)
                for patches in batches.take()
            )
            with torch.autocast(world.device.type, torch.bfloat16, enabled=config.amp):
                sr = upscale(lr)
            sr = sr.float().contiguous(memory_format=layout)
            judged = discriminator_step(config, gan, sr, hr, world) if gan else {}
            with torch.autocast(world.device.type, torch.bfloat16, enabled=config.amp):
                terms = generator_terms(config, gan, sr, hr)
            loss = torch.stack([term.float() for term in terms.values()]).sum()
            for optimizer in run.optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            gradients = [p.grad for p in run.net.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            told = read({**judged, **terms, "gradient": norm, "loss": loss})
            check_finite(told, (lr, hr), paths, world, run.step)
            told = world.mean(told)
            losses.append(told["loss"])
            world.average_gradients(run.net)
            for optimizer in run.optimizers:
                optimizer.step()
            run.step += 1
            # a short memory at first, so that the average forgets the random start
            update_average(run.average, run.net, min(config.ema, run.step / (run.step + 10)))
            output.means.add({name: value for name, value in told.items() if name != "gradient"})
            output.patches = lr, sr, hr
            bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
            bar.update()
            if run.step % pace.save == 0:
                output.save()
            is_due = run.step == config.steps or run.step % evaluate_every == 0
            if is_due and run.step < config.total_steps:
                output.publish()
        if losses:
            output.save()
        if stop.requested and world.is_first:
            log.info("stopping; Ctrl-C again leaves the scores and the weights out")
        output.publish()  # what a crash kept from it too
        if run.step < config.total_steps:
            raise KeyboardInterrupt
    return losses


def make_generator(config: TrainConfig, start: Model | None) -> Network:
    """Build the generator, with random weights or those of a model.

    Raises:
        ValueError: the model is of another network, or the training form cannot take its weights.
    """
    net = build_network(config.network, config.network_config(), deployed=config.norm == "none")
    if start is None:
        return net
    if start.network != config.network:
        raise ValueError(f"{start.name} is of {start.network}, this run of {config.network}")
    try:
        net.load_state_dict(start.net.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"{start.name} does not fit this run: weights files hold folded networks of their own "
            "width and depth; a network with batch norm starts from one with --norm none"
        ) from error
    return net


def make_sampler(config: TrainConfig, photos: list[Path], *, scale: int) -> PatchSampler:
    """Load the photos (see `PatchSampler`, `VideoSampler`)."""
    kind = VideoSampler if config.degradation == "video" else PatchSampler
    sampler = kind(
        photos,
        crop=config.crop,
        scale=scale,
        seed=config.seed,
        candidates=config.candidates,
        half_size=config.half_size,
        recolour=config.recolour,
    )
    log.info("%d photos, %.0f MB in memory", sampler.photos, sampler.held_bytes / 1e6)
    return sampler


def check_stage(path: Path, state: dict[str, Any], config: TrainConfig) -> None:
    """Refuse a change of `steps` that comes too late: the stage that it would end is over.

    Raises:
        ValueError: it is so.
    """
    before = state["config"]["steps"]
    if config.steps != before and state["step"] > min(config.steps, before):
        raise ValueError(
            f"{path} is at step {state['step']} of a run with --steps {before}: too late for "
            f"--steps {config.steps}"
        )


def describe_mismatch(path: Path, found: dict[str, Any], config: TrainConfig) -> str:
    """Say in which of the fields that shape the networks a checkpoint differs from a run."""
    names = (
        *("network", "channels", "blocks", "norm", "optimizer", "discriminator"),
        *("discriminator_channels", "spectral_norm", "crop", "steps"),
    )
    wanted = asdict(config)
    differing = [name for name in names if found.get(name) != wanted[name]]
    there, here = ({name: c.get(name) for name in differing} for c in (found, wanted))
    return f"{path} is of {there}, this run of {here}"


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


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Build the command line; the defaults are those of `TrainConfig`."""
    description, _, examples = (__doc__ or "").partition("\n\n")
    p = argparse.ArgumentParser(
        prog="python -m train.srgan",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    files = p.add_argument_group("files")
    files.add_argument("--data", type=Path, required=True, help="folder of photos")
    files.add_argument(
        "--out", type=Path, help="folder for what it writes; default runs/RECIPE or /SYSTEM"
    )
    files.add_argument("--eval", type=Path, help="folder of test sets, each a folder of pictures")
    files.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    files.add_argument("--start", type=Path, metavar="FILE", help="weights to begin from")
    files.add_argument(
        "--features", type=Path, nargs="+", default=[], metavar="FILE",
        help="feature networks in safetensors, or folders of them: VGG for the content loss, "
        "AlexNet (or VGG16) and heads for LPIPS; without them VGG19 comes from torchvision",
    )  # fmt: skip
    files.add_argument(
        "--eval-every", type=int, metavar="STEPS", help="default: ten times, at least every 2000"
    )
    files.add_argument("--save-every", type=int, default=500, metavar="STEPS", help="default 500")
    files.add_argument("--tensorboard", action="store_true", help="write OUT/tensorboard")
    sets = p.add_argument_group(
        "sets of options of a new run; single ones go over them, a system over a recipe"
    )
    sets.add_argument("--recipe", choices=RECIPES, help="by hardware; default paper")
    sets.add_argument(
        "--system",
        choices=SYSTEMS,
        help="of the paper's tables 1 and 2: the network's kind, losses and discriminator",
    )
    run = p.add_argument_group("run (with --resume, the checkpoint's value unless given)")
    default = TrainConfig()
    for field in fields(TrainConfig):
        value = getattr(default, field.name)
        flag = "--" + field.name.replace("_", "-")
        if field.name == "recipe":
            continue
        shown = field.metadata["help"] + ("" if value is None else f" (default: {value})")
        if isinstance(value, bool):
            run.add_argument(flag, action=argparse.BooleanOptionalAction, help=shown)
            continue
        kind = int if value is None else type(value)
        run.add_argument(flag, type=kind, choices=CHOICES.get(field.name), help=shown)
    return p


def chosen(arguments: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the arguments that were given."""
    return {name: arguments[name] for name in names if arguments[name] is not None}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    p = parser()
    arguments = vars(p.parse_args(argv))
    given = chosen(arguments, (field.name for field in fields(TrainConfig)))
    recipe, system = arguments["recipe"], arguments["system"]
    out = arguments["out"] or Path("runs") / (recipe or system or "paper")
    command = describe_command("train.srgan", argv)
    paths = RunPaths(
        data=arguments["data"],
        out=out,
        eval=arguments["eval"],
        start=arguments["start"],
        features=tuple(arguments["features"]),
    )
    try:
        resumed = load_checkpoint(paths.checkpoint)["config"] if arguments["resume"] else {}
        train(
            combine(recipe, system, given, resumed=resumed),
            paths,
            resume=arguments["resume"],
            pace=Pace(arguments["eval_every"], arguments["save_every"]),
            tensorboard=arguments["tensorboard"],
            command=command,
        )
    except (OSError, ValueError, FloatingPointError, VSRError) as error:
        log.error("train.srgan: error: %s", error)
        return 1
    except KeyboardInterrupt:
        hint = "; --resume goes on" if paths.checkpoint.exists() else ""
        log.error("train.srgan: interrupted%s", hint)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
