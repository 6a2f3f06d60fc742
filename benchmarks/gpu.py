"""What an NVIDIA GPU makes of the engines: the rows, and a run of them that no bad row can stop.

`plan` says what is measured, `benchmarks.gpu_rows` measures one row, in a process of its own that
outlives its rows as long as they succeed: a GPU that has failed once fails for the whole process. A
row that fails, hangs or kills its process is an error in the document, and the next one goes on in
a fresh process.

Nobody has run this on a GPU yet: the plan, the supervision and the statistics are tested with a
simulated one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal

Kind = Literal["rates", "engine", "null sink", "end to end"]
Runner = Literal["eager", "compile", "onnxruntime", "tensorrt", "pytorch"]

PAPER = "srgan"  # the generator of the paper, with random weights: they do not change its speed
RUNNERS: tuple[Runner, ...] = ("eager", "compile", "onnxruntime", "tensorrt")
BACKENDS: tuple[Runner, ...] = ("pytorch", "tensorrt")  # of `vsr`
SIZES = {"270p": (270, 480), "540p": (540, 960), "1080p": (1080, 1920)}
TILE = 540  # for 1080p to 8K
FRAMES = {"270p": 200, "540p": 60, "1080p": 16}
WARM_UP = {"270p": 20, "540p": 8, "1080p": 4}

ROW_SECONDS = 150.0
"""limit of one row; a compiler may take a minute"""
START_SECONDS = 60.0
"""limit of a process's start, until it says that it is there"""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to measure."""

    kind: Kind
    runner: Runner = "eager"
    """of an engine row: what runs the network; of the others: back end of `vsr`"""
    network: str = PAPER
    """`PAPER`, or a built-in model"""
    name: str = "270p"
    """of the input's size"""
    size: tuple[int, int] = SIZES["270p"]
    """(height, width) of the input"""
    batch: int = 1
    contexts: int = 1
    """batches under way at a time, each in a stream and with memory of its own"""
    graph: bool | None = True
    """whether it is a CUDA graph; None: as the back end of `vsr` has it"""
    algebra: bool | None = True
    """the exact rewrites of `engines.algebra`; None: as the back end of `vsr` has it"""
    tile: int | None = None
    decoder: str = "cpu"
    encoder: str = "libx264"
    frames: int = FRAMES["270p"]
    warm_up: int = WARM_UP["270p"]

    @property
    def title(self) -> str:
        """Name the row, for tables and for choosing rows."""
        if self.kind == "rates":
            return "rates"
        words = [self.kind, self.runner, self.network, self.name, f"batch {self.batch}"]
        if self.kind == "engine":
            words += [f"contexts {self.contexts}"]
            for word, state in (("graph", self.graph), ("algebra", self.algebra)):
                words += [] if state is None else [word if state else f"no {word}"]
        else:
            words += [self.decoder, *([self.encoder] if self.kind == "end to end" else [])]
        return ", ".join(words + ([f"tile {self.tile}"] if self.tile else []))


def plan(model: str, *, smoke: bool = False) -> list[Row]:
    """List all rows, those first that say most.

    One thing at a time differs from the first row of a runner: the batch, the number of contexts,
    the graph, the algebra, the size.

    Args:
        model: a built-in one, measured beside the generator of the paper.
        smoke: tiny frames and few of them, for tests; the figures mean nothing.
    """
    rows = [Row("rates")]
    networks = (model, PAPER)
    base = [Row("engine", runner, network) for network in networks for runner in RUNNERS]
    rows += base
    rows += [row for network in networks for row in _program(network, "270p")]
    rows += [varied for row in base for varied in _variations(row)]
    for name in ("540p", "1080p"):
        for network in networks:
            tile = TILE if name == "1080p" else None
            for backend in BACKENDS:
                rows += [_sized(_as_is("engine", backend, network), name, tile)]
            rows += _program(network, name, tile)
    if smoke:
        rows = [replace(row, size=(32, 48), frames=6, warm_up=1) for row in rows]
        rows = [replace(row, tile=16 if row.tile else None) for row in rows]
    return rows


def _variations(row: Row) -> Iterator[Row]:
    for batch in (2, 4):
        yield replace(row, batch=batch)
    if row.runner != "onnxruntime":  # it has one session, and no graph of ours
        for contexts in (2, 3):
            yield replace(row, contexts=contexts)
        yield replace(row, graph=False)
    yield replace(row, algebra=False)


def _as_is(kind: Kind, backend: Runner, network: str) -> Row:
    return Row(kind, backend, network, graph=None, algebra=None)


def _sized(row: Row, name: str, tile: int | None) -> Row:
    return replace(
        row, name=name, size=SIZES[name], frames=FRAMES[name], warm_up=WARM_UP[name], tile=tile
    )


def _program(network: str, name: str, tile: int | None = None) -> list[Row]:
    """List what is measured of `vsr` itself: only built-in models run in it."""
    if network == PAPER:
        return []
    rows = [_as_is("null sink", backend, network) for backend in BACKENDS]
    rows += [replace(row, decoder="nvdec") for row in rows]
    for backend in BACKENDS:
        whole = _as_is("end to end", backend, network)
        rows += [whole, replace(whole, decoder="nvdec")]
        rows += [replace(whole, decoder="nvdec", encoder="hevc_nvenc")]
    return [_sized(row, name, tile) for row in rows]


