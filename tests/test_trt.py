"""The TensorRT back end: on a GPU where there is one, and on a simulated one everywhere.

The simulated library runs the real network on the CPU, through the addresses it was given, and the
simulated device runs a captured graph only when it is replayed.
"""

from __future__ import annotations

import ctypes
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from devices import Graph, simulate_cuda
from test_engines import tiny_model

import engines
from engines import create_engine, trt
from engines.algebra import Rewrites
from engines.cache import EngineCache
from engines.errors import BackendUnavailable, EngineBuildError, UnsupportedShape
from engines.export import INPUT, OUTPUT
from engines.trt import Compiler, TensorRTEngine
from engines.trt_build import BuildOptions, TensorRT, find_tensorrt

# rounded to float16 at the ends only: the simulated library computes in float32
TOLERANCE = 1e-3


class Library:
    """What the back end calls of TensorRT, with a count of builds and ways to fail."""

    def __init__(self, net) -> None:
        self.net = net
        self.builds: list[tuple[int, ...]] = []
        self.loads, self.no_memory = True, False

    def as_found(self) -> TensorRT:
        module = SimpleNamespace(Runtime=lambda logger: self)
        logger = SimpleNamespace(last_error="unsupported SM")
        return TensorRT(module, "tensorrt_rtx", "1.7", logger)

    def build(self, library, onnx, profile, *, options, timing, progress):
        progress(0.5)
        self.builds.append(profile.optimum)
        return json.dumps(profile.optimum).encode(), b""

    def deserialize_cuda_engine(self, data: bytes):
        return Context(self, json.loads(data)) if self.loads else None


class Context:
    """Engine and execution context in one."""

    def __init__(self, library: Library, shape: tuple[int, int, int]) -> None:
        n, h, w = shape
        self.shapes = {INPUT: (n, 3, h, w), OUTPUT: (n, 3, h * 4, w * 4)}
        self.library, self.addresses = library, {}

    def create_execution_context(self):
        return None if self.library.no_memory else self

    def get_tensor_shape(self, name: str):
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> None:
        assert name not in self.addresses, "a captured graph keeps the first address"
        self.addresses[name] = address

    def memory(self, name: str) -> np.ndarray:
        count = int(np.prod(self.shapes[name]))
        pointer = ctypes.cast(self.addresses[name], ctypes.POINTER(ctypes.c_uint16))
        array = np.ctypeslib.as_array(pointer, (count,)).view(np.float16)
        return array.reshape(self.shapes[name])

    def execute_async_v3(self, stream: int) -> bool:
        def kernels() -> None:
            with torch.no_grad():
                result = self.library.net(torch.from_numpy(self.memory(INPUT)).float())
            self.memory(OUTPUT)[...] = result.clamp(0, 1).half().numpy()

        if Graph.capturing is not None:
            Graph.capturing.work.append(kernels)
        else:
            kernels()
        return True


@pytest.fixture(scope="module")
def model():
    return tiny_model("srgan-lite")


