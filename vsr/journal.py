"""What is on the disk while a clip is being made: a folder, a journal, and a lock.

The journal says what the job is and which segments are whole. It is replaced as a whole, never
changed in place, so a crash leaves the old or the new one; and every step waits until the one
before it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from engines.errors import MediaError
from vsr.ffmpeg import reason

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger(__name__)

_FORMAT = "vsr-segments/1"
_LONGEST_NAME_BYTES = 200  # file systems take 255, and the folder's name is longer


@dataclass(frozen=True, slots=True)
class Segment:
    """One whole segment."""

    file: str
    frames: int
    first_pts: int
    last_pts: int
    """of the last frame in order of presentation; both in ticks of the clip"""
    sha256: str


@dataclass(slots=True)
class Journal:
    """What `journal.json` holds."""

    key: dict[str, Any]
    """everything that shapes the segments; see `vsr.job_key.job_key`"""
    segments: list[Segment] = field(default_factory=list)
    finished: bool = False
    """whether the last segment is the clip's last"""
    joined: list[int] | None = None
    """size in bytes and time (mtime_ns) of the joined file, once it awaits its name"""
    format: str = _FORMAT

    @property
    def frames(self) -> int:
        """Number of frames in whole segments."""
        return sum(segment.frames for segment in self.segments)

    def save(self, path: Path) -> None:
        """Replace the file; a crash leaves the old or the new one."""
        fresh = path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        sync_folder(path.parent)

    @classmethod
    def load(cls, path: Path) -> Journal | None:
        """Read the file; None where there is none.

        Raises:
            ValueError: it is damaged, or no journal of ours.
        """
        try:
            stored = json.loads(path.read_bytes())
            if stored["format"] != _FORMAT or not isinstance(stored["key"], dict):
                raise ValueError(f"format {stored['format']!r}, expected {_FORMAT!r}")
            segments = [Segment(**segment) for segment in stored.pop("segments")]
            if [segment.file for segment in segments] != [
                segment_name(index) for index in range(len(segments))
            ]:
                raise ValueError("its segments are not numbered from 0")
            if any(segment.frames < 1 for segment in segments):
                raise ValueError("a segment without frames")
            return cls(**stored, segments=segments)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def partial_folder(path: Path) -> Path:
    """Name the folder in which an output is made."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME_BYTES:
        name = f"{path.stem[:40]}.{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{path.suffix}"
    return path.with_name(f"{name}.partial")


def awaits_removal(path: Path) -> bool:
    """Tell whether an output was renamed by a run that could not remove its folder any more.

    An empty folder, which is all that such a run can leave beside, goes at once.
    """
    with suppress(OSError):
        partial_folder(path).rmdir()
    try:
        journal = Journal.load(partial_folder(path) / "journal.json")
    except ValueError:
        return False
    return journal is not None and journal.joined is not None and journal.joined == stamp(path)


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Say what differs between two keys."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return [f"{name} was {before.get(name)}, is {now.get(name)}" for name in names]


def segment_name(index: int) -> str:
    """Name the file of a segment."""
    return f"{index:06d}.packets"


def stamp(path: Path) -> list[int] | None:
    """Return what tells a file from another of its name: size in bytes and mtime_ns."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def clear(folder: Path, keep: set[str]) -> None:
    """Remove what a writer may have left, apart from some names; nothing foreign."""
    ours = [folder / "journal.json", folder / "journal.new", folder / "lock"]
    for path in [*ours, *folder.glob("*.packets"), *folder.glob("joined.*")]:
        if path.name not in keep:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring new names to the disk, where the system can."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)


def lock(folder: Path, output: Path) -> BinaryIO:
    """Create the folder and lock it until the file is closed or the process dies.

    Raises:
        MediaError: another run holds it.
        OSError: the folder cannot be written.
    """
    path = folder / "lock"
    while True:
        folder.mkdir(exist_ok=True)
        try:
            file = path.open("wb")
        except FileNotFoundError:  # another run has just finished and removed it
            continue
        try:
            if sys.platform == "win32":
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise MediaError(f"{output} is being made by another run already") from error
        except OSError as error:
            log.warning("cannot lock %s: %s", path, reason(error))
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        file.close()
