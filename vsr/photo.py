"""The tags of a picture's file that its decoder does not tell: which way is up, what colours mean.

Read from JPEG, PNG, TIFF and WebP. Sources: Exif 3.0 and TIFF 6.0 (tag 274, orientation),
ICC.1:2022 annex B (where a profile is embedded), PNG third edition (iCCP, eXIf), the WebP
container's specification (ICCP, EXIF).
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from vsr.convert import Kind

log = logging.getLogger(__name__)

_COMPRESSION, _ORIENTATION, _PROFILE, _SUBFILE_TYPE = 259, 274, 34675, 254
_REDUCED = 1  # bit of the subfile type: a thumbnail, no page
_MOST_BYTES = 1 << 24  # of a profile, which seldom has more than a few hundred kB
_MOST_PAGES = 10_000
_MOST_CHUNKS = 100_000
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1}  # of the TIFF types that are read here
_ONE = 1 << 16

# orientation: a, b, c, d of a display matrix, in which x' = a x + c y and y' = b x + d y
_TURNS = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
_SPACES: dict[Kind, bytes] = {"rgb": b"RGB ", "grey": b"GRAY"}


@dataclass(slots=True)
class PhotoTags:
    """What a picture's file says beside its pixels."""

    orientation: int | None = None
    """1 to 8 as Exif has it; None: the file does not say"""
    profile: bytes | None = None
    """ICC profile"""
    pages: int = 1
    """pictures in the file, thumbnails aside"""
    is_jpeg_in_tiff: bool = False
    """a TIFF whose pixels are compressed as JPEG, which FFmpeg decodes to black"""

    @property
    def display_matrix(self) -> tuple[int, ...] | None:
        """The orientation as nine numbers (see `vsr.convert.oriented`); None: upright."""
        if self.orientation in (None, 1):
            return None
        a, b, c, d = (_ONE * value for value in _TURNS[self.orientation])
        return a, b, 0, c, d, 0, 0, 0, 1 << 30

    def profile_for(self, kind: Kind) -> bytes | None:
        """Return the profile if it is one for colours of this kind."""
        fits = self.profile is not None and self.profile[16:20] == _SPACES.get(kind)
        return self.profile if fits else None


def read_tags(path: Path) -> PhotoTags:
    """Read what can be read; what is damaged is as if it were not there."""
    tags = PhotoTags()
    try:
        with path.open("rb") as file:
            head = file.read(12)
            file.seek(0)
            if head[:2] == b"\xff\xd8":
                _read_jpeg(file, tags)
            elif head[:8] == b"\x89PNG\r\n\x1a\n":
                _read_png(file, tags)
            elif head[:4] in (b"II*\0", b"MM\0*"):
                _read_tiff(file, tags, pages=True)
            elif head[:4] == b"RIFF" and head[8:] == b"WEBP":
                _read_webp(file, tags)
    except (OSError, ValueError, struct.error, zlib.error) as error:
        log.debug("tags of %s: %s", path, error)
    return tags


def _read_jpeg(file: BinaryIO, tags: PhotoTags) -> None:
    parts: dict[int, bytes] = {}
    count = 0
    for marker, data in _jpeg_segments(file):
        if marker == 0xE1 and data[:6] == b"Exif\0\0":
            _read_tiff(BytesIO(data[6:]), tags, pages=False)
        elif marker == 0xE2 and data[:12] == b"ICC_PROFILE\0" and len(data) > 14:
            count = data[13]
            parts[data[12]] = data[14:]
    if count and sorted(parts) == list(range(1, count + 1)):
        tags.profile = b"".join(parts[number] for number in sorted(parts))


def _jpeg_segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of the segments before the picture's own data."""
    file.seek(2)
    for _ in range(_MOST_CHUNKS):
        mark = file.read(2)
        while mark == b"\xff\xff":  # padding
            mark = mark[1:] + file.read(1)
        if len(mark) < 2 or mark[0] != 0xFF or mark[1] in (0xD9, 0xDA):  # EOI, start of scan
            return
        if mark[1] == 0x01 or 0xD0 <= mark[1] <= 0xD8:  # without content
            continue
        (size,) = struct.unpack(">H", file.read(2))
        yield mark[1], file.read(max(0, size - 2))


