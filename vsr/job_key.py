"""What a job is known by, when it is to go on after an interruption."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from engines import Engine
from engines.weights import Model
from vsr.config import UpscaleConfig
from vsr.version import __version__

# distributions whose kernels compute the frames, by back end
_LIBRARIES = {"openvino": ("openvino",), "tensorrt": ("tensorrt", "tensorrt-rtx")}


def job_key(
    config: UpscaleConfig, model: Model, engine: Engine, size: tuple[int, int], *, decoder: str
) -> dict[str, Any]:
    """Name all but the source that shapes the output's frames: a job goes on if none of it changes.

    The source is known by `Reader.stamp`, the cuts by `vsr.choices.segment_frames`.
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
        "device": _device(engine),
        "precision": engine.precision,
        "output size": size,
        "versions": _versions(engine.backend),
    }
    if engine.precision == "int8" and model.int8_path is not None:
        key["int8 forms"] = hashlib.sha256(model.int8_path.read_bytes()).hexdigest()
    return key


def _device(engine: Engine) -> str:
    """Name what computes the frames: its sums are not another's."""
    if engine.device.type == "cuda":
        return torch.cuda.get_device_name(engine.device)
    return engine.device.type


def _versions(backend: str) -> dict[str, str]:
    versions = {"vsr": __version__, "torch": torch.__version__, "av": version("av")}
    for name in _LIBRARIES.get(backend, ()):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
