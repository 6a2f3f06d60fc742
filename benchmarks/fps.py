"""How fast is `vsr upscale` on this machine, and where does the time go?

    python benchmarks/fps.py [--clip FILE] [--size WxH] [--frames N] [--model NAME] [--threads N]
                             [--rounds N] [--precision P] [--json FILE] [--plot FILE.png]
                             [--smoke]
                             [--gpu [TEXT]] [--gpu-seconds N]

One row a back end and precision that is there (or that `--precision` names), each measured in a
process of its own. Input: the first frames of
`--clip` (default: the sample clip), resized to `--size` and put through x264 at crf 18.

Stages, each alone with all cores to itself, over frames prepared beforehand: decode, convert
(planes to RGB), engine, convert back (RGB to planes), encode (x264 with the default settings of
`vsr`). Where the back end makes the planes itself, in its graph, there is no convert back, and the
engine's figures hold it. Engine alone: from RGB to RGB, in any case. End to end: the program's own
chain of threads, once with a null sink, once the whole of `vsr upscale` with the encoder. The first
frames of each are a warm-up and do not count. What the engine is part of runs `--rounds` times, in
turn, and the median run counts: a host's other guests come and go.

A frame's time is the time between two frames that come out. A decoder and an encoder work ahead or
behind in threads of their own, and an engine computes as many frames at once as it does for `vsr`,
so that frames come out in bunches: their frames/s, from the whole time with its flush, say more
than their median. CPU seconds are those of all threads. Share: of the sum of the stages' times.

Roofline: the network's multiplications against the fastest large matrix product in float32 that
NumPy and PyTorch reach here in as many threads, the best of five looks. Peak memory: of the
process after `vsr upscale`. Loading is the weights and the engine with its first frame, where it
compiles.

Where PyTorch finds an NVIDIA GPU, a second part follows: the engine alone (PyTorch eager and
compiled, ONNX Runtime, TensorRT, all in float16; batches, contexts, CUDA graph, rewrites), a null
sink and end to end, from 270p to 1080p, in frames/s and as shares of the matrix and copy rates of
that GPU, measured in the same run. What fails there is an error in its row. `--gpu` measures only
this part, of it only rows whose title contains TEXT. Nobody has run it on a GPU yet.

`--smoke` runs all of it in seconds, for tests; its figures mean nothing. `--plot` needs matplotlib:
pip install -e '.[plot]'. Prints an environment card and tables; the last line of stdout is one JSON
document with all of it, which goes to `--json` too.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from importlib import import_module
from itertools import cycle, islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import av  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.report import available_cores, environment, publish  # noqa: E402
from engines import BACKENDS, Engine, Precision, create_engine, load_model  # noqa: E402
from engines.errors import BackendUnavailable  # noqa: E402
from engines.files import replaced  # noqa: E402
from engines.finish import Finish  # noqa: E402
from engines.networks import macs_per_lr_pixel  # noqa: E402
from vsr.choices import share_threads  # noqa: E402
from vsr.config import DEFAULT_MODEL, MOST_THREADS, Progress, UpscaleConfig  # noqa: E402
from vsr.encode import ENCODERS, EncoderSettings, PictureEncoding  # noqa: E402
from vsr.finish import planes_finish  # noqa: E402
from vsr.memory import automatic_lanes, peak_bytes  # noqa: E402
from vsr.pipeline import run  # noqa: E402
from vsr.stages import (  # noqa: E402
    chained,
    device_of,
    to_plane_frames,
    to_rgb_frames,
    upscaled,
)
from vsr.timeline import Timed  # noqa: E402
from vsr.transfer import Slot  # noqa: E402
from vsr.video import Reader  # noqa: E402

T = TypeVar("T")

STAGES = ("decode", "convert", "engine", "convert back", "encode")
MATRIX_PAUSE = 8.0  # seconds between looks at the matrix rate: a host's other guests come and go
LARGE_FRAMES = 4  # enlarged RGB frames kept for the stage after the engine: 25 MB each at 1080p


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is measured."""

    size: tuple[int, int] = (270, 480)
    """(height, width) of the input"""
    frames: int = 40
    warm_up: int = 4
    """first frames that do not count"""
    rounds: int = 3
    """runs of what runs for long, of which the median counts"""
    matrix_side: int = 2048
    matrix_looks: int = 5
    """seconds each, of which the best counts, however few the rounds"""
    threads: int = 1
    model: str = DEFAULT_MODEL
    precision: str | None = None
    """None: each that a back end has"""

    def __post_init__(self) -> None:
        if min(self.size) < 16 or any(side % 2 for side in self.size):
            raise ValueError(f"size must be even and at least 16x16, got {self.size[::-1]}")
        if self.frames < self.warm_up + 2:
            raise ValueError(f"frames must be at least {self.warm_up + 2}, got {self.frames}")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"threads must be 1 to {MOST_THREADS}, got {self.threads}")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    options = parse_arguments(argv)

    def run() -> dict[str, Any]:
        if options.plot is not None:
            check_plotting(options.plot)
        protocol = protocol_of(options)
        if options.gpu is not None:
            check_gpu(options)
            return {"benchmark": "fps", "gpu": measure_gpu(options, protocol)}
        document = measure(options.clip, protocol)
        if torch.cuda.is_available():
            document["gpu"] = measure_gpu(options, protocol)
        if options.plot is not None:
            plot(document, options.plot)
        return document

    return publish("fps", run, options.json)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--clip", type=Path, default=ROOT / "samples" / "bbb.mp4", metavar="FILE")
    p.add_argument("--size", metavar="WxH", help="of the input (default: 480x270)")
    p.add_argument("--frames", type=int, metavar="N", help="a measurement (default: 40)")
    p.add_argument("--rounds", type=int, metavar="N", help="runs of what takes long (default: 3)")
    p.add_argument("--model", metavar="NAME", help="a built-in model, see `vsr models`")
    p.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    p.add_argument("--precision", metavar="P", help="fp32, int8 and so on (default: each)")
    p.add_argument("--json", type=Path, metavar="FILE")
    p.add_argument("--plot", type=Path, metavar="FILE.png")
    p.add_argument(
        "--gpu",
        nargs="?",
        const="",
        metavar="TEXT",
        help="only the GPU's part, of it only rows whose title contains TEXT",
    )
    p.add_argument(
        "--gpu-seconds", type=float, default=540, metavar="N", help="for that part (default: 540)"
    )
    p.add_argument("--smoke", action="store_true", help="all of it in seconds, for tests")
    return p.parse_args(argv)


