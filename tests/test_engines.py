"""The call contract of `engines.base.Engine`, on every back end: what "works" means."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch
from devices import CapturedNet, Graph, simulate_cuda

from engines import BACKENDS, create_engine, load_model, pytorch
from engines.base import choose_precision
from engines.errors import BackendUnavailable, OutOfMemory, UnsupportedShape
from engines.graph import own_stream
from engines.int8 import cpu_flags
from engines.networks import build_network, fold
from engines.ov import BF16_FLAGS
from engines.pytorch import PyTorchEngine
from engines.shapes import LastShapes
from engines.weights import Model

SMALL = {
    "srgan": {"channels": 8, "blocks": 1},
    "srgan-lite": {"channels": 8, "blocks": 1},
    "srcnn": {"channels": 8},
}

# fp32: sums in another order, ten layers deep; fp16, bf16: 11 and 8 bits, rounded at each layer
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 1e-2}
# back end, precision, whether on a GPU
HERE = [("openvino", "fp32", False), ("openvino", "bf16", False), ("pytorch", "fp32", False)]
ON_GPU = [("pytorch", "fp32", True), ("pytorch", "fp16", True), ("tensorrt", "fp16", True)]


def needs(backend: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.gpu, *([pytest.mark.tensorrt] if backend == "tensorrt" else [])]


def tiny_model(network: str) -> Model:
    torch.manual_seed(3)
    net = build_network(network, SMALL[network])
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    return Model("tiny", network, fold(net).requires_grad_(False), 4, {}, "")


@pytest.fixture(scope="module", params=list(SMALL))
def model(request):
    return tiny_model(request.param)


@pytest.fixture(
    scope="module",
    params=[*HERE, *(pytest.param(each, marks=needs(each[0])) for each in ON_GPU)],
    ids=lambda each: f"{each[0]}-{each[1]}-{'gpu' if each[2] else 'cpu'}",
)
def engine(request, model):
    backend, precision, gpu = request.param
    if backend == "tensorrt" and model.network == "srcnn":
        pytest.skip("TensorRT has no antialiased bicubic enlargement")
    if (backend, precision) == ("openvino", "bf16") and not cpu_flags() & BF16_FLAGS:
        pytest.skip("the CPU has no instructions for bf16")
    with pytest.MonkeyPatch.context() as patch:
        if not gpu:
            patch.setattr(torch.cuda, "is_available", lambda: False)
        engine = create_engine(model, backend=backend, precision=precision)
    yield engine
    engine.close()


def test_every_back_end_is_held_to_the_contract():
    assert {backend for backend, *_ in HERE + ON_GPU} == set(BACKENDS)


def frames_of(engine, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=engine.dtype, device=engine.device)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 3), (17, 23), (40, 64)])
@pytest.mark.parametrize("count", [1, 3])
def test_any_size_comes_back_scaled_and_equal_to_the_network(engine, model, size, count):
    frames = frames_of(engine, count, 3, *size)
    result = engine(frames)
    assert result.shape == (count, 3, size[0] * 4, size[1] * 4)
    assert result.dtype == engine.dtype
    assert result.device.type == engine.device.type
    assert result.is_contiguous()
    expected = model.net(frames.cpu().float()).clamp(0, 1)
    torch.testing.assert_close(
        result.cpu().float(), expected, atol=TOLERANCE[engine.precision], rtol=0
    )


def test_output_stays_in_range(engine):
    frames = frames_of(engine, 1, 3, 12, 12).round()  # black and white: the net overshoots
    result = engine(frames)
    assert result.min() >= 0
    assert result.max() <= 1


def test_results_are_the_callers_to_keep(engine):
    first_frames, second_frames = frames_of(engine, 1, 3, 8, 8), frames_of(engine, 1, 3, 8, 8)
    before = first_frames.clone()
    first = engine(first_frames)
    kept = first.clone()
    second = engine(second_frames)
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)
    assert torch.equal(first_frames, before)


def test_frames_of_a_batch_do_not_influence_one_another(engine):
    frames = frames_of(engine, 3, 3, 10, 11)
    alone = torch.cat([engine(frame[None]) for frame in frames])
    torch.testing.assert_close(engine(frames), alone, atol=TOLERANCE[engine.precision], rtol=0)


def test_any_memory_layout_is_taken(engine):
    frames = frames_of(engine, 1, 3, 20, 24)
    strided = frames.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    part = frames_of(engine, 1, 3, 40, 48)[:, :, ::2, ::2]
    close = {"atol": TOLERANCE[engine.precision], "rtol": 0}
    torch.testing.assert_close(engine(strided), engine(frames), **close)
    torch.testing.assert_close(engine(part), engine(part.contiguous()), **close)


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((3, 8, 8), ValueError, r"must be \(N, 3, H, W\), got \(3, 8, 8\)"),
        ((1, 4, 8, 8), ValueError, r"must be \(N, 3, H, W\), got \(1, 4, 8, 8\)"),
        ((0, 3, 8, 8), UnsupportedShape, "must not be empty"),
        ((1, 3, 0, 8), UnsupportedShape, "must not be empty"),
    ],
)
def test_bad_shapes_are_refused(engine, shape, error, message):
    with pytest.raises(error, match=message):
        engine(frames_of(engine, *shape))


def test_bad_types_are_refused(engine):
    with pytest.raises(TypeError, match=r"must be torch.float\d\d, got torch.uint8"):
        engine(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"must be a torch.Tensor, got list"):
        engine([[0.5]])


def test_the_description_names_back_end_precision_and_device(engine):
    assert engine.backend in engine.description
    assert engine.precision in engine.description
    assert str(engine.device) in engine.description


# --- choosing a back end --------------------------------------------------------------------------


def test_a_named_back_end_is_used_or_raises(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    with pytest.raises(BackendUnavailable, match="pip install openvino"):
        create_engine(model, backend="openvino")


def test_auto_says_what_it_passes_over(model, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    engine = create_engine(model, backend="auto")
    assert engine.backend == "pytorch"
    assert "passes over openvino" in caplog.text


def test_auto_takes_openvino_on_a_plain_cpu(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert create_engine(model, backend="auto").backend == "openvino"


def test_an_unknown_back_end_is_named(model):
    with pytest.raises(
        ValueError, match=r"unknown backend 'onnx'; known: auto, openvino, pytorch, tensorrt"
    ):
        create_engine(model, backend="onnx")


# --- PyTorch on a simulated GPU -------------------------------------------------------------------


@pytest.fixture
def on_gpu(model, monkeypatch):
    """The back end with its memory on the CPU and everything else on a simulated GPU."""
    caller = simulate_cuda(monkeypatch)
    monkeypatch.setattr(pytorch, "_gpu", lambda: torch.device("cpu"))

    def make(precision="auto"):
        engine = PyTorchEngine(model, precision=precision)
        engine._net = CapturedNet(engine._net)
        engine.caller = caller
        return engine

    return make


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("auto", torch.float16)])
def test_a_gpu_runs_one_graph_a_size(on_gpu, model, precision, dtype):
    if model.network == "srcnn" and dtype == torch.float16:
        pytest.skip("PyTorch has no antialiased enlargement in half precision on the CPU")
    engine = on_gpu(precision)
    assert (engine.precision, engine.dtype) == ("fp32" if precision == "fp32" else "fp16", dtype)
    results = []
    for count, width in enumerate((8, 8, 12, 8), 1):
        frames = torch.rand(1, 3, 6, width, dtype=dtype)
        results.append((engine(frames), model.net(frames.float()).clamp(0, 1)))
        assert Graph.replays == count
    for result, expected in results:  # compared at the end: they are the caller's to keep
        assert result.is_contiguous()
        torch.testing.assert_close(
            result.float(), expected, atol=TOLERANCE[engine.precision], rtol=0
        )
    stream = engine._graphs.newest._stream
    assert stream.waited_for == [engine.caller] * 4  # to be captured once, and to run
    assert engine.caller.waited_for[-1] is stream
    engine.close()


@pytest.mark.parametrize("end", ["begin", "end"])
def test_a_gpu_that_refuses_the_graph_runs_with_a_warning(on_gpu, model, monkeypatch, caplog, end):
    monkeypatch.setattr(Graph, "refuse", end)
    ended = []
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(
            torch._C, name, lambda *what, name=name: ended.append((name, *what)), raising=False
        )
    engine, frames = on_gpu("fp32"), torch.rand(2, 3, 6, 9)
    torch.testing.assert_close(engine(frames), model.net(frames).clamp(0, 1), atol=1e-5, rtol=0)
    assert Graph.replays == 0
    assert "no CUDA graph" in caplog.text
    pool = (None, "pool")  # the allocator is told; it would wait for the capture's end for ever
    assert ended == [("_cuda_endAllocateToPool", *pool), ("_cuda_releasePool", *pool)]


def test_float32_on_a_gpu_is_float32_and_repeatable(on_gpu):
    seen = []
    engine = on_gpu("fp32")
    forward = engine._net.forward

    def look(frames):
        flags = torch.backends.cudnn
        seen.append((flags.enabled, flags.allow_tf32, flags.deterministic))
        return forward(frames)

    engine._net.forward = look
    engine(torch.rand(1, 3, 6, 6))
    assert set(seen) == {(True, False, True)}


def test_compiled_the_network_is_what_torch_compile_makes_of_it(model, monkeypatch):
    made = []

    def compile_(net, *, dynamic):
        made.append(dynamic)
        return lambda frames: net(frames) * 0 + 0.25

    monkeypatch.setattr(torch, "compile", compile_)
    engine = PyTorchEngine(model, compiled=True)
    assert (engine(torch.rand(1, 3, 6, 6)) == 0.25).all()
    assert made == [False]


def test_half_precision_without_a_gpu_is_one_clear_line(model):
    with pytest.raises(
        BackendUnavailable,
        match=r"^backend 'pytorch' computes in fp32 without an NVIDIA GPU, not in fp16$",
    ):
        create_engine(model, backend="pytorch", precision="fp16")


# --- choosing a precision -------------------------------------------------------------------------


def test_auto_takes_the_first_precision_that_is_offered():
    assert choose_precision("any", "auto", ("int8", "fp32")) == "int8"
    assert choose_precision("any", "fp32", ("int8", "fp32")) == "fp32"


def test_a_precision_that_a_back_end_does_not_have_is_one_clear_line(model):
    with pytest.raises(
        BackendUnavailable, match=r"^backend 'tensorrt' computes in fp16 and fp32, not in int8$"
    ):
        create_engine(model, backend="tensorrt", precision="int8")
    with pytest.raises(
        BackendUnavailable, match=r"^backend 'a' computes in fp16 and fp32 here, not in int8$"
    ):
        choose_precision("a", "int8", ("fp16", "fp32"), here=" here")


def test_auto_takes_a_back_end_that_has_the_precision(model, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("engines.ov.OpenVINOEngine.precisions", ("int8",))
    engine = create_engine(model, precision="fp32")
    assert (engine.backend, engine.precision) == ("pytorch", "fp32")
    assert "passes over openvino: backend 'openvino' computes in int8, not in fp32" in caplog.text


def test_where_no_back_end_has_the_precision_each_says_why_once(model, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for engine in ("engines.ov.OpenVINOEngine", "engines.pytorch.PyTorchEngine"):
        monkeypatch.setattr(f"{engine}.precisions", ("fp32",))
    with pytest.raises(
        BackendUnavailable, match=r"^no back end serves: backend 'openvino' .*; backend 'pytorch' "
    ):
        create_engine(model, precision="int8")
    assert caplog.records == []


def test_an_unknown_precision_is_named(model):
    with pytest.raises(
        ValueError, match=r"unknown precision 'fp8'; known: auto, fp32, fp16, bf16, int8"
    ):
        create_engine(model, precision="fp8")


def test_the_built_in_model_beats_its_input(model):
    """A sanity check of the shipped weights: an edge comes out steeper than bicubic's."""
    engine = create_engine(load_model("srgan-lite"), backend="pytorch")
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 1
    bicubic = torch.nn.functional.interpolate(edge, scale_factor=4, mode="bicubic").clamp(0, 1)
    row, smooth = engine(edge)[0, 0, 32], bicubic[0, 0, 32]
    assert row.diff().max() > 1.2 * smooth.diff().max()


