"""How FFmpeg is spoken to: names of files, words for its errors, packets by stream."""

from __future__ import annotations

from collections.abc import Generator, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError

from vsr.address import Address


def file_url(path: Path | Address) -> str:
    """Name a file for FFmpeg, which takes "a:b.mp4" for a protocol called a."""
    return path.url if isinstance(path, Address) else f"file:{path}"


def reason(error: Exception) -> str:
    """Say in a few words what a library complained of, with the last line of its log."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = text[:1].lower() + text[1:]
    last = getattr(error, "log", None)
    return f"{text} ({' '.join(str(last[2]).split())})" if last else text


def other_packets(path: Path | Address, wanted: Set[int]) -> Generator[av.Packet[Any], None, None]:
    """Yield the packets of some streams, by their indices, in file order.

    Where the file breaks off, so does this: the reader of its picture has said so. The file closes
    with this generator, and a packet's `stream` must not be touched after that.

    Raises:
        FFmpegError: the file cannot be opened.
    """
    if not wanted:
        return
    with av.open(file_url(path), "r", metadata_errors="replace") as container:
        packets = container.demux()
        with suppress(FFmpegError):
            for packet in packets:
                if packet.size and packet.stream_index in wanted:
                    yield packet
