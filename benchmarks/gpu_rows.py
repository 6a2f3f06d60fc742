"""Measures one row of `benchmarks.gpu` on an NVIDIA GPU.

An engine row: batches of frames that are on the GPU already, in as many streams as it has contexts.
Its frames/s are those of about a second of work that is launched ahead; median and p95 are a
batch's time on the GPU, between two events of its stream. The other rows are the program's own
chain, timed as in `benchmarks.fps`.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import fps
from benchmarks.gpu import PAPER, Row
from benchmarks.report import environment, macs_per_lr_pixel
from engines import BACKENDS, Engine, create_engine, load_model
from engines.algebra import NONE, rewrite
from engines.errors import BackendUnavailable
from engines.networks import build_network
from engines.tiles import TiledEngine
from engines.weights import Model
from vsr.stages import chained
from vsr.video import Reader

Launch = Callable[[], object]
"""launches a batch in the stream in use"""

MEASURED_SECONDS = 1.0
WARM_UP_RUNS = 3
MATRIX_SIDE = 8192
COPY_BYTES = 1 << 28
_REPEATS = 10


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


def serve(pipe: Connection, clip: Path, smoke: bool) -> None:
    """Measure the rows that come through a pipe; see `benchmarks.gpu.Worker`."""
    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as folder:
        gpu: Gpu | None = None
        pipe.send("ready")
        while True:
            try:
                row = pipe.recv()
            except EOFError:
                return
            try:
                gpu = gpu or Gpu()
                result = measure(row, gpu, clip, Path(folder), smoke)
            except Exception as error:  # whatever it is: it is this row's result
                kind, text = type(error).__name__, " ".join(str(error).split())
                result = {"error": f"{kind}: {text}"[:1000], "broken": _is_broken(gpu)}
            gc.collect()
            if gpu is not None and not result.get("broken"):
                torch.cuda.empty_cache()
            pipe.send(result)


def _is_broken(gpu: Gpu | None) -> bool:
    """Tell whether a GPU has failed for the rest of the process."""
    if gpu is None:
        return False
    try:
        gpu.synchronize()
    except Exception:
        return True
    return False


def measure(row: Row, gpu: Gpu, clip: Path, folder: Path, smoke: bool) -> dict[str, Any]:
    """Return the figures of a row."""
    if row.kind == "rates":
        small = {"side": 256, "size": 1 << 20} if smoke else {}
        return {"environment": card(gpu), **rates(gpu, **small)}
    model = network(row.network)
    about = {"macs_per_lr_pixel": macs_per_lr_pixel(model.net), "scale": model.scale}
    if row.kind == "engine":
        began = gpu.seconds()
        with ExitStack() as stack:
            launches = launches_of(row, model, gpu, stack)
            frames = row.batch * row.contexts // len(launches)
            figures = paced(launches, gpu, frames, 0.02 if smoke else MEASURED_SECONDS)
            figures["used_bytes"] = gpu.used_bytes()
        figures["load_seconds"] = round(gpu.seconds() - began - figures["seconds"], 2)
        return about | figures
    source = _prepared(clip, folder, row)
    protocol = fps.Protocol(
        size=row.size,
        frames=row.frames,
        warm_up=row.warm_up,
        threads=fps.available_cores(),
        model=row.network,
    )
    if row.kind == "null sink":
        return about | null_sink(row, model, source, protocol)
    options = {"decoder": row.decoder, "encoder": row.encoder, "tile": row.tile}
    figures, reused = fps.measure_program(row.runner, "auto", source, protocol, **options)
    return about | figures | {"reused_frames": reused}


def card(gpu: Gpu) -> dict[str, str]:
    """Describe the GPU and what runs it."""
    major, minor = torch.cuda.get_device_capability(gpu.device)
    return environment("numpy", "av") | {
        "device": torch.cuda.get_device_name(gpu.device),
        "compute_capability": f"{major}.{minor}",
        "memory": f"{torch.cuda.get_device_properties(gpu.device).total_memory / 2**30:.0f} GiB",
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "cores": str(fps.available_cores()),
    }


@cache
def network(name: str) -> Model:
    """Return a built-in model, or the generator of the paper with random weights."""
    if name != PAPER:
        return load_model(name)
    torch.manual_seed(0)
    net = build_network(PAPER, deployed=True).eval()
    return Model(PAPER, PAPER, net, scale=4, training={}, sha256="random")


def _prepared(clip: Path, folder: Path, row: Row) -> Path:
    path = folder / f"{row.name}.mp4"
    if not path.exists():
        fps.prepare(clip, path, fps.Protocol(size=row.size, frames=row.frames, warm_up=1))
    return path


# --------------------------------------------------------------------------------------------------
# Rates and pace
# --------------------------------------------------------------------------------------------------


def rates(gpu: Gpu, *, side: int = MATRIX_SIDE, size: int = COPY_BYTES) -> dict[str, float]:
    """Measure what the GPU can do at most: multiplications in float16, bytes up and down.

    Args:
        gpu: is measured.
        side: of the matrices.
        size: bytes of a copy, to and from pinned memory.
    """
    a = torch.rand(side, side, device=gpu.device).half()
    b = torch.rand(side, side, device=gpu.device).half()
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(size, dtype=torch.uint8, device=gpu.device)
    return {
        "matrix_macs_per_second": round(side**3 / _fastest(lambda: a @ b, gpu)),
        "up_bytes_per_second": round(
            size / _fastest(lambda: there.copy_(pinned, non_blocking=True), gpu)
        ),
        "down_bytes_per_second": round(
            size / _fastest(lambda: pinned.copy_(there, non_blocking=True), gpu)
        ),
    }


def _fastest(launch: Launch, gpu: Gpu) -> float:
    """Return the least seconds that the GPU takes for something."""
    for _ in range(WARM_UP_RUNS):
        launch()
    marks = []
    for _ in range(_REPEATS):
        first = gpu.mark()
        launch()
        marks.append((first, gpu.mark()))
    gpu.synchronize()
    return min(gpu.between_ms(*pair) for pair in marks) / 1000


def paced(
    launches: Sequence[tuple[Any, Launch]], gpu: Gpu, batch: int, seconds: float
) -> dict[str, Any]:
    """Launch batches in turn for a while, and sum up.

    Args:
        launches: for each context, its stream and what launches a batch in it.
        gpu: does the work.
        batch: frames of a batch.
        seconds: about how long.

    Returns:
        Frames/s of all contexts together; median and p95 of a batch's time on the GPU.
    """

    def rounds(count: int) -> tuple[float, list[tuple[Any, Any]]]:
        marks = []
        gpu.synchronize()
        began = gpu.seconds()
        for _ in range(count):
            for stream, launch in launches:
                with gpu.using(stream):
                    first = gpu.mark()
                    launch()
                    marks.append((first, gpu.mark()))
        gpu.synchronize()
        return gpu.seconds() - began, marks

    rounds(WARM_UP_RUNS)
    one, _ = rounds(1)
    count = min(max(10, round(seconds / one)), 5000)
    took, marks = rounds(count)
    times = [gpu.between_ms(*pair) for pair in marks]
    return {
        "fps": round(batch * len(times) / took, 3),
        "median_ms": round(median(times), 4),
        "p95_ms": round(float(np.quantile(times, 0.95)), 4),
        "batches": len(times),
        "seconds": round(took, 3),
    }


# --------------------------------------------------------------------------------------------------
# What launches a batch
# --------------------------------------------------------------------------------------------------


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
        engine = stack.enter_context(closing(_engine(row, model)))
        return [(streams[0], partial(engine, torch.cat(batches).to(engine.dtype)))]
    engines = [stack.enter_context(closing(_engine(row, model))) for _ in streams]
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


def _engine(row: Row, model: Model) -> Engine:
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


def null_sink(row: Row, model: Model, source: Path, protocol: fps.Protocol) -> dict[str, Any]:
    """Time the program's chain from the file to planes in the host's memory."""
    size = (row.size[0] * model.scale, row.size[1] * model.scale)
    with closing(_engine(row, model)) as engine, Reader(source) as reader, ExitStack() as stack:
        if row.decoder == "nvdec":
            reader.decode_on(engine.device)
        layout = reader.info.layout
        chain = chained(reader.frames(), layout, engine, layout, size, stack)
        return fps.timed(chain, protocol)
