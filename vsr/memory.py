"""How much memory there is, and how large a part of a frame may therefore be worked on at once."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from engines.tiles import SMALLEST_TILE, bytes_per_pixel, receptive_radius
from engines.weights import Model

_CGROUP = Path("/sys/fs/cgroup")


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
        return max(0, min(free, limit - int((cgroup / "memory.current").read_text())))
    except (OSError, ValueError):
        return free


def automatic_tile(model: Model, size: tuple[int, int], free: int) -> int | None:
    """Choose the side of a tile, in pixels of the input; None: the whole frame fits.

    The engine may take half of what is free beside the frame's result; the rest is for the frames
    that wait between the stages.

    Args:
        model: whose network is to run; `bytes_per_pixel` has the model of its memory.
        size: (height, width) of the input.
        free: bytes.
    """
    height, width = size
    result = 3 * 4 * model.scale**2 * height * width  # RGB in float32
    budget = max(free // 8, (free - result) // 2)
    needed = bytes_per_pixel(model.net)
    if height * width * needed <= budget:
        return None
    side = math.isqrt(budget // needed) - 2 * receptive_radius(model.net)
    return max(SMALLEST_TILE, side)
