"""Torch-TensorRT as the exporter: PyTorch's own graph straight to a serialised engine.

What comes out are a plain engine's bytes, for the same cache and the same runtime as those from
ONNX. `torch_tensorrt` is imported when an engine is built with it, never before: without a GPU its
import raises what it likes. Nobody has seen this run: it is tested against a stand-in.
"""

from __future__ import annotations

import copy
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engines.cache import Shape
from engines.errors import BackendUnavailable, EngineBuildError
from engines.trt_build import BuildOptions, TensorRT

# the distributions that bring the module, and the flavour of the library that each is made for
_DISTRIBUTIONS = {"torch-tensorrt": "tensorrt", "torch-tensorrt-rtx": "tensorrt_rtx"}


def exporter_versions() -> str:
    """Name the versions that shape an engine, without importing what they are of."""
    found = [f"torch {torch.__version__}"]
    for name in _DISTRIBUTIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def build_engine(
    library: TensorRT,
    net: nn.Module,
    shape: Shape,
    *,
    dtype: torch.dtype,
    options: BuildOptions,
    timing_path: Path,
) -> bytes:
    """Compile a network for frames of one shape.

    Args:
        library: what is going to run the engine: the same flavour must build it.
        net: a deploy form, rewritten or not; left unchanged.
        shape: (N, H, W) of the frames.
        dtype: float32 or float16: of input, output, weights and all arithmetic.
        options: of the build.
        timing_path: where Torch-TensorRT keeps what it has measured.

    Returns:
        The serialised engine: one input, (N, 3, H, W), and one output.

    Raises:
        BackendUnavailable: Torch-TensorRT is missing, does not start, or is for another flavour.
        EngineBuildError: it cannot compile the network.
    """
    module = _import(library)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count, height, width = shape
    example = torch.zeros((count, 3, height, width), dtype=dtype, device=device)
    placed = copy.deepcopy(net).to(device=device, dtype=dtype).eval()
    try:
        program = torch.export.export(placed, (example,))
        data = module.dynamo.convert_exported_program_to_serialized_trt_engine(
            program,
            arg_inputs=[example],
            use_explicit_typing=True,  # the precision is that of the graph; what else there is now
            require_full_compilation=True,
            disable_tf32=True,  # fp32 means fp32
            optimization_level=options.level,
            workspace_size=options.workspace_bytes or 0,  # 0: all there is
            tiling_optimization_level=options.tiling,
            timing_cache_path=str(timing_path),
        )
    except Exception as error:  # exporter and converters wrap what went wrong in kinds of their own
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        if isinstance(error, UnboundLocalError):  # it goes on after what it has only logged
            reason = f"its log says why, by the logger of torch_tensorrt ({reason})"
        raise EngineBuildError(f"torch_tensorrt cannot compile the network: {reason}") from error
    return bytes(data)


def _import(library: TensorRT) -> Any:
    try:
        import torch_tensorrt
    except Exception as error:  # without a GPU: AssertionError, RuntimeError, or a bare Exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BackendUnavailable(
            "exporter 'torch-tensorrt' needs Torch-TensorRT and an NVIDIA GPU: pip install "
            f"torch-tensorrt, in the version of torch {torch.__version__} ({reason})"
        ) from error
    features = getattr(torch_tensorrt, "ENABLED_FEATURES", None)
    flavour = "tensorrt_rtx" if getattr(features, "tensorrt_rtx", False) else "tensorrt"
    if flavour != library.flavour:
        raise BackendUnavailable(
            f"torch_tensorrt builds engines for {flavour}, but {library.flavour} would run them: "
            f"install {flavour}, or take exporter 'onnx'"
        )
    return torch_tensorrt