def protocol_of(options: argparse.Namespace) -> Protocol:
    """Make a protocol of the command line.

    Raises:
        ValueError: an argument is out of its range.
    """
    protocol = Protocol(threads=available_cores())
    if options.smoke:
        protocol = replace(protocol, size=(32, 48), frames=6, warm_up=1, rounds=1)
        protocol = replace(protocol, matrix_side=64, matrix_looks=1)
    if options.size is not None:
        if not (match := re.fullmatch(r"(\d+)x(\d+)", options.size)):
            raise ValueError(f"expected --size WIDTHxHEIGHT, got {options.size}")
        protocol = replace(protocol, size=(int(match[2]), int(match[1])))
    for name in ("frames", "rounds", "model", "threads", "precision"):
        if (value := getattr(options, name)) is not None:
            protocol = replace(protocol, **{name: value})
    return protocol


def check_gpu(options: argparse.Namespace) -> None:
    """Find out before the work whether there is a GPU to measure.

    Raises:
        ValueError: there is none, or a figure of the other part is asked for.
    """
    if options.plot is not None:
        raise ValueError("--plot draws the stages, which --gpu leaves out")
    if not torch.cuda.is_available():
        raise ValueError(f"--gpu needs an NVIDIA GPU (found torch {torch.__version__}, none)")


