"""The gate that a compiled engine must pass: it gives what the network gives in float32.

A compiler may choose a kernel that is wrong for this GPU, and half precision may overflow: either
is silent. So a fresh engine upscales one test frame before it is kept, and is compared with
PyTorch, at the 8 bits that most clips are stored in.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from engines.cache import Shape
from engines.errors import EngineBuildError
from engines.pytorch import exact_convolutions
from engines.tiles import receptive_radius, tiles
from engines.weights import Model

log = logging.getLogger(__name__)

GATE_DB = 50.0
"""least PSNR of an engine against float32; one level of 8 bits off in every third sample is 53"""
_PART = 256  # side of what PyTorch computes at once, so that it fits beside the engine


def parity_frames(shape: Shape) -> Tensor:
    """Draw frames with slopes, edges, fine patterns and noise, the same ones each time.

    Args:
        shape: (N, H, W).

    Returns:
        (N, 3, H, W) float32 RGB in [0, 1], on the CPU.
    """
    count, height, width = shape
    generator = torch.Generator().manual_seed(20)
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)[None]
    slopes = torch.stack([x.expand(height, width), y.expand(height, width), (x + y) / 2])
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    checks = ((rows // 8 + columns // 8) % 2).float()  # edges
    stripes = ((rows + columns) % 2).float() * (columns > width // 2)  # the finest pattern
    noise = torch.rand((count, 3, height, width), generator=generator)
    return (0.4 * slopes + 0.25 * checks + 0.15 * stripes + 0.2 * noise).clamp(0, 1)


def check_parity(
    run: Callable[[Tensor], Tensor],
    model: Model,
    shape: Shape,
    *,
    dtype: torch.dtype,
    device: torch.device,
    name: str,
) -> float:
    """Return how near an engine comes to float32 PyTorch, in dB, if that is near enough.

    Args:
        run: the engine: (N, 3, H, W) to (N, 3, H*scale, W*scale), of `dtype` on `device`.
        model: what it was built of.
        shape: (N, H, W) of the frames that it takes.
        dtype: of its frames.
        device: that it runs on; PyTorch computes there too.
        name: of the engine, for the message.

    Raises:
        EngineBuildError: it is not near enough.
    """
    frames = parity_frames(shape).to(device)
    decibels = difference_db(run(frames.to(dtype)), model, frames)
    if not decibels >= GATE_DB:  # not a number is not near either
        raise EngineBuildError(
            f"{name} is only {decibels:.1f} dB near float32 PyTorch on a test frame, expected "
            f"{GATE_DB:g} or more: it is not used. Try another level, --precision fp32, or "
            "--backend pytorch"
        )
    log.info("%s: %.1f dB against float32 PyTorch on a test frame", name, decibels)
    return decibels


@torch.no_grad()
def difference_db(result: Tensor, model: Model, frames: Tensor) -> float:
    """Return the PSNR of a result against the network in float32, both rounded to 8 bits.

    Args:
        result: (N, 3, H*scale, W*scale), any float, clamped or not.
        model: the network.
        frames: (N, 3, H, W) float32, what it was made of, on the same device.

    Returns:
        dB; infinite where no sample differs, not a number where one is none.
    """
    net = copy.deepcopy(model.net).to(frames.device, torch.float32)
    squares = torch.zeros((), dtype=torch.float64, device=frames.device)
    overlap = receptive_radius(model.net)
    height, width = frames.shape[2:]
    scale = (model.scale, model.scale)
    with exact_convolutions():
        for tile in tiles((height, width), side=_PART, overlap=overlap):
            part = net(frames[(..., *tile.window)]).clamp(0, 1)
            expected = part[(..., *tile.of_window(scale))]
            found = result[(..., *tile.of_result(scale))].float().clamp(0, 1)
            error = (found * 255).round() - (expected * 255).round()
            squares += error.double().square().sum()
    mean = float(squares) / result.numel()
    return math.inf if mean == 0 else 10 * math.log10(255**2 / mean)
