"""Networks as ONNX, which is what compilers read.

The graph has one input, `INPUT`, (N, 3, H, W) RGB in [0, 1], and one output, `OUTPUT`,
(N, 3, H*scale, W*scale), both in the precision of the network. N, H and W are fixed, or free.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from engines.errors import BackendUnavailable, EngineBuildError

INPUT, OUTPUT = "frames", "upscaled"
OPSET = 20

# what a graph is traced with where its size is free: nothing in it may equal another number
_EXAMPLE = (2, 3, 24, 40)


def export_onnx(
    net: nn.Module, *, dtype: torch.dtype, shape: tuple[int, int, int] | None = None
) -> bytes:
    """Return a network as an ONNX model, the same bytes for the same network and versions.

    Args:
        net: a deploy form, rewritten or not (see `engines.algebra`); left unchanged.
        dtype: float32 or float16: of input, output, weights and all arithmetic.
        shape: (N, H, W) of the input; None leaves all three free.

    Raises:
        BackendUnavailable: the libraries of PyTorch's exporter are missing.
        EngineBuildError: PyTorch cannot export the network.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BackendUnavailable(
            f"exporting a network needs onnx and onnxscript: pip install onnx onnxscript ({error})"
        ) from error
    example = torch.zeros(_EXAMPLE if shape is None else (shape[0], 3, *shape[1:]), dtype=dtype)
    free = torch.export.Dim.DYNAMIC
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")  # of PyTorch's about its own inner calls
            program: Any = torch.onnx.export(
                copy.deepcopy(net).to(dtype),
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: free, 2: free, 3: free},) if shape is None else None,
            )
    except Exception as error:  # the exporter wraps whatever went wrong in kinds of its own
        reason = " ".join(str(error.__cause__ or error).split())
        raise EngineBuildError(f"PyTorch cannot export the network to ONNX: {reason}") from error
    return _without_notes(program.model_proto)


def exporter_versions() -> str:
    """Name the versions that shape a graph, without importing what they are of."""
    found = [f"opset {OPSET}, torch {torch.__version__}"]
    for name in ("onnx", "onnxscript"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from printing that it misses libraries which it does not need."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _without_notes(model: Any) -> bytes:
    """Serialise without the exporter's notes, which name files and lines of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output,
                 *graph.initializer):  # fmt: skip
        del part.metadata_props[:]
        part.ClearField("doc_string")
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised
