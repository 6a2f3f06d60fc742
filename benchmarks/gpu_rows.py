"""Measures one row of `benchmarks.gpu` on an NVIDIA GPU.

An engine row: batches of frames that are on the GPU already, in as many streams as it has contexts.
Its frames/s are those of about a second of work that is launched ahead; median and p95 are a
batch's time on the GPU, between two events of its stream. The other rows are the program's own
chain, timed as in `benchmarks.fps`.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import fps
from benchmarks.gpu import PAPER, Row
from benchmarks.gpu_launches import WARM_UP_RUNS, Gpu, Launch, engine_of, launches_of
from benchmarks.report import environment
from engines import load_model
from engines.networks import build_network, macs_per_lr_pixel
from engines.weights import Model
from vsr.stages import chained
from vsr.video import Reader

MEASURED_SECONDS = 1.0
MATRIX_SIDE = 8192
COPY_BYTES = 1 << 28
_REPEATS = 10


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


def null_sink(row: Row, model: Model, source: Path, protocol: fps.Protocol) -> dict[str, Any]:
    """Time the program's chain from the file to planes in the host's memory."""
    size = (row.size[0] * model.scale, row.size[1] * model.scale)
    with closing(engine_of(row, model)) as engine, Reader(source) as reader, ExitStack() as stack:
        if row.decoder == "nvdec":
            reader.decode_on(engine.device)
        layout = reader.info.layout
        chain = chained(reader.frames(), layout, engine, layout, size, stack)
        return fps.timed(chain, protocol)
