"""Who may import whom: read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for package in ("engines", "train", "vsr") for path in (ROOT / package).rglob("*.py")
)

# package: what it must not import; a file may be let off by name
FORBIDDEN = {
    "engines": {"train", "vsr", "av"},
    "train": {"vsr", "av", "tensorrt", "tensorrt_rtx", "torch_tensorrt", "openvino"},
    "vsr": {"train", "tensorrt", "tensorrt_rtx", "torch_tensorrt", "openvino", "PIL", "skimage"},
}
LET_OFF = {"train/degrade.py": {"av"}}  # real codecs' artefacts
AV_MODULES = {
    *("vsr/clip.py", "vsr/connection.py", "vsr/deinterlace.py", "vsr/encode.py", "vsr/ffmpeg.py"),
    *("vsr/hardware.py", "vsr/mux.py", "vsr/others.py", "vsr/picture.py", "vsr/pixels.py"),
    *("vsr/recording.py", "vsr/segments.py", "vsr/siting.py", "vsr/sound.py", "vsr/subtitles.py"),
    *("vsr/unkept.py", "vsr/video.py", "vsr/y4m.py"),
}
BACKEND_LIBRARIES = {
    "openvino": {"engines/ov.py", "engines/int8.py"},
    "onnx": {"engines/export.py"},
    "torch_tensorrt": {"engines/trt_torch.py"},
}


def imports(path: Path) -> dict[str, bool]:
    """Top-level packages that a file imports: whether outside of any function."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
        for name in names:
            top = name.split(".")[0]
            found[top] = found.get(top, False) or id(node) not in inside
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_upwards(path):
    name = path.relative_to(ROOT).as_posix()
    found = imports(path)
    assert not FORBIDDEN[name.split("/")[0]] & found.keys() - LET_OFF.get(name, set())
    if name.startswith("vsr/") and name not in AV_MODULES:
        assert "av" not in found
    for library, homes in BACKEND_LIBRARIES.items():
        assert library not in found or name in homes
        assert not found.get(library, False), f"{library} must be imported on demand"


@pytest.mark.parametrize("script", ["fps", "presets", "durability", "rtx_probe", "still_camera"])
def test_a_benchmark_of_speed_runs_without_what_training_needs(script):
    """`pip install -e .` is what those with a GPU do first."""
    code = "import sys; sys.modules |= {'PIL': None, 'skimage': None, 'tensorboard': None}; "
    code += f"import benchmarks.{script}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_rules_see_what_they_forbid(tmp_path):
    sneaky = tmp_path / "sneaky.py"
    sneaky.write_text("import os\ndef f():\n    import av.codec\n")
    assert imports(sneaky) == {"os": True, "av": False}


def test_the_sources_were_found():
    assert {"engines", "train", "vsr"} == {p.relative_to(ROOT).parts[0] for p in SOURCES}
