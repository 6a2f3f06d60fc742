"""What a job is known by, when it is to go on after an interruption."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from engines import Engine
from engines.weights import Model
from vsr import segments
from vsr.config import UpscaleConfig
from vsr.version import __version__


def job_key(
    config: UpscaleConfig, model: Model, engine: Engine, size: tuple[int, int], *, decoder: str
) -> dict[str, Any]:
    """Name all but the source that shapes the output's frames: a job goes on if none of it changes.

    The source is known by `Reader.stamp`.
    """
    key = asdict(config)
    for name in (
        "source", "output", "overwrite", "resume", "live", "live_depth", "reconnect_seconds",
    ):  # fmt: skip
        del key[name]
    key |= {
        "model": model.sha256,
        "decoder": decoder,
        "backend": engine.backend,
        "precision": engine.precision,
        "output size": size,
        "versions": {
            "vsr": __version__, "torch": torch.__version__, "av": version("av"),
        },
        "segment frames": segments.SEGMENT_FRAMES,
    }  # fmt: skip
    return key
