"""The OpenVINO back end: the fast one on a plain CPU."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from engines.base import Engine, Precision, choose_precision
from engines.errors import BackendUnavailable, EngineBuildError
from engines.weights import Model


class OpenVINOEngine(Engine):
    """The network compiled by OpenVINO for the CPU, in float32.

    A size other than the last one costs a reshape and a compilation.

    Args:
        model: the weights.
        precision: "auto" or "fp32".
        threads: threads of the inference; None leaves the choice to OpenVINO.

    Raises:
        BackendUnavailable: openvino is not installed or has no CPU plugin here, or has not that
            precision.
        EngineBuildError: OpenVINO cannot convert or compile the network.
    """

    backend = "openvino"

    def __init__(
        self, model: Model, *, precision: Precision = "auto", threads: int | None = None
    ) -> None:
        chosen = choose_precision(self.backend, precision, self.precisions)
        super().__init__(model, device=torch.device("cpu"), dtype=torch.float32, precision=chosen)
        try:
            import openvino
            from openvino.frontend import FrontEndManager
            from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
        except ImportError as error:
            raise BackendUnavailable(
                f"backend 'openvino' needs OpenVINO: pip install openvino ({error})"
            ) from error
        self._core = openvino.Core()
        if "CPU" not in self._core.available_devices:
            raise BackendUnavailable("backend 'openvino' found no CPU device on this machine")
        self._options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        # the default on some CPUs is bf16, which is not what the gate and the tests saw
        self._options["INFERENCE_PRECISION_HINT"] = "f32"
        if threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = threads
        try:
            with warnings.catch_warnings():
                # tracing is deprecated in PyTorch, and twice as fast here as torch.export
                warnings.simplefilter("ignore", DeprecationWarning)
                example = torch.zeros(1, 3, 16, 16)
                # not openvino.convert_model, which sends telemetry from a process of its own
                decoder = TorchScriptPythonDecoder(model.net, example_input=(example,))
                frontend = FrontEndManager().load_by_framework("pytorch")
                self._network = frontend.convert(frontend.load(decoder))
        except Exception as error:  # OpenVINO raises bare RuntimeError and its own kinds
            raise EngineBuildError(f"OpenVINO cannot convert {model.name}: {error}") from error
        self._shape: tuple[int, ...] = ()
        self._request: Any = None

    def _compile(self, shape: tuple[int, ...]) -> None:
        try:
            self._network.reshape(list(shape))
            compiled = self._core.compile_model(self._network, "CPU", self._options)
        except RuntimeError as error:
            raise EngineBuildError(f"OpenVINO cannot compile for {shape}: {error}") from error
        self._request = compiled.create_infer_request()
        self._shape = shape

    def _run(self, frames: Tensor) -> Tensor:
        if tuple(frames.shape) != self._shape:
            self._compile(tuple(frames.shape))
        result = self._request.infer([frames.contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(result[0])  # infer() copies its outputs

    def close(self) -> None:
        """Give back the compiled network."""
        self._request = None
        self._shape = ()
