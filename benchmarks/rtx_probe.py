"""Does TensorRT (either flavour) run on this machine's GPU, and if not, where does it stop?

    python benchmarks/rtx_probe.py [--network srgan|srgan-lite] [--size WxH] [--json FILE]

Six steps, each with its seconds: find the library, export the network (random weights, float16) to
ONNX, build the engine, load it (`deserialize`), run it and compare with PyTorch, capture it in a
CUDA graph and replay that. The first step that fails ends it, with its error and the library's
last message. The last line of stdout is one JSON document, which goes to `--json` too; the exit
code is 0 whether it runs or not. Nobody has run it on a GPU yet: without one it ends at the fourth
step.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.report import environment, publish  # noqa: E402
from engines.algebra import Rewrites, rewrite  # noqa: E402
from engines.errors import BackendUnavailable  # noqa: E402
from engines.export import INPUT, OUTPUT, export_onnx  # noqa: E402
from engines.networks import build_network  # noqa: E402
from engines.pytorch import exact_convolutions  # noqa: E402
from engines.trt_build import Profile, TensorRT, build_engine, find_tensorrt  # noqa: E402

STEPS = ("find", "export", "build", "load", "run", "graph")
RUNS = 50
WARM_UP_RUNS = 3


def main(argv: list[str] | None = None) -> int:
    """Run the probe and return its exit code."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--network", choices=("srgan", "srgan-lite"), default="srgan")
    p.add_argument("--size", default="480x270", metavar="WxH", help="(default: 480x270)")
    p.add_argument("--json", type=Path, metavar="FILE")
    options = p.parse_args(argv)

    def measure() -> dict[str, Any]:
        if not (match := re.fullmatch(r"(\d+)x(\d+)", options.size)):
            raise ValueError(f"expected --size WIDTHxHEIGHT, got {options.size}")
        return probe(options.network, (int(match[2]), int(match[1])))

    return publish("rtx_probe", measure, options.json)


def probe(network: str, size: tuple[int, int]) -> dict[str, Any]:
    """Take the steps, print a line for each, and return the document.

    Args:
        network: a key of `engines.networks.NETWORKS`.
        size: (height, width) of the input.
    """
    card = environment()
    if torch.cuda.is_available():
        card["device"] = torch.cuda.get_device_name()
        card["compute_capability"] = "{}.{}".format(*torch.cuda.get_device_capability())
        card["cuda"] = str(torch.version.cuda)
    document: dict[str, Any] = {
        "benchmark": "rtx_probe",
        "environment": card,
        "network": network,
        "input": f"{size[1]}x{size[0]}, float16",
        "steps": {},
        "runs": False,
    }
    steps = Steps(network, size)
    taken = steps.take()
    for name in STEPS:
        began = time.perf_counter()
        try:
            found = next(taken)
        except Exception as error:  # whatever stops it is the answer
            text = " ".join(str(error).split())
            found = {"error": f"{type(error).__name__}: {text}"[:1000]}
            if steps.library is not None:
                found["last_message"] = steps.library.last_error
        found["seconds"] = round(time.perf_counter() - began, 3)
        document["steps"][name] = found
        print(f"{name:<8}" + ", ".join(f"{key} {value}" for key, value in found.items()))
        if "error" in found:
            return document
    document["runs"] = True
    return document


class Steps:
    """The steps, each of which needs what those before it made."""

    def __init__(self, network: str, size: tuple[int, int]) -> None:
        self._network, self._shape = network, (1, *size)
        self.library: TensorRT | None = None

    def take(self) -> Iterator[dict[str, Any]]:
        """Take a step, yield what it found, and so on."""
        self.library = find_tensorrt()
        yield {"flavour": self.library.flavour, "version": self.library.version}

        torch.manual_seed(0)
        net = build_network(self._network, deployed=True).eval()
        onnx = export_onnx(
            rewrite(net, Rewrites(clamp=False)), dtype=torch.float16, shape=self._shape
        )
        yield {"bytes": len(onnx)}

        data, _ = build_engine(self.library, onnx, Profile.fixed(self._shape))
        yield {"bytes": len(data)}

        runtime = self.library.module.Runtime(self.library.logger)
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BackendUnavailable("the library gives no engine for this GPU")
        context = engine.create_execution_context()
        if context is None:
            raise BackendUnavailable("the engine gives no execution context")
        yield {"layers": int(engine.num_layers)}

        frames = torch.rand(1, 3, *self._shape[1:], device="cuda").half()
        with torch.no_grad(), exact_convolutions():
            expected = net.cuda()(frames.float()).clamp(0, 1)
        result = torch.zeros_like(expected, dtype=torch.float16)
        context.set_tensor_address(INPUT, frames.data_ptr())
        context.set_tensor_address(OUTPUT, result.data_ptr())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())

        def launch() -> None:
            if not context.execute_async_v3(stream.cuda_stream):
                raise BackendUnavailable("the engine does not run")

        timed = _timed(launch, stream)
        difference = float((result.float() - expected).abs().max())
        yield {**timed, "largest_difference": round(difference, 5)}

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            launch()
        before = result.clone()
        result.zero_()
        torch.cuda.synchronize()
        timed = _timed(graph.replay, stream)
        yield {**timed, "same_result": bool(torch.equal(result, before))}


def _timed(launch: Any, stream: Any) -> dict[str, Any]:
    """Run something in a stream over and over; return milliseconds a run and runs a second."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            launch()
        first.record()
        for _ in range(RUNS):
            launch()
        last.record()
    stream.synchronize()
    ms = first.elapsed_time(last) / RUNS
    return {"ms": round(ms, 4), "fps": round(1000 / ms, 2)}


if __name__ == "__main__":
    sys.exit(main())
