"""Building with the real TensorRT, which needs no GPU in its flavour for RTX."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engines.algebra import rewrite
from engines.errors import BackendUnavailable, EngineBuildError
from engines.export import INPUT, OUTPUT, export_onnx
from engines.networks import build_network, fold
from engines.trt_build import (
    BuildOptions,
    Profile,
    build_engine,
    configure,
    find_tensorrt,
    parse,
)

FREE = Profile((1, 16, 16), (1, 64, 80), (4, 128, 160))
FIXED = Profile.fixed((2, 24, 40))


@pytest.fixture(scope="module")
def library():
    try:
        return find_tensorrt()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def graphs():
    pytest.importorskip("onnxscript")
    nets = [
        ("free", "srgan", {"channels": 8, "blocks": 1}, None),
        ("fixed", "srgan-lite", {"channels": 8, "blocks": 1}, FIXED.optimum),
    ]
    torch.manual_seed(5)
    return {
        name: export_onnx(
            rewrite(fold(build_network(network, config))), dtype=torch.float16, shape=shape
        )
        for name, network, config, shape in nets
    }


@pytest.fixture
def builder(library):
    return library.module.Builder(library.logger)


# --- real builds ----------------------------------------------------------------------------------


@pytest.mark.tensorrt
@pytest.mark.parametrize(("graph", "profile"), [("free", FREE), ("fixed", FIXED)])
def test_the_real_builder_builds_an_engine(library, graphs, graph, profile):
    shares: list[float] = []
    engine, _ = build_engine(library, graphs[graph], profile, progress=shares.append)
    assert len(engine) > 5_000
    assert shares == sorted(set(shares))
    assert len(shares) > 20
    assert shares[0] < 0.1
    assert shares[-1] == 1.0


@pytest.mark.tensorrt
@pytest.mark.parametrize(("graph", "shape"), [("free", (-1, 3, -1, -1)), ("fixed", (2, 3, 24, 40))])
def test_the_network_has_one_half_precision_input_and_output(
    library, graphs, builder, graph, shape
):
    network = parse(library, builder, graphs[graph])
    (n, c, *hw) = shape
    assert (network.num_inputs, network.num_outputs) == (1, 1)
    incoming, outgoing = network.get_input(0), network.get_output(0)
    assert (incoming.name, outgoing.name) == (INPUT, OUTPUT)
    assert incoming.dtype == outgoing.dtype == library.module.float16
    assert tuple(incoming.shape) == shape
    assert tuple(outgoing.shape) == (n, c, *(size * 4 if size > 0 else -1 for size in hw))
    strongly_typed = library.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert network.get_flag(strongly_typed)


@pytest.mark.tensorrt
def test_the_options_reach_the_builder(library, builder):
    trt = library.module
    options = BuildOptions(level=1, workspace_bytes=1 << 28, tiling="fast")
    config = configure(library, builder, FREE, options)
    assert config.builder_optimization_level == 1
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 1 << 28
    assert config.tiling_optimization_level == trt.TilingOptimizationLevel.FAST
    assert config.num_optimization_profiles == 1
    assert not config.get_flag(trt.BuilderFlag.TF32)
    if library.flavour == "tensorrt_rtx":
        assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


@pytest.mark.tensorrt
def test_what_progress_raises_stops_the_build(library, graphs):
    def stop(share: float) -> None:
        if share > 0.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(library, graphs["fixed"], FIXED, progress=stop)


@pytest.mark.tensorrt
@pytest.mark.skipif(sys.platform == "win32", reason="signals to one thread are POSIX")
def test_ctrl_c_stops_the_build_at_its_next_step(library, graphs):
    shares: list[float] = []

    def press(share: float) -> None:
        if not shares:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert heard.wait(20)
        time.sleep(0.02)  # the main thread has heard, and still needs its turn to say stop
        shares.append(share)

    heard = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def hear(number, frame) -> None:
        heard.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hear)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(library, graphs["fixed"], FIXED, progress=press)
    finally:
        signal.signal(signal.SIGINT, before)
    builds = [thread for thread in threading.enumerate() if thread.name == "tensorrt-build"]
    for thread in builds:
        thread.join(20)
    assert not [thread for thread in builds if thread.is_alive()]
    assert not shares or shares[-1] < 0.5


@pytest.mark.tensorrt
@pytest.mark.parametrize(("count", "precision"), [(4, torch.float16), (1, torch.float32)])
def test_an_engine_for_a_batch_takes_and_gives_just_that(library, builder, count, precision):
    torch.manual_seed(5)
    net = rewrite(fold(build_network("srgan-lite", {"channels": 8, "blocks": 1})))
    shape, taken = (count, 24, 40), (count, 3, 24, 40)
    onnx = export_onnx(net, dtype=precision, shape=shape)
    network, sizes = network_and_profile(library, builder, onnx, Profile.fixed(shape))
    assert sizes == [taken] * 3
    assert (network.num_inputs, network.num_outputs) == (1, 1)
    incoming, outgoing = network.get_input(0), network.get_output(0)
    assert (incoming.name, tuple(incoming.shape)) == (INPUT, taken)
    assert (outgoing.name, tuple(outgoing.shape)) == (OUTPUT, (count, 3, 96, 160))
    kind = library.module.float16 if precision == torch.float16 else library.module.float32
    assert incoming.dtype == outgoing.dtype == kind
    engine, _ = build_engine(library, onnx, Profile.fixed(shape))
    assert len(engine) > 5_000


@pytest.mark.tensorrt
def test_a_graph_with_a_free_batch_is_built_for_the_batches_of_its_profile(
    library, graphs, builder
):
    profile = Profile((1, 24, 40), (4, 24, 40), (8, 24, 40))
    assert network_and_profile(library, builder, graphs["free"], profile)[1] == [
        (1, 3, 24, 40), (4, 3, 24, 40), (8, 3, 24, 40),
    ]  # fmt: skip
    engine, _ = build_engine(library, graphs["free"], profile)
    assert len(engine) > 5_000


def network_and_profile(library, builder, onnx: bytes, profile: Profile):
    """Parse and configure as `build_engine` does; the network, and the sizes that it was given."""
    made = []

    class Recording:
        def create_builder_config(self):
            return builder.create_builder_config()

        def create_optimization_profile(self):
            made.append(builder.create_optimization_profile())
            return made[-1]

    network = parse(library, builder, onnx)
    configure(library, Recording(), profile, BuildOptions())
    return network, [tuple(shape) for shape in made[0].get_shape(INPUT)]


@pytest.mark.tensorrt
def test_a_damaged_graph_is_an_error_in_one_line(library):
    with pytest.raises(EngineBuildError, match=r"cannot read the graph: .+") as caught:
        build_engine(library, b"no graph", FIXED)
    assert "\n" not in str(caught.value)


@pytest.mark.tensorrt
def test_sizes_that_the_graph_cannot_take_are_an_error_that_says_why(library, graphs, caplog):
    caplog.set_level(logging.WARNING)
    with pytest.raises(EngineBuildError, match=r"cannot compile: .*(rofile|imension)"):
        build_engine(library, graphs["fixed"], Profile.fixed((1, 32, 32)))
    assert not caplog.records  # said once, by the error


# --- without the library --------------------------------------------------------------------------


def test_a_missing_library_is_named(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        BackendUnavailable, match=r"pip install 'vsr-pipeline\[tensorrt\]' or .*tensorrt_rtx: "
    ):
        find_tensorrt()


def test_a_library_that_raises_as_it_is_imported_is_passed_over(monkeypatch):
    def explode(name: str):
        raise RuntimeError("no CUDA driver")

    monkeypatch.setattr(importlib, "import_module", explode)
    with pytest.raises(BackendUnavailable, match="tensorrt: no CUDA driver; tensorrt_rtx: no"):
        find_tensorrt()


def test_an_old_library_is_refused_and_the_next_one_taken(monkeypatch):
    class FakeLogger:
        ERROR = INTERNAL_ERROR = WARNING = 0

    versions = {"tensorrt": "10.9.0.34", "tensorrt_rtx": "1.4.0"}

    def fake(name: str):
        return SimpleNamespace(__version__=versions[name], ILogger=FakeLogger)

    monkeypatch.setattr(importlib, "import_module", fake)
    assert find_tensorrt().flavour == "tensorrt_rtx"
    versions["tensorrt"] = "10.15.1"
    assert find_tensorrt().flavour == "tensorrt"
    versions.update(tensorrt="10.9", tensorrt_rtx="1.0")
    with pytest.raises(BackendUnavailable, match=r"tensorrt is 10.9, 10.15 or newer is needed"):
        find_tensorrt()


def test_nothing_of_tensorrt_or_cuda_is_imported_on_a_cpu_run(tmp_path, tiny_weights, plain_clip):
    """In a process of its own, with a library in reach that would be found."""
    code = (
        "import sys\n"
        "from vsr.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "found = [name for name in sys.modules if name.split('.')[0] in\n"
        "         ('tensorrt', 'tensorrt_rtx', 'onnx', 'onnxscript', 'cuda')]\n"
        "import torch\n"
        "sys.exit(code or repr(found) * bool(found) or 3 * torch.cuda.is_initialized())\n"
    )
    for name in ("tensorrt", "tensorrt_rtx"):
        (tmp_path / f"{name}.py").write_text("__version__ = '99.0'\n")
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), str(tmp_path)])
    arguments = ["upscale", str(plain_clip), "-o", str(tmp_path / "o.mp4")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--weights", str(tiny_weights), "--threads", "1"],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


# --- arguments ------------------------------------------------------------------------------------


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="level must be 0 to 5, got 6"):
        BuildOptions(level=6)
    with pytest.raises(ValueError, match="workspace_bytes must be at least 1, got 0"):
        BuildOptions(workspace_bytes=0)
    with pytest.raises(ValueError, match=r"tiling must be one of .*, got 'slow'"):
        BuildOptions(tiling="slow")
    with pytest.raises(ValueError, match="H must rise from 1: got 8, 4, 8"):
        Profile((1, 8, 8), (1, 4, 8), (1, 8, 8))


def test_a_fixed_profile_takes_one_size():
    assert FIXED.minimum == FIXED.optimum == FIXED.maximum
