"""How much memory there is, and how large a part of a frame may therefore be worked on at once."""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from pathlib import Path

import torch

from engines import Engine
from engines.tiles import SMALLEST_TILE, bytes_per_pixel, receptive_radius, values_per_pixel
from engines.weights import Model

_CGROUP = Path("/sys/fs/cgroup")
# the engine's, the same in float32 and resized, and what the chroma filter makes of it: a guess
_RESULTS_ON_DEVICE = 5
_RESULTS_WAITING = 5  # one made, two in the queue, one shrunk and converted
_ASSUMED_FREE = 2 << 30  # where nobody tells
_LEAST_STRIP = 128  # rows; thinner ones are mostly overlap
_MOST_VALUES = 2**31 - 1  # of a tensor that every back end takes; TensorRT refuses larger ones


def peak_bytes() -> int:
    """Return the most memory this process ever held, 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int | None:
    """Return the memory that a process can still take without swapping; None if nobody tells.

    Args:
        meminfo: of Linux.
        cgroup: folder of the control group, version 2, which may allow less than the machine has.
    """
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit = int((cgroup / "memory.max").read_text())  # "max" where there is none
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    with suppress(OSError, KeyError, ValueError):
        # files that were read count as used, and are let go where somebody wants the memory
        text = (cgroup / "memory.stat").read_text()
        used -= int(dict(line.split(" ", 1) for line in text.splitlines())["inactive_file"])
    return max(0, min(free, limit - used))


def free_device_bytes(device: torch.device) -> int:
    """Return the memory of a GPU that is free, or that PyTorch holds and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + held)


def automatic_tile(engine: Engine, size: tuple[int, int]) -> int | None:
    """Choose the side of a tile by the memory that is free where the engine runs.

    Args:
        engine: to run.
        size: (height, width) of the input.

    Returns:
        Pixels of the input; None: the whole frame fits, or nobody tells.
    """
    on_host = engine.device.type == "cpu"
    free = free_bytes() if on_host else free_device_bytes(engine.device)
    if free is None:
        return None
    return fitting_tile(
        engine.model,
        size,
        free,
        value_bytes=engine.dtype.itemsize,
        results=1 if on_host else _RESULTS_ON_DEVICE,
    )


def automatic_lanes(engine: Engine, size: tuple[int, int], side: int | None = None) -> int:
    """Choose how many frames, or tiles of one, are computed at once, by the memory that is free.

    All of them and their results may take half of it, as one that is alone (see `fitting_tile`).

    Args:
        engine: to run.
        size: (height, width) of the input.
        side: of the tiles; None: whole frames.
    """
    if side is not None:
        window = side + 2 * receptive_radius(engine.model.net)
        size = (min(window, size[0]), min(window, size[1]))
    pixels = size[0] * size[1]
    result = pixels * 3 * 4 * engine.scale**2  # RGB in float32; one more than there are lanes
    lane = pixels * bytes_per_pixel(engine.model.net) + result
    free = free_bytes()
    budget = (_ASSUMED_FREE if free is None else free) // 2
    return max(n for n in engine.lane_counts if n == 1 or n * lane + result <= budget)


def automatic_strip(engine: Engine, size: tuple[int, int]) -> int | None:
    """Choose whether enlarged frames are made in strips, by the memory of the host that is free.

    Between the engine and the encoder up to `_RESULTS_WAITING` enlarged frames exist.

    Args:
        engine: to run; frames on a GPU wait there, and are bounded by their slots.
        size: (height, width) of the input.

    Returns:
        Rows of the enlarged frame a strip; None: whole frames fit, or nobody tells.
    """
    free = free_bytes() if engine.device.type == "cpu" else None
    row = 3 * 4 * engine.scale * size[1]  # RGB in float32
    if free is None or _RESULTS_WAITING * row * engine.scale * size[0] <= free // 2:
        return None
    return max(_LEAST_STRIP, free // 16 // row)


def fitting_tile(
    model: Model, size: tuple[int, int], free: int, *, value_bytes: int = 4, results: int = 1
) -> int | None:
    """Choose the side of a tile, in pixels of the input; None: the whole frame fits.

    No tensor within has more than `_MOST_VALUES` numbers, however much memory there is. The engine
    may take half of what is free beside the frame's result; the rest is for the frames
    that wait between the stages.

    Args:
        model: whose network is to run; `bytes_per_pixel` has the model of its memory.
        size: (height, width) of the input.
        free: bytes.
        value_bytes: of a number as the engine computes with it.
        results: whole frames of float32 RGB, as large as the result, that lie in this memory.
    """
    height, width = size
    result = 3 * 4 * model.scale**2 * height * width  # RGB in float32
    budget = max(free // 8, (free - results * result) // 2)
    needed = bytes_per_pixel(model.net) * value_bytes // 4
    most_pixels = min(budget // needed, _MOST_VALUES // values_per_pixel(model.net))
    if height * width <= most_pixels:
        return None
    side = math.isqrt(most_pixels) - 2 * receptive_radius(model.net)
    return max(SMALLEST_TILE, side)
