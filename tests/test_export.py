"""Networks as ONNX: what onnxruntime makes of the graph is what the module gives."""

from __future__ import annotations

import sys
from functools import lru_cache

import pytest
import torch

from engines.algebra import NONE, Rewrites, rewrite
from engines.errors import BackendUnavailable, EngineBuildError
from engines.export import INPUT, OUTPUT, export_onnx
from engines.networks import build_network, fold

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SMALL = {"srgan": {"channels": 8, "blocks": 1}, "srgan-lite": {"channels": 8, "blocks": 1}}

# float32: sums in another order. float16: 11 bits, ten layers deep, and a runtime that sums in
# float32 and rounds between the layers
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3}


@lru_cache
def network(name: str):
    torch.manual_seed(5)
    return fold(build_network(name, SMALL[name]))


@lru_cache
def exported(name: str, dtype: torch.dtype, shape: tuple[int, int, int] | None = None) -> bytes:
    return export_onnx(rewrite(network(name)), dtype=dtype, shape=shape)


def run(model: bytes, frames: torch.Tensor) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUT], {INPUT: frames.numpy()})[0])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_one_graph_takes_any_size_and_equals_the_network(name, dtype):
    model = exported(name, dtype)
    for shape in [(1, 3, 7, 9), (3, 3, 16, 5), (1, 3, 1, 1)]:
        frames = torch.rand(shape).to(dtype)
        result = run(model, frames)
        with torch.no_grad():
            expected = network(name)(frames.float()).clamp(0, 1)
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), expected, atol=TOLERANCE[dtype], rtol=0)


def test_a_graph_of_one_size_equals_the_network_and_takes_no_other():
    model = exported("srgan-lite", torch.float16, (1, 12, 20))
    frames = torch.rand(1, 3, 12, 20).half()
    with torch.no_grad():
        expected = network("srgan-lite")(frames.float()).clamp(0, 1)
    tolerance = TOLERANCE[torch.float16]
    torch.testing.assert_close(run(model, frames).float(), expected, atol=tolerance, rtol=0)
    with pytest.raises(Exception, match="Got invalid dimensions"):
        run(model, torch.rand(1, 3, 12, 21).half())


def test_the_tail_below_both_shuffles_exports_too():
    net = network("srgan")
    model = export_onnx(rewrite(net, Rewrites(tail_below=2)), dtype=torch.float32)
    frames = torch.rand(1, 3, 6, 11)
    with torch.no_grad():
        expected = net(frames).clamp(0, 1)
    torch.testing.assert_close(run(model, frames), expected, atol=1e-4, rtol=0)


def test_the_graph_is_in_one_precision_throughout():
    graph = onnx.load_from_string(exported("srgan", torch.float16)).graph
    half = onnx.TensorProto.FLOAT16
    weights = [tensor for tensor in graph.initializer if tensor.data_type != onnx.TensorProto.INT64]
    assert {tensor.data_type for tensor in weights} == {half}
    assert not [node for node in graph.node if node.op_type == "Cast"]
    assert [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)] == [
        half, half,
    ]  # fmt: skip


def test_the_same_network_gives_the_same_bytes_and_another_one_others():
    shape = (1, 12, 20)
    again = export_onnx(rewrite(network("srgan-lite")), dtype=torch.float16, shape=shape)
    assert again == exported("srgan-lite", torch.float16, shape)
    changed = rewrite(network("srgan-lite"), NONE)
    assert export_onnx(changed, dtype=torch.float16, shape=shape) != again


def test_no_path_of_this_machine_is_in_the_file():
    model = exported("srgan", torch.float16)
    assert b".py" not in model
    assert b"/engines/" not in model


def test_the_network_keeps_its_precision():
    export_onnx(net := rewrite(network("srgan-lite")), dtype=torch.float16)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_what_cannot_be_exported_is_an_error_of_ours():
    class Impossible(torch.nn.Module):
        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return frames if frames.sum() > 0 else frames + 1

    with pytest.raises(EngineBuildError, match="PyTorch cannot export the network to ONNX: "):
        export_onnx(Impossible(), dtype=torch.float32)


def test_a_missing_exporter_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(BackendUnavailable, match="pip install onnx onnxscript"):
        export_onnx(network("srgan-lite"), dtype=torch.float32)
