"""Reading clips and stills: `Reader` decodes the picture into planes.

Presentation timestamps are integers in the clip's own time base and pass through untouched; nothing
is computed from a frame rate.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from math import floor
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import av
import torch
from av.codec.hwaccel import HWAccel
from av.error import FFmpegError
from av.format import Flags as Format
from torch import Tensor

from engines.errors import MediaError
from vsr.address import Address
from vsr.clip import describe
from vsr.deinterlace import deinterlaced
from vsr.ffmpeg import file_url, packets_of, reason
from vsr.fingerprint import fingerprint
from vsr.hardware import (
    HardwareUnavailable,
    check_first,
    context_of,
    gpu_planes,
    nvdec,
    on_gpu,
    stored_format,
)
from vsr.photo import read_tags
from vsr.pixels import read_planes
from vsr.region import Crop, Window, Zoom, window
from vsr.span import Span
from vsr.timeline import JUMP_SECONDS, Timed, Timeline

log = logging.getLogger(__name__)

_STILL_SUFFIXES = frozenset({".avif"})  # stills in a clip's container
_TILED_SUFFIXES = frozenset({".heic", ".heif"})  # a picture in pieces, one stream each
# containers that give each frame its time wherever one begins to read; MPEG-PS and AVI do not
_SOUGHT_IN = frozenset({"flv", "matroska", "mov", "mpegts", "nut"})
_EARLIER_SECONDS = (0, 10, 60)  # where to look for a key frame, before a time
_EVER_SECONDS = 10**9
_GAP_SECONDS = 10  # between two frames of a recording; what FFmpeg's own tool takes for a new clock
_MISSING_SECONDS = 0.5  # what a container may promise beyond its last packet


class Reader:
    """Decodes one video stream of a clip, or a still.

    Frames come out as planes (see `vsr.convert.PlaneLayout`), then alpha if `info.alpha`.

    Args:
        path: the file, or the address that `container` was opened at.
        threads: decoder threads; None leaves it to the decoder.
        deinterlace: make whole frames of fields; False: take interlaced frames as they are; None:
            refuse a clip that begins with one.
        container: of a live stream, opened, and from now on the reader's to close; None: opens
            the file. Its decoder keeps no frames back for the sake of its threads, and what does
            not decode before the first frame is no damage: one joins a stream in the middle.
        watch: told each packet of the live stream, of the picture or not, before it is decoded.

    Attributes:
        info: of the picture.
        decoder: "cpu", or "nvdec" after `decode_on`.
        lost_packets: packets that could not be decoded, so far.
        broke_off: what a live stream ended with, if it was an error.
        damaged_frames: frames that decoded in part, so far.
        frames_read: frames that `frames` has yielded, so far.
        repeatable: whether the same can be read once more.
        begin_seconds: when picture or sound begin, on the clip's own clock.
        span: the part of it that is read; None: all of it.

    Raises:
        MediaError: missing, unreadable, no picture in it, no frame of it can be decoded, or it is
            interlaced.
    """

    repeatable = True

    def __init__(
        self,
        path: Path | Address,
        *,
        threads: int | None = None,
        deinterlace: bool | None = None,
        container: av.container.InputContainer | None = None,
        watch: Callable[[av.Packet[Any]], None] | None = None,
    ) -> None:
        self.decoder = "cpu"
        self.lost_packets = 0
        self.broke_off: str | None = None
        self.damaged_frames = 0
        self.frames_read = 0
        self._path = path
        self._end_seconds = 0.0
        self._is_live, self._watch = container is not None, watch
        try:
            self.container = container or self._open()
        except (FFmpegError, OSError) as error:
            raise MediaError(f"cannot read {path}: {reason(error)}") from error
        try:
            if self.container.format.name == "tty":  # FFmpeg would film a text file
                raise MediaError(f"{path} is text, expected a video or a picture")
            if self._is_live and self._is_still():
                raise MediaError(f"{path} is a picture, expected a stream")
            self.stream = self._picture_stream()
            self.stream.thread_type = "SLICE" if self._is_live else "AUTO"
            self.stream.codec_context.thread_count = threads or 0
            if self._is_still():
                self._refuse_half_pictures()
            self._decoded: Iterator[av.VideoFrame] = self._decode()
            self._first: av.VideoFrame | None = next(self._decoded, None)
            if self._first is None:
                what = (
                    "is damaged, or no picture that can be decoded"
                    if self._is_still()
                    else "has no frame that can be decoded"
                )
                raise MediaError(
                    f"{path} {what}" + (f": {self.broke_off}" if self.broke_off else "")
                )
            if self._is_live:
                self.lost_packets = 0
            if deinterlace is None and self._first.interlaced_frame and not self._is_still():
                raise MediaError(
                    f"{path} is interlaced: --deinterlace makes whole frames of its fields, "
                    "--no-deinterlace takes it as it is"
                )
            if deinterlace and not self._is_still():
                self._decoded = deinterlaced(
                    chain([self._first], self._decoded), Fraction(self.stream.time_base or 1)
                )
                self._first = next(self._decoded)
            self._expects_fields = deinterlace is not None
            self._makes_frames_of_fields = bool(deinterlace)
            self.info, self._format = describe(
                path, self.container, self.stream, self._first, is_still=self._is_still()
            )
            self._stored_size = self.info.size
            self._window: Window | None = None
            self.begin_seconds = self._begin_seconds()
            self.span: Span | None = None
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.container.close()

    def stop(self) -> None:
        """End a read that waits for its input, from another thread."""

    def cut(self, region: Crop | Zoom) -> None:
        """Take the picture to be a region of it, before the first frame is asked for.

        Raises:
            MediaError: it reaches over the edge, or splits chroma samples.
        """
        info = self.info
        self._window = window(region, info.size, info.layout, info.display_matrix)
        self.info = replace(info, size=(self._window.height, self._window.width))

    def _begin_seconds(self) -> Fraction:
        """Return when the first of picture and sound begins, on the clip's clock."""
        begins = [
            stream.start_time * stream.time_base
            for stream in (self.stream, *self.container.streams.audio)
            if stream.start_time is not None and stream.time_base is not None
        ]
        return min(begins, default=Fraction(self.container.start_time or 0, av.time_base))

    def trim(self, span: Span) -> None:
        """Read a part of the clip alone; before the first frame is asked for, after `decode_on`.

        The frames are those that reading all of it would give: decoding begins at a key frame
        before them, or, where the container tells no times from there on, at the beginning.
        `frames` raises a MediaError where there is none.
        """
        self.span = span
        self.info = replace(self.info, frames=self._frames_in(span))
        if not span.start:
            return
        begin = self.begin_seconds + span.begin_seconds
        # the clock of decoding begins before that of presentation, and the last try before both
        least = min(self.begin_seconds, Fraction(0))
        for target in [*(max(least, begin - s) for s in _EARLIER_SECONDS), begin - _EVER_SECONDS]:
            if self._seek(target) and self._first is not None and self._first.key_frame:
                at = (self._first.pts or 0) * self.info.time_base
                # a frame made of fields is made of the one before it too
                if at < begin or (at == begin and not self._makes_frames_of_fields):
                    return

    def _seek(self, target: Fraction) -> bool:
        """Decode anew from before a time on the clip's clock; False: it stays where it is."""
        if not _SOUGHT_IN & set(self.container.format.name.split(",")):
            return False
        try:
            self.container.seek(floor(target * av.time_base))
        except (FFmpegError, OSError) as error:
            log.debug("%s: cannot seek: %s", self._path, reason(error))
            return False
        self.stream.codec_context.flush_buffers()
        self._decoded = self._decode()
        if self._makes_frames_of_fields:
            self._decoded = deinterlaced(self._decoded, Fraction(self.stream.time_base or 1))
        self._first = next(self._decoded, None)
        return True

    def _is_before(self, pts: int) -> bool:
        """Tell whether a frame comes before what is read."""
        passed = pts * self.info.time_base - self.begin_seconds
        return self.span is not None and passed < self.span.begin_seconds

    def _is_after(self, pts: int) -> bool:
        """Tell whether a frame comes after what is read."""
        passed = pts * self.info.time_base - self.begin_seconds
        return self.span is not None and passed >= self.span.end_seconds

    def _frames_in(self, span: Span) -> int | None:
        """Estimate the number of frames of a part."""
        total = self.info.frames
        if total is None:
            return None
        left = float(total / self.info.average_rate) - span.start
        return max(1, round(min(left, span.end - span.start) * float(self.info.average_rate)))

    def stamp(self) -> dict[str, int | str]:
        """Return what tells this input from what it was or will be under the same name."""
        assert isinstance(self._path, Path), "a stream is never the same again"
        return fingerprint(self._path)

    def decode_on(self, device: torch.device) -> None:
        """Let NVDEC decode into the memory of a GPU, before the first frame is asked for.

        Planes are on that GPU from then on (see `vsr.hardware.gpu_planes`), those of frames aside
        that NVDEC does not give in the first one's size and format.

        Raises:
            HardwareUnavailable: it cannot, or its first frame is not the CPU's; all is as before.
        """
        if self._is_still() or self._makes_frames_of_fields:
            raise HardwareUnavailable("pictures and fields are decoded on the CPU")
        assert self._first is not None
        expected = read_planes(self._planar(self._first))
        before = (self.container, self.stream, self._decoded, self.lost_packets, self._end_seconds)
        container: av.container.InputContainer | None = None
        try:
            with context_of(device):
                container = self._open(nvdec(device))
            self.container = container
            self.stream = cast(av.VideoStream, container.streams[before[1].index])
            self.stream.codec_context.thread_count = 1  # the work is the GPU's
            self._decoded = self._decode()
            frame = next(self._decoded, None)
            check_first(frame, expected)
        except (FFmpegError, OSError, RuntimeError, HardwareUnavailable) as error:
            if container is not None:
                container.close()
            (
                self.container, self.stream, self._decoded, self.lost_packets, self._end_seconds
            ) = before  # fmt: skip
            if isinstance(error, HardwareUnavailable):
                raise
            raise HardwareUnavailable(f"NVDEC does not open: {reason(error)}") from error
        before[0].close()
        self._first, self.decoder = frame, "nvdec"

    def conform(self, other: Reader) -> None:
        """Give frames of the size, format and region of another reader, in one's own time base."""
        mine = self.info
        self.info = replace(other.info, time_base=mine.time_base, average_rate=mine.average_rate)
        self._stored_size, self._format, self._window = (
            other._stored_size, other._format, other._window,
        )  # fmt: skip

    def frames(self) -> Iterator[Timed[list[Tensor]]]:
        """Yield each frame that decodes, in order of presentation; once only.

        Timestamps are the clip's own as long as they increase; see `Timeline` for those that do
        not. What had to be mended, and what could not be read, is said in warnings at the end.

        Raises:
            MediaError: none is in the span that is asked for.
        """
        reshaped = False
        step = max(1, round(1 / (self.info.average_rate * self.info.time_base)))
        timeline = Timeline(jump=round(JUMP_SECONDS / self.info.time_base))
        pts: int | None = None
        gap, ahead = _GAP_SECONDS / self.info.time_base, list[tuple[int, float]]()
        frame, self._first = self._first, None
        while frame is not None:
            before, pts = pts, timeline.place(frame.pts, frame.duration or step)
            if self._is_before(pts):
                frame = next(self._decoded, None)
                self.lost_packets = 0  # as they are where one begins to read
                continue
            if self._is_after(pts):
                break
            if before is not None and pts - before > gap:
                ahead.append((self.frames_read, float((pts - before) * self.info.time_base)))
            self.damaged_frames += bool(frame.is_corrupt)
            if frame.interlaced_frame and not self._expects_fields:
                self._expects_fields = True
                log.warning(
                    "%s is interlaced from frame %d on: --deinterlace makes whole frames of fields",
                    self._path, self.frames_read,
                )  # fmt: skip
            size = (frame.height, frame.width)
            if size != self._stored_size and not reshaped:
                reshaped = True
                log.warning(
                    "%s changes its frame size from %dx%d to %dx%d: resized to the first",
                    self._path, *self._stored_size[::-1], *size[::-1],
                )  # fmt: skip
            self.frames_read += 1
            frame = self._planar(frame)
            planes = gpu_planes(frame) if on_gpu(frame) else read_planes(frame)
            if self._window is not None:
                planes = self._window.cut(planes, self.info.layout)
            yield Timed(planes, pts, frame.duration or 0)
            frame = next(self._decoded, None)
        if self.span is not None and not self.frames_read:
            raise MediaError(f"{self._path} has no frame in the span {self.span}")
        self._say_what_is_wrong(timeline, ahead, whole=frame is None)

    def _planar(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Bring a frame to the first one's size and format; from a GPU it comes down for that."""
        height, width = self._stored_size
        expected = self._format
        if on_gpu(frame):  # which has no name of its own for full range
            expected = expected.replace("yuvj", "yuv")
        if (frame.height, frame.width) == (height, width) and stored_format(frame) == expected:
            return frame
        # One thread: swscale's slices write past their last line, into what another has done.
        return frame.reformat(width=width, height=height, format=self._format, threads=1)

    def _say_what_is_wrong(
        self, timeline: Timeline, ahead: list[tuple[int, float]], *, whole: bool
    ) -> None:
        if ahead and self.container.format.flags & cast(Any, Format.ts_discont).value:
            log.warning(
                "%s: its time jumps ahead %d times, first at frame %d by %.1f s: the picture "
                "stands still there, as in the input",
                self._path, len(ahead), *ahead[0],
            )  # fmt: skip
        if timeline.moved:
            log.warning("%s: %d frames had no usable timestamp", self._path, timeline.moved)
        if timeline.jumps:
            log.warning(
                "%s: its time jumps back %d times: what follows was moved on",
                self._path,
                timeline.jumps,
            )
        if self.lost_packets or self.damaged_frames:
            log.warning(
                "%s is damaged: %d packets could not be decoded, %d frames only in part",
                self._path, self.lost_packets, self.damaged_frames,
            )  # fmt: skip
        if self.container.duration and whole:
            start = self.container.start_time or 0
            promised = (start + self.container.duration) / av.time_base
            if promised - self._end_seconds > _MISSING_SECONDS and not self.info.is_still:
                log.warning(
                    "%s breaks off at %.1f s of %.1f s", self._path, self._end_seconds, promised
                )

    def _open(self, hardware: HWAccel | None = None) -> av.container.InputContainer:
        path = self._path
        assert isinstance(path, Path), "addresses are opened with time limits, in vsr.connection"
        if path.suffix.lower() in _TILED_SUFFIXES:
            raise MediaError(f"{path}: HEIF pictures cannot be read yet: convert it to PNG or JPEG")
        if path.is_dir():
            raise MediaError(f"{path} is a folder, expected a video or a picture")
        if path.is_file() and not path.stat().st_size:
            raise MediaError(f"{path} is empty")
        # a still's name is no pattern for a sequence of files
        # and its tags may be in the encoding of another country
        return av.open(
            file_url(path),
            "r",
            options={"pattern_type": "none"},
            metadata_errors="replace",
            hwaccel=hardware,
        )

    def _picture_stream(self) -> av.VideoStream:
        pictures = [
            stream
            for stream in self.container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not pictures:
            kinds = ", ".join(sorted({s.type for s in self.container.streams})) or "nothing"
            raise MediaError(f"{self._path} has no video stream (found: {kinds})")
        if len(pictures) > 1:
            log.warning("%s has %d video streams: taking the first", self._path, len(pictures))
        if pictures[0].codec_context is None:
            raise MediaError(f"{self._path}: its video codec has no decoder here")
        return pictures[0]

    def _refuse_half_pictures(self) -> None:
        """Have a damaged picture refused, where of a damaged clip the rest is taken.

        FFmpeg does so by itself, but for JPEG, where it would fill up with green, and for JPEG in
        TIFF, which comes out black. Other decoders take each tag they do not know for damage.
        """
        decoder = self.stream.codec_context
        if decoder.name == "mjpeg":
            decoder.options = {"err_detect": "explode"}
        elif decoder.name == "tiff" and read_tags(cast(Path, self._path)).is_jpeg_in_tiff:
            raise MediaError(f"{self._path} is a TIFF compressed as JPEG, which cannot be decoded")

    def _decode(self) -> Iterator[av.VideoFrame]:
        packets = packets_of(self.container)
        while True:
            try:
                packet = next(packets, None)
            except (FFmpegError, OSError) as error:  # the file breaks off
                if self._is_live:
                    self.broke_off = reason(error)
                else:
                    self.lost_packets += 1
                log.debug("%s: %s", self._path, reason(error))
                packet = None
            if packet is None:
                break
            if not packet.size:
                continue  # marks the end of a stream
            if self._watch is not None:
                self._watch(packet)
            if packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self._end_seconds = max(self._end_seconds, end)
            if packet.stream_index == self.stream.index:
                yield from self._decode_packet(packet)
        yield from self._decode_packet(None)

    def _decode_packet(self, packet: av.Packet[Any] | None) -> Iterator[av.VideoFrame]:
        try:
            yield from self.stream.decode(packet)
        except EOFError:
            pass
        except FFmpegError as error:
            self.lost_packets += 1
            log.debug("%s: %s", self._path, reason(error))

    def _is_still(self) -> bool:
        return (
            self.container.format.name.endswith("_pipe")
            or self.container.format.name == "image2"
            or (isinstance(self._path, Path) and self._path.suffix.lower() in _STILL_SUFFIXES)
        )
