"""The TensorRT back end: on a GPU where there is one, and on a simulated one everywhere.

The simulated library runs the real network on the CPU, through the addresses it was given, and the
simulated device runs a captured graph only when it is replayed.
"""

from __future__ import annotations

import copy
import ctypes
import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from devices import Graph, simulate_cuda
from test_engines import tiny_model

import engines
from engines import compiler, create_engine, trt, trt_session
from engines.algebra import Rewrites
from engines.base import Building
from engines.cache import EngineCache
from engines.compiler import Compiler
from engines.errors import BackendUnavailable, EngineBuildError, UnsupportedShape
from engines.export import INPUT, OUTPUT
from engines.switching import SwitchingEngine
from engines.trt import TensorRTEngine
from engines.trt_build import BuildOptions, TensorRT, find_tensorrt
from engines.weights import Model, load_model

# rounded to float16 at the ends only: the simulated library computes in float32
TOLERANCE = 1e-3


class Library:
    """What the back end calls of TensorRT, with a count of builds and ways to fail."""

    def __init__(self, net) -> None:
        self.net = net
        self.builds: list[tuple[int, ...]] = []
        self.exports = self.contexts = 0
        self.loads, self.no_memory, self.noise = True, False, 0.0
        self.names, self.kind = (INPUT, OUTPUT), np.float16

    def as_found(self) -> TensorRT:
        module = SimpleNamespace(
            Runtime=lambda logger: self,
            TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
            float16=np.float16,
            float32=np.float32,
        )
        logger = SimpleNamespace(last_error="unsupported SM")
        return TensorRT(module, "tensorrt_rtx", "1.7", logger)

    def export(self, net, *, dtype, shape) -> bytes:
        self.exports += 1
        return repr((dtype, shape)).encode()

    def build(self, library, onnx, profile, *, options, timing, progress):
        progress(0.5)
        self.builds.append(profile.optimum)
        return json.dumps(profile.optimum).encode(), b""

    def deserialize_cuda_engine(self, data: bytes):
        return Context(self, json.loads(data)) if self.loads else None


class Context:
    """An engine; its copies are execution contexts."""

    def __init__(self, library: Library, shape: tuple[int, int, int]) -> None:
        n, h, w = shape
        self.incoming, self.outgoing = library.names
        self.shapes = {self.incoming: (n, 3, h, w), self.outgoing: (n, 3, h * 4, w * 4)}
        self.library, self.addresses = library, {}
        self.num_io_tensors = 2

    def create_execution_context(self):
        if self.library.no_memory:
            return None
        context = copy.copy(self)
        context.addresses = {}
        self.library.contexts += 1
        return context

    def get_tensor_name(self, index: int) -> str:
        return self.library.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == self.incoming else "out"

    def get_tensor_dtype(self, name: str):
        return self.library.kind

    def get_tensor_shape(self, name: str):
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name not in self.addresses, "a captured graph keeps the first address"
        self.addresses[name] = address
        return True

    def memory(self, name: str) -> np.ndarray:
        count = int(np.prod(self.shapes[name]))
        kind = np.dtype(self.library.kind)
        pointer = ctypes.cast(self.addresses[name], ctypes.POINTER(ctypes.c_uint8))
        array = np.ctypeslib.as_array(pointer, (count * kind.itemsize,)).view(kind)
        return array.reshape(self.shapes[name])

    def execute_async_v3(self, stream: int) -> bool:
        def kernels() -> None:
            with torch.no_grad():
                result = self.library.net(torch.from_numpy(self.memory(self.incoming)).float())
            result = result + self.library.noise
            self.memory(self.outgoing)[...] = result.numpy().astype(self.library.kind)

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
    gpu = ("NVIDIA Simulated", "9.0", "13.0")
    monkeypatch.setattr(compiler, "find_tensorrt", library.as_found)
    monkeypatch.setattr(compiler, "build_engine", library.build)
    monkeypatch.setattr(compiler, "export_onnx", library.export)
    monkeypatch.setattr(compiler, "this_gpu", lambda: gpu)
    monkeypatch.setattr(trt_session, "this_gpu", lambda: gpu)
    monkeypatch.setattr(trt, "_device", lambda: torch.device("cpu"))
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
    engine.prepare((1, 6, 6))
    before = Graph.replays
    for count in (1, 2, 3):
        frames = frames_of(1, 3, 6, 6)
        assert_upscaled(engine(frames), frames, model)
        assert Graph.replays == before + count


