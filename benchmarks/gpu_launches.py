"""What launches a batch of an engine row of `benchmarks.gpu`: each runner, by its own means."""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu import Row
from engines import BACKENDS, Engine, create_engine
from engines.algebra import NONE, rewrite
from engines.errors import BackendUnavailable
from engines.tiles import TiledEngine
from engines.weights import Model

Launch = Callable[[], object]
"""launches a batch in the stream in use"""

WARM_UP_RUNS = 3


class Gpu:
    """What the measurements need of a GPU; tests put a simulated one in its place."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise BackendUnavailable(f"no NVIDIA GPU (torch {torch.__version__})")
        self.device = torch.device("cuda", torch.cuda.current_device())

    def seconds(self) -> float:
        """Return the host's time."""
        return time.perf_counter()

    def synchronize(self) -> None:
        """Wait until all that was launched is done."""
        torch.cuda.synchronize(self.device)

    def stream(self) -> Any:
        """Make a stream."""
        return torch.cuda.Stream(self.device)

    def using(self, stream: Any) -> Any:
        """Launch in a stream what is called within."""
        return torch.cuda.stream(stream)

    def mark(self) -> Any:
        """Note the time at which the stream in use comes to this point."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between_ms(self, first: Any, second: Any) -> float:
        """Return the time between two marks, once all is done."""
        return float(first.elapsed_time(second))

    def used_bytes(self) -> int:
        """Return how much of the GPU's memory is taken, by whomever."""
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free


def launches_of(row: Row, model: Model, gpu: Gpu, stack: ExitStack) -> list[tuple[Any, Launch]]:
    """Return for each context of an engine row its stream and what launches a batch in it.

    A back end that has contexts of its own gets the batches of all in one launch.
    """
    shape = (row.batch, 3, *row.size)
    streams = [gpu.stream() for _ in range(row.contexts)]
    batches = [torch.rand(shape, device=gpu.device).half() for _ in streams]
    if row.runner in ("eager", "compile"):
        net = _module(row, model).to(gpu.device, memory_format=torch.channels_last)
        if row.runner == "compile":
            net = torch.compile(net, dynamic=False)
        make = _captured if row.graph else _plain
        return [
            (stream, make(net, batch, stream))
            for stream, batch in zip(streams, batches, strict=True)
        ]
    if row.runner == "onnxruntime":
        return [(streams[0], _onnxruntime(row, model, batches[0], streams[0]))]
    if row.contexts > 1 and "contexts" in _parameters(row.runner):
        engine = stack.enter_context(closing(engine_of(row, model)))
        return [(streams[0], partial(engine, torch.cat(batches).to(engine.dtype)))]
    engines = [stack.enter_context(closing(engine_of(row, model))) for _ in streams]
    return [
        (stream, partial(engine, batch.to(engine.dtype)))
        for stream, engine, batch in zip(streams, engines, batches, strict=True)
    ]


def _module(row: Row, model: Model) -> nn.Module:
    return rewrite(model.net, None if row.algebra else NONE).half().eval()


def _plain(net: nn.Module, frames: Tensor, stream: Any) -> Launch:
    frames = frames.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def launch() -> object:
        return net(frames)

    return launch


def _captured(net: nn.Module, frames: Tensor, stream: Any) -> Launch:
    static = frames.contiguous(memory_format=torch.channels_last).clone()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            net(static)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph, stream=stream):
        result = net(static)

    def launch() -> object:  # as an engine has it: the frames go in, a fresh tensor comes out
        static.copy_(frames, non_blocking=True)
        graph.replay()
        return result.clone()

    return launch


def _onnxruntime(row: Row, model: Model, frames: Tensor, stream: Any) -> Launch:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable("onnxruntime is not installed") from error
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise BackendUnavailable(f"onnxruntime {onnxruntime.__version__} is without CUDA")
    from engines.export import INPUT, OUTPUT, export_onnx

    count, _, height, width = frames.shape
    net = rewrite(model.net, None if row.algebra else NONE)
    data = export_onnx(net, dtype=torch.float16, shape=(count, height, width))
    options = {"user_compute_stream": str(stream.cuda_stream)}
    session = onnxruntime.InferenceSession(data, providers=[("CUDAExecutionProvider", options)])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise BackendUnavailable(f"onnxruntime falls back to {session.get_providers()[0]}")
    result = frames.new_empty(count, 3, height * model.scale, width * model.scale)
    binding = session.io_binding()
    for bind, name, tensor in (
        (binding.bind_input, INPUT, frames),
        (binding.bind_output, OUTPUT, result),
    ):
        bind(
            name=name,
            device_type="cuda",
            device_id=tensor.device.index,
            element_type=np.float16,
            shape=tuple(tensor.shape),
            buffer_ptr=tensor.data_ptr(),
        )

    def launch() -> object:
        session.run_with_iobinding(binding)
        return frames, result  # whose addresses are bound

    return launch


def _parameters(runner: str) -> set[str]:
    """Return what a back end of `vsr` can be told."""
    module, kind = BACKENDS[runner]
    return set(inspect.signature(getattr(importlib.import_module(module), kind)).parameters)


def engine_of(row: Row, model: Model) -> Engine:
    """Return a back end of `vsr`, set as the row has it."""
    if row.runner == "tensorrt" and row.graph is not None:
        from engines.trt import TensorRTEngine

        known = _parameters(row.runner)
        options: dict[str, Any] = {} if row.algebra else {"rewrites": NONE}
        if row.contexts > 1 and "contexts" in known:
            options["contexts"] = row.contexts
        if not row.graph:
            options["graph"] = False
        if absent := options.keys() - known:
            raise BackendUnavailable(f"not available: TensorRTEngine has no {', '.join(absent)}")
        engine: Engine = TensorRTEngine(model, **options)
    else:
        engine = create_engine(model, backend=row.runner)  # type: ignore[arg-type]
    return engine if row.tile is None else TiledEngine(engine, row.tile)
