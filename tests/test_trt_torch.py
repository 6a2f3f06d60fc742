"""Torch-TensorRT as the exporter, against a stand-in that is called as the real one."""

from __future__ import annotations

import builtins
import sys
from types import SimpleNamespace

import pytest
import torch
from test_engines import tiny_model

from engines import compiler
from engines.algebra import Rewrites, rewrite
from engines.cache import EngineCache
from engines.compiler import Compiler
from engines.errors import BackendUnavailable, EngineBuildError
from engines.trt_build import BuildOptions, TensorRT

SHAPE = (2, 12, 20)


class StandIn:
    """The module, which notes how its one function is called."""

    def __init__(self, *, rtx: bool = False, refuses: Exception | None = None) -> None:
        self.calls: list[tuple] = []
        self.refuses = refuses
        self.ENABLED_FEATURES = SimpleNamespace(tensorrt_rtx=rtx)
        self.dynamo = SimpleNamespace(
            convert_exported_program_to_serialized_trt_engine=self.convert
        )

    def convert(self, program, inputs=None, **options) -> bytes:
        if self.refuses is not None:
            raise self.refuses
        self.calls.append((program, inputs, options))
        return bytearray(b"plain engine")


def library(flavour: str = "tensorrt") -> TensorRT:
    return TensorRT(SimpleNamespace(), flavour, "11.0", SimpleNamespace(last_error=""))


@pytest.fixture(scope="module")
def model():
    return tiny_model("srgan-lite")


@pytest.fixture
def install(monkeypatch):
    def install(stand_in: object) -> None:
        monkeypatch.setitem(sys.modules, "torch_tensorrt", stand_in)

    monkeypatch.setattr(compiler, "find_tensorrt", library)
    return install


def make(model, tmp_path, **more) -> Compiler:
    return Compiler(
        model, cache=EngineCache(tmp_path / "engines"), exporter="torch-tensorrt", **more
    )


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("fp32", torch.float32)])
def test_it_is_given_the_network_in_one_precision_and_one_shape(
    install, model, tmp_path, precision, dtype
):
    install(module := StandIn())
    options = BuildOptions(level=4, workspace_bytes=1 << 30, tiling="fast")
    made = make(model, tmp_path, precision=precision, options=options)
    assert made.engine(SHAPE, bytes) == b"plain engine"
    ((program, inputs, said),) = module.calls
    assert inputs is None
    (frames,) = said.pop("arg_inputs")
    assert (frames.shape, frames.dtype) == ((2, 3, 12, 20), dtype)
    assert {tensor.dtype for tensor in program.state_dict.values()} == {dtype}
    assert said == {
        "use_explicit_typing": True,
        "require_full_compilation": True,
        "disable_tf32": True,
        "optimization_level": 4,
        "workspace_size": 1 << 30,
        "tiling_optimization_level": "fast",
        "timing_cache_path": str(tmp_path / "engines" / "torch-tensorrt-11.0.timing"),
    }
    if dtype == torch.float32:
        frames = torch.rand(2, 3, 12, 20)
        expected = rewrite(model.net, Rewrites(clamp=False))(frames)
        torch.testing.assert_close(program.module()(frames), expected)


def test_its_engines_are_kept_and_found_like_any_other(install, model, tmp_path):
    install(module := StandIn())
    shares: list[float] = []
    made = make(model, tmp_path)
    assert made.engine(SHAPE, bytes, progress=shares.append) == b"plain engine"
    assert shares == [0.0, 1.0]
    assert make(model, tmp_path).engine(SHAPE, bytes, progress=shares.append) == b"plain engine"
    assert len(module.calls) == 1
    assert len(shares) == 2
    (entry,) = made.cache.entries()
    assert entry.key.exporter.startswith(f"torch-tensorrt: torch {torch.__version__}")
    # and whoever names no exporter takes it too
    assert Compiler(model, cache=made.cache).engine(SHAPE, bytes) == b"plain engine"


@pytest.mark.parametrize(
    "error", [AssertionError(), RuntimeError("no CUDA driver"), Exception("odd"), ImportError("no")]
)
def test_whatever_its_import_raises_is_one_line(install, model, tmp_path, monkeypatch, error):
    real = builtins.__import__

    def explode(name, *rest):
        if name == "torch_tensorrt":
            raise error
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", explode)
    reason = str(error) or "AssertionError"
    with pytest.raises(BackendUnavailable, match=rf"needs Torch-TensorRT .*\({reason}\)"):
        make(model, tmp_path).engine(SHAPE, bytes)


def test_one_that_builds_for_the_other_flavour_is_refused(install, model, tmp_path):
    install(StandIn(rtx=True))
    with pytest.raises(BackendUnavailable, match="builds engines for tensorrt_rtx, but tensorrt"):
        make(model, tmp_path).engine(SHAPE, bytes)


def test_what_it_cannot_compile_is_an_error_of_ours_and_nothing_is_kept(install, model, tmp_path):
    install(StandIn(refuses=RuntimeError("Conversion of\n function failed")))
    made = make(model, tmp_path)
    with pytest.raises(EngineBuildError, match=r"cannot compile the network: Conversion of func"):
        made.engine(SHAPE, bytes)
    assert made.cache.entries() == []


def test_an_unknown_exporter_is_named(model, tmp_path, install):
    with pytest.raises(ValueError, match=r"exporter must be one of .* got 'tf'"):
        Compiler(model, exporter="tf")
