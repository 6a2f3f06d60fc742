"""Reading clips and stills.

`Reader` decodes the picture of a clip into planes and puts the packets of its other streams aside.
Presentation timestamps are integers in the clip's own time base and pass through untouched; nothing
is computed from a frame rate.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

import av
import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideDataType
from torch import Tensor

from engines.errors import MediaError
from vsr.convert import Matrix, PlaneLayout
from vsr.pixels import guess_matrix, planar_format, read_layout, read_planes

log = logging.getLogger(__name__)

T = TypeVar("T")

# ITU-T H.273 matrix coefficients that we can compute with; 10 (BT.2020 constant luminance) is
# treated as 9, as players do
MATRICES: dict[int, Matrix] = {
    1: "bt709",
    4: "fcc",
    5: "bt601",
    6: "bt601",
    7: "smpte240m",
    9: "bt2020",
    10: "bt2020",
}
UNTAGGED = (0, 2, 3)  # RGB on a YUV format, unspecified, reserved
FULL_RANGE = 2  # AVCOL_RANGE_JPEG

_STILL_SUFFIXES = frozenset({".avif", ".heic", ".heif"})  # stills in a clip's container


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """Something to be shown at a time."""

    value: T
    pts: int
    """presentation time, in ticks of the clip's time base"""
    duration: int
    """ticks; 0 when the clip does not say"""


@dataclass(frozen=True, slots=True)
class ColourTags:
    """Numbers of ITU-T H.273, as the clip carries them; 2 (range: 0) is unspecified."""

    primaries: int
    transfer: int
    matrix: int
    range: int


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """What a reader knows of a clip's picture once its first frame is decoded."""

    path: Path
    size: tuple[int, int]
    """(height, width) as stored, before rotation and sample aspect ratio"""
    layout: PlaneLayout
    tags: ColourTags
    alpha: bool
    """whether each frame carries an alpha plane after the others"""
    is_still: bool
    sample_aspect_ratio: Fraction
    """width : height of a sample; 1 when the clip does not say"""
    time_base: Fraction
    """seconds a tick"""
    average_rate: Fraction
    """frames a second, for the encoder's rate control and estimates only"""
    frames: int | None
    """number of frames as the container says or its duration suggests"""
    display_matrix: tuple[int, ...] | None
    """nine numbers that rotate or mirror the frame for display"""


