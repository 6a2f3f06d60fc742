"""Compiled engines on the disk: each built once for what shaped it, and trusted only if whole.

    <folder>/<digest of the key>.engine   what the compiler made
    <folder>/<digest of the key>.json     the key, SHA-256, size, and when and how long it was built
    <folder>/lock                         held while an engine is looked for or built

A serialised engine is code. So the folder must belong to the user and be writable by nobody else,
and an engine is loaded only if its digest is the one that was written beside it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from engines.errors import BackendUnavailable
from engines.folder_lock import wait_for_lock

log = logging.getLogger(__name__)

T = TypeVar("T")

_FORMAT = "vsr-engine/3"
_ENDINGS = ("engine", "json", "timing", "part")
FOLDER_VARIABLE = "VSR_ENGINE_CACHE"

Shape = tuple[int, int, int]
"""(N, H, W) of the frames that go in"""


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that shapes an engine: another value of any field is another engine.

    All of it is known without the graph, so an engine that is there is found without an export.
    """

    model: str
    """its name, for people; what it is stands in `weights_sha256`"""
    weights_sha256: str
    """of the network's configuration and tensors"""
    source_sha256: str
    """of the code that makes the graph"""
    rewrites: str
    """see `engines.algebra`, as text"""
    exporter: str
    """what makes the graph, with versions"""
    precision: str
    """"fp16" or "fp32" """
    minimum: Shape
    optimum: Shape
    maximum: Shape
    flavour: str
    """name of the library: "tensorrt" or "tensorrt_rtx" """
    version: str
    """of that library"""
    gpu: str
    """the device's name; "" where the engine was built without one"""
    compute_capability: str
    """"9.0"; "" as above"""
    driver: str
    """the newest CUDA version that the driver serves; "" as above"""
    options: str
    """level, workspace, tiling and flags of the build, as text"""

    @property
    def digest(self) -> str:
        """Name of the engine's files."""
        text = json.dumps([_FORMAT, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Entry:
    """One engine in the cache, as its sidecar describes it."""

    key: EngineKey
    sha256: str
    size_bytes: int
    build_seconds: float
    built_at: float
    """seconds since 1970, UTC"""


class EngineCache:
    """The folder of compiled engines.

    Args:
        folder: None: $VSR_ENGINE_CACHE, or the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def load_or_build(
        self,
        key: EngineKey,
        build: Callable[[], bytes],
        load: Callable[[bytes], T],
        *,
        check: Callable[[T], None] | None = None,
        waiting: Callable[[], None] | None = None,
    ) -> T:
        """Return a loaded engine, from the disk or built now and kept there.

        An engine that is damaged or does not load is deleted, with a warning, and built once more.

        Args:
            key: what the engine is.
            build: compiles it; called at most once, by one process at a time.
            load: makes it ready to run; raises BackendUnavailable if it cannot.
            check: tries a fresh engine out; what it raises keeps the engine from being kept.
            waiting: called again and again while another run builds; what it raises ends that.

        Raises:
            BackendUnavailable: the cache cannot be used, or `load` refuses a fresh engine.
            Exception: whatever `build` or `check` raises; nothing is kept then.
        """
        with self._locked(waiting):
            loaded = self._load(key, load)
            if loaded is not None:
                return loaded
            began = time.monotonic()
            data = build()
            seconds = time.monotonic() - began
            fresh = load(data)
            if check is not None:
                check(fresh)
            self._write(key, data, seconds)
            return fresh

    def load(
        self,
        key: EngineKey,
        load: Callable[[bytes], T],
        *,
        waiting: Callable[[], None] | None = None,
    ) -> T | None:
        """Return a loaded engine from the disk; None: not there, or of no use, and deleted.

        A folder that cannot be written will do, as long as what is in it is whole.

        Raises:
            BackendUnavailable: the cache cannot be used.
        """
        with self._locked(waiting, reading=True):
            return self._load(key, load)

    def _load(self, key: EngineKey, load: Callable[[bytes], T]) -> T | None:
        data = self._read(key)
        if data is None:
            return None
        try:
            return load(data)
        except BackendUnavailable as error:
            log.warning("%s: it is deleted and built again", error)
            self._delete(key)
            return None

    def entries(self) -> list[Entry]:
        """List what is there; files without a readable sidecar are left out."""
        if not self.folder.is_dir():
            return []
        self._check_owner()
        found = [_read_entry(path) for path in sorted(self.folder.glob("*.json"))]
        return [entry for entry in found if entry is not None]

    def clear(self) -> int:
        """Delete all engines and timing caches, nothing foreign; return how many engines went."""
        if not self.folder.is_dir():
            return 0
        with self._locked():
            files = [path for end in _ENDINGS for path in self.folder.glob(f"*.{end}")]
            try:
                for path in files:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise self._unwritable(error) from error
        return sum(path.suffix == ".engine" for path in files)

    def timing(self, flavour: str, version: str) -> bytes:
        """Return what the compiler has measured on this machine, empty at first."""
        try:
            return self.timing_path(flavour, version).read_bytes()
        except OSError:
            return b""

    def keep_timing(self, flavour: str, version: str, data: bytes) -> None:
        """Keep what the compiler has measured, for the next build."""
        self._replace(self.timing_path(flavour, version), data)

    def timing_path(self, flavour: str, version: str) -> Path:
        """Name the file of what a compiler has measured."""
        return self.folder / f"{flavour}-{version}.timing"

    def path(self, key: EngineKey) -> Path:
        """Name the file of an engine."""
        return self.folder / f"{key.digest}.engine"

    def _read(self, key: EngineKey) -> bytes | None:
        """Return an engine that is whole, or delete what is there of it."""
        path = self.path(key)
        entry = _read_entry(path.with_suffix(".json"))
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BackendUnavailable(f"cannot read the engine {path}: {error.strerror}") from error
        if entry and entry.key == key and hashlib.sha256(data).hexdigest() == entry.sha256:
            return data
        log.warning("%s is damaged: it is deleted and built again", path)
        self._delete(key)
        return None

    def _write(self, key: EngineKey, data: bytes, build_seconds: float) -> None:
        digest = hashlib.sha256(data).hexdigest()
        entry = Entry(key, digest, len(data), round(build_seconds, 3), round(time.time(), 3))
        path = self.path(key)
        self._replace(path, data)  # a crash here leaves an engine that nothing vouches for
        text = json.dumps({"format": _FORMAT, **asdict(entry)}, indent=1)
        self._replace(path.with_suffix(".json"), text.encode())

    def _replace(self, path: Path, data: bytes) -> None:
        try:
            handle, name = tempfile.mkstemp(suffix=".part", dir=self.folder)  # for us alone: 0600
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._unwritable(error) from error

    def _delete(self, key: EngineKey) -> None:
        try:
            for suffix in (".json", ".engine"):
                self.path(key).with_suffix(suffix).unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    @contextmanager
    def _locked(
        self, waiting: Callable[[], None] | None = None, *, reading: bool = False
    ) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = (self.folder / "lock").open("ab")
        except OSError as error:
            if not (reading and self.folder.is_dir()):
                raise self._unwritable(error) from error
            self._check_owner()
            yield  # nobody can build in it either
            return
        with file:
            self._check_owner()
            wait_for_lock(file.fileno(), self.folder, waiting or (lambda: None))
            yield  # closing the file gives the lock back

    def _check_owner(self) -> None:
        if sys.platform == "win32":
            return  # the user's own cache folder is closed to others there
        found = self.folder.stat()
        if found.st_uid != os.getuid():
            raise BackendUnavailable(
                f"the engine cache {self.folder} belongs to user {found.st_uid}, not to you: "
                f"engines are code. Set {FOLDER_VARIABLE} to a folder of your own"
            )
        if found.st_mode & 0o022:
            raise BackendUnavailable(
                f"others can write to the engine cache {self.folder} (mode "
                f"{found.st_mode & 0o777:o}): engines are code. chmod 700 it, or set "
                f"{FOLDER_VARIABLE} to another folder"
            )

    def _unwritable(self, error: OSError) -> BackendUnavailable:
        return BackendUnavailable(
            f"the engine cache {self.folder} cannot be written ({error.strerror}): set "
            f"{FOLDER_VARIABLE} to a folder that can"
        )


def default_folder() -> Path:
    """Return $VSR_ENGINE_CACHE, or `vsr/engines` in the user's cache folder."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    else:
        base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vsr" / "engines"


def _read_entry(path: Path) -> Entry | None:
    try:
        stored = json.loads(path.read_bytes())
        if stored.pop("format") != _FORMAT:
            return None
        fields = stored.pop("key")
        for name in ("minimum", "optimum", "maximum"):
            fields[name] = tuple(fields[name])
        return Entry(key=EngineKey(**fields), **stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
