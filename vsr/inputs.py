"""Which reader an input needs: a file, or numbered pictures."""

from __future__ import annotations

from engines.errors import MediaError
from vsr.config import UpscaleConfig
from vsr.pattern import Pattern
from vsr.sequence import SequenceReader
from vsr.video import Reader


def open_reader(config: UpscaleConfig) -> Reader:
    """Open the source of a job.

    Raises:
        MediaError: it cannot be read, or has times of its own and was given others.
    """
    source = config.source
    if Pattern.of(source) is not None and not source.exists():
        return SequenceReader(source, fps=config.fps)
    if config.fps is not None:
        raise MediaError(
            f"--fps is for numbered pictures, such as frames/%06d.png: {source} has its own times"
        )
    return Reader(source, threads=config.threads, deinterlace=config.deinterlace)