class Reader:
    """Decodes one video stream of a clip, or a still.

    Frames come out as planes (see `vsr.convert.PlaneLayout`), then alpha if `info.alpha`. Packets
    of all other streams are put aside in `passengers` as they are met.

    Args:
        path: the file.
        threads: decoder threads; None leaves it to the decoder.

    Attributes:
        info: of the picture.
        passengers: packets of the other streams, in file order, for the writer to take.
        lost_packets: packets that could not be decoded, so far.
        damaged_frames: frames that decoded in part, so far.

    Raises:
        MediaError: missing, unreadable, no picture in it, or no frame of it can be decoded.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        self.passengers: deque[av.Packet[Any]] = deque()
        self.lost_packets = 0
        self.damaged_frames = 0
        self._path = path
        if path.is_dir():
            raise MediaError(f"{path} is a folder, expected a video or a picture")
        try:
            self.container = av.open(str(path), "r")
        except (FFmpegError, OSError) as error:
            raise MediaError(f"cannot read {path}: {reason(error)}") from error
        try:
            self.stream = self._picture_stream()
            self.stream.thread_type = "AUTO"
            self.stream.codec_context.thread_count = threads or 0
            self._decoded = self._decode()
            self._first: av.VideoFrame | None = next(self._decoded, None)
            if self._first is None:
                raise MediaError(f"{path} has no frame that can be decoded")
            self.info, self._format = self._describe(self._first)
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

    def frames(self) -> Iterator[Timed[list[Tensor]]]:
        """Yield each frame that decodes, in order of presentation; once only.

        Timestamps strictly increase: where a clip breaks that, the frame is moved to one tick after
        the last, and the end says how many were moved.
        """
        last, moved, reshaped = None, 0, False
        frame, self._first = self._first, None
        while frame is not None:
            pts = frame.pts if frame.pts is not None else frame.dts
            if pts is None or (last is not None and pts <= last):
                pts, moved = (0 if last is None else last + 1), moved + 1
            self.damaged_frames += bool(frame.is_corrupt)
            size = (frame.height, frame.width)
            if size != self.info.size and not reshaped:
                reshaped = True
                log.warning(
                    "%s changes its frame size from %dx%d to %dx%d: resized to the first",
                    self._path, *self.info.size[::-1], *size[::-1],
                )  # fmt: skip
            if size != self.info.size or frame.format.name != self._format:
                height, width = self.info.size
                frame = frame.reformat(width=width, height=height, format=self._format)
            yield Timed(read_planes(frame), pts, frame.duration or 0)
            last = pts
            frame = next(self._decoded, None)
        if moved:
            log.warning("%s: %d frames had no usable timestamp", self._path, moved)
        if self.lost_packets or self.damaged_frames:
            log.warning(
                "%s is damaged: %d packets could not be decoded, %d frames only in part",
                self._path,
                self.lost_packets,
                self.damaged_frames,
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

    def _decode(self) -> Iterator[av.VideoFrame]:
        packets = self.container.demux()
        while True:
            try:
                packet = next(packets, None)
            except (FFmpegError, OSError) as error:  # the file breaks off
                self.lost_packets += 1
                log.debug("%s: %s", self._path, reason(error))
                packet = None
            if packet is None:
                break
            if not packet.size:
                continue  # marks the end of a stream
            if packet.stream_index == self.stream.index:
                yield from self._decode_packet(packet)
            else:
                self.passengers.append(packet)
        yield from self._decode_packet(None)

    def _decode_packet(self, packet: av.Packet[Any] | None) -> Iterator[av.VideoFrame]:
        try:
            yield from self.stream.decode(packet)
        except EOFError:
            pass
        except FFmpegError as error:
            self.lost_packets += 1
            log.debug("%s: %s", self._path, reason(error))

    def _describe(self, frame: av.VideoFrame) -> tuple[ClipInfo, str]:
        stream, context = self.stream, self.stream.codec_context
        name = planar_format(frame.format)
        kind, depth, step, full, alpha = read_layout(name)
        is_still = (
            self.container.format.name.endswith("_pipe")
            or self.container.format.name == "image2"
            or self._path.suffix.lower() in _STILL_SUFFIXES
        )
        if frame.format.name.startswith("ya"):  # grey with alpha, read as equal R, G, B
            kind = "grey"
        tags = ColourTags(
            frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range
        )
        if kind == "yuv" and tags.matrix not in MATRICES and tags.matrix not in UNTAGGED:
            raise MediaError(f"{self._path} has colour matrix {tags.matrix} (H.273), not supported")
        guess: Matrix = "bt601" if is_still else guess_matrix(frame.height, frame.width)
        full = full or tags.range == FULL_RANGE
        if kind == "grey" and is_still:
            full = full or tags.range == 0
        time_base = Fraction(stream.time_base or Fraction(1, 1000))
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        seconds = float(stream.duration * time_base) if stream.duration else 0.0
        if not seconds and self.container.duration:
            seconds = self.container.duration / av.time_base
        info = ClipInfo(
            path=self._path,
            size=(frame.height, frame.width),
            layout=PlaneLayout(
                kind=kind,
                depth=depth,
                full_range=full,
                matrix=MATRICES.get(tags.matrix, guess),
                chroma_step=step,
                siting="centre" if context.name == "mjpeg" else "left",
            ),
            tags=tags,
            alpha=alpha,
            is_still=is_still,
            sample_aspect_ratio=Fraction(stream.sample_aspect_ratio or 1),
            time_base=time_base,
            average_rate=Fraction(rate),
            frames=stream.frames or round(seconds * rate) or None,
            display_matrix=_display_matrix(frame),
        )
        return info, name


def _display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    for data in cast(Any, frame.side_data):  # iterates over the entries themselves
        if data.type == SideDataType.DISPLAYMATRIX:
            return tuple(int(value) for value in np.frombuffer(bytes(data), np.int32))
    return None


def reason(error: Exception) -> str:
    """Say in a few words what a library complained of."""
    text = getattr(error, "strerror", None) or str(error)
    return text[:1].lower() + text[1:] if text else type(error).__name__
