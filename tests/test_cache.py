"""The cache of compiled engines: built once, whole or not at all, and nobody else's."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

from engines.cache import EngineCache, EngineKey, default_folder
from engines.errors import BackendUnavailable, EngineBuildError

KEY = EngineKey(
    model="tiny",
    weights_sha256="ab" * 32,
    source_sha256="cd" * 32,
    rewrites="none",
    exporter="onnx: opset 20",
    precision="fp16",
    minimum=(1, 8, 8),
    optimum=(1, 8, 8),
    maximum=(2, 8, 8),
    flavour="tensorrt_rtx",
    version="1.7",
    gpu="NVIDIA Something",
    compute_capability="8.9",
    driver="13.0",
    options="level 3",
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes are POSIX")


class Builder:
    """Builds, and counts how often."""

    def __init__(self, data: bytes = b"engine") -> None:
        self.data, self.count = data, 0

    def __call__(self) -> bytes:
        self.count += 1
        return self.data


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "deep" / "engines")


def engine_file(cache: EngineCache) -> Path:
    (path,) = cache.folder.glob("*.engine")
    return path


def test_an_engine_is_built_once_and_kept(cache):
    build = Builder()
    assert cache.load_or_build(KEY, build, bytes) == b"engine"
    assert EngineCache(cache.folder).load_or_build(KEY, build, bytes) == b"engine"
    assert build.count == 1


@pytest.mark.parametrize("name", [field.name for field in fields(EngineKey)])
def test_whatever_shapes_an_engine_makes_another_one(cache, name):
    value = getattr(KEY, name)
    other = replace(KEY, **{name: value + "x" if isinstance(value, str) else (9, 9, 9)})
    assert other.digest != KEY.digest
    cache.load_or_build(KEY, Builder(b"one"), bytes)
    assert cache.load_or_build(other, Builder(b"two"), bytes) == b"two"
    assert cache.load_or_build(KEY, Builder(b"three"), bytes) == b"one"


def test_entries_tell_what_is_there(cache):
    assert cache.entries() == []
    cache.load_or_build(KEY, Builder(b"12345"), bytes)
    (entry,) = cache.entries()
    assert entry.key == KEY
    assert entry.size_bytes == 5
    assert entry.build_seconds >= 0
    assert abs(entry.built_at - time.time()) < 60
    assert cache.path(entry.key) == engine_file(cache)


def test_what_is_there_is_loaded_and_what_is_not_is_none(cache):
    assert cache.load(KEY, bytes) is None
    cache.load_or_build(KEY, Builder(), bytes)
    assert cache.load(KEY, bytes) == b"engine"
    engine_file(cache).write_bytes(b"engInE")
    assert cache.load(KEY, bytes) is None
    assert cache.entries() == []


def test_an_engine_that_fails_its_check_is_not_kept_and_one_in_the_cache_is_not_checked(cache):
    def fail(engine: bytes) -> None:
        raise EngineBuildError("34 dB")

    with pytest.raises(EngineBuildError, match="34 dB"):
        cache.load_or_build(KEY, Builder(), bytes, check=fail)
    assert [path.name for path in cache.folder.iterdir()] == ["lock"]
    cache.load_or_build(KEY, Builder(), bytes)
    assert cache.load_or_build(KEY, Builder(), bytes, check=fail) == b"engine"


@pytest.mark.parametrize("damage", ["flipped", "cut", "no sidecar", "bad sidecar", "other key"])
def test_a_damaged_engine_is_deleted_logged_and_built_once_more(cache, damage, caplog):
    cache.load_or_build(KEY, Builder(), bytes)
    path = engine_file(cache)
    sidecar = path.with_suffix(".json")
    if damage == "flipped":
        path.write_bytes(b"engInE")
    elif damage == "cut":
        path.write_bytes(b"eng")
    elif damage == "no sidecar":
        sidecar.unlink()
    elif damage == "bad sidecar":
        sidecar.write_text("{")
    else:
        stored = json.loads(sidecar.read_text())
        stored["key"]["version"] = "1.6"
        sidecar.write_text(json.dumps(stored))
    build = Builder(b"fresh")
    assert cache.load_or_build(KEY, build, bytes) == b"fresh"
    assert build.count == 1
    assert f"{path} is damaged: it is deleted and built again" in caplog.text
    assert cache.load_or_build(KEY, build, bytes) == b"fresh"
    assert build.count == 1


def refuse(data: bytes) -> bytes:
    raise BackendUnavailable(f"cannot load {data.decode()}")


def test_an_engine_that_does_not_load_is_built_once_more(cache, caplog):
    cache.load_or_build(KEY, Builder(b"old"), bytes)
    load = lambda data: refuse(data) if data == b"old" else data  # noqa: E731
    assert cache.load_or_build(KEY, Builder(b"new"), load) == b"new"
    assert "cannot load old: it is deleted and built again" in caplog.text


def test_a_fresh_engine_that_does_not_load_is_an_error_and_not_kept(cache):
    build = Builder()
    cache.load_or_build(KEY, build, bytes)
    with pytest.raises(BackendUnavailable, match="cannot load engine"):
        cache.load_or_build(KEY, build, refuse)
    assert build.count == 2  # not again and again
    assert cache.entries() == []
    assert not list(cache.folder.glob("*.engine"))


def test_a_failed_build_leaves_nothing(cache):
    def fail() -> bytes:
        raise EngineBuildError("no")

    with pytest.raises(EngineBuildError, match="no"):
        cache.load_or_build(KEY, fail, bytes)
    assert [path.name for path in cache.folder.iterdir()] == ["lock"]


@pytest.mark.parametrize("at", [".engine", ".json"])
def test_a_crash_while_writing_leaves_nothing_that_is_trusted(cache, monkeypatch, at):
    real = os.replace

    def crash(source: str, target: Path) -> None:
        if str(target).endswith(at):
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            cache.load_or_build(KEY, Builder(b"half"), bytes)
    assert not list(cache.folder.glob("*.part"))
    assert cache.entries() == []
    assert cache.load_or_build(KEY, Builder(b"whole"), bytes) == b"whole"


def test_two_at_once_build_once(cache):
    build, results = Builder(), []

    def slow() -> bytes:
        time.sleep(0.2)
        return build()

    def ask() -> None:
        results.append(EngineCache(cache.folder).load_or_build(KEY, slow, bytes))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [b"engine"] * 3
    assert build.count == 1


@posix
def test_the_lock_holds_between_processes(cache, caplog):
    caplog.set_level(logging.WARNING)
    cache.clear()
    cache.folder.mkdir(parents=True, mode=0o700)
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.flock(file, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(cache.folder / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        release = threading.Timer(0.3, lambda: holder.communicate("\n", timeout=30))
        began = time.monotonic()
        release.start()
        cache.load_or_build(KEY, Builder(), bytes)
        release.join(30)
    assert time.monotonic() - began >= 0.3
    assert "waiting for another run that is building an engine" in caplog.text


@posix
def test_who_waits_for_another_run_can_give_up(cache):
    def interrupted() -> None:
        raise KeyboardInterrupt

    with cache._locked(), pytest.raises(KeyboardInterrupt):
        EngineCache(cache.folder).load_or_build(KEY, Builder(), bytes, waiting=interrupted)
    assert cache.load(KEY, bytes, waiting=interrupted) is None


def test_clear_deletes_engines_and_nothing_foreign(cache):
    assert cache.clear() == 0
    cache.load_or_build(KEY, Builder(), bytes)
    cache.keep_timing("tensorrt", "11.0", b"times")
    (cache.folder / "notes.txt").write_text("mine")
    assert cache.clear() == 1
    assert {path.name for path in cache.folder.iterdir()} == {"lock", "notes.txt"}


def test_timings_are_kept_by_flavour_and_version(cache):
    cache.load_or_build(KEY, Builder(), bytes)
    assert cache.timing("tensorrt", "11.0") == b""
    cache.keep_timing("tensorrt", "11.0", b"times")
    assert cache.timing("tensorrt", "11.0") == b"times"
    assert cache.timing("tensorrt", "11.1") == b""


def test_a_crash_while_timings_are_written_leaves_the_old_ones(cache, monkeypatch):
    cache.load_or_build(KEY, Builder(), bytes)
    cache.keep_timing("tensorrt", "11.0", b"old")

    def crash(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            cache.keep_timing("tensorrt", "11.0", b"new")
    assert cache.timing("tensorrt", "11.0") == b"old"
    assert not list(cache.folder.glob("*.part"))


# --- whose folder it is ---------------------------------------------------------------------------


@posix
def test_files_and_folder_are_the_users_alone(cache):
    cache.load_or_build(KEY, Builder(), bytes)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert engine_file(cache).stat().st_mode & 0o777 == 0o600


@posix
@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_to_is_refused(cache, mode):
    cache.load_or_build(KEY, Builder(), bytes)
    cache.folder.chmod(mode)
    with pytest.raises(BackendUnavailable, match=f"mode {mode:o}.*chmod 700 it"):
        cache.load_or_build(KEY, Builder(), bytes)
    with pytest.raises(BackendUnavailable, match="others can write"):
        cache.entries()


@posix
def test_another_users_folder_is_refused(cache, monkeypatch):
    cache.load_or_build(KEY, Builder(), bytes)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(BackendUnavailable, match=r"belongs to user .* not to you"):
        cache.load_or_build(KEY, Builder(), bytes)


def test_a_cache_that_cannot_be_written_is_an_error_before_the_build(tmp_path):
    (tmp_path / "file").write_text("")
    build = Builder()
    with pytest.raises(BackendUnavailable, match=r"cannot be written .* set VSR_ENGINE_CACHE"):
        EngineCache(tmp_path / "file" / "engines").load_or_build(KEY, build, bytes)
    assert build.count == 0


def test_a_cache_that_cannot_be_written_still_gives_what_is_in_it(cache, monkeypatch):
    cache.load_or_build(KEY, Builder(), bytes)
    real = Path.open

    def read_only(path: Path, mode: str = "r", *rest):
        if "a" in mode:
            raise OSError(30, "Read-only file system")
        return real(path, mode, *rest)

    monkeypatch.setattr(Path, "open", read_only)
    assert cache.load(KEY, bytes) == b"engine"
    build = Builder()
    with pytest.raises(BackendUnavailable, match=r"cannot be written \(Read-only file system\)"):
        cache.load_or_build(replace(KEY, version="2"), build, bytes)
    assert build.count == 0


def test_a_full_disk_is_an_error_in_one_line(cache, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackendUnavailable, match=r"cannot be written \(No space left on device\)"):
        cache.load_or_build(KEY, Builder(), bytes)
    assert [path.name for path in cache.folder.iterdir()] == ["lock"]


def test_the_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("VSR_ENGINE_CACHE", str(tmp_path / "x"))
    assert default_folder() == tmp_path / "x"
    monkeypatch.delenv("VSR_ENGINE_CACHE")
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "/c")
    assert default_folder() == Path("/c/vsr/engines")