def measure_gpu(options: argparse.Namespace, protocol: Protocol) -> dict[str, Any]:
    """Measure the GPU's rows, print a line for each, return their part of the document."""
    from benchmarks import gpu, gpu_rows

    rows = gpu.plan(protocol.model, smoke=options.smoke)
    rows = [row for row in rows if row.kind == "rates" or (options.gpu or "") in row.title]
    serve = partial(gpu_rows.serve, clip=options.clip, smoke=options.smoke)
    return gpu.run(rows, serve, seconds=options.gpu_seconds)


def measure(clip: Path, protocol: Protocol) -> dict[str, Any]:
    """Measure each back end, print the tables, return the whole document."""
    torch.set_num_threads(protocol.threads)
    card = environment("numpy", "av", "openvino") | {
        "cores": str(available_cores()),
        "instructions": instructions(),
    }
    for name, value in card.items():
        print(f"{name:<13} {value}")
    height, width = protocol.size
    rate = matrix_rate(protocol.matrix_side, rounds=protocol.matrix_looks)
    print(f"{'matrices':<13} {rate / 1e9:.1f} G multiplications/s in float32, measured")
    document = {
        "benchmark": "fps",
        "environment": card,
        "protocol": {
            "input": f"{width}x{height}, 8-bit 4:2:0, x264 crf 18",
            "frames": protocol.frames,
            "warm_up_frames": protocol.warm_up,
            "rounds": protocol.rounds,
            "threads": protocol.threads,
            "encoder": "libx264 crf {0.default_quality} {0.default_preset}".format(
                ENCODERS["libx264"]
            ),
        },
        "matrix_macs_per_second": round(rate),
        "rows": [],
        "absent": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        source = prepare(clip, Path(folder) / "in.mp4", protocol)
        for backend, precision in kinds(protocol):
            # a process each: its peak memory is its own
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                try:
                    job = pool.submit(measure_backend, backend, precision, source, protocol, rate)
                    row = job.result()
                except BackendUnavailable as error:
                    document["absent"][f"{backend} {precision}"] = str(error)
                    print(f"\n{backend} {precision}: {error}")
                    continue
            document["rows"].append(row)
            print_row(row)
    return document


def kinds(protocol: Protocol) -> list[tuple[str, Precision]]:
    """List each back end with each precision that it might have here."""
    found: list[tuple[str, Precision]] = []
    for backend, (module, kind) in BACKENDS.items():
        precisions = getattr(import_module(module), kind).precisions
        found += [(backend, p) for p in precisions if protocol.precision in (None, p)]
    return found


def instructions() -> str:
    """Name the vector instructions that decide how fast an engine can be."""
    found = [torch.backends.cpu.get_cpu_capability()]
    flags = Path("/proc/cpuinfo")
    known = flags.read_text() if flags.exists() else ""
    found += [
        name.upper()
        for name in ("avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
        if name in known
    ]
    return ", ".join(found) + ("" if len(found) > 1 or not known else ", no VNNI")


def matrix_rate(side: int, *, rounds: int = 1) -> float:
    """Return the most multiplications a second that a product of large float32 matrices reaches.

    Args:
        side: of the matrices.
        rounds: bursts of products, MATRIX_PAUSE seconds apart.
    """
    a = np.random.default_rng(0).random((side, side), np.float32)
    left = torch.from_numpy(a)
    seconds = []
    for burst in range(rounds):
        time.sleep(MATRIX_PAUSE if burst else 0)
        for product in (lambda: a @ a, lambda: left @ left) * 5:
            began = time.perf_counter()
            product()
            seconds.append(time.perf_counter() - began)
    return float(side**3 / min(seconds))


def prepare(clip: Path, path: Path, protocol: Protocol) -> Path:
    """Write the clip that is measured: the first frames of `clip`, over again if it is short."""
    height, width = protocol.size
    with Reader(clip), av.open(str(clip)) as old, av.open(str(path), "w") as new:
        frames = list(islice(old.decode(video=0), protocol.frames))
        stream = new.add_stream("libx264", rate=25, width=width, height=height)
        stream.codec_context.pix_fmt = "yuv420p"
        stream.codec_context.options = {"crf": "18", "preset": "medium"}
        for index, frame in enumerate(islice(cycle(frames), protocol.frames)):
            small = frame.reformat(width=width, height=height, format="yuv420p", threads=1)
            small.pts, small.time_base = index, Fraction(1, 25)
            new.mux(stream.encode(small))
        new.mux(stream.encode(None))
    return path


# --------------------------------------------------------------------------------------------------
# One row
# --------------------------------------------------------------------------------------------------


def measure_backend(
    backend: str, precision: Precision, source: Path, protocol: Protocol, rate: float
) -> dict[str, Any]:
    """Measure one back end in one precision, in a process that has done nothing else.

    Raises:
        BackendUnavailable: it is not there.
    """
    torch.set_num_threads(protocol.threads)
    _, reused = measure_program(backend, precision, source, protocol)
    peak = peak_bytes()
    run_whole = partial(measure_program, backend, precision, source, protocol)
    (whole,) = in_turn([lambda: run_whole()[0]], protocol.rounds)
    began = time.perf_counter()
    model = load_model(protocol.model)
    engine = create_engine(
        model,
        backend=backend,  # type: ignore[arg-type]
        precision=precision,
        threads=protocol.threads,
    )
    engine(torch.zeros(1, 3, *protocol.size, dtype=engine.dtype, device=engine.device))
    load_seconds = time.perf_counter() - began
    share_threads(engine, protocol.threads)
    engine.lanes = automatic_lanes(engine, protocol.size)
    with closing(engine):
        stages, alone, null = measure_stages(engine, source, protocol)
    macs = macs_per_lr_pixel(model.net)
    ceiling = rate / (macs * protocol.size[0] * protocol.size[1])
    # with a finish as part of the graph, what it adds to the engine is what converting back costs
    inside = sum(stages[name]["cpu_ms"] for name in STAGES[1:-1] if name in stages)
    return {
        "backend": engine.backend,
        "precision": engine.precision,
        "model": model.name,
        "sha256": model.sha256,
        "frames_at_once": engine.lanes,
        "load_seconds": round(load_seconds, 3),
        "stages": stages,
        "engine_alone": alone,
        "end_to_end": {"null sink": null, "encoder": whole},
        "reused_frames": reused,
        "ratios": {
            "null_sink_to_engine": round(null["fps"] / alone["fps"], 3),
            "cpu_with_encoder_to_sum_of_stages": round(
                whole["cpu_ms"] / sum(stage["cpu_ms"] for stage in stages.values()), 3
            ),
            "cores_busy_with_encoder": round(
                whole["cpu_ms"] * whole["fps"] / 1000 / protocol.threads, 3
            ),
            "conversions_to_engine": round(inside / alone["cpu_ms"] - 1, 3),
        },
        "roofline": {
            "macs_per_lr_pixel": macs,
            "ceiling_fps": round(ceiling, 3),
            "share_reached": round(alone["fps"] / ceiling, 3),
        },
        "peak_bytes": peak,
    }


def measure_program(
    backend: str, precision: Precision, source: Path, protocol: Protocol, **options: Any
) -> tuple[dict[str, Any], int]:
    """Measure `vsr upscale` from file to file; return the figures and the number of reused frames.

    Reused frames cost nothing: where there are any, the chain looks quicker than its stages.
    `options` are further fields of the job's configuration.
    """
    config = UpscaleConfig(
        source=source,
        output=source.with_name(f"{backend}.mp4"),
        model=protocol.model,
        backend=backend,  # type: ignore[arg-type]
        precision=precision,
        threads=protocol.threads,
        overwrite=True,
        **options,
    )
    clock = Clock(protocol.warm_up)

    def tick(_: Progress) -> None:
        clock.tick()

    reused = run(config, tick).reused
    return clock.stop(), reused


def measure_stages(
    engine: Engine, source: Path, protocol: Protocol
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Measure each stage alone, the engine from RGB to RGB, and the chain with a null sink."""
    height, width = protocol.size
    size = (height * engine.scale, width * engine.scale)
    count, threads = protocol.frames, protocol.threads
    with Reader(source, threads=threads) as reader:
        info = reader.info
        settings = EncoderSettings(threads=threads)
        encoding = PictureEncoding(
            info, size=size, sample_aspect_ratio=Fraction(1), settings=settings
        )
        decoded: list[Timed[list[Tensor]]] = []
        stages = {"decode": timed(reader.frames(), protocol, decoded.append)}

    def null_sink(take: Callable[[Any], None] = lambda _: None) -> dict[str, Any]:
        with Reader(source, threads=threads) as reader, ExitStack() as stack:
            chain = chained(reader.frames(), info.layout, engine, encoding.layout, size, stack)
            return timed(chain, protocol, take)

    # kept in a run that does not count: memory that is new to the process costs time
    planes: list[Timed[list[Tensor]]] = []
    null_sink(lambda frame: planes.append(owned(frame, engine)))
    filled = in_slots(decoded, engine)
    converted = finished(to_rgb_frames(iter(filled), info.layout, engine), engine)
    stages["convert"] = timed(converted, protocol)
    rgb = list(to_rgb_frames(iter(filled), info.layout, engine))
    finish = planes_finish(encoding.layout, engine.scale)
    fused = finish if finish is not None and engine.fuses(finish) else None

    def run_engine(finish: Finish | None) -> dict[str, Any]:
        return timed(finished(upscaled(iter(rgb), engine, finish, size), engine), protocol)

    ways: list[Callable[[], dict[str, Any]]] = [null_sink, partial(run_engine, None)]
    if fused is not None:
        ways.append(partial(run_engine, fused))
    null, alone, *with_planes = in_turn(ways, protocol.rounds)
    stages["engine"] = dict(with_planes[0] if with_planes else alone)
    if not with_planes:
        large = list(upscaled(iter(rgb[:LARGE_FRAMES]), engine))
        back = to_plane_frames(islice(cycle(large), count), encoding.layout, size)
        stages["convert back"] = timed(finished(back, engine), protocol)
    stages["encode"] = timed(encoded(planes, encoding), protocol)
    total = sum(1 / stage["fps"] for stage in stages.values())
    for stage in stages.values():
        stage["share"] = round(1 / stage["fps"] / total, 3)
    return stages, alone, null


def in_turn(ways: list[Callable[[], dict[str, Any]]], rounds: int) -> list[dict[str, Any]]:
    """Measure each of some ways in turn, `rounds` times over; return the median run of each."""
    runs = [[way() for way in ways] for _ in range(rounds)]
    return [
        sorted(found, key=lambda figures: figures["fps"])[rounds // 2]
        for found in zip(*runs, strict=True)
    ]


def owned(frame: Timed[list[Tensor]], engine: Engine) -> Timed[list[Tensor]]:
    """Return a frame whose planes stay as they are: those of a GPU's chain are overwritten."""
    if engine.device.type == "cpu":
        return frame
    return Timed([plane.clone() for plane in frame.value], frame.pts, frame.duration)


def in_slots(frames: list[Timed[list[Tensor]]], engine: Engine) -> list[Timed[Slot | None]]:
    """Upload each frame, into a slot of its own."""
    device = device_of(engine)
    filled: list[Timed[Slot | None]] = []
    for frame in frames:
        slot = device.slot()
        slot.upload(frame.value)
        filled.append(Timed(slot, frame.pts, frame.duration))
    return filled


def finished(frames: Iterable[T], engine: Engine) -> Iterator[T]:
    """Hand on each frame when the device is done with it, and not when it is launched."""
    for frame in frames:
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        yield frame


def encoded(planes: Iterable[Timed[list[Tensor]]], encoding: PictureEncoding) -> Iterator[None]:
    """Encode frames; after the last one, what the encoder still holds."""
    encoder = encoding.open(global_header=True)
    for frame in planes:
        encoder.encode(encoding.picture(frame))
        yield
    encoder.encode(None)


class Clock:
    """Takes the time between frames.

    Args:
        warm_up: first frames that do not count.
    """

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self._times: list[float] = []
        self._cpu_began = 0.0

    def tick(self) -> None:
        """Note that a frame has come out."""
        self._times.append(time.perf_counter())
        if len(self._times) == self._warm_up:
            self._cpu_began = time.process_time()

    def stop(self) -> dict[str, Any]:
        """Note that all is done, and sum up."""
        ended, cpu_ended = time.perf_counter(), time.process_time()
        times = self._times[self._warm_up - 1 :]
        gaps = [after - before for before, after in pairwise(times)]
        return {
            "median_ms": round(1000 * median(gaps), 3),
            "p95_ms": round(1000 * float(np.quantile(gaps, 0.95)), 3),
            "fps": round(len(gaps) / (ended - times[0]), 3),
            "cpu_ms": round(1000 * (cpu_ended - self._cpu_began) / len(gaps), 3),
        }


def timed(
    items: Iterable[Any], protocol: Protocol, take: Callable[[Any], None] = lambda _: None
) -> dict[str, Any]:
    """Run a stage to its end."""
    clock = Clock(protocol.warm_up)
    for item in items:
        take(item)
        clock.tick()
    return clock.stop()


# --------------------------------------------------------------------------------------------------
# Tables and figure
# --------------------------------------------------------------------------------------------------


def print_row(row: dict[str, Any]) -> None:
    """Print what was measured of one back end."""
    print(f"\n{row['backend']} {row['precision']}, {row['model']}")
    print(f"{'':<22}{'median ms':>10}{'p95 ms':>10}{'CPU ms':>10}{'frames/s':>10}{'share':>8}")
    for name, stage in row["stages"].items():
        print(f"{name:<22}{table_cells(stage)}{stage['share']:>8.1%}")
    print(f"{'engine alone':<22}{table_cells(row['engine_alone'])}")
    for name, whole in row["end_to_end"].items():
        print(f"{'end to end, ' + name:<22}{table_cells(whole)}")
    roofline, ratios = row["roofline"], row["ratios"]
    if row["reused_frames"]:
        print(
            f"{row['reused_frames']} frames repeat the one before them and cost nothing end to end"
        )
    print(
        f"roofline: {roofline['macs_per_lr_pixel']:,} multiplications a pixel, at most "
        f"{roofline['ceiling_fps']:.2f} frames/s, {roofline['share_reached']:.0%} reached\n"
        f"null sink to engine {ratios['null_sink_to_engine']:.2f}, CPU with encoder to sum of "
        f"stages {ratios['cpu_with_encoder_to_sum_of_stages']:.2f}, cores busy "
        f"{ratios['cores_busy_with_encoder']:.0%}, conversions to engine "
        f"{ratios['conversions_to_engine']:.2f}\n"
        f"{row['frames_at_once']} frames at once, loading {row['load_seconds']:.2f} s, "
        f"peak memory {row['peak_bytes'] / 2**20:.0f} MiB"
    )


def table_cells(figures: dict[str, Any]) -> str:
    """Format what each line of the table has."""
    return (
        f"{figures['median_ms']:>10.2f}{figures['p95_ms']:>10.2f}{figures['cpu_ms']:>10.2f}"
        f"{figures['fps']:>10.2f}"
    )


def check_plotting(path: Path) -> None:
    """Find out before the work whether a figure can be drawn.

    Raises:
        ValueError: matplotlib is not installed, or the name is not a PNG's.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"--plot writes a .png, got {path}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install -e '.[plot]'") from None


def plot(document: dict[str, Any], path: Path) -> None:
    """Draw the CPU time of each stage as bars, a colour a back end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = document["rows"]
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    height = 0.8 / max(1, len(rows))
    for index, row in enumerate(rows):
        values = [row["stages"].get(name, {"cpu_ms": 0})["cpu_ms"] for name in STAGES]
        places = [place + index * height for place in range(len(STAGES))]
        bars = axes.barh(places, values, height, label=f"{row['backend']} {row['precision']}")
        axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_yticks([place + height * (len(rows) - 1) / 2 for place in range(len(STAGES))], STAGES)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("CPU ms a frame")
    axes.set_title(f"vsr upscale, {document['protocol']['input'].split(',')[0]}, stage by stage")
    axes.legend(loc="lower right")
    with replaced(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
