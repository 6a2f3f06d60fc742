"""The OpenVINO back end: the fast one on a plain CPU."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from engines.algebra import Rewrites, rewrite, without_shuffle
from engines.base import Engine, Precision, choose_precision
from engines.errors import BackendUnavailable, EngineBuildError, OutOfMemory
from engines.finish import CellFinish, Finish
from engines.int8 import (
    INT8_FLAGS,
    Int8Form,
    cpu_flags,
    insert_fake_quantize,
    load_int8,
    with_int8_weights,
)
from engines.networks import Network
from engines.shapes import KEPT_SHAPES
from engines.signal_stack import own_signal_stack
from engines.weights import Model

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""of the CPU; without either bf16 is no faster than float32"""

_MOST_LANES = 4  # each takes memory for a frame
_Key = tuple[Finish | None, tuple[int, ...], int]
_DTYPES = {"f32": torch.float32, "u8": torch.uint8}
_TELEMETRY = "openvino_telemetry"


class OpenVINOEngine(Engine):
    """The network compiled by OpenVINO for the CPU.

    A size that is not among the last two costs a reshape and a compilation. A finish becomes part
    of the graph where the network ends in a pixel shuffle. A lane is what OpenVINO calls a stream:
    the fewer threads share a frame, the less they wait for one another at the end of each layer,
    and for one whose core something else uses.

    Args:
        model: the weights.
        precision: "fp32"; "int8", where the model has an int8 form (see `engines.int8`); "bf16",
            where the CPU has instructions for it; or "auto": int8 where the form has passed its
            gate and the CPU has the instructions, else bf16 where it has those, else fp32.
        threads: threads of the inference; None leaves the choice to OpenVINO.

    Raises:
        BackendUnavailable: openvino is not installed or has no CPU plugin here, or has not that
            precision.
        EngineBuildError: OpenVINO cannot convert or compile the network.
        WeightsError: the model's int8 file is damaged.
    """

    backend = "openvino"
    precisions = ("fp32", "int8", "bf16")
    clamps = True

    def __init__(
        self, model: Model, *, precision: Precision = "auto", threads: int | None = None
    ) -> None:
        choose_precision(self.backend, precision, self.precisions)
        try:
            openvino = import_openvino()
        except ImportError as error:
            raise BackendUnavailable(
                f"backend 'openvino' needs OpenVINO: pip install openvino ({error})"
            ) from error
        with own_signal_stack():  # the plugin is loaded when first asked for something
            self._core = openvino.Core()
            devices = self._core.available_devices
        if "CPU" not in devices:
            raise BackendUnavailable("backend 'openvino' found no CPU device on this machine")
        form = None if precision == "fp32" else load_int8(model)
        here = f" for {model.name!r} of texture {model.texture:g} here"
        chosen = choose_precision(self.backend, precision, self._offered(form), here=here)
        super().__init__(model, device=torch.device("cpu"), dtype=torch.float32, precision=chosen)
        self._options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        # said in any case: left to itself, OpenVINO takes bf16 on some CPUs
        self._options["INFERENCE_PRECISION_HINT"] = "bf16" if chosen == "bf16" else "f32"
        if threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = threads
        self._form = form if chosen == "int8" else None
        module = runtime_form(model.net)
        self._module = module if self._form is None else with_int8_weights(module, self._form)
        self._networks: dict[Finish | None, Any] = {None: self._converted(self._module)}
        self._cells: dict[Finish | None, CellFinish] = {}
        self._compiled: dict[_Key, _Compiled] = {}
        self._last: _Compiled | None = None
        self._taking = Lock()  # in which one is compiled, found or given up
        # OpenVINO leaves threads idle that do not share out evenly
        count = self._thread_count()
        self.lane_counts = tuple(n for n in range(1, _MOST_LANES + 1) if count % n == 0)

    def _offered(self, form: Int8Form | None) -> tuple[Precision, ...]:
        """Return the precisions there are, the one that is best here first."""
        flags = cpu_flags()
        offered: list[Precision] = ["bf16", "fp32"] if flags & BF16_FLAGS else ["fp32"]
        if form is not None and flags & INT8_FLAGS:  # without them sums saturate at 16 bits
            offered.insert(0 if form.passed else len(offered), "int8")
        return tuple(offered)

    def _thread_count(self) -> int:
        """Ask how many threads there will be: OpenVINO's choice, and not more than it has cores."""
        from openvino import Model as Network
        from openvino import Type
        from openvino import opset13 as ops

        number = ops.parameter([1], Type.f32)
        with own_signal_stack():
            smallest = self._core.compile_model(
                Network([ops.relu(number)], [number], "none"), "CPU", self._options
            )
        return int(smallest.get_property("INFERENCE_NUM_THREADS"))

    def _converted(self, module: nn.Module) -> Any:
        network = convert(module, self.model.name)
        if self._form is not None:
            insert_fake_quantize(network, self._form)
        return network

    def _compile(self, finish: Finish | None, shape: tuple[int, ...], lanes: int) -> _Compiled:
        options = self._options if lanes == 1 else {**self._options, "NUM_STREAMS": lanes}
        try:
            network = self._networks[finish]
            network.reshape(list(shape))
            with own_signal_stack():
                compiled = self._core.compile_model(network, "CPU", options)
            return _Compiled(compiled, lanes)
        except RuntimeError as error:
            kind = OutOfMemory if "failed to allocate" in str(error).lower() else EngineBuildError
            raise kind(f"OpenVINO cannot compile for {shape}: {error}") from error

    def _start(
        self, frames: Tensor, finish: Finish | None, lanes: int
    ) -> Callable[[], list[Tensor]]:
        """Start a checked frame on the network of its shape, with a finish that fuses or none."""
        key = (finish, tuple(frames.shape), lanes)
        with self._taking:
            # where lanes were given up for want of memory, theirs is free again
            self._compiled = {had: it for had, it in self._compiled.items() if had[2] <= self.lanes}
            if key not in self._compiled:
                if len(self._compiled) == KEPT_SHAPES:
                    self._compiled.pop(next(iter(self._compiled)))
                self._compiled[key] = self._compile(*key)
            self._last = self._compiled[key] = self._compiled.pop(key)  # the latest is the last
        wait = self._last.start(frames)
        if finish is None:
            return wait
        cells = self._cells[finish]
        return lambda: cells.assembled(wait())

    def kernels(self, kind: str) -> list[str]:
        """Return the number format of each kernel of a kind ("Convolution") that runs.

        Only after a call: what runs is decided by its size.
        """
        return [] if self._last is None else self._last.kernels(kind)

    def _run(self, frames: Tensor) -> Tensor:
        return self._start(frames, None, 1)()[0]

    def fuses(self, finish: Finish) -> bool:
        if finish in self._networks:
            return True
        cut = without_shuffle(self._module)
        after = None if cut is None else finish.before_shuffle(cut[1])
        if cut is None or after is None:
            return False
        # of the finishes the last alone is kept: a job has one, and a clip like the last has it too
        self._networks = {None: self._networks[None]}
        self._compiled = {key: kept for key, kept in self._compiled.items() if key[0] is None}
        self._networks[finish] = self._converted(nn.Sequential(*cut[0], after).eval())
        self._cells = {finish: after}
        return True

    def finished(self, frames: Tensor, finish: Finish) -> list[Tensor]:
        if not self.fuses(finish):
            return super().finished(frames, finish)
        self._check(frames)
        return self._start(frames, finish, 1)()

    def begin(self, frames: Tensor, finish: Finish | None = None) -> Callable[[], list[Tensor]]:
        if self.lanes == 1:
            return super().begin(frames, finish)
        if finish is not None and not self.fuses(finish):
            begun = self.begin(frames)
            return lambda: finish(begun()[0])
        self._check(frames)
        return self._start(frames, finish, self.lanes)

    def cancel(self) -> None:
        """Give up the frames under way: who waits for one is told so by a RuntimeError."""
        with self._taking:
            for compiled in self._compiled.values():
                compiled.cancel()

    def close(self) -> None:
        """Give back the compiled networks, and give up the frames under way."""
        self.cancel()
        self._last = None
        self._compiled.clear()


