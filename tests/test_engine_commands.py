"""`vsr engines`, with real builds of a tiny network where TensorRT for RTX is there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines import Building, compiler
from engines.cache import EngineCache
from engines.errors import BackendUnavailable
from engines.trt_build import BuildOptions, TensorRT, find_tensorrt
from vsr.cli import main
from vsr.engine_commands import age
from vsr.progress import BuildingBar, JsonBuilding


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VSR_ENGINE_CACHE", str(tmp_path / "engines"))
    return tmp_path / "engines"


@pytest.fixture
def library():
    """The real one, or a skip; its builds take a tenth of a second."""
    pytest.importorskip("onnxscript")
    try:
        found = find_tensorrt()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    if found.flavour != "tensorrt_rtx":
        pytest.skip("TensorRT proper builds on a GPU only")
    return found


@pytest.fixture
def simulated(monkeypatch):
    """A library that builds at once; the calls that it got."""
    calls: list[dict] = []

    def build(library, onnx, profile, **options):
        for share in (0.5, 1.0):
            options["progress"](share)
        calls.append({"profile": profile, "graph": onnx} | options)
        return b"engine" * 100, b""

    found = TensorRT(SimpleNamespace(), "tensorrt_rtx", "1.7", SimpleNamespace(last_error=""))
    monkeypatch.setattr(compiler, "find_tensorrt", lambda: found)
    monkeypatch.setattr(compiler, "build_engine", build)
    monkeypatch.setattr(compiler, "export_onnx", lambda net, **options: options)
    return calls


def engines(capsys, *arguments: object) -> tuple[int, list[str], list[str]]:
    code = main(["engines", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


@pytest.mark.tensorrt
def test_a_real_engine_is_built_listed_and_cleared(library, folder, tiny_weights, capsys):
    order = ("build", "--size", "24x16", "--weights", tiny_weights, "--batch", "2", "--level", "1")
    code, out, err = engines(capsys, *order)
    assert code == 0
    assert re.match(
        rf"{re.escape(str(folder))}/[0-9a-f]{{32}}\.engine: \d+\.\d MB, tiny [0-9a-f]{{8}} fp16, "
        r"2 frames of 24x16, level 1, workspace all, tiling none, onnx, tensorrt_rtx "
        rf"{re.escape(library.version)}, no GPU, built in \d+\.\d s$",
        out[0],
    )
    assert [line for line in err if "no CUDA device" in line]
    assert engines(capsys, *order)[1] == [re.sub("built in .*", "it was there already", out[0])]
    code, listed, err = engines(capsys, "list")
    assert (code, err) == (0, [])
    assert listed == [re.sub("built in .*", "less than a minute old", out[0])]
    assert engines(capsys, "clear")[1] == [f"1 engine deleted from {folder}"]
    assert engines(capsys, "list")[1] == [f"no engines in {folder}"]
    assert engines(capsys, "clear")[1] == [f"0 engines deleted from {folder}"]


def test_each_option_reaches_the_build_and_the_key(simulated, folder, tiny_weights, capsys):
    order = ("build", "--size", "24x16", "--weights", tiny_weights, "--precision", "fp32")
    more = ("--batch", "3", "--level", "5", "--workspace", "2G", "--tiling", "full")
    assert engines(capsys, *order, *more)[0] == 0
    (call,) = simulated
    assert call["options"] == BuildOptions(5, 2 << 30, "full")
    assert call["profile"].optimum == (3, 16, 24)
    assert call["graph"]["shape"] == (3, 16, 24)
    assert str(call["graph"]["dtype"]) == "torch.float32"
    (entry,) = EngineCache(folder).entries()
    assert entry.key.options == "level 5, workspace 2147483648 bytes, tiling full"
    assert (entry.key.precision, entry.key.optimum) == ("fp32", (3, 16, 24))
    engines(capsys, *order)
    assert len(EngineCache(folder).entries()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "0x16"], "size and batch must be at least 1"),
        (["--size", "24x16", "--batch", "0"], "size and batch must be at least 1"),
        (["--size", "24x16", "--level", "6"], "level must be 0 to 5, got 6"),
        (["--size", "24x16", "--texture", "2"], "texture must be 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_wrong_usage(simulated, folder, arguments, message, capsys):
    code, out, err = engines(capsys, "build", *arguments)
    assert (code, out, len(err)) == (2, [], 1)
    assert message in err[0]


@pytest.mark.parametrize("size", ["0M", "1T", "much"])
def test_a_workspace_that_is_no_size_is_wrong_usage(size, capsys):
    with pytest.raises(SystemExit) as caught:
        engines(capsys, "build", "--size", "24x16", "--workspace", size)
    assert caught.value.code == 2


# --- one line for each thing that can be missing --------------------------------------------------


def one_error(capsys, *arguments: object) -> str:
    code, out, err = engines(capsys, *arguments)
    errors = [line for line in err if line.startswith("vsr: error: ")]
    assert (code, out, len(errors)) == (1, [], 1)
    return errors[0]


def test_no_tensorrt_is_one_line(folder, monkeypatch, capsys):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    error = one_error(capsys, "build", "--size", "24x16")
    assert "pip install 'vsr-pipeline[tensorrt]'" in error


def test_tensorrt_proper_without_cuda_is_one_line(simulated, folder, monkeypatch, capsys):
    found = TensorRT(SimpleNamespace(), "tensorrt", "11.0", SimpleNamespace(last_error=""))
    monkeypatch.setattr(compiler, "find_tensorrt", lambda: found)
    assert "no CUDA device" in one_error(capsys, "build", "--size", "24x16")
    assert simulated == []


def test_no_torch_tensorrt_is_one_line(simulated, folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    order = ("build", "--size", "24x16", "--exporter", "torch-tensorrt")
    assert "needs Torch-TensorRT" in one_error(capsys, *order)


def test_a_cache_on_a_read_only_disk_is_one_line(simulated, folder, monkeypatch, capsys):
    real = Path.open

    def read_only(path: Path, *rest, **more):
        if path.name == "lock":
            raise OSError(30, "Read-only file system")
        return real(path, *rest, **more)

    monkeypatch.setattr(Path, "open", read_only)
    error = one_error(capsys, "build", "--size", "24x16")
    assert f"{folder} cannot be written (Read-only file system): set VSR_ENGINE_CACHE" in error
    assert simulated == []


def test_a_cache_that_is_a_file_is_one_line(simulated, folder, capsys):
    folder.write_text("")
    assert "cannot be written" in one_error(capsys, "build", "--size", "24x16")
    assert simulated == []


def test_an_engine_that_is_damaged_is_built_again_with_a_warning(
    simulated, folder, tiny_weights, capsys
):
    order = ("build", "--size", "24x16", "--weights", tiny_weights)
    engines(capsys, *order)
    (path,) = folder.glob("*.engine")
    path.write_bytes(b"other")
    code, out, err = engines(capsys, *order)
    assert code == 0
    assert "built in" in out[0]
    assert [line for line in err if f"{path} is damaged: it is deleted and built again" in line]


def test_an_interrupted_build_ends_in_130_and_keeps_nothing(simulated, folder, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(compiler, "build_engine", interrupted)
    code, out, _ = engines(capsys, "build", "--size", "24x16")
    assert (code, out) == (130, [])
    assert not list(folder.glob("*.engine"))


# --- how far a build is ---------------------------------------------------------------------------


class Terminal:
    """A stderr that takes itself for a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_a_bar_follows_the_build_and_goes(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    bar = BuildingBar(quiet=False)
    for share in (0.0, 0.5, 1.0):
        bar(Building((1, 720, 1280), share))
    assert "TensorRT compiles for 1280x720:   0%" in terminal.text
    assert bar.built
    before = terminal.text
    bar.close()
    assert terminal.text == before
    bar(Building((1, 16, 24), 0.2))
    assert "24x16" in terminal.text


def test_a_quiet_bar_says_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    bar = BuildingBar(quiet=True)
    bar(Building((1, 720, 1280), 0.5))
    bar.close()
    assert terminal.text == ""


def test_for_programs_a_build_is_lines_of_json_and_not_too_many(capsys):
    lines = JsonBuilding()
    for percent in range(101):
        lines(Building((2, 720, 1280), percent / 100))
    found = [json.loads(line)["building"] for line in capsys.readouterr().err.splitlines()]
    assert [entry["share"] for entry in (found[0], found[-1])] == [0.0, 1.0]
    assert len(found) < 10
    assert found[0] == {"width": 1280, "height": 720, "batch": 2, "share": 0.0}


def test_an_age_is_said_in_its_largest_unit():
    assert [age(seconds) for seconds in (5, 60, 7300, 90000, 180000)] == [
        "less than a minute", "1 minute", "2 hours", "1 day", "2 days",
    ]  # fmt: skip