def _read_png(file: BinaryIO, tags: PhotoTags) -> None:
    file.seek(8)
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        size, kind = struct.unpack(">I4s", head)
        data = file.read(size) if kind in (b"iCCP", b"eXIf") and size <= _MOST_BYTES else b""
        if kind == b"iCCP":
            name_end = data.index(0, 0, 80)
            tags.profile = zlib.decompressobj().decompress(data[name_end + 2 :], _MOST_BYTES)
        elif kind == b"eXIf":
            _read_tiff(BytesIO(data), tags, pages=False)
        file.seek(size - len(data) + 4, 1)


def _read_webp(file: BinaryIO, tags: PhotoTags) -> None:
    file.seek(12)
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        kind, size = struct.unpack("<4sI", head)
        data = file.read(size) if kind in (b"ICCP", b"EXIF") and size <= _MOST_BYTES else b""
        if kind == b"ICCP":
            tags.profile = data
        elif kind == b"EXIF":
            _read_tiff(BytesIO(data.removeprefix(b"Exif\0\0")), tags, pages=False)
        file.seek(size + size % 2 - len(data), 1)


def _read_tiff(file: BinaryIO, tags: PhotoTags, *, pages: bool) -> None:
    order = {b"II": "<", b"MM": ">"}.get(file.read(2), "")
    if not order:
        raise ValueError("no byte order")
    magic, start = struct.unpack(f"{order}HI", file.read(6))
    if magic != 42:
        raise ValueError(f"not TIFF but {magic}")
    seen: list[int] = []
    found = 0
    while start and start not in seen and len(seen) < _MOST_PAGES:
        entries, following = _read_directory(file, start, order)
        seen.append(start)
        if len(seen) == 1:
            orientation = _values(file, entries, _ORIENTATION, order)
            if orientation and orientation[0] in _TURNS:
                tags.orientation = orientation[0]
            tags.profile = bytes(_values(file, entries, _PROFILE, order)) or tags.profile
            compression = _values(file, entries, _COMPRESSION, order)
            tags.is_jpeg_in_tiff = compression in ([6], [7])
        reduced = _values(file, entries, _SUBFILE_TYPE, order) or [0]
        found += not reduced[0] & _REDUCED
        start = following if pages else 0
    if pages:
        tags.pages = max(1, found)


def _read_directory(
    file: BinaryIO, start: int, order: str
) -> tuple[dict[int, tuple[int, int, bytes]], int]:
    """Return type, count and the four bytes of each tag, and where the next directory is."""
    file.seek(start)
    (count,) = struct.unpack(f"{order}H", file.read(2))
    entries = {}
    for _ in range(count):
        tag, kind, values, raw = struct.unpack(f"{order}HHI4s", file.read(12))
        entries[tag] = (kind, values, raw)
    (following,) = struct.unpack(f"{order}I", file.read(4).ljust(4, b"\0"))
    return entries, following


def _values(
    file: BinaryIO, entries: dict[int, tuple[int, int, bytes]], tag: int, order: str
) -> list[int]:
    """Return the whole numbers of a tag, or its bytes as such; none where it is not there."""
    kind, count, raw = entries.get(tag, (0, 0, b""))
    size = count * _TYPE_BYTES.get(kind, 0)
    if not 0 < size <= _MOST_BYTES:
        return []
    if size > 4:
        file.seek(struct.unpack(f"{order}I", raw)[0])
        raw = file.read(size)
        if len(raw) < size:
            return []
    letter = {2: "H", 4: "I"}.get(_TYPE_BYTES[kind], "B")
    return list(struct.unpack(f"{order}{count}{letter}", raw[:size]))
