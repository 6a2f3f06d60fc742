"""Writing what cannot be had again: a live stream's picture and sound, straight into one file.

    out.a1b2c3.partial.mkv   while it is being made; renamed to out.mkv at the end

Matroska can be played however it ends. MP4 and MOV are written in fragments, which can too, and
become plain files when they end well.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import av
import av.logging
from av.error import FFmpegError
from torch import Tensor

from engines import Engine
from engines.errors import MediaError
from vsr.clip import warn_of_marks
from vsr.config import Progress, UpscaleConfig
from vsr.connection import Stopped
from vsr.encode import EncoderSettings, PictureEncoding
from vsr.ffmpeg import file_url, is_refusal, log_lines, reason
from vsr.journal import sync_folder
from vsr.live import LiveStream
from vsr.mux import EXACT_SUFFIXES
from vsr.output import kept_aspect_ratio
from vsr.picture import new_partial
from vsr.stages import StageMeters, chained
from vsr.timeline import JUMP_SECONDS, Timed, Timeline
from vsr.unkept import kept_metadata, left_out
from vsr.video import Reader

log = logging.getLogger(__name__)

_AT_RISK_MS = "1000"  # what a crash may cost, beside what is still in the encoder


class Recording:
    """A file that grows with the stream. Its streams are the picture and all sound that fits.

    Args:
        path: the output; its suffix names the container.
        reader: of the stream.
        encoding: of the picture.
        overwrite: replace what has the output's name when the recording ends.

    Attributes:
        frames: number of frames written.
        sound_refused: number of packets of sound that were too damaged for the container.

    Raises:
        MediaError: the container does not hold live streams, or the encoder does not open or fit.
    """

    def __init__(
        self, path: Path, reader: Reader, encoding: PictureEncoding, *, overwrite: bool
    ) -> None:
        if path.suffix.lower() not in EXACT_SUFFIXES:
            raise MediaError(
                f"a live stream is recorded as {', '.join(sorted(EXACT_SUFFIXES))}, got {path}"
            )
        self.frames = self.sound_refused = 0
        self._path, self._overwrite, self._encoding = path, overwrite, encoding
        self._closed = False
        options = {"flush_packets": "1"}
        if path.suffix.lower() == ".mkv":
            options["cluster_time_limit"] = _AT_RISK_MS
        else:
            options |= {"movflags": "+hybrid_fragmented", "frag_duration": f"{_AT_RISK_MS}000"}
        try:
            self._partial = new_partial(path)
            self._container = av.open(file_url(self._partial), "w", container_options=options)
        except (FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"cannot write {path}: {reason(error)}") from error
        try:
            self._stream = encoding.add_stream(self._container)
            if reader.info.display_matrix:
                self._stream.set_display_matrix(reader.info.display_matrix)
            self._sounds = [self._copy_of(sound) for sound in reader.container.streams.audio]
            self._container.metadata.update(kept_metadata(reader.container.metadata))
            with log_lines(av.logging.ERROR):  # errors carry what FFmpeg says of them
                self._container.start_encoding()
        except (FFmpegError, OSError, ValueError) as error:
            self.abort()
            raise MediaError(
                f"cannot write {path} with encoder {encoding.name}: {reason(error)}"
            ) from error
        except BaseException:
            self.abort()
            raise
        self._timelines: dict[int, Timeline] = {}

    def write(
        self, frame: Timed[list[Tensor]], sound: Iterable[tuple[int, av.Packet[Any]]]
    ) -> None:
        """Encode a frame, planes of the encoding's layout, and add what has come of the sound.

        Args:
            frame: later than the one before it.
            sound: number of the sound stream and packet, which is changed.

        Raises:
            MediaError: the encoder or the disk refuses.
        """
        try:
            self._add(sound)
            self._container.mux(self._stream.encode(self._encoding.picture(frame)))
            self.frames += 1
        except (FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"cannot write {self._path}: {reason(error)}") from error

    def finish(self, sound: Iterable[tuple[int, av.Packet[Any]]] = ()) -> None:
        """Write what is left, close the file and give it its name.

        Raises:
            MediaError: the disk refuses, or something has taken the name.
        """
        try:
            self._add(sound)
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._closed = True
            with self._partial.open("rb+") as file:
                os.fsync(file.fileno())
            if self._path.exists() and not self._overwrite:
                raise MediaError(
                    f"{self._path} exists by now: the recording is kept in {self._partial}"
                )
            os.replace(self._partial, self._path)
            sync_folder(self._path.parent)
        except (FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"cannot write {self._path}: {reason(error)}") from error

    def abort(self) -> None:
        """Close the file; keep it, under its partial name, if anything is in it.

        Harmless after `finish`.
        """
        if not self._closed:
            self._closed = True
            with suppress(FFmpegError, OSError, ValueError):
                if self.frames:
                    self._container.mux(self._stream.encode(None))
            with suppress(FFmpegError, OSError, ValueError):
                self._container.close()
            if self.frames:
                log.warning("%d frames are kept in %s", self.frames, self._partial)
            else:
                self._partial.unlink(missing_ok=True)

    def _copy_of(self, sound: av.AudioStream) -> av.AudioStream | None:
        try:
            copy = self._container.add_stream_from_template(sound)
        except (FFmpegError, ValueError) as error:
            log.warning("%s", left_out(sound, reason(error), self._path))
            return None
        copy.metadata.update(kept_metadata(sound.metadata))
        return copy

    def _add(self, sound: Iterable[tuple[int, av.Packet[Any]]]) -> None:
        for number, packet in sound:
            copy = self._sounds[number]
            if copy is None or packet.dts is None:
                continue
            timeline = self._timelines.setdefault(
                number, Timeline(jump=round(JUMP_SECONDS / packet.time_base))
            )
            dts = timeline.place(packet.dts, packet.duration or 1)
            packet.pts = dts if packet.pts is None else packet.pts + dts - packet.dts
            packet.dts = dts
            packet.stream = copy
            try:
                self._container.mux(packet)
            except (FFmpegError, ValueError) as error:
                if not is_refusal(error):
                    raise
                self.sound_refused += 1
                log.debug("%s: a packet of sound: %s", self._path, reason(error))


def record_frames(
    config: UpscaleConfig,
    live: LiveStream,
    reader: Reader,
    engine: Engine,
    output: Path,
    size: tuple[int, int],
    progress: Callable[[Progress], None],
) -> tuple[int, int]:
    """Record an opened stream until it ends.

    Returns:
        The number of frames, and of those reused.

    Raises:
        MediaError: the encoder or the disk refuses; what was recorded is kept.
        Stopped: there was no frame.
    """
    encoding = PictureEncoding(
        reader.info, size=size, sample_aspect_ratio=kept_aspect_ratio(config, reader.info, size),
        settings=EncoderSettings(
            config.encoder, config.crf, config.preset, config.threads, config.pixel_format
        ),
    )  # fmt: skip
    warn_of_marks(reader.info)
    recording = Recording(output, reader, encoding, overwrite=config.overwrite)
    with ExitStack() as stack:
        stack.callback(recording.abort)
        reused, last, meters = 0, None, StageMeters()
        planes = chained(
            live.begin(), reader.info.layout, engine, encoding.layout, size, stack,
            changed_only=config.changed_only, tolerance=config.tolerance, meters=meters,
        )  # fmt: skip
        stack.callback(live.latest.end)  # before the stages, which wait for it
        for frame in planes:
            reused += frame.value is last
            last = frame.value
            with meters["encode"].working():
                recording.write(frame, live.sound())
            live.latest.done()
            progress(
                Progress(
                    recording.frames, None, stage_shares=meters.shares(),
                    queue_depths=meters.queued(), dropped=live.latest.dropped,
                )
            )  # fmt: skip
        if not recording.frames:
            raise Stopped(f"{live.address}: ended before its first frame")
        recording.finish(live.sound())
    if live.latest.dropped:
        log.warning(
            "%d frames of %s came too fast and were dropped", live.latest.dropped, live.address
        )
    if live.sound_lost:
        log.warning("%d packets of sound were lost", live.sound_lost)
    if recording.sound_refused:
        log.warning("%d packets of sound were damaged and left out", recording.sound_refused)
    return recording.frames, reused
