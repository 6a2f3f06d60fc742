"""Numbered pictures as output: `out/%06d.png`, each whole under its name or not there.

Beside them stands a folder while they are being made:

    out/%06d.png.partial/
        frames.jsonl     what the job is, then a line for each picture: number and SHA-256
        000017.png       the picture that is being written; renamed to out/000017.png
        lock             held by the run that is at work

A picture enters the list before it gets its name, so an interrupted job knows its own pictures from
those that somebody else put there, and whole ones from damaged ones. What is whole is not made
again; a picture does not depend on where the run began, so the result is the same to the bit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

from torch import Tensor

from engines.errors import MediaError
from engines.safety import SafeEngine
from vsr.config import Progress, UpscaleConfig
from vsr.convert import oriented
from vsr.ffmpeg import reason
from vsr.journal import changes, lock, partial_folder, sync_folder
from vsr.memory import automatic_strip
from vsr.output import OutputExists, refuse_other_shape
from vsr.packets import sha256
from vsr.pattern import Pattern
from vsr.photo import read_tags
from vsr.picture import PICTURE_SUFFIXES, PictureFormat, picture_layout
from vsr.sequence import SequenceReader
from vsr.stages import QUEUE_DEPTH, StageMeters, announced, chained
from vsr.still import enlarged, stored_format, warn_of_precision
from vsr.threads import in_thread
from vsr.timeline import Timed
from vsr.video import Reader

log = logging.getLogger(__name__)

T = TypeVar("T")

_FORMAT = "vsr-frames/1"
_LIST = "frames.jsonl"
_OTHER_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg"})


def is_sequence(output: Path) -> bool:
    """Tell whether an output is a pattern of pictures' names."""
    pattern = Pattern.of(output)
    return pattern is not None and pattern.suffix in PICTURE_SUFFIXES


def refuse_single_picture(output: Path) -> None:
    """Raise where the frames of a clip are to go to one picture, or to pictures we do not write."""
    if output.suffix.lower() in PICTURE_SUFFIXES | _OTHER_SUFFIXES:
        raise MediaError(
            f"{output} cannot hold a clip: a pattern such as {output.parent / '%06d.png'} makes a "
            "numbered picture of each frame, .png or .tif"
        )


def check_frames(output: Path, *, overwrite: bool) -> None:
    """Find out before the work whether pictures can have their names.

    Raises:
        OutputExists: there are some that no interrupted job has left.
        MediaError: the folder's own folder is missing.
    """
    pattern = Pattern.of(output)
    assert pattern is not None
    if not pattern.folder.is_dir() and not pattern.folder.parent.is_dir():
        raise MediaError(f"the folder of the output, {pattern.folder.parent}, does not exist")
    with suppress(OSError):  # empty, it is all that a finished run has left behind
        partial_folder(output).rmdir()
    if not overwrite and not (partial_folder(output) / _LIST).exists():
        for number in pattern.numbers()[:1]:
            raise OutputExists(f"{pattern.path(number)} exists: --overwrite replaces it")


