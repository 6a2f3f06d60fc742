"""The int8 form of a model: its file, and how it gets into an OpenVINO graph.

A convolution in int8 multiplies whole numbers: its inputs, rounded to multiples of one step for the
whole tensor, by its weights, rounded to multiples of one step an output channel. Both are signed
and symmetric around zero. OpenVINO learns of it from FakeQuantize nodes and makes int8 kernels of
them; a zero point, which PReLU's uneven range suggests, would keep it from the CPU's matrix tiles
(AMX).
Convolutions that read the RGB frame itself stay in float32, and so do biases, PReLU and sums.

`python -m train.quantize` makes `<name>.int8.safetensors` beside the weights. It holds a form for
each texture that was asked for, bound to the SHA-256 of the weights, with the figures of its gate:

    <texture>/<convolution>.weight        I8, multiples of the step
    <texture>/<convolution>.weight_step   F32, one an output channel
    <texture>/<convolution>.input_step    F32, one number
    <texture>/<anything else>             F32, as in the state of the module that OpenVINO runs

    metadata: format "vsr-int8/1"; forms: JSON, by texture: sha256 of the model, gate
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from engines.errors import EngineBuildError, WeightsError
from engines.files import replaced
from engines.weights import Model, read_metadata

FORMAT = "vsr-int8/1"
MOST = 127
"""steps from zero to the end of a range; inputs have one more below zero"""
LARGEST_LOSS_DB = 0.1
"""the gate: how much PSNR against the originals a test set may lose"""
LEAST_LEVELS = 0.98
"""the gate: how many of the levels of float32 a smooth ramp must keep"""
CPU_FLAGS = Path("/proc/cpuinfo")
"""where Linux lists a CPU's instructions"""
INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""any of these makes int8 worth while; without them sums may saturate, and the gain is small"""


@dataclass(frozen=True, slots=True)
class Int8Form:
    """One texture of a model in int8."""

    texture: float
    sha256: str
    """of the model that it is a form of"""
    state: dict[str, Tensor]
    """float32, of the module that OpenVINO runs; quantised weights are multiples of their steps"""
    weight_steps: dict[str, Tensor]
    """(C_out,) by convolution"""
    input_steps: dict[str, float]
    gate: dict[str, Any]
    """what `train.quantize.measure` found; empty before it did"""

    @property
    def passed(self) -> bool:
        """Whether the gate was measured, no set loses more than it may, and no ramp has bands."""
        if not self.gate:
            return False
        levels = self.gate["ramp_levels"]
        return bool(
            max(self.gate["loss_db"].values()) <= LARGEST_LOSS_DB
            and levels["int8"] >= LEAST_LEVELS * levels["fp32"]
        )


def quantised_convolutions(module: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions that run in int8: all but those that read the RGB frame itself."""
    return {
        name: conv
        for name, conv in module.named_modules()
        if isinstance(conv, nn.Conv2d) and conv.in_channels > 3
    }


# --------------------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------------------


def load_int8(model: Model) -> Int8Form | None:
    """Return the int8 form of a model, or None where none was made of these weights.

    Raises:
        WeightsError: there is a file, and it is foreign or damaged.
    """
    if model.int8_path is None or not model.int8_path.is_file():
        return None
    for form in read_forms(model.int8_path):
        if form.sha256 == model.sha256:
            return form
    return None


def read_forms(path: Path) -> list[Int8Form]:
    """Read all forms of a file.

    Raises:
        WeightsError: it is unreadable, foreign or damaged.
    """
    try:
        data = path.read_bytes()
        tensors = safetensors.torch.load(data)
        metadata = read_metadata(data)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"format {metadata.get('format')!r}, expected {FORMAT!r}")
        forms = json.loads(metadata["forms"])
        return [_unpacked(tensors, texture, form) for texture, form in forms.items()]
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{path} is not a file of int8 weights, or damaged: {error}") from error