# --------------------------------------------------------------------------------------------------
# Running them
# --------------------------------------------------------------------------------------------------


class Worker:
    """A process that measures rows, one after the other.

    Args:
        serve: its main function, called with its end of a pipe: it sends "ready", then receives
            rows and sends a dict for each.
        start_seconds: limit of its start.
    """

    def __init__(self, serve: Callable[[Connection], None], start_seconds: float) -> None:
        self._serve, self._start_seconds = serve, start_seconds
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def measure(self, row: Row, limit_seconds: float) -> dict[str, Any]:
        """Return what the row gives, or {"error": ...}."""
        try:
            pipe = self._pipe or self._start()
            pipe.send(row)
            result = self._receive(pipe, limit_seconds)
        except TimeoutError as error:
            result = {"error": str(error), "broken": True}
        except (EOFError, OSError) as error:
            process, code = self._process, None
            if process is not None:
                process.join(5)
                code = process.exitcode
            result = {
                "error": f"its process ended with exit code {code} ({type(error).__name__})",
                "broken": True,
            }
        if result.pop("broken", False):
            self.close()
        return result

    def _start(self) -> Connection:
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        # no daemon: a compiler may want children of its own
        self._process = context.Process(target=self._serve, args=(other,))
        self._process.start()
        other.close()  # so that its end is noticed
        self._receive(self._pipe, self._start_seconds)
        return self._pipe

    @staticmethod
    def _receive(pipe: Connection, limit_seconds: float) -> Any:
        if not pipe.poll(limit_seconds):
            raise TimeoutError(f"no result after {limit_seconds:g} s")
        return pipe.recv()

    def close(self) -> None:
        """End the process, whatever it is at."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            with suppress(OSError):
                self._process.kill()
            self._process.join(10)
        self._pipe = self._process = None


def run(
    rows: list[Row],
    serve: Callable[[Connection], None],
    *,
    seconds: float,
    show: Callable[[str], None] = print,
    row_seconds: float = ROW_SECONDS,
    start_seconds: float = START_SECONDS,
) -> dict[str, Any]:
    """Measure rows and return their part of the document; it always returns.

    Args:
        rows: see `plan`.
        serve: see `Worker`.
        seconds: for all of it; rows for which none are left say so.
        show: prints a line for each row when it is done.
        row_seconds: limit of one row.
        start_seconds: limit of a process's start.
    """
    began = time.monotonic()
    document: dict[str, Any] = {"environment": {}, "rates": {}, "rows": []}
    worker = Worker(serve, start_seconds)
    try:
        for row in rows:
            left = seconds - (time.monotonic() - began)
            if left <= 0:
                result: dict[str, Any] = {"error": f"not measured: the {seconds:.0f} s are over"}
            else:
                result = worker.measure(row, min(left, row_seconds))
            if row.kind == "rates":
                document["environment"] = result.pop("environment", {})
                document["rates"] = result
            else:
                result |= shares(row, result, document["rates"])
                document["rows"].append({"title": row.title, **asdict(row), **result})
            show(line(row, result))
    finally:
        worker.close()
    document["seconds"] = round(time.monotonic() - began, 1)
    return document


def shares(row: Row, result: dict[str, Any], rates: dict[str, Any]) -> dict[str, Any]:
    """Hold a row's frames/s against what the measured rates of the same GPU allow.

    Args:
        row: was measured.
        result: `fps`, and `macs_per_lr_pixel` and `scale` of the network.
        rates: `matrix_macs_per_second`, and `down_bytes_per_second` from the GPU to pinned memory.

    Returns:
        Frames/s that each allows, and the share reached; nothing for what was not measured.
    """
    if "fps" not in result or "macs_per_lr_pixel" not in result:
        return {}
    pixels = row.size[0] * row.size[1]
    ceilings = {}
    if rate := rates.get("matrix_macs_per_second"):
        ceilings["matrices"] = rate / (result["macs_per_lr_pixel"] * pixels)
    if row.kind != "engine" and (rate := rates.get("down_bytes_per_second")):
        ceilings["copies"] = rate / (1.5 * pixels * result["scale"] ** 2)  # planes of 8-bit 4:2:0
    return {
        "ceiling_fps": {name: round(fps, 2) for name, fps in ceilings.items()},
        "share_reached": {name: round(result["fps"] / fps, 4) for name, fps in ceilings.items()},
    }


def line(row: Row, result: dict[str, Any]) -> str:
    """Format a row for people."""
    if error := result.get("error"):
        return f"{row.title}: {error}"
    if row.kind == "rates":
        return ", ".join(f"{name} {value:.4g}" for name, value in result.items())
    reached = result.get("share_reached", {})
    shares = "".join(f", {share:.0%} of {name}" for name, share in reached.items())
    return (
        f"{row.title}: {result['fps']:.1f} frames/s, median {result['median_ms']:.3f} ms, "
        f"p95 {result['p95_ms']:.3f} ms{shares}"
    )