def test_openvino_reports_nothing_to_anybody():
    code = (
        "import sys, torch; from engines.ov import import_openvino; openvino = import_openvino()\n"
        "import openvino.tools.ovc\n"
        "print('openvino_telemetry' in sys.modules, openvino.Core() is not None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signal stacks there are others")
def test_a_signal_still_finds_its_stack_after_an_engine_has_gone(tmp_path):
    """OpenVINO gives the thread that loads it a stack for signals, and unmaps it from another."""
    code = (
        "import signal, threading, torch\n"
        "from contextlib import closing\n"
        "from engines import create_engine, load_model\n"
        "def use():\n"
        "    with closing(create_engine(load_model('srgan-lite'), backend='openvino')) as engine:\n"
        "        engine(torch.rand(1, 3, 16, 16))\n"
        "made = [create_engine(load_model('srgan-lite'), backend='openvino')]\n"
        "made[0](torch.rand(1, 3, 16, 16))\n"
        "def drop():\n"
        "    made.pop().close()\n"
        "thread = threading.Thread(target=drop); thread.start(); thread.join()\n"
        "use()\n"
        "signal.signal(signal.SIGINT, lambda *_: print('heard'))\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "heard\n")


@pytest.mark.parametrize("kind", [OutOfMemory, torch.OutOfMemoryError])
def test_what_was_made_for_the_last_two_shapes_is_kept(kind):
    made, closed = [], []

    def make(shape, *, room=3):
        if len(made) - len(closed) >= room:
            raise kind("full")
        made.append(shape)
        return shape

    kept = LastShapes(closed.append)
    for shape in [(1,), (2,), (1,), (2,)]:
        assert kept.get(shape, lambda shape=shape: make(shape)) == kept.newest == shape
    assert (made, closed) == ([(1,), (2,)], [])
    kept.get((3,), lambda: make((3,)))
    assert closed == [(1,)]
    kept.get((4,), lambda: make((4,), room=1))  # only alone does it fit
    assert closed == [(1,), (2,), (3,)]
    with pytest.raises(kind):
        kept.get((5,), lambda: make((5,), room=0))
    assert len(closed) == len(made) == 4


def test_a_stream_is_nobody_elses_while_its_owner_lives(on_gpu):
    class Owner:
        pass

    one, other, device = Owner(), Owner(), torch.device("cpu")
    first = own_stream(one, device)
    assert own_stream(other, device) is not first
    del one
    gc.collect()
    assert own_stream(other, device) is first