def test_without_a_graph_it_runs_with_a_warning(engine, model, monkeypatch, caplog):
    monkeypatch.setattr(Graph, "refuse", "begin")
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
    (run,) = engine._sessions.newest._runs
    assert run._stream.waited_for == [library.caller] * 3  # to be captured, tried out, and to run
    assert library.caller.waited_for == [run._stream] * 2


def test_a_build_is_announced_once(engine, caplog):
    engine(frames_of(1, 3, 6, 10))
    engine(frames_of(1, 3, 6, 10))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert warnings[0].startswith("TensorRT compiles for 1 frame of 10x6, once")


def test_an_engine_that_is_in_the_cache_is_found_without_an_export(library, model):
    frames = frames_of(1, 3, 6, 6)
    TensorRTEngine(model, cache=library.cache)(frames)
    assert (library.exports, len(library.builds)) == (1, 1)
    assert_upscaled(TensorRTEngine(model, cache=library.cache)(frames), frames, model)
    assert (library.exports, len(library.builds)) == (1, 1)


def other_weights(model) -> Model:
    net = copy.deepcopy(model.net)
    net.tail.bias.data += 0.01
    return replace(model, net=net)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: {"model": other_weights(model)},
        lambda model: {"precision": "fp32"},
        lambda model: {"rewrites": Rewrites(tail_below=2)},
        lambda model: {"options": BuildOptions(level=5)},
        lambda model: {"options": BuildOptions(workspace_bytes=1 << 20)},
        lambda model: {"options": BuildOptions(tiling="fast")},
        lambda model: {"exporter": "torch-tensorrt"},
    ],
)
def test_whatever_shapes_the_graph_or_the_build_is_another_key(library, model, change):
    options = {"model": model, "cache": library.cache}
    keys = [
        Compiler(**options, **more).key((1, 6, 6))
        for more in ({"options": BuildOptions()}, {"options": BuildOptions()})
    ]
    assert keys[0].digest == keys[1].digest
    assert Compiler(**options | change(model)).key((1, 6, 6)).digest != keys[0].digest
    assert Compiler(**options).key((1, 6, 7)).digest != keys[0].digest


def test_other_code_for_the_graph_is_another_key(library, model, monkeypatch):
    before = Compiler(model, cache=library.cache).key((1, 6, 6))
    monkeypatch.setattr(compiler, "source_digest", lambda: "other")
    assert Compiler(model, cache=library.cache).key((1, 6, 6)).digest != before.digest
    monkeypatch.undo()
    assert len(compiler.source_digest()) == 64


def test_an_engine_that_was_built_with_more_effort_is_taken_unless_options_are_named(
    library, model
):
    frames, cache = frames_of(1, 3, 6, 6), library.cache
    TensorRTEngine(model, cache=cache, options=BuildOptions(level=5))(frames)
    TensorRTEngine(model, cache=cache)(frames)
    assert len(library.builds) == 1
    TensorRTEngine(model, cache=cache, options=BuildOptions(), exporter="onnx")(frames)
    assert len(library.builds) == 2
    TensorRTEngine(model, cache=cache, precision="fp16")(frames)
    assert len(library.builds) == 2


def test_it_says_beforehand_whether_it_must_build(library, model):
    engine = TensorRTEngine(model, cache=library.cache, contexts=2)
    assert engine.takes_long((4, 6, 6))
    engine.prepare((4, 6, 6))
    assert not engine.takes_long((4, 6, 6))
    assert engine.takes_long((4, 6, 7))
    assert library.builds == [(2, 6, 6)]


