"""A file of encoded packets: what an encoder gave, exactly, and nothing else.

No container keeps every timestamp, duration and time base as it is, so a segment is not one. It is,
little-endian, for each packet in order of decoding:

    pts int64, duration int64 (ticks of the clip), is-key-frame uint8, size uint32, `size` bytes

There is no dts: those of an encoder that starts anew are of no use in the middle of a clip (see
`vsr.segments.joined`).
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_HEAD = struct.Struct("<qqBI")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Packet:
    """One encoded frame; times in ticks of the clip."""

    pts: int
    duration: int
    is_key: bool
    data: bytes


class PacketFile:
    """Writes packets, and their SHA-256 as they go by.

    Raises:
        OSError: the disk refuses; so does each method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._hash = hashlib.sha256()

    def write(self, packet: Packet) -> None:
        """Append one packet."""
        head = _HEAD.pack(packet.pts, packet.duration, packet.is_key, len(packet.data))
        for part in (head, packet.data):
            self._file.write(part)
            self._hash.update(part)

    def close(self) -> str:
        """Bring all to the disk and return the SHA-256, in hex."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._hash.hexdigest()

    def abort(self) -> None:
        """Close and remove."""
        with suppress(OSError):  # what is still to be written may not fit
            self._file.close()
        self.path.unlink(missing_ok=True)


def read_packets(path: Path) -> Iterator[Packet]:
    """Yield the packets of a file, one at a time in memory."""
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            pts, duration, is_key, size = _HEAD.unpack(head)
            yield Packet(pts, duration, bool(is_key), file.read(size))


def read_times(path: Path) -> list[int]:
    """Return the pts of each packet, in order of decoding, without reading the packets."""
    times = []
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            pts, _, _, size = _HEAD.unpack(head)
            times.append(pts)
            file.seek(size, os.SEEK_CUR)
    return times


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()
