"""The TensorRT back end: the network compiled for one NVIDIA GPU, in half precision or float32.

Nobody has run this on a GPU yet: the builder is tested for real, and what runs the engine against a
simulated device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event
from typing import cast

import torch
from torch import Tensor

from engines.algebra import Rewrites
from engines.base import Building, CompiledEngine, Precision, choose_precision
from engines.cache import EngineCache, Shape
from engines.compiler import Compiler, Exporter, Floats
from engines.errors import BackendUnavailable, EngineBuildError
from engines.parity import check_parity
from engines.shapes import LastShapes
from engines.trt_build import BuildOptions
from engines.trt_session import Session
from engines.weights import Model

log = logging.getLogger(__name__)


class TensorRTEngine(CompiledEngine):
    """The network compiled by TensorRT for this machine's GPU.

    A size that is not among the last two costs loading its engine, and where the cache does not
    hold it yet, an export and a build. What is built must pass the gate of `engines.parity`.

    Args:
        model: the weights.
        precision: "auto", "fp16" or "fp32".
        threads: unused; the work is the GPU's.
        options: of the build; None: see `Compiler`.
        exporter: what makes the graph; None: see `Compiler`.
        rewrites: see `engines.algebra`; None: see `Compiler`.
        cache: None: the user's.
        contexts: how many parts of a batch run at once, on the same engine; a batch that cannot be
            cut into as many equal ones runs in fewer.
        building: called while an engine is built, from any thread; what it raises stops the build.

    Raises:
        BackendUnavailable: TensorRT or a GPU is missing, or it has not that precision.
    """

    backend = "tensorrt"
    precisions = ("fp16", "fp32")

    def __init__(
        self,
        model: Model,
        *,
        precision: Precision = "auto",
        threads: int | None = None,
        options: BuildOptions | None = None,
        exporter: Exporter | None = None,
        rewrites: Rewrites | None = None,
        cache: EngineCache | None = None,
        contexts: int = 1,
        building: Callable[[Building], None] | None = None,
    ) -> None:
        del threads
        if contexts < 1:
            raise ValueError(f"contexts must be at least 1, got {contexts}")
        chosen = choose_precision(self.backend, precision, self.precisions)
        self.compiler = Compiler(
            model,
            precision=cast(Floats, chosen),
            options=options,
            exporter=exporter,
            rewrites=rewrites,
            cache=cache,
        )
        if not torch.cuda.is_available():
            raise BackendUnavailable(
                "backend 'tensorrt' needs an NVIDIA GPU and a CUDA build of PyTorch (found "
                f"torch {torch.__version__}, no CUDA device)"
            )
        super().__init__(model, device=_device(), dtype=self.compiler.dtype, precision=chosen)
        self._contexts, self._building = contexts, building
        self._sessions = LastShapes(Session.close)
        self._cancelled = Event()

    @property
    def description(self) -> str:
        """What runs where, for people."""
        library = self.compiler.library
        return f"{super().description} ({library.flavour} {library.version})"

    def takes_long(self, shape: Shape) -> bool:
        """Tell whether the engine for frames of (N, H, W) must be built."""
        with torch.cuda.device(self.device):
            return not self.compiler.has(self._part(shape)[0])

    def prepare(self, shape: Shape) -> None:
        """Load the engine for frames of (N, H, W), or build it."""
        self._ready(shape)

    def forget_shapes(self) -> None:
        """Give back the loaded engines and their memory on the GPU."""
        self._sessions.clear()

    def cancel(self) -> None:
        """Stop a build, now or later; the engine must not be called afterwards."""
        self._cancelled.set()

    def close(self) -> None:
        """Give back the engine and its memory on the GPU."""
        self.forget_shapes()

    def _run(self, frames: Tensor) -> Tensor:
        count, _, height, width = frames.shape
        return self._ready((count, height, width)).run(frames)

    def _ready(self, shape: Shape) -> Session:
        with torch.cuda.device(self.device):  # which of several is the thread's own
            return self._sessions.get(shape, lambda: self._load(shape))

    def _part(self, shape: Shape) -> tuple[Shape, int]:
        """Return what one context takes of frames of (N, H, W), and how many contexts there are."""
        count, height, width = shape
        contexts = next(n for n in range(self._contexts, 0, -1) if count % n == 0)
        return (count // contexts, height, width), contexts

    def _load(self, shape: Shape) -> Session:
        part, contexts = self._part(shape)
        _, height, width = part
        library, announce = self.compiler.library, _Announcement(part)
        if not self.compiler.has(part):  # the build chooses by the memory that it finds free
            self._sessions.clear()

        def load(data: bytes) -> Session:
            return Session(
                library, data, shape=part, scale=self.scale, dtype=self.dtype, device=self.device,
                contexts=contexts,
            )  # fmt: skip

        def check(session: Session) -> None:
            name = f"the engine that {library.flavour} {library.version} built for {width}x{height}"
            try:
                check_parity(
                    session.run, self.model, shape, dtype=self.dtype, device=self.device, name=name
                )
            except BaseException:
                session.close()
                raise

        def go_on() -> None:
            if self._cancelled.is_set():
                raise EngineBuildError(f"the build for {width}x{height} was given up")

        def progress(share: float) -> None:
            go_on()
            announce(share)
            if self._building is not None:
                self._building(Building(part, share))

        return self.compiler.engine(part, load, check=check, waiting=go_on, progress=progress)


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
