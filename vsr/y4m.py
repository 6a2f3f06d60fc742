"""YUV4MPEG2, the format of pipes: a line of tags, then frames of bare samples.

Read from a file or from standard input; `vsr.stdout` writes it. Only the line of tags and the
lengths of the frames are read here: libavcodec makes frames of them, as of those of any clip.
Source: yuv4mpeg(5) of mjpegtools; the tags of deep formats and XCOLORRANGE are libavformat's.
"""

from __future__ import annotations

import os
import re
import select
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import torch
from av.codec.hwaccel import HWAccel

from engines.errors import MediaError
from vsr.convert import PlaneLayout, Siting
from vsr.ffmpeg import reason
from vsr.hardware import HardwareUnavailable
from vsr.threads import waiting
from vsr.video import Reader

if sys.platform == "win32":
    import msvcrt

STDIN = Path("-")
_BINARY = getattr(os, "O_BINARY", 0)  # of Windows
_MAGIC = b"YUV4MPEG2"
_MOST_LINE_BYTES = 4096
_MOST_FRAME_BYTES = 1 << 31
_MOST = (1 << 31) - 1  # of a number in the tags
_CHUNK_BYTES = 1 << 20
_LOOK_SECONDS = 0.1  # how often a read that waits looks whether it is still wanted
_CHROMA = re.compile(
    r"(?P<kind>420|422|444|411|mono)(jpeg|mpeg2|paldv)?(p?(?P<depth>9|10|12|14|16))?"
)
_SITINGS: dict[str, Siting] = {
    "420": "centre",
    "420jpeg": "centre",
    "420mpeg2": "left",
    "420paldv": "topleft",
}
_STEPS = {"420": (2, 2), "422": (1, 2), "411": (1, 4), "444": (1, 1), "mono": (1, 1)}


@dataclass(frozen=True, slots=True)
class Y4mHeader:
    """The tags of a stream."""

    size: tuple[int, int]
    """(height, width)"""
    chroma: str
    """the tag C, such as 420jpeg or 422p10"""
    rate: Fraction = Fraction(25)
    """frames a second"""
    sample_aspect_ratio: Fraction = Fraction(1)
    interlacing: str = "p"
    full_range: bool | None = None
    """None: the stream does not say"""

    @classmethod
    def parse(cls, line: bytes) -> Y4mHeader:
        """Read the first line of a stream.

        Raises:
            ValueError: it is none, or of a format that is not supported.
        """
        words = line.decode("latin-1").split()
        if not words or words[0] != _MAGIC.decode():
            raise ValueError(
                "it is not YUV4MPEG2, as ffmpeg -i INPUT -f yuv4mpegpipe - writes it into a pipe"
            )
        tags = {word[0]: word[1:] for word in words[1:] if word[0] != "X"}
        extra = dict(word[1:].partition("=")[::2] for word in words[1:] if word[0] == "X")
        try:
            size = int(tags["H"]), int(tags["W"])
        except (KeyError, ValueError):
            raise ValueError("it does not say its width and height") from None
        chroma = tags.get("C") or extra.get("YSCSS", "").lower() or "420jpeg"
        header = cls(
            size,
            chroma,
            rate=_ratio(tags.get("F")) or Fraction(25),
            sample_aspect_ratio=_ratio(tags.get("A")) or Fraction(1),
            interlacing=tags.get("I", "p"),
            full_range={"FULL": True, "LIMITED": False}.get(extra.get("COLORRANGE", "")),
        )
        if min(size) < 1 or not 0 < header.frame_bytes <= _MOST_FRAME_BYTES:
            raise ValueError(f"{size[1]}x{size[0]} is no size that can be read")
        return header

    @property
    def layout(self) -> PlaneLayout:
        """What the planes are.

        Raises:
            ValueError: the format is not supported.
        """
        match = _CHROMA.fullmatch(self.chroma)
        if match is None:
            raise ValueError(f"its format C{self.chroma} is not supported")
        kind = match["kind"]
        return PlaneLayout(
            kind="grey" if kind == "mono" else "yuv",
            depth=int(match["depth"] or 8),
            full_range=bool(self.full_range),
            chroma_step=_STEPS[kind],
            siting=_SITINGS.get(self.chroma, "left"),
        )

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame's samples."""
        layout = self.layout
        samples = sum(height * width for height, width in layout.plane_sizes(*self.size))
        return samples * (1 if layout.depth == 8 else 2)

    def line(self) -> bytes:
        """Return the first line of a stream, with its end."""
        (height, width), rate, aspect = self.size, self.rate, self.sample_aspect_ratio
        words = [
            f"W{width} H{height} F{rate.numerator}:{rate.denominator} I{self.interlacing}",
            f"A{aspect.numerator}:{aspect.denominator} C{self.chroma}",
        ]
        if self.full_range is not None:
            words.append(f"XCOLORRANGE={'FULL' if self.full_range else 'LIMITED'}")
        return _MAGIC + " ".join(["", *words]).encode() + b"\n"


