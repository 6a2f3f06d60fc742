"""A model and a frame size to a TensorRT engine: from the cache, or exported and built.

The cache is asked first, and its key is made of what shapes the graph instead of the graph itself:
where an engine is there, nothing is exported.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache as once
from importlib import resources
from typing import Any, Literal, TypeVar, cast, get_args

import torch

from engines import trt_torch
from engines.algebra import Rewrites, rewrite
from engines.cache import EngineCache, EngineKey, Shape
from engines.export import export_onnx, exporter_versions
from engines.networks import Network
from engines.trt_build import BuildOptions, Profile, build_engine, find_tensorrt
from engines.weights import Model

log = logging.getLogger(__name__)

T = TypeVar("T")

Exporter = Literal["onnx", "torch-tensorrt"]
Floats = Literal["fp16", "fp32"]

DTYPES: dict[Floats, torch.dtype] = {"fp16": torch.float16, "fp32": torch.float32}
# what makes a graph of weights: a change in any of these is another graph
_GRAPH_SOURCES = ("networks.py", "algebra.py", "export.py", "trt_torch.py")


class Compiler:
    """Makes the engines of one model, one for each size, or takes them from the cache.

    Args:
        model: the weights.
        precision: of input, output, weights and all arithmetic.
        options: of the build. None: the library's defaults; but an engine that is in the cache is
            taken whatever it was built with, the newest first.
        exporter: what makes the graph. None: "onnx", with the same exception.
        rewrites: None: the default ones, but no clamp.
        cache: None: the user's.

    Raises:
        BackendUnavailable: TensorRT is not installed.
    """

    def __init__(
        self,
        model: Model,
        *,
        precision: Floats = "fp16",
        options: BuildOptions | None = None,
        exporter: Exporter | None = None,
        rewrites: Rewrites | None = None,
        cache: EngineCache | None = None,
    ) -> None:
        if exporter not in (None, *get_args(Exporter)):
            raise ValueError(f"exporter must be one of {get_args(Exporter)}, got {exporter!r}")
        self.library = find_tensorrt()
        self.cache = cache or EngineCache()
        self.precision: Floats = precision
        self.dtype = DTYPES[precision]
        # not clamped: `engines.safety` looks for what is not finite
        self._model, self._rewrites = model, rewrites or Rewrites(clamp=False)
        self._exporter: Exporter = exporter or "onnx"
        self._options = options or BuildOptions()
        self._any_options, self._any_exporter = options is None, exporter is None
        self._weights_sha256 = weights_digest(model.net)

    def engine(
        self,
        shape: Shape,
        load: Callable[[bytes], T],
        *,
        check: Callable[[T], None] | None = None,
        waiting: Callable[[], None] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> T:
        """Return what `load` makes of the engine for frames of one shape, (N, H, W).

        Args:
            shape: the engine takes no other.
            load: see `EngineCache.load_or_build`.
            check: as `load`.
            waiting: as `load`.
            progress: called with the share of a build that is done; what it raises stops it.

        Raises:
            BackendUnavailable: the exporter is missing, the cache cannot be used, or `load` refuses
                a fresh engine.
            EngineBuildError: the network cannot be exported or compiled, or fails the check.
        """
        key = self.key(shape)
        for known in (*self._alike(key), key):
            found = self.cache.load(known, load, waiting=waiting)
            if found is not None:
                return found
        return self.cache.load_or_build(
            key,
            lambda: self._build(shape, progress or (lambda _: None)),
            load,
            check=check,
            waiting=waiting,
        )

    def has(self, shape: Shape) -> bool:
        """Tell whether the engine for frames of one shape is in the cache."""
        key = self.key(shape)
        return any(self.cache.path(known).exists() for known in (key, *self._alike(key)))

    def key(self, shape: Shape) -> EngineKey:
        """Name the engine for frames of one shape."""
        gpu, capability, driver = this_gpu()
        versions = exporter_versions if self._exporter == "onnx" else trt_torch.exporter_versions
        return EngineKey(
            model=self._model.name,
            weights_sha256=self._weights_sha256,
            source_sha256=source_digest(),
            rewrites=str(self._rewrites),
            exporter=f"{self._exporter}: {versions()}",
            precision=self.precision,
            minimum=shape,
            optimum=shape,
            maximum=shape,
            flavour=self.library.flavour,
            version=self.library.version,
            gpu=gpu,
            compute_capability=capability,
            driver=driver,
            options=str(self._options),
        )

    def _alike(self, key: EngineKey) -> list[EngineKey]:
        """List what is in the cache and serves as well, the newest first."""
        if not (self._any_options or self._any_exporter):
            return []
        found = []
        for entry in sorted(self.cache.entries(), key=lambda entry: -entry.built_at):
            same = replace(
                key,
                options=entry.key.options if self._any_options else key.options,
                exporter=entry.key.exporter if self._any_exporter else key.exporter,
            )
            if entry.key == same:
                found.append(same)
        return found

    def _build(self, shape: Shape, progress: Callable[[float], None]) -> bytes:
        name, version = self.library.flavour, self.library.version
        log.info("%s %s compiles %s for %s", name, version, self._model.name, shape)
        progress(0.0)
        net = rewrite(self._model.net, self._rewrites)
        if self._exporter == "torch-tensorrt":
            data = trt_torch.build_engine(
                self.library, net, shape, dtype=self.dtype, options=self._options,
                timing_path=self.cache.timing_path("torch-tensorrt", version),
            )  # fmt: skip
            progress(1.0)
            return data
        before = self.cache.timing(name, version)
        data, timing = build_engine(
            self.library,
            export_onnx(net, dtype=self.dtype, shape=shape),
            Profile.fixed(shape),
            options=self._options,
            timing=before,
            progress=progress,
        )
        if timing and timing != before:
            self.cache.keep_timing(name, version, timing)
        return data


def weights_digest(net: Network) -> str:
    """Return the SHA-256 of a network's kind, configuration and tensors."""
    digest = hashlib.sha256(type(net).__name__.encode())
    digest.update(json.dumps(asdict(cast(Any, net.config)), sort_keys=True).encode())
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@once
def source_digest() -> str:
    """Return the SHA-256 of the code that makes a graph of weights."""
    digest = hashlib.sha256()
    for name in _GRAPH_SOURCES:
        digest.update((resources.files("engines") / name).read_bytes())
    return digest.hexdigest()


def this_gpu() -> tuple[str, str, str]:
    """Return name, compute capability and newest CUDA version served, each "" without a GPU."""
    if not torch.cuda.is_available():
        return "", "", ""
    major, minor = torch.cuda.get_device_capability()
    driver = int(cast(Any, torch._C)._cuda_getDriverVersion())
    return (
        torch.cuda.get_device_name(),
        f"{major}.{minor}",
        f"{driver // 1000}.{driver % 1000 // 10}",
    )