class FrameWriter:
    """Writes numbered pictures, and leaves out those that an interrupted run has made.

    Args:
        output: the pattern; its folder is made where it is missing.
        stored: how.
        first: number of the first.
        key: everything that shapes them, JSON-able.
        resume: False: drop what an earlier run left, and keep nothing for a later one.
        overwrite: replace pictures that another job has made.

    Attributes:
        frames: number of pictures that are whole, those of the earlier run among them.
        resumed: number of pictures taken over.

    Raises:
        OutputExists: there are pictures that are not of this job.
        MediaError: another run is making them, or the folder cannot be written.
    """

    def __init__(
        self,
        output: Path,
        stored: PictureFormat,
        *,
        first: int,
        key: dict[str, Any],
        resume: bool = True,
        overwrite: bool = False,
    ) -> None:
        pattern = Pattern.of(output)
        assert pattern is not None
        self.output, self.folder = output, partial_folder(output)
        self._pattern, self._stored, self._first, self._resume = pattern, stored, first, resume
        self._overwrite = overwrite
        self._key = json.loads(json.dumps(key | {"first": first}, default=str))
        self._awaited: deque[int] = deque()
        self._made: list[int] = []
        self._last: tuple[list[Tensor], bytes] | None = None
        self._list: TextIO | None = None
        self._is_new_folder = not pattern.folder.exists()
        try:
            pattern.folder.mkdir(exist_ok=True)
            self._lock = lock(self.folder, output)
        except OSError as error:
            raise MediaError(f"cannot write {output}: {reason(error)}") from error
        try:
            self._whole = self._take_over()
        except OSError as error:
            self._remove()
            raise MediaError(f"cannot write {output}: {reason(error)}") from error
        except BaseException:
            self._close()
            if not (self.folder / _LIST).exists():
                self._remove()
            raise
        self.frames = self.resumed = len(self._whole)

    def remaining(self, frames: Iterator[Timed[T]]) -> Iterator[Timed[T]]:
        """Leave out the frames whose pictures are whole."""
        for index, frame in enumerate(frames):
            number = self._first + index
            if number not in self._whole:
                self._awaited.append(number)
                yield frame

    def write(self, planes: list[Tensor]) -> None:
        """Write the next picture of `remaining`.

        Raises:
            MediaError: the encoder or the disk refuses.
        """
        if self._last is None or self._last[0] is not planes:
            self._last = planes, self._stored.encode(planes)
        data, number = self._last[1], self._awaited.popleft()
        final = self._pattern.path(number)
        fresh = self.folder / final.name
        try:
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._note([number, hashlib.sha256(data).hexdigest()])
            self._made.append(number)
            os.replace(fresh, final)
        except OSError as error:
            raise MediaError(f"cannot write {final}: {reason(error)}") from error
        self.frames += 1

    def commit(self) -> None:
        """Bring all to the disk, and remove the rest.

        Raises:
            MediaError: the disk refuses.
        """
        numbers = set(range(self._first, self._first + self.frames))
        try:
            sync_folder(self._pattern.folder)
            others = [number for number in self._pattern.numbers() if number not in numbers]
        except OSError as error:
            raise MediaError(f"cannot write {self.output}: {reason(error)}") from error
        if others:
            log.warning(
                "%d pictures named as %s are of an earlier job, the first of them %s",
                len(others), self.output, self._pattern.path(others[0]).name,
            )  # fmt: skip
        self._remove()

    def abort(self) -> None:
        """Stop; keep whole pictures and say so. Harmless after `commit`."""
        if self._lock.closed:
            return
        if not self._resume:
            for number in self._made:
                self._pattern.path(number).unlink(missing_ok=True)
        if self._resume and self.frames:
            log.warning(
                "%d pictures are whole in %s: the same command goes on from there",
                self.frames, self._pattern.folder,
            )  # fmt: skip
            self._close()
        else:
            self._remove()

    def _take_over(self) -> set[int]:
        """Return the numbers of the pictures that are whole, and begin or go on with the list."""
        path = self.folder / _LIST
        there = set(self._pattern.numbers())
        key, listed = _read_list(path)
        whole = {
            number
            for number in there & listed.keys()
            if sha256(self._pattern.path(number)) == listed[number]
        }
        goes_on = key == self._key and self._resume
        foreign = there - (listed.keys() if goes_on else whole)
        if foreign and not self._overwrite:
            raise OutputExists(
                f"{self._pattern.path(min(foreign))} exists: --overwrite replaces it"
            )
        if not goes_on:
            if whole:
                found = "; ".join(changes(key or {}, self._key)) or "--no-resume"
                log.warning(
                    "starting anew, without the %d pictures in %s: %s",
                    len(whole), self._pattern.folder, found,
                )  # fmt: skip
            for number in whole:
                self._pattern.path(number).unlink()
            whole = set()
            path.unlink(missing_ok=True)
        self._list = path.open("a", encoding="utf-8")
        if not goes_on:
            self._note({"format": _FORMAT, "key": self._key})
        else:
            self._list.write("\n")  # ends a line that a crash may have cut
        if damaged := (there & listed.keys()) - whole if goes_on else set():
            log.warning("%d pictures are damaged: made again", len(damaged))
        if whole:
            log.warning("going on with %d pictures that an earlier run has made", len(whole))
        return whole

    def _note(self, entry: object) -> None:
        assert self._list is not None
        self._list.write(json.dumps(entry) + "\n")
        self._list.flush()
        os.fsync(self._list.fileno())

    def _close(self) -> None:
        if self._list is not None:
            with suppress(OSError):
                self._list.close()
        for path in self.folder.glob(f"*{self._stored.suffix}"):
            with suppress(OSError):
                path.unlink()
        self._lock.close()

    def _remove(self) -> None:
        """Remove the folder, unless something foreign is in it; and the pictures' if we made it."""
        self._close()
        with suppress(OSError):
            (self.folder / "lock").unlink(missing_ok=True)
            (self.folder / _LIST).unlink(missing_ok=True)  # last: it says whose the pictures are
            self.folder.rmdir()
            if self._is_new_folder:
                self._pattern.folder.rmdir()


