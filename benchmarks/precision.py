"""What does a precision of the OpenVINO back end cost and bring?

    python benchmarks/precision.py [--model NAME] [--texture T] [--size WxH] [--rounds N]
                                   [--eval FOLDER] [--untrained] [--json FILE]

Speed: one frame of `--size` (480x270) in each precision in turn, `--rounds` times over, in one
thread: CPU time, median and least, and ratios of both to fp32 of the same run. Beside them the
conversions of that frame, from the planes of 8-bit 4:2:0 and back to those of the result, as a
share of the engine's time. To hold it to one core, start it with `taskset -c N`.

Quality: how much PSNR-Y against the originals each test set in `--eval` loses to fp32 (default:
shared/data/eval beside the checkout), and PSNR of the result against that of fp32.

Kernels: how many convolutions OpenVINO executes in which number format.

`--untrained`: the generator of the paper with random weights, for its speed alone. The last line of
stdout is one JSON document with all of it, which goes to `--json` too.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.report import environment, publish  # noqa: E402
from engines import BackendUnavailable, Engine, create_engine, load_model  # noqa: E402
from engines.int8 import write_forms  # noqa: E402
from engines.networks import build_network  # noqa: E402
from engines.ov import OpenVINOEngine, runtime_form  # noqa: E402
from engines.weights import Model, save_weights  # noqa: E402
from train.data import find_sets  # noqa: E402
from train.quantize import calibrate, fake_quantised, to_form  # noqa: E402
from train.quantize import measure as compare  # noqa: E402
from vsr.config import DEFAULT_MODEL  # noqa: E402
from vsr.convert import PlaneLayout, from_rgb, to_rgb  # noqa: E402

LAYOUT = PlaneLayout("yuv", chroma_step=(2, 2))


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    options = parse_arguments(argv)
    return publish("precision", lambda: run(options), options.json)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME")
    p.add_argument("--texture", type=float, metavar="T")
    p.add_argument("--size", default="480x270", metavar="WxH")
    p.add_argument("--rounds", type=int, default=15, metavar="N")
    p.add_argument(
        "--eval", type=Path, default=ROOT.parent / "shared" / "data" / "eval", metavar="FOLDER"
    )
    p.add_argument("--untrained", action="store_true")
    p.add_argument("--json", type=Path, metavar="FILE")
    return p.parse_args(argv)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all precisions, print a table, return the document."""
    if not (match := re.fullmatch(r"(\d+)x(\d+)", options.size)):
        raise ValueError(f"expected --size WIDTHxHEIGHT, got {options.size}")
    if options.rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {options.rounds}")
    torch.set_num_threads(1)
    sets = [] if options.untrained else find_sets(options.eval)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = (
            untrained(Path(folder))
            if options.untrained
            else load_model(options.model, texture=options.texture)
        )
        engines: dict[str, Engine] = {}
        for precision in OpenVINOEngine.precisions:
            try:
                engine = create_engine(model, backend="openvino", precision=precision, threads=1)
            except BackendUnavailable as error:
                print(error)
                continue
            engines[precision] = stack.enter_context(closing(engine))
        height, width = int(match[2]), int(match[1])
        seconds = speeds(engines, (height, width), options.rounds)
        medians = {name: median(times) for name, times in seconds.items()}
        conversions = medians["conversions"]
        rows = []
        for precision, engine in engines.items():
            rows.append(
                {
                    "precision": precision,
                    "cpu_ms": round(1000 * medians[precision], 2),
                    "least_ms": round(1000 * min(seconds[precision]), 2),
                    "times_fp32": round(medians["fp32"] / medians[precision], 2),
                    "least_times_fp32": round(min(seconds["fp32"]) / min(seconds[precision]), 2),
                    "conversions_to_engine": round(conversions / medians[precision], 3),
                    "convolutions": convolutions(engine),
                }
            )
            if sets and precision != "fp32":
                gate = compare(engines["fp32"], engine, sets, scale=model.scale)
                gate["ramp_levels"][precision] = gate["ramp_levels"].pop("int8")
                rows[-1] |= gate
            print(rows[-1])
    return {
        "benchmark": "precision",
        "environment": environment("openvino"),
        "model": model.name,
        "texture": model.texture,
        "sha256": model.sha256,
        "protocol": {"input": options.size, "rounds": options.rounds, "threads": 1},
        "conversions_ms": round(1000 * conversions, 2),
        "rows": rows,
    }


def untrained(folder: Path) -> Model:
    """Return the generator of the paper with random weights, and an int8 form of it."""
    torch.manual_seed(0)
    path = folder / "untrained.safetensors"
    net = build_network("srgan", deployed=True)
    save_weights(path, net, network="srgan", training={})
    model = load_model(path)
    rounding, layers = fake_quantised(runtime_form(model.net))
    calibrate(rounding, layers, torch.rand(1, 3, 32, 32))
    write_forms(cast(Path, model.int8_path), [to_form(rounding, layers, model)])
    return model


def speeds(
    engines: dict[str, Engine], size: tuple[int, int], rounds: int
) -> dict[str, list[float]]:
    """Return the CPU seconds that frames took, by engine, and as "conversions" both of these."""
    planes = [
        torch.randint(16, 236, plane, dtype=torch.uint8) for plane in LAYOUT.plane_sizes(*size)
    ]
    frame = to_rgb(planes, LAYOUT)
    large = {name: engine(frame) for name, engine in engines.items()}["fp32"]
    jobs: dict[str, Callable[[], Any]] = {
        name: lambda engine=engine: engine(frame)  # type: ignore[misc]
        for name, engine in engines.items()
    }
    jobs["conversions"] = lambda: (to_rgb(planes, LAYOUT), from_rgb(large, LAYOUT))
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            began = time.process_time()
            job()
            seconds[name].append(time.process_time() - began)
    return seconds


def convolutions(engine: Engine) -> dict[str, int]:
    """Count the convolutions that OpenVINO executes, by number format."""
    assert isinstance(engine, OpenVINOEngine)
    return dict(Counter(engine.kernels("Convolution")))


if __name__ == "__main__":
    sys.exit(main())
