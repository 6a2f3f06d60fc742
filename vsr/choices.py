"""What is chosen for a job where its configuration leaves it open: decoder, precision, tiles."""

from __future__ import annotations

import logging

import torch

from engines import Backend, Engine
from engines.errors import MediaError
from engines.networks import macs_per_lr_pixel
from engines.weights import Model
from vsr import segments
from vsr.clip import ClipInfo
from vsr.config import UpscaleConfig
from vsr.hardware import HardwareUnavailable
from vsr.memory import automatic_tile
from vsr.video import Reader

log = logging.getLogger(__name__)

_CORES_PER_CONVERTER = 4
_SEGMENT_MACS = 5 * 10**13  # minutes on two cores
_LEAST_SEGMENT = 50  # frames: each segment begins with a whole picture
CHANGE_TILE = 64  # of --changed-only; smaller ones leave out more, but overlap more


def choose_decoder(config: UpscaleConfig, reader: Reader, device: torch.device) -> None:
    """Decode a clip where the configuration has it.

    Raises:
        MediaError: NVDEC is asked for by name and cannot.
    """
    if config.decoder == "cpu" or (config.decoder == "auto" and device.type != "cuda"):
        return
    try:
        reader.decode_on(device)
    except HardwareUnavailable as error:
        if config.decoder == "nvdec":
            raise MediaError(
                f"decoder nvdec, {config.source}: {error}: use --decoder cpu"
            ) from error
        log.info("%s is decoded on the CPU: %s", config.source, error)
    else:
        log.info("%s is decoded by NVDEC", config.source)


def share_threads(engine: Engine, threads: int | None) -> None:
    """Give PyTorch, in this thread and those that begin after it, its part of the cores.

    All where it runs the network. Beside another engine it only converts, in a thread for each
    stage, while engine and encoder keep the cores busy: where it splits such work, its threads
    mostly wait for one another.

    Args:
        engine: runs the network.
        threads: of a stage; None: as many as PyTorch has.
    """
    threads = threads or torch.get_num_threads()
    if engine.backend != "pytorch":
        threads = max(1, threads // _CORES_PER_CONVERTER)
    torch.set_num_threads(threads)


def segment_frames(model: Model, size: tuple[int, int]) -> int:
    """Return how many frames a segment has: fewer where each takes long, for what a crash may cost.

    It depends on the model and the input's (height, width) alone: a resumed job cuts its output
    where an unbroken one would.
    """
    macs = macs_per_lr_pixel(model.net) * size[0] * size[1]
    most = segments.SEGMENT_FRAMES
    return min(most, max(_LEAST_SEGMENT, _SEGMENT_MACS // macs))


def needs_float32(info: ClipInfo, backend: Backend) -> bool:
    """Tell whether a CPU must compute in float32: int8 and bf16 cut deep samples to eight bits."""
    on_cpu = backend == "openvino" or not torch.cuda.is_available()
    return info.layout.depth > 8 and on_cpu


def tile_side(config: UpscaleConfig, engine: Engine, size: tuple[int, int]) -> int | None:
    """Return the side of the tiles to compute frames of (height, width) in; None: no tiles."""
    if config.tile is not None:
        return config.tile
    side = automatic_tile(engine, size)
    if side is not None:
        log.warning(
            "%dx%d is much at once for the memory there is: computed in tiles of %d pixels",
            size[1], size[0], side,
        )  # fmt: skip
    if config.changed_only:
        return min(CHANGE_TILE, side or CHANGE_TILE)
    return side
