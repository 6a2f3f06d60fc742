"""Make the int8 form of a model: calibrate, train a little, measure, write.

    python -m train.quantize --model srgan-lite --texture 0.5 --data photos/ --eval eval/

What runs is the module that OpenVINO compiles (`engines.ov.runtime_form`), with the convolutions
of `engines.int8.quantised_convolutions` rounding as its int8 kernels do: inputs to 256 levels a
tensor, weights to 255 levels an output channel, each with a step of its own.

1. Equalise: on real frames, give all channels that share a step the same range.
2. Calibrate: the step of each input that rounds with the least square error; the steps of the
   weights reach to their largest.
3. Train: weights, biases, slopes and all steps together, for the least square distance to the
   float32 network on patches of the photos. Rounding passes its gradient straight through (Esser et
   al. 2020, Learned Step Size Quantization, without its scaling of gradients).
4. Gate: the same OpenVINO graph that a user gets, int8 against float32: PSNR-Y against the
   originals of each test set in `--eval`, PSNR of one result against the other, and the levels of a
   smooth ramp. A form that loses more than 0.1 dB on any set, or more than 2 % of the levels, is
   written too, but only used when asked for by name.

The form goes to `<weights>.int8.safetensors`, beside the forms of other textures.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines import VSRError, create_engine, load_model
from engines.algebra import ConvolutionalLite
from engines.int8 import (
    LARGEST_LOSS_DB,
    MOST,
    Int8Form,
    quantised_convolutions,
    read_forms,
    write_forms,
)
from engines.networks import Generator, ResidualBlock
from engines.ov import runtime_form
from engines.weights import Model
from train.data import (
    PatchSampler,
    find_photos,
    find_sets,
    shrink_bicubic,
    to_frame,
)
from train.metrics import check_sets, load_original, psnr, to_luma, to_picture

log = logging.getLogger("train")

CALIBRATION_PATCHES = 32
SEEN_VALUES = 200_000
"""of each input, that calibration looks at"""
LEAST_RANGE = 1e-3
"""of a channel that all but never says anything, as a share of the largest"""


class FakeInt8(nn.Module):
    """A convolution that rounds its inputs and weights as an int8 kernel does.

    Args:
        conv: taken over; its weights are trained on.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        largest = conv.weight.detach().abs().amax((1, 2, 3)).clamp(min=1e-8)
        # trained as logarithms: a step is positive, and a change of it is relative
        self.log_weight_step = nn.Parameter((largest / MOST).log())
        self.log_input_step = nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] | None = None
        """while a list, inputs are gathered and nothing is rounded"""

    def rounded_weight(self) -> Tensor:
        """Return the weights as multiples of their steps."""
        step = self.log_weight_step.exp().view(-1, 1, 1, 1)
        return _to_multiples(self.conv.weight, step, -MOST, MOST)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        if self.seen is not None:
            values = x.detach().flatten()
            self.seen.append(values[:: 1 + values.numel() // SEEN_VALUES])
            return cast(Tensor, self.conv(x))
        x = _to_multiples(x, self.log_input_step.exp(), -MOST - 1, MOST)
        conv = self.conv
        return F.conv2d(x, self.rounded_weight(), conv.bias, padding=cast(Any, conv.padding))


def _to_multiples(x: Tensor, step: Tensor, lowest: int, highest: int) -> Tensor:
    count = x / step
    count = count + (count.round() - count).detach()
    return count.clamp(lowest, highest) * step


def fake_quantised(module: nn.Module) -> tuple[nn.Module, dict[str, FakeInt8]]:
    """Return a copy whose convolutions round, and these by name."""
    result = copy.deepcopy(module).requires_grad_(True)
    layers = {}
    for name, conv in quantised_convolutions(result).items():
        parent, _, last = name.rpartition(".")
        layers[name] = FakeInt8(conv)
        setattr(result.get_submodule(parent), last, layers[name])
    return result, layers


def straight_pairs(module: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.Conv2d]]:
    """Yield convolutions that have but PReLU, and perhaps a pixel shuffle, between them."""
    for part in module.modules():
        convs: list[nn.Module] = []
        if isinstance(part, ConvolutionalLite):
            convs = [*part.body, part.tail]
        elif isinstance(part, ResidualBlock):
            convs = [part.conv1, part.conv2]
        elif isinstance(part, Generator):
            convs = [*part.upsample.modules(), *part.tail.modules()]
        yield from pairwise(conv for conv in convs if isinstance(conv, nn.Conv2d))


@torch.no_grad()
def equalise(module: nn.Module, frames: Tensor) -> None:
    """Give all channels between two convolutions the same range: the function stays the same.

    They share one step, and rounding their values is what costs most. PReLU of a multiple is the
    multiple of PReLU (Nagel et al. 2019, Data-Free Quantization, section 4.1, on ReLU).
    """
    pairs = list(straight_pairs(module))
    largest: dict[nn.Module, Tensor] = {}

    def see(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].abs().amax((0, 2, 3))
        largest[conv] = values.maximum(largest.get(conv, values))

    hooks = [after.register_forward_pre_hook(see) for _, after in pairs]
    for frame in torch.split(frames, 4):
        module(frame)
    for hook in hooks:
        hook.remove()
    for before, after in pairs:
        ranges = largest[after].clamp(min=LEAST_RANGE * float(largest[after].max()))
        after.weight *= ranges.view(1, -1, 1, 1)
        each = ranges.repeat_interleave(before.out_channels // after.in_channels)
        before.weight /= each.view(-1, 1, 1, 1)
        cast(Tensor, before.bias).div_(each)


@torch.no_grad()
def calibrate(net: nn.Module, layers: dict[str, FakeInt8], frames: Tensor) -> None:
    """Choose the step of each input by what comes in, frames (N, 3, H, W) in [0, 1]."""
    for layer in layers.values():
        layer.seen = []
    for frame in torch.split(frames, 4):
        net(frame)
    for layer in layers.values():
        values = torch.cat(cast(list[Tensor], layer.seen))
        layer.seen = None
        largest = values.abs().max().clamp(min=1e-8)
        steps = [largest * share / 100 / MOST for share in range(30, 101, 2)]
        errors = [F.mse_loss(_to_multiples(values, s, -MOST - 1, MOST), values) for s in steps]
        layer.log_input_step.copy_(steps[int(torch.stack(errors).argmin())].log())


def train(
    net: nn.Module,
    teacher: nn.Module,
    sampler: PatchSampler,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
) -> None:
    """Bring the rounding network close to the one that does not round."""
    by_kind: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in net.named_parameters():
        if "nearest" in name:
            parameter.requires_grad_(False)
        else:
            by_kind["_step" in name].append(parameter)
    groups = [
        {"params": by_kind[False], "lr": learning_rate},
        {"params": by_kind[True], "lr": 10 * learning_rate},
    ]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    losses: list[float] = []
    began = time.monotonic()
    for step in range(1, steps + 1):
        frames, _ = sampler.batch(batch)
        with torch.no_grad():
            wanted = teacher(frames)
        loss = F.mse_loss(net(frames), wanted)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 100 == 0 or step == steps:
            distance = -10 * torch.tensor(fmean(losses)).log10()
            seconds = time.monotonic() - began
            log.info("step %d: %.2f dB to float32, %.0f s", step, distance, seconds)
            losses.clear()


@torch.no_grad()
def to_form(net: nn.Module, layers: dict[str, FakeInt8], model: Model) -> Int8Form:
    """Return the form of a trained network, its gate still empty."""
    state = {}
    for name, value in net.state_dict().items():
        owner, _, last = name.rpartition(".")
        layer = layers.get(owner.removesuffix(".conv"))
        if layer is None:
            state[name] = value
        elif owner not in layers:  # what the layer wraps, under the name that it had
            rounded = layer.rounded_weight() if last == "weight" else value
            state[f"{owner.removesuffix('.conv')}.{last}"] = rounded
    return Int8Form(
        texture=model.texture,
        sha256=model.sha256,
        state=state,
        weight_steps={name: layer.log_weight_step.exp() for name, layer in layers.items()},
        input_steps={name: float(layer.log_input_step.exp()) for name, layer in layers.items()},
        gate={},
    )


# --------------------------------------------------------------------------------------------------
# The gate
# --------------------------------------------------------------------------------------------------

Upscaler = Callable[[Tensor], Tensor]


@torch.inference_mode()
def measure(fp32: Upscaler, int8: Upscaler, sets: Sequence[Path], *, scale: int) -> dict[str, Any]:
    """Compare two upscalers as a form's gate has it.

    Returns:
        loss_db: by set, how much PSNR-Y against the originals `int8` loses, dB;
        psnr_to_fp32: by set, PSNR of one RGB result against the other, dB;
        ramp_levels: distinct 10-bit levels of the enlarged `ramp`, by precision.
    """
    gate: dict[str, Any] = {"loss_db": {}, "psnr_to_fp32": {}}
    for folder in sets:
        losses, distances = [], []
        for path in find_photos(folder):
            original = load_original(path, scale=scale)
            frame = to_frame(shrink_bicubic(original, scale))
            results = [fp32(frame), int8(frame)]
            luma = to_luma(original, shave=scale)
            before, after = (psnr(to_luma(to_picture(r), shave=scale), luma) for r in results)
            losses.append(before - after)
            a, b = (result.double().numpy() for result in results)
            distances.append(psnr(a, b, peak=1.0))
        gate["loss_db"][folder.name] = round(fmean(losses), 4)
        gate["psnr_to_fp32"][folder.name] = round(fmean(distances), 2)
    levels = {"fp32": count_levels(fp32(ramp())), "int8": count_levels(int8(ramp()))}
    return gate | {"ramp_levels": levels}


def ramp() -> Tensor:
    """Return a smooth grey picture, (1, 3, 64, 256), on which steps would show as bands."""
    down, across = torch.linspace(0, 0.05, 64), torch.linspace(0.1, 0.85, 256)
    return (down[:, None] + across).expand(1, 3, -1, -1).contiguous()


def count_levels(frames: Tensor) -> int:
    """Count the 10-bit levels that occur in frames in [0, 1]."""
    return int(torch.bincount((frames * 1023).round().int().flatten()).count_nonzero())


# --------------------------------------------------------------------------------------------------
# The program
# --------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        quantise(parse_arguments(argv))
    except (VSRError, ValueError, OSError) as error:
        log.error("train.quantize: error: %s", error)
        return 1
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    p = argparse.ArgumentParser(
        prog="python -m train.quantize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", required=True, metavar="NAME|FILE", help="built-in, or weights")
    p.add_argument("--texture", type=float, metavar="T", help="default: the model's own")
    p.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="photos")
    p.add_argument(
        "--eval", type=Path, required=True, metavar="FOLDER", help="holds a folder a test set"
    )
    p.add_argument("--steps", type=int, default=600, metavar="N", help="0: calibrate alone (600)")
    p.add_argument("--batch", type=int, default=8, metavar="N", help="patches a step (8)")
    p.add_argument("--crop", type=int, default=192, metavar="N", help="side of a patch at x4 (192)")
    p.add_argument("--learning-rate", type=float, default=1e-4, metavar="R", help="(1e-4)")
    p.add_argument(
        "--compile", action="store_true", help="torch.compile both networks: quicker steps"
    )
    p.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th photo (1)")
    p.add_argument(
        "--recolour", type=float, default=0.1, metavar="SHARE",
        help="share of the patches in colours that photographs do not have, whose range must fit "
        "too (0.1)",
    )  # fmt: skip
    p.add_argument("--seed", type=int, default=0)
    return p.parse_args(argv)


def quantise(options: argparse.Namespace) -> Int8Form:
    """Make, measure and write the form that the options ask for.

    Raises:
        VSRError: the model cannot be loaded, or OpenVINO is missing.
        ValueError: an argument is out of range, no photo is large enough, or a picture of a test
            set cannot be scored or is among the photos.
        FileNotFoundError: a folder is missing or empty.
    """
    model = load_model(options.model, texture=options.texture)
    sets = find_sets(options.eval)
    photos = find_photos(options.data)[:: options.every]
    check_sets(sets, photos=photos, scale=model.scale)
    torch.manual_seed(options.seed)
    teacher = runtime_form(model.net)
    sampler = PatchSampler(
        photos,
        crop=options.crop,
        scale=model.scale,
        seed=options.seed,
        recolour=options.recolour,
    )
    frames, _ = sampler.batch(CALIBRATION_PATCHES)
    equalise(teacher, frames)
    net, layers = fake_quantised(teacher)
    calibrate(net, layers, frames)
    if options.compile:
        net.compile()
        teacher.compile()
    train(
        net,
        teacher,
        sampler,
        steps=options.steps,
        batch=options.batch,
        learning_rate=options.learning_rate,
    )
    form = to_form(net, layers, model)
    path = cast(Path, model.int8_path)
    others = [f for f in read_forms(path) if f.texture != form.texture] if path.exists() else []
    with tempfile.TemporaryDirectory() as folder:  # the form there was stays until this is measured
        trial = replace(model, int8_path=Path(folder) / path.name)
        write_forms(cast(Path, trial.int8_path), [form])
        with (
            closing(create_engine(trial, backend="openvino", precision="fp32")) as fp32,
            closing(create_engine(trial, backend="openvino", precision="int8")) as int8,
        ):
            gate = measure(fp32, int8, sets, scale=model.scale)
    trained_by = ("steps", "batch", "crop", "learning_rate", "compile", "every", "recolour")
    gate |= {name: getattr(options, name) for name in (*trained_by, "seed")}
    form = replace(form, gate=gate)
    write_forms(path, [*others, form])
    verdict = "passed" if form.passed else f"NOT passed (at most {LARGEST_LOSS_DB} dB)"
    log.info("%s, texture %g: gate %s: %s", path.name, form.texture, verdict, gate)
    return form


if __name__ == "__main__":
    sys.exit(main())
