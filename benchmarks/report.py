"""What all benchmarks have in common: how they end, the environment card, MACs, safe writing."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from engines.errors import VSRError
from engines.files import replaced
from engines.networks import build_network
from engines.weights import save_weights
from train.account import describe_commit


def publish(name: str, measure: Callable[[], dict[str, Any]], path: Path | None) -> int:
    """Measure, write the document to a file and as the last line of stdout; return the exit code.

    What cannot be measured is one line on stderr, and 1; Ctrl-C another one, and 130.

    Args:
        name: of the benchmark.
        measure: makes the document.
        path: None writes no file.
    """
    try:
        document = measure()
        if path is not None:
            write_atomically(path, json.dumps(document, indent=2) + "\n")
    except (VSRError, OSError, ValueError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    print(json.dumps(document, separators=(",", ":")))
    return 0


def environment(*packages: str) -> dict[str, str]:
    """Describe what figures were made with, without naming the machine.

    Args:
        packages: distributions whose versions belong on the card, beside PyTorch's.
    """
    return {
        "commit": describe_commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", *packages)},
        "device": f"CPU, {torch.get_num_threads()} threads, float32",
    }


def available_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def tiny_weights(folder: Path) -> Path:
    """Write a network of one block, where a benchmark is about all but the pixels."""
    torch.manual_seed(0)
    net = build_network("srgan-lite", {"channels": 1, "blocks": 1, "scale": 2}, deployed=True)
    save_weights(folder / "tiny.safetensors", net, network="srgan-lite", training={})
    return folder / "tiny.safetensors"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a crash leaves either the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as partial:
        partial.write_text(text)