def write_forms(path: Path, forms: list[Int8Form]) -> None:
    """Write forms, at most one a texture; a crash leaves either the old file or the new one."""
    tensors: dict[str, Tensor] = {}
    accounts = {}
    for form in sorted(forms, key=lambda form: form.texture):
        texture = f"{form.texture:g}"
        accounts[texture] = {"sha256": form.sha256, "gate": form.gate}
        for name, value in form.state.items():
            conv = name.removesuffix(".weight")
            if conv in form.weight_steps:
                step = form.weight_steps[conv]
                value = (value / step.view(-1, 1, 1, 1)).round().to(torch.int8)
                tensors[f"{texture}/{conv}.weight_step"] = step.clone()
                tensors[f"{texture}/{conv}.input_step"] = torch.tensor(form.input_steps[conv])
            tensors[f"{texture}/{name}"] = value.clone()  # two forms may share what was not trained
    metadata = {"format": FORMAT, "forms": json.dumps(accounts, sort_keys=True)}
    with replaced(path) as partial:
        partial.write_bytes(safetensors.torch.save(tensors, metadata))


def _unpacked(tensors: dict[str, Tensor], texture: str, account: dict[str, Any]) -> Int8Form:
    prefix = f"{texture}/"
    found = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    ending = ".weight_step"
    weight_steps = {
        name.removesuffix(ending): found.pop(name) for name in list(found) if name.endswith(ending)
    }
    input_steps = {conv: float(found.pop(f"{conv}.input_step")) for conv in weight_steps}
    for conv, step in weight_steps.items():
        found[f"{conv}.weight"] = found[f"{conv}.weight"].float() * step.view(-1, 1, 1, 1)
    return Int8Form(
        texture=float(texture),
        sha256=account["sha256"],
        state=found,
        weight_steps=weight_steps,
        input_steps=input_steps,
        gate=account["gate"],
    )


# --------------------------------------------------------------------------------------------------
# The graph
# --------------------------------------------------------------------------------------------------


def with_int8_weights(module: nn.Module, form: Int8Form) -> nn.Module:
    """Put a form's weights into the module that OpenVINO runs, in place, and return it.

    Raises:
        WeightsError: the form is one of another module.
    """
    missing = quantised_convolutions(module).keys() ^ form.weight_steps.keys()
    try:
        module.load_state_dict(form.state)
    except RuntimeError as error:
        raise WeightsError(f"the int8 weights do not fit the network: {error}") from error
    if missing:
        raise WeightsError(f"the int8 weights do not fit the network: {', '.join(sorted(missing))}")
    return module


def insert_fake_quantize(network: Any, form: Int8Form) -> None:
    """Mark the convolutions of an OpenVINO graph that shall run in int8.

    Args:
        network: an `openvino.Model` converted from a module with the form's weights, changed.
        form: the steps.

    Raises:
        EngineBuildError: a convolution of the form is not in the graph.
    """
    from openvino import opset13 as ops

    def fake_quantize(source: Any, low: Tensor, high: Tensor, levels: int) -> Any:
        ends = [ops.constant(end.numpy()) for end in (low, high, low, high)]
        return ops.fake_quantize(source, *ends, levels).output(0)

    left = set(form.weight_steps)
    for node in network.get_ordered_ops():
        if node.get_type_name() != "Convolution":
            continue
        match = re.search(r"__module\.(.+?)/", node.get_friendly_name())
        if match is None or match[1] not in left:
            continue
        left.remove(conv := match[1])
        step = torch.tensor(form.input_steps[conv])
        inputs = fake_quantize(node.input_value(0), -(MOST + 1) * step, MOST * step, 2 * MOST + 2)
        node.input(0).replace_source_output(inputs)
        end = MOST * form.weight_steps[conv].view(-1, 1, 1, 1)
        weights = fake_quantize(node.input_value(1), -end, end, 2 * MOST + 1)
        node.input(1).replace_source_output(weights)
    if left:
        raise EngineBuildError(f"OpenVINO's graph has no convolution {', '.join(sorted(left))}")


def cpu_flags() -> set[str]:
    """Return the names of this CPU's instruction sets; none where the system is not Linux."""
    return set(CPU_FLAGS.read_text().split()) if CPU_FLAGS.exists() else set()