def test_float32_frames_go_through_a_float32_engine(library, model):
    library.kind = np.float32
    engine = TensorRTEngine(model, cache=library.cache, precision="fp32")
    frames = torch.rand(1, 3, 6, 6)
    result = engine(frames)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, model.net(frames).clamp(0, 1), atol=1e-6, rtol=0)


def test_an_engine_of_another_precision_is_not_run(library, engine):
    library.kind = np.float32
    with pytest.raises(BackendUnavailable, match=r"takes and gives .*float32.* expected .*float16"):
        engine(frames_of(1, 3, 6, 6))


def test_an_engine_may_name_its_ends_as_it_likes(library, engine, model):
    library.names = ("args_0", "output0")
    frames = frames_of(1, 3, 6, 6)
    assert_upscaled(engine(frames), frames, model)


def test_a_batch_is_dealt_out_to_the_contexts_of_one_engine(library, model):
    engine = TensorRTEngine(model, cache=library.cache, contexts=2)
    for count, part, contexts in [(4, 2, 2), (3, 3, 1), (2, 1, 2)]:
        library.contexts = 0
        frames = frames_of(count, 3, 6, 6)
        assert_upscaled(engine(frames), frames, model)
        assert library.builds[-1] == (part, 6, 6)
        assert library.contexts == contexts
        streams = engine._sessions.newest._streams
        assert len({id(stream) for stream in streams}) == (contexts if contexts > 1 else 0)
        assert contexts == 1 or library.caller.waited_for[-contexts:] == streams
    with pytest.raises(ValueError, match="contexts must be at least 1, got 0"):
        TensorRTEngine(model, cache=library.cache, contexts=0)


# --- the gate -------------------------------------------------------------------------------------


def test_an_engine_that_is_wrong_is_an_error_and_not_kept(library, engine):
    library.noise = 0.02  # five levels: 34 dB
    with pytest.raises(EngineBuildError, match=r"built for 9x8 is only 3\d\.\d dB near float32"):
        engine(frames_of(1, 3, 8, 9))
    assert library.cache.entries() == []
    library.noise = 0.0
    engine(frames_of(1, 3, 8, 9))
    assert len(library.cache.entries()) == 1


def test_an_engine_is_tried_out_once_not_each_time_it_is_loaded(library, model, monkeypatch):
    checks = []
    real = trt.check_parity
    monkeypatch.setattr(trt, "check_parity", lambda *a, **k: checks.append(real(*a, **k)))
    for _ in range(2):
        TensorRTEngine(model, cache=library.cache)(frames_of(1, 3, 6, 6))
    assert len(checks) == 1
    assert checks[0] >= 50


# --- what is said of a build, and how it is stopped -----------------------------------------------


def test_a_build_is_reported_and_what_the_report_raises_stops_it(library, model):
    seen: list[Building] = []
    engine = TensorRTEngine(model, cache=library.cache, building=seen.append)
    engine.prepare((1, 6, 10))
    assert seen == [Building((1, 6, 10), share) for share in (0.0, 0.5)]

    def stop(building: Building) -> None:
        raise KeyboardInterrupt

    engine = TensorRTEngine(model, cache=library.cache, building=stop)
    with pytest.raises(KeyboardInterrupt):
        engine.prepare((1, 6, 11))
    assert len(library.cache.entries()) == 1


def test_a_cancelled_build_ends_at_its_next_step(library, model):
    engine = TensorRTEngine(model, cache=library.cache)
    engine.cancel()
    with pytest.raises(EngineBuildError, match="the build for 10x6 was given up"):
        engine.prepare((1, 6, 10))
    assert library.builds == []


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
    monkeypatch.setattr(compiler, "build_engine", lambda *_, **__: (b"[1, 4, 4]", b""))
    with pytest.raises(
        BackendUnavailable, match=r"takes and gives \(1, 3, 4, 4\), .* expected \(1, 3, 8, 8\)"
    ):
        engine(frames_of(1, 3, 8, 8))