class _Compiled:
    """A network compiled for one shape.

    Args:
        network: an `openvino.CompiledModel`.
        lanes: frames that it computes at once; one more waits its turn.
    """

    def __init__(self, network: Any, lanes: int) -> None:
        self._network = network
        self._jobs = deque(_Job(network) for _ in range(lanes + 1 if lanes > 1 else 1))

    def start(self, frames: Tensor) -> Callable[[], list[Tensor]]:
        """Start on a frame; what the call that waits for it returns is fresh."""
        job = self._jobs[0]
        self._jobs.rotate(-1)
        job.start(frames)
        return job.results

    def kernels(self, kind: str) -> list[str]:
        """See `OpenVINOEngine.kernels`."""
        nodes = self._network.get_runtime_model().get_ordered_ops()
        infos = [node.get_rt_info() for node in nodes]
        return [
            info["runtimePrecision"].astype(str)
            for info in infos
            if info["layerType"].astype(str) == kind
        ]

    def cancel(self) -> None:
        """Give up what is under way."""
        for job in self._jobs:
            job.cancel()


class _Job:
    """One frame after the other on a compiled network: OpenVINO's infer request."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._request = network.create_infer_request()
        self._ports = [
            (tuple(port.shape), _DTYPES[port.element_type.get_type_name()])
            for port in network.outputs
        ]
        # the request knows the addresses alone: what it reads and writes must last as long
        self._frames: Tensor | None = None
        self._results: list[Tensor] = []

    def start(self, frames: Tensor) -> None:
        """Start on a frame, once the one before is done, wanted or not."""
        openvino = import_openvino()
        with suppress(RuntimeError):
            self._wait()
        # into memory of our own, so that nothing is copied afterwards
        self._results = [torch.empty(shape, dtype=dtype) for shape, dtype in self._ports]
        for index, result in enumerate(self._results):
            shared = openvino.Tensor(result.numpy(), shared_memory=True)
            self._request.set_output_tensor(index, shared)
        self._frames = frames.contiguous()
        self._request.start_async([self._frames.numpy()], share_inputs=True)

    def results(self) -> list[Tensor]:
        """Wait for the frame that was started last, and hand over what was made of it."""
        self._wait()
        results, self._results, self._frames = self._results, [], None
        return results

    def cancel(self) -> None:
        """Give up the frame, and wait until nothing of it is read or written any more."""
        request = self._request
        request.cancel()
        with suppress(RuntimeError):  # which is for whoever waits for the frame
            request.wait()

    def _wait(self) -> None:
        try:
            self._request.wait()
        except RuntimeError:  # which this request would raise for ever after
            self._request = self._network.create_infer_request()
            raise


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry.

    Its package reports each import to a server: unasked, and from a process that it forks off a
    program with threads, which may then hang or crash.

    Raises:
        ImportError: it is not installed, or does not load.
    """
    if "openvino" not in sys.modules:
        there = sys.modules.get(_TELEMETRY)
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("openvino")
        finally:
            if there is None:
                del sys.modules[_TELEMETRY]
            else:
                sys.modules[_TELEMETRY] = there
    return importlib.import_module("openvino")


def runtime_form(net: Network) -> nn.Module:
    """Return the form of a network that OpenVINO runs: the same function, clamped to [0, 1]."""
    return rewrite(net, Rewrites(nearest=True))


def convert(module: nn.Module, name: str) -> Any:
    """Return a module as an `openvino.Model`, of any input size.

    Raises:
        EngineBuildError: OpenVINO cannot convert it.
    """
    import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    try:
        with warnings.catch_warnings():
            # tracing is deprecated in PyTorch, and twice as fast here as torch.export
            warnings.simplefilter("ignore", DeprecationWarning)
            example = torch.zeros(1, 3, 16, 16)
            # not openvino.convert_model: it would send telemetry too (see `import_openvino`)
            decoder = TorchScriptPythonDecoder(module, example_input=(example,))
            frontend = FrontEndManager().load_by_framework("pytorch")
            return frontend.convert(frontend.load(decoder))
    except Exception as error:  # OpenVINO raises bare RuntimeError and its own kinds
        raise EngineBuildError(f"OpenVINO cannot convert {name}: {error}") from error
