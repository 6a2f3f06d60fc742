"""The TensorRT back end: the network compiled for one NVIDIA GPU, in half precision.

Nobody has run this on a GPU yet: the builder is tested for real, and what runs the engine against a
simulated device.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from engines.algebra import Rewrites, rewrite
from engines.base import Engine, Precision, choose_precision
from engines.cache import EngineCache, EngineKey, Shape
from engines.errors import BackendUnavailable, OutOfMemory
from engines.export import INPUT, OUTPUT, export_onnx
from engines.graph import GraphedRun
from engines.trt_build import BuildOptions, Profile, TensorRT, build_engine, find_tensorrt
from engines.weights import Model

log = logging.getLogger(__name__)

T = TypeVar("T")


class Compiler:
    """Makes the engines of one model, one for each size, or takes them from the cache.

    Args:
        model: the weights.
        options: None: the library's defaults.
        rewrites: None: the default ones.
        cache: None: the user's.

    Raises:
        BackendUnavailable: TensorRT is not installed.
    """

    def __init__(
        self,
        model: Model,
        *,
        options: BuildOptions | None = None,
        rewrites: Rewrites | None = None,
        cache: EngineCache | None = None,
    ) -> None:
        self.library = find_tensorrt()
        self.cache = cache or EngineCache()
        self._model = model
        self._options = options or BuildOptions()
        self._net = rewrite(model.net, rewrites)

    def engine(
        self,
        shape: Shape,
        load: Callable[[bytes], T],
        progress: Callable[[float], None] | None = None,
    ) -> T:
        """Return what `load` makes of the engine for frames of one shape, (N, H, W).

        Args:
            shape: the engine takes no other.
            load: see `EngineCache.load_or_build`.
            progress: called with the share of a build that is done.

        Raises:
            BackendUnavailable: the exporter is missing, the cache cannot be used, or `load` refuses
                a fresh engine.
            EngineBuildError: the network cannot be exported or compiled.
        """
        onnx = export_onnx(self._net, dtype=torch.float16, shape=shape)
        name, version = self.library.flavour, self.library.version

        def build() -> bytes:
            log.info("%s %s compiles %s for %s", name, version, self._model.name, shape)
            before = self.cache.timing(name, version)
            data, timing = build_engine(
                self.library,
                onnx,
                Profile.fixed(shape),
                options=self._options,
                timing=before,
                progress=progress,
            )
            if timing and timing != before:
                self.cache.keep_timing(name, version, timing)
            return data

        return self.cache.load_or_build(self._key(onnx, shape), build, load)

    def _key(self, onnx: bytes, shape: Shape) -> EngineKey:
        gpu, capability, driver = _this_gpu()
        return EngineKey(
            network=self._model.name,
            onnx_sha256=hashlib.sha256(onnx).hexdigest(),
            precision="fp16",
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


class Session:
    """An engine ready to run: an execution context with addresses and a stream of its own.

    The addresses never change, so the whole run is captured in a CUDA graph once and replayed.

    Args:
        library: see `find_tensorrt`.
        data: the serialised engine.
        shape: (N, H, W) of the frames.
        scale: of the network.
        device: the GPU.

    Raises:
        BackendUnavailable: the library cannot load the engine, or it is for other frames.
        OutOfMemory: the GPU has no memory left for it.
    """

    def __init__(
        self, library: TensorRT, data: bytes, *, shape: Shape, scale: int, device: torch.device
    ) -> None:
        self.shape = shape
        self._runtime = library.module.Runtime(library.logger)  # must outlive its engines
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            gpu, capability, _ = _this_gpu()
            raise BackendUnavailable(
                f"{library.flavour} {library.version} cannot load its engine on {gpu} (compute "
                f"capability {capability}): {library.last_error}"
            )
        count, height, width = shape
        expected = {
            INPUT: (count, 3, height, width),
            OUTPUT: (count, 3, height * scale, width * scale),
        }
        found = {name: tuple(self._engine.get_tensor_shape(name)) for name in expected}
        if found != expected:
            raise BackendUnavailable(f"the engine takes and gives {found}, expected {expected}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise OutOfMemory(f"no execution context for {shape} on the GPU: {library.last_error}")
        try:
            frames = torch.zeros(expected[INPUT], dtype=torch.float16, device=device)
            output = torch.zeros(expected[OUTPUT], dtype=torch.float16, device=device)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"no GPU memory left for frames of {shape}") from error
        self._context.set_tensor_address(INPUT, frames.data_ptr())
        self._context.set_tensor_address(OUTPUT, output.data_ptr())

        def enqueue(stream: torch.cuda.Stream) -> Tensor:
            if not self._context.execute_async_v3(stream.cuda_stream):
                raise RuntimeError(f"{library.flavour} failed: {library.last_error}")
            return output

        try:
            self.run = GraphedRun(frames, enqueue)
            """upscales (N, 3, H, W) float16 RGB in [0, 1] on the session's GPU"""
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"no GPU memory left for frames of {shape}") from error