def _ratio(text: str | None) -> Fraction | None:
    """Read "30000:1001"; None where it says nothing, as 0:0 does."""
    match = re.fullmatch(r"(\d+):(\d+)", text or "")
    if match is None or not 0 < int(match[1]) <= _MOST or not 0 < int(match[2]) <= _MOST:
        return None
    return Fraction(int(match[1]), int(match[2]))


class Y4mReader(Reader):
    """Reads a stream frame by frame, from a file or a pipe.

    Args:
        path: the file; `STDIN` for standard input.
        threads: see `Reader`.
        deinterlace: see `Reader`.

    Raises:
        MediaError: it cannot be read, or is no such stream. Also from `frames`, where the stream
            ends in the middle of a frame.
    """

    def __init__(
        self, path: Path, *, threads: int | None = None, deinterlace: bool | None = None
    ) -> None:
        self.repeatable = path != STDIN
        self._name = str(path) if self.repeatable else "standard input"
        self._stopped = threading.Event()
        self._pending = b""
        try:
            self._file = 0 if path == STDIN else os.open(path, os.O_RDONLY | _BINARY)
            if sys.platform == "win32":
                msvcrt.setmode(self._file, _BINARY)
        except OSError as error:
            raise MediaError(f"cannot read {path}: {reason(error)}") from error
        try:
            if os.isatty(self._file):
                raise MediaError(f"{self._name} is a terminal, expected YUV4MPEG2 through a pipe")
            self._header = Y4mHeader.parse(self._line() or b"")
            first = self._frame()
            if first is None:
                raise MediaError(f"{self._name} has no frame")
            self._data = first
            super().__init__(Path(self._name), threads=threads, deinterlace=deinterlace)
        except (ValueError, OSError) as error:
            self._close()
            raise MediaError(f"cannot read {self._name}: {reason(error)}") from error
        except BaseException:
            self._close()
            raise
        frames = None
        if self.repeatable and (size := path.stat().st_size):
            frames = max(1, size // (self._header.frame_bytes + len("FRAME\n")))
        layout = replace(self.info.layout, siting=self._header.layout.siting)
        self.info = replace(self.info, layout=layout, average_rate=self._header.rate, frames=frames)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._close()

    def stop(self) -> None:
        """End a read that waits for its input, from another thread."""
        self._stopped.set()

    def decode_on(self, device: torch.device) -> None:
        """Refuse, whatever the device.

        Raises:
            HardwareUnavailable: always.
        """
        raise HardwareUnavailable("bare samples need no decoder")

    def _seek(self, target: Fraction) -> bool:
        return False  # what comes before is read and left out

    def stamp(self) -> dict[str, int | str]:
        """Return what tells a file from another; nothing does a pipe."""
        return super().stamp() if self.repeatable else {}

    def _open(self, hardware: HWAccel | None = None) -> av.container.InputContainer:
        """Open what describes the stream: its first frame, as a stream of its own."""
        start = BytesIO(self._header.line() + b"FRAME\n" + self._data)
        return av.open(start, "r", format="yuv4mpegpipe")

    def _decode(self) -> Iterator[av.VideoFrame]:
        data: bytes | None = self._data
        count = 0
        while data is not None:
            packet: av.Packet[Any] = av.Packet(data)
            packet.pts = packet.dts = count
            packet.duration, packet.time_base = 1, 1 / self._header.rate
            count += 1
            self._end_seconds = float(count / self._header.rate)
            yield from self._decode_packet(packet)
            data = self._frame()
        yield from self._decode_packet(None)

    def _frame(self) -> bytes | None:
        """Return the next frame's samples; None where the stream ends."""
        line = self._line()
        if line is None:
            return None
        if line.split()[:1] != [b"FRAME"]:
            raise MediaError(f"{self._name} has {line[:20]!r} where a frame should begin")
        data = self._read(self._header.frame_bytes)
        if len(data) < self._header.frame_bytes:
            raise MediaError(
                f"{self._name} breaks off in the middle of a frame: {len(data)} bytes of "
                f"{self._header.frame_bytes}"
            )
        return data

    def _line(self) -> bytes | None:
        """Return a line without its end; None where the stream ends."""
        while b"\n" not in self._pending and len(self._pending) <= _MOST_LINE_BYTES:
            more = self._wait_and_read(_MOST_LINE_BYTES)
            if not more and self._pending:
                raise MediaError(f"{self._name} breaks off in the middle of a line")
            if not more:
                return None
            self._pending += more
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _read(self, count: int) -> bytes:
        """Return so many bytes, or fewer at the end of the stream."""
        parts = [self._pending[:count]]
        self._pending = self._pending[count:]
        left = count - len(parts[0])
        while left:
            part = self._wait_and_read(min(left, _CHUNK_BYTES))
            if not part:
                break
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _wait_and_read(self, most: int) -> bytes:
        with waiting():
            while sys.platform != "win32":  # where only sockets can be waited for
                if select.select([self._file], [], [], _LOOK_SECONDS)[0]:
                    break
                if self._stopped.is_set():
                    raise MediaError(f"{self._name}: no longer wanted")
            return os.read(self._file, most)

    def _close(self) -> None:
        if self._file > 0:
            os.close(self._file)
            self._file = -1
