"""`vsr engines`: compiled TensorRT engines, made beforehand, listed and cleared."""

from __future__ import annotations

import argparse
import logging
import time
from contextlib import closing

import torch

from engines import Building
from engines.cache import EngineCache, Entry
from engines.compiler import Compiler
from engines.errors import BackendUnavailable
from engines.trt import TensorRTEngine
from engines.trt_build import BuildOptions
from engines.weights import Model, load_model
from vsr.arguments import UsageError
from vsr.config import DEFAULT_MODEL
from vsr.progress import BuildingBar

log = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> str:
    """Do what is asked for, and return what there is to say.

    Raises:
        UsageError: an argument is out of its range.
        WeightsError: the model does not exist or cannot be loaded.
        BackendUnavailable: TensorRT or the GPU is missing, or the cache cannot be used.
        EngineBuildError: the network cannot be compiled, or the engine fails its test.
    """
    if arguments.action == "build":
        return build(arguments)
    return listing() if arguments.action == "list" else clear()


def build(arguments: argparse.Namespace) -> str:
    """Build an engine, unless it is there."""
    try:
        options = BuildOptions(arguments.level, arguments.workspace, arguments.tiling)
        if not min(arguments.batch, *arguments.size) >= 1:
            raise ValueError("size and batch must be at least 1")
        model = load_model(
            arguments.weights or arguments.model or DEFAULT_MODEL, texture=arguments.texture
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    with closing(BuildingBar(quiet=arguments.quiet)) as bar:
        entry = _built(arguments, model, options, bar)
    said = f"built in {entry.build_seconds:.1f} s" if bar.built else "it was there already"
    return f"{_describe(entry)}, {said}"


def _built(
    arguments: argparse.Namespace, model: Model, options: BuildOptions, bar: BuildingBar
) -> Entry:
    shape = (arguments.batch, *arguments.size)
    settings = {
        "precision": arguments.precision, "options": options, "exporter": arguments.exporter,
    }  # fmt: skip
    if torch.cuda.is_available():
        with closing(TensorRTEngine(model, building=bar, **settings)) as engine:
            engine.prepare(shape)
            compiler = engine.compiler
    else:
        compiler = Compiler(model, **settings)
        if compiler.library.flavour != "tensorrt_rtx":
            raise BackendUnavailable(
                f"tensorrt {compiler.library.version} builds on the GPU that is to run the engine "
                f"(found torch {torch.__version__}, no CUDA device)"
            )
        log.warning(
            "no CUDA device: the engine is not tried out, and no GPU will look for it: it only "
            "shows that the network compiles"
        )
        compiler.engine(shape, bytes, progress=lambda share: bar(Building(shape, share)))
    key = compiler.key(shape)
    return next(entry for entry in compiler.cache.entries() if entry.key == key)


def listing() -> str:
    """List the engines that are there, the newest first."""
    cache = EngineCache()
    entries = sorted(cache.entries(), key=lambda entry: -entry.built_at)
    if not entries:
        return f"no engines in {cache.folder}"
    now = time.time()
    return "\n".join(f"{_describe(entry)}, {age(now - entry.built_at)} old" for entry in entries)


def clear() -> str:
    """Delete them all."""
    cache = EngineCache()
    count = cache.clear()
    return f"{count} engine{'s' * (count != 1)} deleted from {cache.folder}"


def _describe(entry: Entry) -> str:
    key = entry.key
    count, height, width = key.optimum
    frames = f"{count} frame{'s' * (count != 1)} of {width}x{height}"
    gpu = f"{key.gpu} ({key.compute_capability})" if key.gpu else "no GPU"
    return (
        f"{EngineCache().path(key)}: {entry.size_bytes / 1e6:.1f} MB, {key.model} "
        f"{key.weights_sha256[:8]} {key.precision}, {frames}, {key.options}, "
        f"{key.exporter.partition(':')[0]}, {key.flavour} {key.version}, {gpu}"
    )


def age(seconds: float) -> str:
    """Say a time in its largest unit: "3 hours"."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' * (count != 1)}"
    return "less than a minute"