class TensorRTEngine(Engine):
    """The network compiled by TensorRT for this machine's GPU, in float16.

    A size other than the last one costs an export of some seconds, and where the cache does not
    hold its engine yet, a build.

    Args:
        model: the weights.
        precision: "auto" or "fp16".
        threads: unused; the work is the GPU's.
        options: of the build; None: the library's defaults.
        rewrites: see `engines.algebra`; None: the default ones.
        cache: None: the user's.

    Raises:
        BackendUnavailable: TensorRT or a GPU is missing, or it has not that precision.
    """

    backend = "tensorrt"
    precisions = ("fp16",)

    def __init__(
        self,
        model: Model,
        *,
        precision: Precision = "auto",
        threads: int | None = None,
        options: BuildOptions | None = None,
        rewrites: Rewrites | None = None,
        cache: EngineCache | None = None,
    ) -> None:
        del threads
        chosen = choose_precision(self.backend, precision, self.precisions)
        self._compiler = Compiler(model, options=options, rewrites=rewrites, cache=cache)
        if not torch.cuda.is_available():
            raise BackendUnavailable(
                "backend 'tensorrt' needs an NVIDIA GPU and a CUDA build of PyTorch (found "
                f"torch {torch.__version__}, no CUDA device)"
            )
        super().__init__(model, device=_device(), dtype=torch.float16, precision=chosen)
        self._session: Session | None = None

    @property
    def description(self) -> str:
        """What runs where, for people."""
        library = self._compiler.library
        return f"{super().description} ({library.flavour} {library.version})"

    def _run(self, frames: Tensor) -> Tensor:
        count, _, height, width = frames.shape
        shape = (count, height, width)
        if self._session is None or self._session.shape != shape:
            self._session = None  # gives its memory back before the next one takes its own
            self._session = self._load(shape)
        return self._session.run(frames)

    def _load(self, shape: Shape) -> Session:
        def load(data: bytes) -> Session:
            return Session(
                self._compiler.library, data, shape=shape, scale=self.scale, device=self.device
            )

        return self._compiler.engine(shape, load, _Announcement(shape))

    def close(self) -> None:
        """Give back the engine and its memory on the GPU."""
        self._session = None


class _Announcement:
    """Says that a build has begun, which can take minutes, and how far it is at each tenth."""

    def __init__(self, shape: Shape) -> None:
        self._shape, self._tenths = shape, -1

    def __call__(self, share: float) -> None:
        count, height, width = self._shape
        if self._tenths < 0:
            log.warning(
                "TensorRT compiles for %d frame%s of %dx%d, once: this can take minutes",
                count, "s" * (count != 1), width, height,
            )  # fmt: skip
        if int(share * 10) > self._tenths:
            self._tenths = int(share * 10)
            log.info("compiled: %d %%", self._tenths * 10)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def _this_gpu() -> tuple[str, str, str]:
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
