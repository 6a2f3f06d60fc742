"""`vsr engines`, as people call it; the builds are real where TensorRT is installed."""

from __future__ import annotations

import sys

import pytest

from engines.errors import BackendUnavailable
from engines.trt_build import find_tensorrt
from vsr.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VSR_ENGINE_CACHE", str(tmp_path / "engines"))
    return tmp_path / "engines"


@pytest.fixture
def tensorrt():
    pytest.importorskip("onnxscript")
    try:
        return find_tensorrt()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.tensorrt
def test_an_engine_is_built_listed_found_again_and_cleared(tensorrt, folder, tiny_weights, capsys):
    build = ["engines", "build", "--size", "48x32", "--batch", "2", "--weights", str(tiny_weights)]
    assert main(build) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("tiny for 2 frames of 48x32: built in ")
    assert len(list(folder.glob("*.engine"))) == 1

    assert main(build) == 0
    assert capsys.readouterr().out == "tiny for 2 frames of 48x32: was there already\n"

    assert main(["engines", "list"]) == 0
    line, total = capsys.readouterr().out.splitlines()
    assert line.startswith("tiny fp16, 2 x 48x32: ")
    assert f"{tensorrt.flavour} {tensorrt.version}" in line
    assert total == f"1 in {folder}"

    assert main(["engines", "clear"]) == 0
    assert capsys.readouterr().out == f"1 engine deleted from {folder}\n"
    assert not list(folder.glob("*.engine"))


def test_an_empty_cache_is_listed_and_cleared(folder, capsys):
    assert main(["engines", "list"]) == 0
    assert main(["engines", "clear"]) == 0
    assert capsys.readouterr().out == f"0 in {folder}\n0 engines deleted from {folder}\n"
    assert not folder.exists()


def test_a_missing_tensorrt_is_one_line(folder, monkeypatch, capsys):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["engines", "build", "--size", "48x32"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "vsr: error: backend 'tensorrt' needs TensorRT: pip install" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build"], "required: --size"),
        (["build", "--size", "48"], "expected WIDTHxHEIGHT"),
        (["build", "--size", "0x32"], "expected at least 1x1, got 0x32"),
        (["build", "--size", "48x32", "--batch", "0"], "expected 1 to 64, got 0"),
        (["build", "--size", "48x32", "--texture", "2"], "expected 0 to 1, got 2"),
        ([], "required: ACTION"),
    ],
)
def test_wrong_usage_is_told(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["engines", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unsafe_cache_is_one_line(folder, capsys):
    folder.mkdir()
    folder.chmod(0o777)
    assert main(["engines", "list"]) == 1
    assert "others can write to the engine cache" in capsys.readouterr().err
