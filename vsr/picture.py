"""Files of one picture: PNG and TIFF, lossless, 8 or 16 bits, grey or RGB, with or without alpha.

Libavcodec encodes the pixels; an ICC profile, which PyAV cannot hand to it, is put in afterwards.
Sources: PNG third edition (iCCP), TIFF 6.0 and ICC.1:2022 annex B (tag 34675).
"""

from __future__ import annotations

import os
import re
import secrets
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
from av.error import FFmpegError
from torch import Tensor

from engines.errors import MediaError
from vsr.clip import FULL_RANGE, INVERTED_ASPECT
from vsr.convert import Kind, PlaneLayout
from vsr.ffmpeg import reason
from vsr.journal import sync_folder

PNG_SUFFIXES = frozenset({".png"})
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
PICTURE_SUFFIXES = PNG_SUFFIXES | TIFF_SUFFIXES

_FORMATS = {
    # kind, alpha: of 8 bits, of 16 bits; a PNG is big-endian, a TIFF as libavcodec has it little
    ("grey", False): ("gray", "gray16"),
    ("grey", True): ("ya8", "ya16"),
    ("rgb", False): ("rgb24", "rgb48"),
    ("rgb", True): ("rgba", "rgba64"),
}
_PNG_HEAD_BYTES = 8 + 25  # signature and IHDR
_COMPRESSION, _PROFILE = 259, 34675
_DEFLATE = 8  # what TIFF readers know; libavcodec gives the same bytes its older number
_SHORT, _UNDEFINED = 3, 7
_UNSPECIFIED = 2
_LONGEST_STEM_BYTES = 80  # of a partial file's name; file systems take 255 in all
_PARTIAL = re.compile(r"\.[0-9a-f]{6}\.partial$")


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """How a picture is stored."""

    suffix: str
    """one of `PICTURE_SUFFIXES`, in small letters"""
    kind: Kind
    """rgb or grey"""
    alpha: bool = False
    sample_aspect_ratio: Fraction = Fraction(1)
    primaries: int = _UNSPECIFIED
    """of ITU-T H.273; a PNG holds it, a TIFF does not"""
    transfer: int = _UNSPECIFIED
    profile: bytes | None = None
    """ICC; colour tags are left out beside it"""

    def __post_init__(self) -> None:
        if self.suffix not in PICTURE_SUFFIXES:
            raise ValueError(f"suffix must be of {sorted(PICTURE_SUFFIXES)}, got {self.suffix!r}")

    def encode(self, planes: Sequence[Tensor]) -> bytes:
        """Return the file of a picture.

        Args:
            planes: R, G, B or Y, then alpha if there is; (H, W) each, all uint8 or all uint16.

        Raises:
            MediaError: the encoder refuses.
        """
        is_png = self.suffix in PNG_SUFFIXES
        wide = planes[0].dtype == torch.uint16
        name = _FORMATS[self.kind, self.alpha][wide]
        if wide:
            name += "be" if is_png else "le"
        frame = _packed(planes, name)
        codec = "png" if is_png else "tiff"
        encoder = cast(Any, av.CodecContext.create(codec, "w"))
        encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, name
        encoder.time_base = Fraction(1)
        aspect = self.sample_aspect_ratio
        encoder.sample_aspect_ratio = 1 / aspect if codec in INVERTED_ASPECT else aspect
        if not is_png:
            encoder.options = {"compression_algo": "deflate"}
        frame.color_range = FULL_RANGE
        if self.profile is None:
            frame.color_primaries, frame.color_trc = self.primaries, self.transfer
        try:
            packets = [*encoder.encode(frame), *encoder.encode(None)]
        except (FFmpegError, ValueError) as error:
            raise MediaError(
                f"{self.suffix} does not take {frame.width}x{frame.height}: {reason(error)}"
            ) from error
        data = b"".join(bytes(packet) for packet in packets)
        return _with_chunk(data, self.profile) if is_png else _with_tags(data, self.profile)


def picture_layout(layout: PlaneLayout) -> PlaneLayout:
    """Return the layout of the picture that holds all that a frame of `layout` can hold."""
    return replace(
        layout,
        kind="grey" if layout.kind == "grey" else "rgb",
        depth=8 if layout.depth == 8 else 16,
        full_range=True,
        chroma_step=(1, 1),
    )


def _packed(planes: Sequence[Tensor], name: str) -> av.VideoFrame:
    pixels = np.stack([plane.numpy() for plane in planes], axis=-1)
    height, width = pixels.shape[:2]
    frame = av.VideoFrame(width, height, name)
    rows = np.frombuffer(cast(Any, frame.planes[0]), np.uint8)
    rows = rows.reshape(-1, frame.planes[0].line_size)
    stored = {"be": ">u2", "le": "<u2"}.get(name[-2:], "u1")
    data = pixels.astype(stored).reshape(height, -1).view(np.uint8)
    rows[:height, : data.shape[1]] = data
    return frame


def _with_chunk(png: bytes, profile: bytes | None) -> bytes:
    """Put an ICC profile behind a PNG's head."""
    if profile is None:
        return png
    content = b"iCCP" + b"ICC profile\0\0" + zlib.compress(profile)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:_PNG_HEAD_BYTES] + chunk + png[_PNG_HEAD_BYTES:]


def _with_tags(tiff: bytes, profile: bytes | None) -> bytes:
    """Give a little-endian TIFF of one page its compression's standard number, and a profile."""
    (start,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, start)
    entries = {
        struct.unpack_from("<H", tiff, at)[0]: tiff[at : at + 12]
        for at in range(start + 2, start + 2 + 12 * count, 12)
    }
    entries[_COMPRESSION] = struct.pack("<HHIHH", _COMPRESSION, _SHORT, 1, _DEFLATE, 0)
    parts = [tiff[:4], b"", tiff[8:], b"\0" * (len(tiff) % 2)]
    end = len(tiff) + len(tiff) % 2
    if profile is not None:
        entries[_PROFILE] = struct.pack("<HHII", _PROFILE, _UNDEFINED, len(profile), end)
        parts += [profile, b"\0" * (len(profile) % 2)]
        end += len(profile) + len(profile) % 2
    parts[1] = struct.pack("<I", end)
    directory = b"".join(entries[tag] for tag in sorted(entries))
    return b"".join([*parts, struct.pack("<H", len(entries)), directory, b"\0" * 4])


def write_file(path: Path, data: bytes) -> None:
    """Write a file under its name as a whole, or not at all.

    Raises:
        MediaError: the folder or the disk does not take it.
    """
    try:
        partial = new_partial(path)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise MediaError(f"cannot write {path}: {reason(error)}") from error


def new_partial(path: Path) -> Path:
    """Create an empty file beside `path`, of a name nobody else has, to be renamed to it."""
    stem = os.fsencode(path.stem)[:_LONGEST_STEM_BYTES].decode(errors="ignore")
    while True:
        name = f"{stem}.{secrets.token_hex(3)}.partial{path.suffix}"
        with suppress(FileExistsError):
            path.with_name(name).touch(exist_ok=False)
            return path.with_name(name)


def is_partial(path: Path) -> bool:
    """Tell whether a name is one of `new_partial`, of a run that was killed."""
    return _PARTIAL.search(path.stem) is not None
