"""Which reader an input needs: a file, numbered pictures, or a pipe."""

from __future__ import annotations

from pathlib import Path

from engines.errors import MediaError
from vsr.config import UpscaleConfig
from vsr.pattern import is_pattern
from vsr.sequence import SequenceReader
from vsr.video import Reader
from vsr.y4m import STDIN, Y4mReader


def open_reader(config: UpscaleConfig) -> Reader:
    """Open the source of a job.

    Raises:
        MediaError: it cannot be read, or has times of its own and was given others.
    """
    source = config.source
    assert isinstance(source, Path), "streams are opened in vsr.live"
    if source == STDIN and config.output is None:
        raise MediaError("-o says where the result of standard input goes: a file, or - for a pipe")
    if source != STDIN and source.exists() and not (source.is_file() or source.is_dir()):
        raise MediaError(f"{source} is no regular file: what comes through a pipe is read from -")
    if is_pattern(source):
        return SequenceReader(source, fps=config.fps)
    if config.fps is not None:
        raise MediaError(
            f"--fps is for numbered pictures, such as frames/%06d.png: {source} has its own times"
        )
    if source == STDIN or source.suffix.lower() == ".y4m":
        return Y4mReader(source, threads=config.threads, deinterlace=config.deinterlace)
    return Reader(source, threads=config.threads, deinterlace=config.deinterlace)