@pytest.fixture
def library(model, monkeypatch, tmp_path):
    """A simulated library on a simulated GPU."""
    library = Library(model.net)
    monkeypatch.setattr(trt, "find_tensorrt", library.as_found)
    monkeypatch.setattr(trt, "build_engine", library.build)
    monkeypatch.setattr(trt, "export_onnx", lambda net, *, dtype, shape: repr(shape).encode())
    monkeypatch.setattr(trt, "_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(trt, "_this_gpu", lambda: ("NVIDIA Simulated", "9.0", "13.0"))
    library.caller = simulate_cuda(monkeypatch)
    library.cache = EngineCache(tmp_path / "engines")
    return library


@pytest.fixture
def engine(library, model):
    engine = TensorRTEngine(model, cache=library.cache)
    yield engine
    engine.close()


def frames_of(*shape: int) -> torch.Tensor:
    return torch.rand(*shape).half()


def assert_upscaled(result, frames, model) -> None:
    expected = model.net(frames.float()).clamp(0, 1)
    assert result.dtype == torch.float16
    torch.testing.assert_close(result.float(), expected, atol=TOLERANCE, rtol=0)


# --- on the simulated GPU -------------------------------------------------------------------------


def test_frames_of_any_size_and_number_are_upscaled(engine, model):
    for shape in [(1, 3, 8, 9), (3, 3, 8, 9), (1, 3, 1, 1)]:
        frames = frames_of(*shape)
        assert_upscaled(engine(frames), frames, model)


def test_an_engine_is_built_once_a_size_and_taken_from_the_cache(library, engine, model):
    small, large = frames_of(1, 3, 8, 8), frames_of(1, 3, 8, 16)
    for frames in (small, small, large, small):
        assert_upscaled(engine(frames), frames, model)
    assert library.builds == [(1, 8, 8), (1, 8, 16)]
    TensorRTEngine(model, cache=library.cache)(small)
    assert len(library.builds) == 2
    (key, _) = (entry.key for entry in library.cache.entries())
    assert (key.gpu, key.compute_capability, key.driver) == ("NVIDIA Simulated", "9.0", "13.0")


def test_the_captured_graph_is_what_runs(engine, model):
    for count in (1, 2, 3):
        frames = frames_of(1, 3, 6, 6)
        assert_upscaled(engine(frames), frames, model)
        assert Graph.replays == count


def test_without_a_graph_it_runs_with_a_warning(engine, model, monkeypatch, caplog):
    monkeypatch.setattr(Graph, "refuse", True)
    frames = frames_of(1, 3, 6, 6)
    assert_upscaled(engine(frames), frames, model)
    assert Graph.replays == 0
    assert "no CUDA graph" in caplog.text


def test_results_are_the_callers_to_keep(engine):
    first = engine(frames_of(1, 3, 8, 8))
    kept = first.clone()
    assert not torch.equal(engine(frames_of(1, 3, 8, 8)), kept)
    assert torch.equal(first, kept)


def test_the_two_streams_wait_for_each_other(library, engine):
    engine(frames_of(1, 3, 8, 8))
    stream = engine._session.run._stream
    assert stream.waited_for == [library.caller] * 2  # to be captured, and to run
    assert library.caller.waited_for == [stream]


def test_a_build_is_announced_once(engine, caplog):
    engine(frames_of(1, 3, 6, 10))
    engine(frames_of(1, 3, 6, 10))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert warnings[0].startswith("TensorRT compiles for 1 frame of 10x6, once")


@pytest.mark.parametrize(
    ("options", "rewrites"), [(BuildOptions(level=5), None), (None, Rewrites(tail_below=2))]
)
def test_other_options_are_another_engine(library, model, options, rewrites, monkeypatch):
    monkeypatch.setattr(  # of a graph with other weights or layers
        trt, "export_onnx", lambda net, *, dtype, shape: repr((rewrites, shape)).encode()
    )
    frames = frames_of(1, 3, 6, 6)
    TensorRTEngine(model, cache=library.cache)(frames)
    TensorRTEngine(model, cache=library.cache, options=options, rewrites=rewrites)(frames)
    monkeypatch.setattr(
        trt, "export_onnx", lambda net, *, dtype, shape: repr((None, shape)).encode()
    )
    TensorRTEngine(model, cache=library.cache)(frames)
    assert len(library.builds) == 2


def test_a_gpu_that_the_library_does_not_run_on_is_named(library, engine):
    library.loads = False
    with pytest.raises(
        BackendUnavailable,
        match=r"tensorrt_rtx 1.7 cannot load its engine on NVIDIA Simulated \(compute capability "
        r"9.0\): unsupported SM",
    ):
        engine(frames_of(1, 3, 8, 8))
    assert library.cache.entries() == []


def test_an_engine_of_another_version_is_built_again(library, engine, model, caplog):
    frames = frames_of(1, 3, 8, 8)
    engine(frames)
    (path,) = library.cache.folder.glob("*.engine")
    loads = iter([None])  # the stored one is refused, the fresh one is taken
    real = library.deserialize_cuda_engine
    library.deserialize_cuda_engine = lambda data: (
        next(loads, None) or (real(data) if len(library.builds) == 2 else None)
    )
    assert_upscaled(TensorRTEngine(model, cache=library.cache)(frames), frames, model)
    assert len(library.builds) == 2
    assert "cannot load its engine" in caplog.text
    assert "deleted and built again" in caplog.text
    assert path.exists()


def test_an_engine_for_other_frames_is_not_run(engine, monkeypatch):
    monkeypatch.setattr(trt, "build_engine", lambda *_, **__: (b"[1, 4, 4]", b""))
    with pytest.raises(BackendUnavailable, match=r"takes and gives .*\(1, 3, 4, 4\).* expected"):
        engine(frames_of(1, 3, 8, 8))


def test_a_full_gpu_is_an_unsupported_shape(library, engine):
    library.no_memory = True
    with pytest.raises(UnsupportedShape, match=r"no execution context for \(1, 8, 8\)"):
        engine(frames_of(1, 3, 8, 8))


def test_the_description_names_library_and_version(engine):
    assert engine.description == "tensorrt fp16 on cpu (tensorrt_rtx 1.7)"


# --- without a GPU --------------------------------------------------------------------------------


def test_a_missing_gpu_is_named(model, monkeypatch):
    monkeypatch.setattr(trt, "find_tensorrt", Library(model.net).as_found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match=r"needs an NVIDIA GPU .* no CUDA device"):
        create_engine(model, backend="tensorrt")


def test_auto_does_not_take_what_nobody_has_seen_run(monkeypatch):
    for gpu, order in [(True, ["pytorch", "openvino"]), (False, ["openvino", "pytorch"])]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert engines._fastest_first() == order


@pytest.fixture
def real_library():
    pytest.importorskip("onnxscript")
    try:
        return find_tensorrt()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.tensorrt
def test_the_real_library_builds_and_the_cache_keeps(real_library, model, tmp_path):
    cache = EngineCache(tmp_path / "engines")
    compiler = Compiler(model, cache=cache)
    shares: list[float] = []
    first = compiler.engine((1, 16, 24), bytes, shares.append)
    assert shares[-1] == 1.0
    shares.clear()
    assert compiler.engine((1, 16, 24), bytes, shares.append) == first
    assert shares == []
    (entry,) = cache.entries()
    assert entry.size_bytes == len(first)
    assert (entry.key.flavour, entry.key.version) == (real_library.flavour, real_library.version)


@pytest.mark.tensorrt
def test_a_network_that_tensorrt_cannot_run_is_an_error_of_ours(real_library, tmp_path):
    compiler = Compiler(tiny_model("srcnn"), cache=EngineCache(tmp_path / "engines"))
    with pytest.raises(EngineBuildError, match="cannot"):
        compiler.engine((1, 16, 24), bytes)


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.parametrize("network", ["srgan", "srgan-lite"])
def test_a_gpu_gives_what_the_cpu_gives(network, tmp_path):
    """The parity gate: at least 50 dB against float32 on the CPU, at 8 bits."""
    find_tensorrt()  # a GPU without TensorRT fails here, not by skipping
    model = tiny_model(network)
    engine = TensorRTEngine(model, cache=EngineCache(tmp_path / "engines"))
    for shape in [(1, 3, 64, 96), (2, 3, 64, 96), (1, 3, 33, 17)]:
        frames = frames_of(*shape)
        levels = (engine(frames.cuda()).cpu().float() * 255).round()
        expected = (model.net(frames.float()).clamp(0, 1) * 255).round()
        error = (levels - expected).square().mean()
        assert 10 * torch.log10(255**2 / error.clamp(min=1e-9)) >= 50
    engine.close()


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_a_gpu_keeps_frames_apart_while_many_are_in_flight(model, tmp_path):
    engine = TensorRTEngine(model, cache=EngineCache(tmp_path / "engines"))
    frames = [frames_of(1, 3, 48, 64).cuda() for _ in range(20)]
    alone = [engine(frame).cpu() for frame in frames]
    flying = [engine(frame.clone()) for frame in frames]
    assert all(torch.equal(a, b.cpu()) for a, b in zip(alone, flying, strict=True))
    assert engine._session.run.captured