def _read_list(path: Path) -> tuple[dict[str, Any] | None, dict[int, str]]:
    """Return the key of an interrupted job, and what each picture's SHA-256 is."""
    listed: dict[int, str] = {}
    key = None
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None, {}
    for line in lines:
        with suppress(ValueError, TypeError, KeyError):  # a line that a crash has cut
            entry = json.loads(line)
            if isinstance(entry, dict):
                key = entry["key"] if entry["format"] == _FORMAT else None
            else:
                number, digest = entry
                listed[int(number)] = str(digest)
    return key, listed


def upscale_to_frames(
    config: UpscaleConfig,
    reader: Reader,
    engine: SafeEngine,
    output: Path,
    size: tuple[int, int],
    key: dict[str, Any],
    progress: Callable[[Progress], None],
) -> tuple[int, int, int]:
    """Upscale each frame to a picture of (height, width).

    Returns:
        The number of frames, of those resumed and of those reused.

    Raises:
        MediaError: the input cannot be read or the pictures not written.
    """
    info = reader.info
    refuse_other_shape(config, info, size)
    warn_of_precision(info, engine)
    pattern = Pattern.of(output)
    assert pattern is not None
    first, tagged = 1, info.path
    if isinstance(reader, SequenceReader):
        first, tagged = reader.numbers[0], reader.first
    assert isinstance(tagged, Path), "a stream does not become pictures"
    writer = FrameWriter(
        output,
        stored_format(info, pattern.suffix, read_tags(tagged)),
        first=first,
        key=key,
        resume=config.resume,
        overwrite=config.overwrite,
    )
    with ExitStack() as stack:
        stack.callback(writer.abort)
        meters = StageMeters()
        frames = writer.remaining(reader.frames())
        planes = _pictures(config, frames, reader, engine, size, stack, meters)
        reused = 0
        last: list[Tensor] | None = None
        try:
            for frame in planes:
                reused += frame.value is last
                last = frame.value
                with meters["encode"].working():
                    writer.write(frame.value)
                shares, waiting = meters.shares(), meters.queued()
                progress(Progress(writer.frames, info.frames, writer.resumed, 0, shares, waiting))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted after {writer.frames} pictures") from None
        if writer.frames != reader.frames_read:
            raise MediaError(
                f"{reader.frames_read} frames were decoded but {writer.frames} written"
            )
        writer.commit()
    return writer.frames, writer.resumed, reused


def _pictures(
    config: UpscaleConfig,
    frames: Iterator[Timed[list[Tensor]]],
    reader: Reader,
    engine: SafeEngine,
    size: tuple[int, int],
    stack: ExitStack,
    meters: StageMeters,
) -> Iterator[Timed[list[Tensor]]]:
    """Chain the stages from decoded planes to those of upright pictures."""
    info = reader.info
    if info.alpha:  # which the stages of a clip leave out

        def wake() -> None:
            engine.cancel()
            reader.stop()

        made = (
            Timed(enlarged(frame.value, info, engine, size), frame.pts, frame.duration)
            for frame in announced(frames, engine)
        )
        stage = in_thread(made, depth=QUEUE_DEPTH, name="engine", meter=meters["engine"], wake=wake)
        return stack.enter_context(closing(stage))
    planes = chained(
        frames, info.layout, engine, picture_layout(info.layout), size, stack,
        changed_only=config.changed_only, tolerance=config.tolerance,
        meters=meters, stop=reader.stop,
        strip_rows=automatic_strip(engine, info.size),
    )  # fmt: skip
    return planes if info.display_matrix is None else _upright(planes, info.display_matrix)


def _upright(
    frames: Iterator[Timed[list[Tensor]]], display_matrix: Sequence[int]
) -> Iterator[Timed[list[Tensor]]]:
    """Turn frames as they are to be displayed; one that repeats the one before stays the same."""
    last: list[Tensor] | None = None
    turned: list[Tensor] = []
    for frame in frames:
        if frame.value is not last:
            last = frame.value
            turned = [oriented(plane, display_matrix) for plane in last]
        yield Timed(turned, frame.pts, frame.duration)
