"""How FFmpeg is spoken to: names of files, words for its errors, packets by stream."""

from __future__ import annotations

import gc
import time
from collections.abc import Generator, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Any

import av
import av.logging
from av.error import FFmpegError

from vsr.address import Address

_LISTENING = RLock()
_TURN_SECONDS = 0.005
_EARLIER_SECONDS = 10.0  # how far apart in a file packets of one moment may lie


def file_url(path: Path | Address) -> str:
    """Name a file for FFmpeg, which takes "a:b.mp4" for a protocol called a."""
    return path.url if isinstance(path, Address) else f"file:{path}"


@contextmanager
def log_lines(level: int) -> Iterator[list[Any]]:
    """Catch what FFmpeg says in this thread, at a level of `av.logging` or worse.

    PyAV hears of it by a call that needs Python's lock. A decoder's thread in such a call keeps
    from being freed whoever has the lock, and waits for it: both would wait for ever. So nothing is
    freed by chance meanwhile, and afterwards every call that has begun gets its turn.

    Yields:
        (level, name, message) each, in order.
    """
    with _LISTENING:  # the level is the process's
        before, collects = av.logging.get_level(), gc.isenabled()
        gc.disable()
        av.logging.set_level(level)
        try:
            with av.logging.Capture() as lines:
                yield lines
        finally:
            av.logging.set_level(before)
            time.sleep(_TURN_SECONDS)
            if collects:
                gc.enable()


def reason(error: Exception) -> str:
    """Say in a few words what a library complained of, with the last line of its log."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = text[:1].lower() + text[1:]
    last = getattr(error, "log", None)
    return f"{text} ({' '.join(str(last[2]).split())})" if last else text


def is_refusal(error: Exception) -> bool:
    """Tell whether a muxer complains of a packet, and not of the disk or the memory."""
    of_machine = isinstance(error, (OSError, MemoryError))
    return isinstance(error, (FFmpegError, ValueError)) and not of_machine


def packets_of(container: av.container.InputContainer) -> Iterator[av.Packet[Any]]:
    """Yield all packets of an opened file or stream, in its order, then one without data a stream.

    Where a stream begins in the middle, as in MPEG-TS, PyAV (up to 18.1 at least) forgets it at the
    end and fails: here that is an end like any other.

    Raises:
        FFmpegError: it breaks off.
    """
    with suppress(IndexError):
        yield from container.demux()


def other_packets(
    path: Path | Address, wanted: Set[int], *, near_seconds: float | None = None
) -> Generator[av.Packet[Any], None, None]:
    """Yield the packets of some streams, by their indices, in file order.

    From the beginning, or, where the file can be sought in, from some time before `near_seconds`.

    Where the file breaks off, so does this: the reader of its picture has said so. The file closes
    with this generator, and a packet's `stream` must not be touched after that.

    Raises:
        FFmpegError: the file cannot be opened.
    """
    if not wanted:
        return
    with av.open(file_url(path), "r", metadata_errors="replace") as container:
        if near_seconds is not None:
            target = round((near_seconds - _EARLIER_SECONDS) * av.time_base)
            with suppress(FFmpegError):  # then from the beginning
                if target > (container.start_time or 0):
                    container.seek(target)
        with suppress(FFmpegError):
            for packet in packets_of(container):
                if packet.size and packet.stream_index in wanted:
                    yield packet
