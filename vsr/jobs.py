"""Several inputs, or a folder of them: each a job of its own, and one bad clip stops no other.

An output that exists is a job that is done, so the same command run again goes on with what is
missing: finished clips are skipped, an interrupted one goes on from its last whole segment.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engines.errors import BackendUnavailable, MediaError, WeightsError
from vsr.config import Result, UpscaleConfig
from vsr.ffmpeg import reason
from vsr.output import OutputExists, default_suffix
from vsr.pattern import Pattern, pattern_in
from vsr.picture import is_partial

log = logging.getLogger(__name__)

STILL_SUFFIXES = frozenset(
    {".avif", ".bmp", ".exr", ".heic", ".heif", ".j2k", ".jp2", ".jpeg", ".jpg", ".jxl", ".pbm"}
    | {".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
CLIP_SUFFIXES = frozenset(
    {".264", ".265", ".3g2", ".3gp", ".amv", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv"}
    | {".gif", ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mkv"}
    | {".mjpeg", ".mjpg", ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut"}
    | {".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod", ".ts", ".vob", ".webm", ".wmv", ".wtv"}
    | {".y4m"}
)
# what `default_output` adds to a stem
_MARK = re.compile(r"(_[\d.]+-([\d.]+s|end))?(_(crop|zoom)[\d.,@]+)?_(x\d+(\.\d+)?|\d+x\d+)$")


@dataclass(frozen=True, slots=True)
class Job:
    """What became of one input."""

    source: Path
    outcome: Result | Exception

    @property
    def status(self) -> Literal["done", "skipped", "failed"]:
        """Name the outcome; skipped: its output exists."""
        if isinstance(self.outcome, Result):
            return "done"
        return "skipped" if isinstance(self.outcome, OutputExists) else "failed"


def sources(inputs: Sequence[Path]) -> list[Path]:
    """Return the inputs, each once, and in the place of a folder the clips and pictures in it.

    A folder is not searched further down. Left out are files with other suffixes, hidden ones, and
    those that bear the name of another's output, such as `clip_x4.mp4` beside `clip.mov`; of the
    inputs that were named, only the last, with a warning.

    Raises:
        MediaError: a folder cannot be read, or holds neither a clip nor a picture.
    """
    found: dict[Path, None] = {}
    stems: defaultdict[Path, set[str]] = defaultdict(set)
    for path in inputs:
        if not path.is_dir():
            stems[path.parent].add(path.stem)
    for path in inputs:
        if path.is_dir():
            found |= dict.fromkeys(_in_folder(path))
        elif _is_output(path, stems[path.parent]):
            log.warning("%s is left out: by its name it is the output of another input", path)
        else:
            found[path] = None
    return list(found)


def sequence_of(inputs: Sequence[Path], output: str | None) -> list[Path]:
    """Take a folder for the sequence in it where the output is one clip, or a pattern.

    Raises:
        MediaError: the pictures in the folder are not one numbered sequence.
    """
    if len(inputs) != 1 or output is None or Path(output).is_dir() or not inputs[0].is_dir():
        return list(inputs)
    path = Path(output)
    if path.suffix.lower() not in CLIP_SUFFIXES and Pattern.of(path) is None:
        return list(inputs)
    with suppress(OSError):  # said where the folder is read for clips
        if any(found.suffix.lower() in STILL_SUFFIXES for found in inputs[0].iterdir()):
            return [pattern_in(inputs[0], STILL_SUFFIXES)]
    return list(inputs)


def _in_folder(folder: Path) -> list[Path]:
    try:
        media = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in STILL_SUFFIXES | CLIP_SUFFIXES
            and not path.name.startswith(".")
            and not is_partial(path)
            and path.is_file()
        )
    except OSError as error:
        raise MediaError(f"cannot read {folder}: {reason(error)}") from error
    stems = {path.stem for path in media}
    media = [path for path in media if not _is_output(path, stems)]
    if not media:
        raise MediaError(f"{folder} is a folder without a video or a picture")
    return media


def _is_output(path: Path, stems: set[str]) -> bool:
    mark = _MARK.search(path.stem)
    return mark is not None and path.stem[: mark.start()] in stems


def make_folder(output: str) -> Path:
    """Return the folder that an output names; make it where the name ends with a slash.

    Raises:
        MediaError: it is no folder, or cannot be made.
    """
    path = Path(output)
    separators = tuple(filter(None, (os.sep, os.altsep)))
    try:
        if output.endswith(separators):
            path.mkdir(exist_ok=True)
    except OSError as error:
        raise MediaError(f"cannot make the folder {path}: {reason(error)}") from error
    if not path.is_dir():
        raise MediaError(
            f"the output of several inputs is a folder, got {path}: {path}/ makes a new one"
        )
    return path


def run_all(
    configs: Sequence[UpscaleConfig], run_one: Callable[[UpscaleConfig], Result]
) -> Iterator[Job]:
    """Run jobs one after the other, and yield what became of each.

    Raises:
        WeightsError, BackendUnavailable: no job could be done with these.
    """
    taken: dict[tuple[Path, str, str], Path] = {}
    for config in configs:
        source = config.source
        assert isinstance(source, Path), "addresses are no part of several inputs"
        folder = config.output or source.parent
        suffix = ".png" if source.suffix.lower() in STILL_SUFFIXES else default_suffix(source)
        other = taken.setdefault((folder, source.stem.lower(), suffix), source)
        try:
            if other != source:
                raise MediaError(f"{source} and {other} would get the same output: rename one")
            outcome: Result | Exception = run_one(config)
        except (WeightsError, BackendUnavailable):
            raise
        except Exception as error:  # whatever is wrong with this one, the others are not to suffer
            outcome = error
        yield Job(source, outcome)


def summary(jobs: Sequence[Job], describe: Callable[[Exception], str]) -> str:
    """Say how many jobs came to which end, and name those that are not done.

    Args:
        jobs: all of them.
        describe: an error in one line.
    """
    count = Counter(job.status for job in jobs)
    lines = [
        f"{len(jobs)} inputs: {count['done']} done, {count['skipped']} skipped, "
        f"{count['failed']} failed"
    ]
    lines += [
        f"  {job.status}: {job.source}: {describe(job.outcome)}"
        for job in jobs
        if isinstance(job.outcome, Exception)
    ]
    return "\n".join(lines)