def test_a_full_gpu_is_an_unsupported_shape(library, engine):
    library.no_memory = True
    with pytest.raises(UnsupportedShape, match=r"no execution context for \(1, 3, 8, 8\)"):
        engine(frames_of(1, 3, 8, 8))


def test_the_description_names_library_and_version(engine):
    assert engine.description == "tensorrt fp16 on cpu (tensorrt_rtx 1.7)"


# --- without a GPU --------------------------------------------------------------------------------


def test_a_missing_gpu_is_named(model, monkeypatch):
    monkeypatch.setattr(compiler, "find_tensorrt", Library(model.net).as_found)
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
    first = compiler.engine((1, 16, 24), bytes, progress=shares.append)
    assert shares[-1] == 1.0
    shares.clear()
    assert compiler.engine((1, 16, 24), bytes, progress=shares.append) == first
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
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_built_in_model_passes_the_gate_on_a_gpu_and_loads_without_a_build(precision, tmp_path):
    cache, model = EngineCache(tmp_path / "engines"), load_model("srgan-lite")
    for expected in (1, 1):
        TensorRTEngine(model, cache=cache, precision=precision).prepare((1, 96, 128))
        assert len(cache.entries()) == expected


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_on_a_gpu_several_contexts_give_what_one_gives(model, tmp_path):
    cache = EngineCache(tmp_path / "engines")
    frames = frames_of(4, 3, 48, 64).cuda()
    one = TensorRTEngine(model, cache=cache)
    expected = torch.cat([one(frame[None]) for frame in frames])
    four = TensorRTEngine(model, cache=cache, contexts=4)
    for _ in range(10):
        assert torch.equal(four(frames), expected)


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_a_gpu_changes_over_while_it_computes(model, tmp_path):
    later = TensorRTEngine(model, cache=EngineCache(tmp_path / "engines"))
    engine = SwitchingEngine(create_engine(model, backend="pytorch"), later, every=1)
    frames = torch.rand(1, 3, 48, 64, device="cuda").to(engine.dtype)
    expected = model.net(frames.cpu().float()).clamp(0, 1)
    number, deadline = 0, time.monotonic() + 100
    while engine.switched_at is None and time.monotonic() < deadline:
        engine.frame_begins(number)
        result = engine(frames).cpu().float()
        torch.testing.assert_close(result, expected, atol=5e-3, rtol=0)
        number += 1
    assert engine.switched_at is not None
    assert 0 < engine.switched_at < number
    engine.close()


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_a_gpu_keeps_frames_apart_while_many_are_in_flight(model, tmp_path):
    engine = TensorRTEngine(model, cache=EngineCache(tmp_path / "engines"))
    frames = [frames_of(1, 3, 48, 64).cuda() for _ in range(20)]
    alone = [engine(frame).cpu() for frame in frames]
    flying = [engine(frame.clone()) for frame in frames]
    assert all(torch.equal(a, b.cpu()) for a, b in zip(alone, flying, strict=True))
    assert engine._sessions.newest._runs[0].captured


def test_the_graph_does_not_clamp_so_that_what_is_not_finite_is_seen(library, model, monkeypatch):
    exported = []

    def export(net, **options):
        exported.append(net)
        return library.export(net, **options)

    monkeypatch.setattr(compiler, "export_onnx", export)
    engine, frames = TensorRTEngine(model, cache=library.cache), frames_of(1, 3, 12, 12).round()
    whole = engine(frames)
    with torch.no_grad():
        assert exported[0](frames.float()).max() > 1
    assert engine._run(frames).max() > 1
    assert whole.max() == 1
    engine.close()


def test_an_engine_is_given_back_when_its_work_is_done(engine):
    engine(frames_of(1, 3, 8, 8))
    stream = engine._sessions.newest._runs[0]._stream
    before = stream.waits
    engine.close()
    assert stream.waits == before + 1
