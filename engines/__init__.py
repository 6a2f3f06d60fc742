"""Engines: a network, its weights and a back end that runs it; and what `vsr` and `train` share."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Literal, get_args

from engines.base import Building, Engine, Precision, choose_precision
from engines.errors import (
    BackendUnavailable,
    EngineBuildError,
    MediaError,
    UnsupportedShape,
    VSRError,
    WeightsError,
)
from engines.weights import BUILT_IN, Model, load_model

__all__ = [
    "BACKENDS",
    "BUILT_IN",
    "Backend",
    "BackendUnavailable",
    "Building",
    "Engine",
    "EngineBuildError",
    "MediaError",
    "Model",
    "Precision",
    "UnsupportedShape",
    "VSRError",
    "WeightsError",
    "check_precision",
    "choose_precision",
    "create_engine",
    "load_model",
]

log = logging.getLogger(__name__)

Backend = Literal["auto", "openvino", "pytorch", "tensorrt"]

# name: (module, class), imported when asked for; `auto` tries them in this order, fastest first
BACKENDS: dict[str, tuple[str, str]] = {
    "openvino": ("engines.ov", "OpenVINOEngine"),
    "pytorch": ("engines.pytorch", "PyTorchEngine"),
    "tensorrt": ("engines.trt", "TensorRTEngine"),
}
# until somebody has seen it run on a GPU, `tensorrt` has to be asked for
_NOT_AUTOMATIC = {"tensorrt"}


def create_engine(
    model: Model,
    *,
    backend: Backend = "auto",
    precision: Precision = "auto",
    threads: int | None = None,
    building: Callable[[Building], None] | None = None,
) -> Engine:
    """Put a model on a back end.

    Args:
        model: see `load_model`.
        backend: a key of `BACKENDS`, which is used or raises; or "auto", the fastest that is there
            (PyTorch where it finds an NVIDIA GPU, else OpenVINO, else PyTorch on the CPU) and has
            the precision.
        precision: what to compute in, which is used or raises; or "auto", the back end's choice.
        threads: CPU threads for the inference; None leaves it to the back end.
        building: called, from any thread, while a back end compiles for minutes; what it raises
            stops that.

    Raises:
        BackendUnavailable: the named back end is not there, or has not that precision.
        EngineBuildError: the back end cannot compile the network.
        ValueError: the name of the back end or of the precision is unknown.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(get_args(Backend))}")
    check_precision(precision)
    if backend != "auto":
        return _create(backend, model, precision, threads, building)
    passed_over: dict[str, str] = {}
    for name in _fastest_first():
        try:
            engine = _create(name, model, precision, threads, building)
        except BackendUnavailable as error:
            passed_over[name] = str(error)
        else:
            for other, why in passed_over.items():  # where none serves, the error says it all
                log.warning("backend auto passes over %s: %s", other, why)
            log.info("backend auto: %s", engine.description)
            return engine
    raise BackendUnavailable(f"no back end serves: {'; '.join(passed_over.values())}")


def check_precision(name: str) -> None:
    """Refuse the name of a precision that no back end could have.

    Raises:
        ValueError: it is unknown.
    """
    if name not in get_args(Precision):
        raise ValueError(f"unknown precision {name!r}; known: {', '.join(get_args(Precision))}")


def _create(
    name: str,
    model: Model,
    precision: Precision,
    threads: int | None,
    building: Callable[[Building], None] | None,
) -> Engine:
    module, kind = BACKENDS[name]
    made = getattr(importlib.import_module(module), kind)
    more = {"building": building} if name == "tensorrt" else {}  # the only one that takes minutes
    engine: Engine = made(model, precision=precision, threads=threads, **more)
    return engine


def _fastest_first() -> list[str]:
    import torch

    names = [name for name in BACKENDS if name not in _NOT_AUTOMATIC]
    return sorted(names, key=lambda name: torch.cuda.is_available() and name != "pytorch")
