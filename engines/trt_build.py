"""TensorRT's builder: an ONNX graph to a serialised engine.

`tensorrt` 10.15 and later and `tensorrt_rtx` are one library to this module, in two flavours. The
network is strongly typed: the precision is that of the graph, and the compiler never changes it.
Neither is imported before `find_tensorrt` is called, and neither needs a GPU to be imported;
`tensorrt_rtx` needs none to build either.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from engines.cache import Shape
from engines.errors import BackendUnavailable, EngineBuildError
from engines.export import INPUT
from engines.trt_monitor import in_background, make_monitor

log = logging.getLogger(__name__)

Flavour = Literal["tensorrt", "tensorrt_rtx"]
Tiling = Literal["none", "fast", "moderate", "full"]

_OLDEST = {"tensorrt": (10, 15), "tensorrt_rtx": (1, 3)}


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How hard the compiler tries."""

    level: int = 3
    """0 (fast build) to 5 (tries everything); 3 is the library's default"""
    workspace_bytes: int | None = None
    """most scratch memory a layer may take on the GPU; None: all there is"""
    tiling: Tiling = "none"
    """how long to look for tiles that stay in the GPU's cache from layer to layer"""

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 5:
            raise ValueError(f"level must be 0 to 5, got {self.level}")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise ValueError(f"workspace_bytes must be at least 1, got {self.workspace_bytes}")
        if self.tiling not in get_args(Tiling):
            raise ValueError(f"tiling must be one of {get_args(Tiling)}, got {self.tiling!r}")

    def __str__(self) -> str:
        scratch = "all" if self.workspace_bytes is None else f"{self.workspace_bytes} bytes"
        return f"level {self.level}, workspace {scratch}, tiling {self.tiling}"


@dataclass(frozen=True, slots=True)
class Profile:
    """The sizes an engine takes, and the one that it is made for, each (N, H, W)."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def __post_init__(self) -> None:
        for name, low, best, high in zip(
            "NHW", self.minimum, self.optimum, self.maximum, strict=True
        ):
            if not 1 <= low <= best <= high:
                raise ValueError(f"{name} must rise from 1: got {low}, {best}, {high}")

    @classmethod
    def fixed(cls, shape: Shape) -> Profile:
        """Return the profile that takes one size only."""
        return cls(shape, shape, shape)


@dataclass(frozen=True, slots=True)
class TensorRT:
    """One of the two libraries, imported."""

    module: Any
    flavour: Flavour
    version: str
    logger: Any
    """passes the library's messages on to ours; must outlive all that is made with it"""

    @property
    def last_error(self) -> str:
        """The last error message, for where the library returns None and says why elsewhere."""
        return str(self.logger.last_error)


def find_tensorrt() -> TensorRT:
    """Import TensorRT, or else TensorRT for RTX.

    Raises:
        BackendUnavailable: neither is installed, or only one too old.
    """
    reasons = []
    for flavour in get_args(Flavour):
        try:
            module = importlib.import_module(flavour)
            version = str(module.__version__)
        except Exception as error:  # a placeholder or half an installation raises what it likes
            reasons.append(f"{flavour}: {error}")
            continue
        if _numbers(version) < _OLDEST[flavour]:
            oldest = ".".join(map(str, _OLDEST[flavour]))
            reasons.append(f"{flavour} is {version}, {oldest} or newer is needed")
            continue
        return TensorRT(module, flavour, version, _logger(module))
    raise BackendUnavailable(
        "backend 'tensorrt' needs TensorRT: pip install 'vsr-pipeline[tensorrt]' or "
        f"'vsr-pipeline[tensorrt-rtx]' ({'; '.join(reasons)})"
    )


def build_engine(
    library: TensorRT,
    onnx: bytes,
    profile: Profile,
    *,
    options: BuildOptions | None = None,
    timing: bytes = b"",
    progress: Callable[[float], None] | None = None,
) -> tuple[bytes, bytes]:
    """Compile a graph.

    Args:
        library: see `find_tensorrt`.
        onnx: see `engines.export`.
        profile: must fit the graph, and says what its free sizes may be.
        options: None: the library's defaults.
        timing: what an earlier build measured here; `tensorrt_rtx` measures nothing.
        progress: called with the share that is done, rising from 0 to 1, from any thread. What it
            raises stops the build and is raised from here; so does Ctrl-C.

    Returns:
        The serialised engine, and the timings for the next build.

    Raises:
        EngineBuildError: TensorRT cannot parse or compile the graph.
    """
    builder = library.module.Builder(library.logger)
    if not builder:
        raise EngineBuildError(f"{library.flavour} has no builder here: {library.last_error}")
    network = parse(library, builder, onnx)
    config = configure(library, builder, profile, options or BuildOptions())
    cache = None
    if library.flavour == "tensorrt":  # RTX has calls for it, deprecated and without effect
        cache = config.create_timing_cache(timing) or config.create_timing_cache(b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            log.info("the timings of an earlier build are of another GPU or driver: not used")
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
    monitor = make_monitor(library.module, progress or (lambda share: None))
    config.progress_monitor = monitor
    serialised = in_background(
        lambda: builder.build_serialized_network(network, config), cancel=monitor.cancel
    )
    if monitor.raised is not None:
        raise monitor.raised
    if serialised is None:
        raise EngineBuildError(
            f"{library.flavour} {library.version} cannot compile: {library.last_error}"
        )
    return bytes(serialised), b"" if cache is None else bytes(cache.serialize())


def parse(library: TensorRT, builder: Any, onnx: bytes) -> Any:
    """Return the graph as a strongly typed network of the library."""
    trt = library.module
    # the flag's value differs between the versions
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse(onnx):
        errors = [" ".join(str(parser.get_error(i)).split()) for i in range(parser.num_errors)]
        raise EngineBuildError(
            f"{library.flavour} {library.version} cannot read the graph: {'; '.join(errors)}"
        )
    return network


def configure(library: TensorRT, builder: Any, profile: Profile, options: BuildOptions) -> Any:
    """Return the library's configuration of a build."""
    trt = library.module
    config = builder.create_builder_config()
    config.builder_optimization_level = options.level
    config.tiling_optimization_level = trt.TilingOptimizationLevel.__members__[
        options.tiling.upper()
    ]
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32
    # RTX: else an engine may allocate as it runs, and no graph can be captured
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    shapes = [(n, 3, *hw) for n, *hw in (profile.minimum, profile.optimum, profile.maximum)]
    sizes = builder.create_optimization_profile()
    sizes.set_shape(INPUT, *shapes)
    if config.add_optimization_profile(sizes) < 0:
        raise EngineBuildError(f"{library.flavour} refuses the sizes {shapes}")
    return config


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _logger(module: Any) -> Any:
    """Make the library's logger; a class of its own is only possible once it is imported."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.last_error = "it does not say why"

        def log(self, severity: Any, message: str) -> None:
            severities = module.ILogger
            levels = {
                severities.INTERNAL_ERROR: logging.DEBUG,  # for who is given None and raises
                severities.ERROR: logging.DEBUG,
                severities.WARNING: logging.INFO,
            }
            text = " ".join(message.split())
            if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                self.last_error = text
            log.log(levels.get(severity, logging.DEBUG), "%s", text)

    return Logger()
