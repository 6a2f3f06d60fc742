"""Crash-proof output: a clip is made in segments, and an interrupted job goes on from the last.

Beside the output stands a folder while it is being made:

    clip_x4.mp4.partial/
        journal.json     what the job is, and which segments are whole
        000000.packets   frames 0 to 249 or less, from an encoder of their own (see `vsr.packets`)
        000001.packets   ...
        joined.mp4       all of them with sound and the rest; renamed to clip_x4.mp4 at the end
        lock             held by the run that is at work

A segment enters the journal when it is on the disk. Cuts are at frame counts and each segment has a
fresh encoder, so a segment does not depend on where its run began: resumed or not, the output is
the same to the bit. The journal is replaced as a whole, never changed in place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import av
from av.error import FFmpegError
from torch import Tensor

from engines.errors import MediaError
from vsr.encode import PictureEncoding
from vsr.ffmpeg import reason
from vsr.journal import (
    Journal,
    Segment,
    changes,
    clear,
    lock,
    partial_folder,
    segment_name,
    stamp,
    sync_folder,
)
from vsr.mux import EXACT_SUFFIXES, Muxer, compare_times
from vsr.packets import Packet, PacketFile, read_packets, read_times, sha256
from vsr.timeline import Timed
from vsr.video import Reader

log = logging.getLogger(__name__)

T = TypeVar("T")

SEGMENT_FRAMES = 250
"""of the longest segments, about 10 s of a clip; x264 begins anew so often in any case"""


class SegmentedWriter:
    """Encodes planes into a clip, in segments, and goes on where an interrupted run stopped.

    Args:
        path: the output; its suffix names the container.
        reader: of the input: its other streams, tags and time base are taken over.
        encoding: of the picture.
        key: everything that shapes the frames and their encoding, JSON-able.
        segment_frames: length of a segment; None: the longest there is.
        resume: False: drop what an earlier run left, and keep nothing for a later one.
        overwrite: replace an output that another job has made.

    Attributes:
        frames: number of frames written, those of the earlier run among them.
        resumed: number of frames taken over from an earlier run.
        finished: whether an earlier run has written them all: `commit` is all that is left.
        segment: number of the segment that the last frame is in.

    Raises:
        MediaError: another run is making this output; the container or the encoder does not open
            or does not fit; or the folder cannot be written.
    """

    def __init__(
        self,
        path: Path,
        reader: Reader,
        encoding: PictureEncoding,
        *,
        key: dict[str, Any],
        segment_frames: int | None = None,
        resume: bool = True,
        overwrite: bool = False,
    ) -> None:
        self._segment_frames = segment_frames or SEGMENT_FRAMES
        self.path, self.folder = path, partial_folder(path)
        self._reader, self._encoding, self._resume = reader, encoding, resume
        self._journal_path = self.folder / "journal.json"
        self._joined_path = self.folder / f"joined{path.suffix}"
        self._encoder: av.VideoCodecContext | None = None
        self._file: PacketFile | None = None
        self._times: list[int] = []
        self._last_tick: int | None = None
        try:
            self._lock = lock(self.folder, path)
        except OSError as error:
            raise MediaError(f"cannot write {path}: {reason(error)}") from error
        self._journal = Journal({})
        self._began = False
        try:
            muxer = Muxer(self._joined_path, path, reader, encoding)  # finds out what it refuses
            muxer.abort()
            self._extradata, self._global_header = muxer.extradata, muxer.global_header
            self._tick_seconds = muxer.tick_seconds
            for sentence in muxer.left_out:
                log.warning("%s", sentence)
            extradata = hashlib.sha256(self._extradata).hexdigest()
            key = json.loads(json.dumps({**key, "parameter sets": extradata}, default=str))
            self._began = True
            self._journal = self._take_over(key)
            if self._journal.segments == [] and not overwrite and path.exists():
                raise MediaError(f"{path} exists: --overwrite replaces it")
        except BaseException:
            self.abort()
            raise
        self.frames = self.resumed = self._journal.frames
        self.finished = self._journal.finished
        self.segment = len(self._journal.segments)

    def remaining(self, frames: Iterator[Timed[T]]) -> Iterator[Timed[T]]:
        """Leave out the first `resumed` frames.

        They are decoded all the same: a decoder that starts in the middle need not give the same
        frames, and decoding is cheap beside the network.

        Raises:
            MediaError: they are not those that the segments were made of.
        """
        for segment in self._journal.segments[:]:
            for index in range(segment.frames):
                frame = next(frames, None)
                expected = {0: segment.first_pts, segment.frames - 1: segment.last_pts}.get(index)
                if frame is None or expected not in (None, frame.pts):
                    raise MediaError(
                        f"{self._reader.info.path} decodes to other frames than in the run that "
                        f"{self.folder.name} is from: --no-resume starts anew"
                    )
        yield from frames

    def write(self, frame: Timed[list[Tensor]]) -> None:
        """Encode one frame, planes of the encoding's layout; close the segment if it is full.

        Raises:
            MediaError: the encoder or the disk refuses.
        """
        if self._tick_seconds:  # found out now, not when all is joined
            tick = round(frame.pts * self._reader.info.time_base / self._tick_seconds)
            if tick == self._last_tick:
                raise MediaError(
                    f"{self.path} counts time in {self._tick_seconds} s, but frames {self.frames} "
                    f"and {self.frames + 1} are closer: .mkv or .mp4 can hold them"
                )
            self._last_tick = tick
        try:
            if self._encoder is None:
                self._open_segment()
            self.segment = len(self._journal.segments)
            self._times.append(frame.pts)
            self._encode(self._encoding.picture(frame))
            self.frames += 1
            if len(self._times) == self._segment_frames:
                self._close_segment()
        except (FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"cannot write {self.path}: {reason(error)}") from error

    def commit(self) -> None:
        """Join the segments, check the result, give it its name, and remove the rest.

        Raises:
            MediaError: the disk refuses, or frames were lost in the encoder.
        """
        try:
            if self._encoder is not None:
                self._close_segment()
            if not self.finished:
                self._journal.finished = True
                self._journal.save(self._journal_path)
            if not self._is_joined(self._journal):
                self._join()
            self._remove()
        except (FFmpegError, OSError) as error:
            raise MediaError(f"cannot write {self.path}: {reason(error)}") from error

    def abort(self) -> None:
        """Stop; keep whole segments and say so, remove all else. Harmless after `commit`."""
        if self._lock.closed:
            return
        if self._file is not None:
            self._file.abort()
        if not self._began:  # what an earlier run left is untouched
            kept = self._journal_path.exists()
        else:
            kept = self._resume and self._say_what_is_kept()
        if kept:
            self._joined_path.unlink(missing_ok=True)
            self._lock.close()
        else:
            self._remove()

    def _say_what_is_kept(self) -> bool:
        """Tell whether the next run has something to go on from, as the disk has it."""
        with suppress(ValueError):
            journal = Journal.load(self._journal_path)
            if journal is not None and journal.frames:
                log.warning(
                    "%d frames are kept in %s: the same command goes on from there",
                    journal.frames, self.folder,
                )  # fmt: skip
                return True
        return False

    def _take_over(self, key: dict[str, Any]) -> Journal:
        """Return the journal of an earlier run of the same job, or a new one."""
        try:
            journal = Journal.load(self._journal_path)
        except ValueError as error:
            log.warning("%s is damaged, starting anew: %s", self._journal_path, error)
            journal = None
        else:
            if journal is not None and not self._resume:
                journal = None
            elif journal is not None and (found := changes(journal.key, key)):
                log.warning(
                    "starting anew, without the %d frames in %s: %s",
                    journal.frames, self.folder, "; ".join(found),
                )  # fmt: skip
                journal = None
        journal = journal or Journal(key)
        if not self._is_joined(journal):
            self._drop_damaged(journal)
        keep = {segment.file for segment in journal.segments}
        clear(self.folder, keep | {"lock", "journal.json"} if keep else {"lock"})
        if journal.segments:
            log.warning("going on after %d frames that an earlier run has made", journal.frames)
        return journal

    def _is_joined(self, journal: Journal) -> bool:
        return journal.joined is not None and journal.joined == stamp(self.path)

    def _drop_damaged(self, journal: Journal) -> None:
        """Shorten a journal to the segments that are on the disk as it says."""
        for index, segment in enumerate(journal.segments):
            path = self.folder / segment.file
            if not path.is_file() or sha256(path) != segment.sha256:
                log.warning("%s is damaged: made again, with what follows", path)
                del journal.segments[index:]
                journal.finished, journal.joined = False, None
                return

    def _open_segment(self) -> None:
        self._encoder = self._encoding.open(global_header=self._global_header)
        if self._encoder.is_open:
            self._check_parameter_sets()
        self._file = PacketFile(self.folder / segment_name(len(self._journal.segments)))
        self._times = []

    def _check_parameter_sets(self) -> None:
        assert self._encoder is not None
        if bytes(self._encoder.extradata or b"") != self._extradata:
            raise MediaError(
                f"encoder {self._encoding.name} does not give the same parameter sets twice: its "
                "segments could not be joined"
            )

    def _encode(self, picture: av.VideoFrame | None) -> None:
        assert self._encoder is not None
        assert self._file is not None
        opens_now = not self._encoder.is_open
        packets = self._encoder.encode(picture)
        if opens_now:
            self._check_parameter_sets()
        for packet in packets:
            if packet.size:
                pts = self._times[0] if packet.pts is None else packet.pts
                self._file.write(
                    Packet(pts, packet.duration or 0, packet.is_keyframe, bytes(packet))
                )

    def _close_segment(self) -> None:
        """Flush the encoder, bring the segment to the disk, then enter it in the journal."""
        assert self._file is not None
        self._encode(None)
        path, digest = self._file.path, self._file.close()
        self._file = self._encoder = None  # from here on, an interruption must leave the file
        found = sorted(read_times(path))
        if found != self._times:
            raise MediaError(
                f"{self.path}: {len(self._times)} frames went into the encoder, {len(found)} came "
                "out, or with other timestamps"
            )
        sync_folder(self.folder)
        self._journal.segments.append(Segment(path.name, len(found), found[0], found[-1], digest))
        self._journal.save(self._journal_path)

    def _join(self) -> None:
        muxer = Muxer(
            self._joined_path,
            self.path,
            self._reader,
            self._encoding,
            first_pts=self._journal.segments[0].first_pts if self._journal.segments else 0,
        )
        paths = [self.folder / segment.file for segment in self._journal.segments]
        try:
            muxer.mux(joined(paths))
            if self.path.suffix.lower() in EXACT_SUFFIXES:
                times = chain.from_iterable(map(read_times, paths))
                compare_times(self._joined_path, times, self._reader)
        except BaseException:
            muxer.abort()
            raise
        with self._joined_path.open("rb+") as file:
            os.fsync(file.fileno())
        self._journal.joined = stamp(self._joined_path)
        self._journal.save(self._journal_path)
        os.replace(self._joined_path, self.path)
        sync_folder(self.path.parent)

    def _remove(self) -> None:
        """Remove the folder, unless something foreign is in it."""
        clear(self.folder, {"lock", "journal.json"})
        if sys.platform == "win32":  # removes no open file
            self._lock.close()
        with suppress(OSError):
            (self.folder / "lock").unlink(missing_ok=True)
            self._journal_path.unlink(missing_ok=True)  # last: it says that all is done
            self.folder.rmdir()
        self._lock.close()


def joined(paths: list[Path]) -> Iterator[tuple[Packet, int]]:
    """Yield the packets of segments, each with its dts, as if one encoder had made them all.

    The first dts of an encoder lie before its first pts, by as many frames as it reorders: at a
    join they would jump back. So dts are dealt out anew, as encoders do: the pts in ascending
    order, late by the most frames that any frame is moved.
    """
    if not paths:
        return
    delay = 0
    for path in paths:
        times = read_times(path)
        ranks = {pts: rank for rank, pts in enumerate(sorted(times))}
        delay = max(delay, *(index - ranks[pts] for index, pts in enumerate(times)))
    ascending = sorted(read_times(paths[0]))
    lead = ascending[min(delay, len(ascending) - 1)] - ascending[0]
    waiting = [pts - lead for pts in ascending[:delay]]
    for path in paths:
        waiting += sorted(read_times(path))
        for packet in read_packets(path):
            yield packet, waiting.pop(0)
