"""Writing clips and stills: encode planes, copy the other streams, rename at the end."""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
from av.codec.codec import find_best_pix_fmt_of_list
from av.error import FFmpegError
from torch import Tensor

from engines.errors import MediaError
from vsr.convert import Kind, Matrix, PlaneLayout
from vsr.pixels import format_name, guess_matrix, is_planar, read_layout, write_planes
from vsr.video import (
    FULL_RANGE,
    JUMP_SECONDS,
    MATRICES,
    UNTAGGED,
    ClipInfo,
    ColourTags,
    Reader,
    Timed,
    Timeline,
    file_url,
    reason,
)

log = logging.getLogger(__name__)

_LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG
_MATRIX_TAGS: dict[Matrix, int] = {"bt601": 6, "bt709": 1, "bt2020": 9}


@dataclass(frozen=True, slots=True)
class EncoderKind:
    """How one encoder is told its quality."""

    quality: str
    """name of the option that takes the constant quality"""
    default_quality: float
    """visually lossless"""
    default_preset: str | None
    options: tuple[tuple[str, str], ...] = ()
    presets: tuple[str, ...] = ()
    """the presets there are; empty: the encoder itself refuses a wrong one in one line"""


_X26X_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow", "placebo"),
)

ENCODERS: dict[str, EncoderKind] = {
    "libx264": EncoderKind("crf", 16, "fast", presets=_X26X_PRESETS),
    "libx265": EncoderKind(
        "crf", 18, "fast", (("x265-params", "log-level=none"),), presets=_X26X_PRESETS
    ),
    "libsvtav1": EncoderKind("crf", 20, "8"),
    "libvpx-vp9": EncoderKind("crf", 20, None, (("row-mt", "1"),)),
    "h264_nvenc": EncoderKind("cq", 17, "p5"),
    "hevc_nvenc": EncoderKind("cq", 19, "p5"),
    "av1_nvenc": EncoderKind("cq", 22, "p5"),
}


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """Which encoder, and how good."""

    name: str = "libx264"
    crf: float | None = None
    """constant quality in the encoder's own scale; None: visually lossless"""
    preset: str | None = None
    threads: int | None = None

    def options(self) -> dict[str, str]:
        """Return the options to open the encoder with.

        Raises:
            MediaError: --crf for an encoder whose option we do not know, or an unknown preset.
        """
        kind = ENCODERS.get(self.name)
        if kind is None:
            if self.crf is not None:
                raise MediaError(
                    f"--crf is not known for encoder {self.name!r} (known: {', '.join(ENCODERS)})"
                )
            return {"preset": self.preset} if self.preset else {}
        options = dict(kind.options)
        options[kind.quality] = f"{kind.default_quality if self.crf is None else self.crf:g}"
        preset = self.preset or kind.default_preset
        if preset and kind.presets and preset not in kind.presets:
            raise MediaError(
                f"unknown preset {preset!r} for {self.name}; known: {', '.join(kind.presets)}"
            )
        if preset:
            options["preset"] = preset
        return options


def new_partial(path: Path) -> Path:
    """Create an empty file beside `path`, of a name nobody else has, to be renamed to it.

    Raises:
        OSError: the folder does not take it.
    """
    while True:
        name = f"{path.stem[:80]}.{secrets.token_hex(3)}.partial{path.suffix}"
        with suppress(FileExistsError):
            path.with_name(name).touch(exist_ok=False)
            return path.with_name(name)


class Writer:
    """Encodes planes into a clip, beside the other streams of the clip they came from.

    Everything goes to `partial_path`; `commit` closes it and gives it its name.

    Args:
        path: the output; its suffix names the container.
        reader: of the input: its other streams, tags and time base are taken over.
        size: (height, width) of the output.
        sample_aspect_ratio: of the output.
        settings: the encoder.

    Attributes:
        layout: of the planes that `write` takes.
        frames: number of frames written.

    Raises:
        MediaError: the container or the encoder is unknown, does not open, or does not fit the
            clip; or the file cannot be created.
    """

    def __init__(
        self,
        path: Path,
        reader: Reader,
        *,
        size: tuple[int, int],
        sample_aspect_ratio: Fraction,
        settings: EncoderSettings,
    ) -> None:
        self.path = path
        self.frames = 0
        self._packets = 0
        self._written_seconds = -inf
        self._timelines: dict[int, Timeline] = {}
        self._reader = reader
        self._copies: dict[int, Any] = {}
        info = reader.info
        try:
            codec = av.Codec(settings.name, "w")
        except ValueError:
            raise MediaError(
                f"unknown encoder {settings.name!r}; for example {', '.join(ENCODERS)}"
            ) from None
        if codec.type != "video":
            raise MediaError(f"{settings.name!r} is no video encoder but one of {codec.type}")
        self._format, self.layout = _output_format(codec, info)
        _check_size(size, self.layout, settings.name)
        try:
            self.partial_path = new_partial(path)
        except OSError as error:
            raise MediaError(f"cannot write {path}: {reason(error)}") from error
        try:
            options: dict[str, str] = {}
            if path.suffix.lower() in {".mp4", ".mov", ".m4v"}:
                options["movflags"] = "+faststart"
                options["movie_timescale"] = str(_movie_timescale(reader))
            self._container = av.open(file_url(self.partial_path), "w", container_options=options)
        except (FFmpegError, OSError, ValueError) as error:
            self.partial_path.unlink(missing_ok=True)
            raise MediaError(f"cannot write {path}: {reason(error)}") from error
        try:
            self._stream = self._add_picture(codec, size, sample_aspect_ratio, settings)
            self._add_copies()
            self._container.start_encoding()
        except (FFmpegError, OSError, ValueError) as error:
            self.abort()
            raise MediaError(
                f"cannot write {path} with encoder {settings.name}: {reason(error)}"
            ) from error
        except BaseException:
            self.abort()
            raise

    def write(self, frame: Timed[list[Tensor]]) -> None:
        """Encode one frame, planes of `layout`, and mux what is ready.

        Raises:
            MediaError: the encoder or the disk refuses.
        """
        picture = write_planes(frame.value, self._format)
        picture.pts, picture.time_base = frame.pts, self._reader.info.time_base
        picture.duration = frame.duration
        tags = self._tags
        picture.color_primaries, picture.color_trc = tags.primaries, tags.transfer
        picture.colorspace, picture.color_range = tags.matrix, tags.range
        self._encode(picture)
        self.frames += 1

    def commit(self) -> None:
        """Flush, close, check that each frame has its packet, and give the file its name.

        Raises:
            MediaError: the disk refuses, or frames were lost in the encoder.
        """
        self._encode(None)
        try:
            self._container.close()
            if self._packets != self.frames:
                raise MediaError(
                    f"{self.path}: {self.frames} frames went into the encoder, "
                    f"{self._packets} came out"
                )
            os.replace(self.partial_path, self.path)
        except (FFmpegError, OSError) as error:
            raise MediaError(f"cannot write {self.path}: {reason(error)}") from error

    def abort(self) -> None:
        """Remove what was written and close; harmless after `commit`."""
        with suppress(OSError):  # Windows removes no open file: again below
            self.partial_path.unlink()
        try:
            self._container.close()
        except (FFmpegError, OSError) as error:
            log.debug("closing %s: %s", self.partial_path, error)
        self.partial_path.unlink(missing_ok=True)

    def _encode(self, picture: av.VideoFrame | None) -> None:
        try:
            for packet in self._stream.encode(picture):
                self._packets += packet.size > 0
                if packet.dts is not None and packet.time_base:
                    self._written_seconds = float(packet.dts * packet.time_base)
                self._container.mux(packet)
            self._mux_passengers(inf if picture is None else self._written_seconds)
        except (FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"cannot write {self.path}: {reason(error)}") from error

    def _mux_passengers(self, until_seconds: float) -> None:
        """Mux the other streams' packets up to a time.

        They wait here for the picture, which is late by the depth of the pipeline and the encoder,
        so that the container gets its streams side by side and buffers little itself.
        """
        passengers = self._reader.passengers
        while passengers:
            packet = passengers[0]
            if packet.dts is not None and packet.dts * packet.time_base > until_seconds:
                return
            passengers.popleft()
            copy = self._copies.get(packet.stream_index)
            if copy is None:
                continue
            self._keep_increasing(packet)
            packet.stream = copy
            self._container.mux(packet)

    def _keep_increasing(self, packet: av.Packet[Any]) -> None:
        """Move a packet on where its stream jumps back, as the picture is moved."""
        if packet.dts is None:
            return
        repeats = packet.stream.type in ("subtitle", "data")
        timeline = self._timelines.setdefault(
            packet.stream_index,
            Timeline(jump=round(JUMP_SECONDS / packet.time_base), repeats=repeats),
        )
        dts = timeline.place(packet.dts, packet.duration or 1)
        if packet.pts is not None:
            packet.pts += dts - packet.dts
        packet.dts = dts

    def _add_picture(
        self,
        codec: av.Codec,
        size: tuple[int, int],
        sample_aspect_ratio: Fraction,
        settings: EncoderSettings,
    ) -> av.VideoStream:
        info = self._reader.info
        stream = cast(
            av.VideoStream,
            self._container.add_stream(
                codec.name,
                rate=info.average_rate.limit_denominator(1 << 30),
                options=settings.options(),
                width=size[1],
                height=size[0],
                time_base=info.time_base,
            ),
        )
        context = stream.codec_context
        context.pix_fmt = self._format
        context.thread_count = settings.threads or 0
        context.sample_aspect_ratio = sample_aspect_ratio
        context.flags |= av.codec.context.Flags.frame_duration
        self._tags = self._output_tags()
        context.color_primaries, context.color_trc = self._tags.primaries, self._tags.transfer
        context.colorspace, context.color_range = self._tags.matrix, self._tags.range
        stream.metadata.update(_kept_metadata(self._reader.stream.metadata))
        stream.disposition = self._reader.stream.disposition
        if info.display_matrix:
            stream.set_display_matrix(info.display_matrix)
        return stream

    def _output_tags(self) -> ColourTags:
        """Take the clip's tags; where it has no matrix, name the one that was computed with."""
        tags, layout = self._reader.info.tags, self.layout
        if layout.kind == "yuv" and (
            tags.matrix in UNTAGGED or MATRICES[tags.matrix] != layout.matrix
        ):
            tags = replace(tags, matrix=_MATRIX_TAGS[layout.matrix])
        if layout.full_range:
            tags = replace(tags, range=FULL_RANGE)
        elif tags.range == FULL_RANGE:  # RGB is full range, the YUV made of it is not
            tags = replace(tags, range=_LIMITED_RANGE)
        return tags

    def _add_copies(self) -> None:
        container, source = self._container, self._reader.container
        for stream in source.streams:
            if stream.index == self._reader.stream.index:
                continue
            label = f"{stream.type} stream {stream.index} ({stream.name or 'unknown'})"
            try:
                if stream.type == "video":
                    raise ValueError("a second picture")
                if stream.type == "attachment":
                    attachment = cast(Any, stream)
                    container.add_attachment(
                        stream.metadata.get("filename", f"attachment{stream.index}"),
                        attachment.mimetype or "application/octet-stream",
                        attachment.data,
                    )
                    continue
                copy = container.add_stream_from_template(stream)
            except (FFmpegError, ValueError) as error:
                hint = "" if self.path.suffix.lower() == ".mkv" else "; an .mkv output may hold it"
                log.warning("%s is not kept: %s%s", label, reason(error), hint)
                continue
            copy.metadata.update(_kept_metadata(stream.metadata))
            copy.disposition = stream.disposition
            self._copies[stream.index] = copy
        container.metadata.update(_kept_metadata(source.metadata))
        if chapters := source.chapters():
            container.set_chapters(chapters)


def _movie_timescale(reader: Reader) -> int:
    """Choose ticks a second in which the start of each stream is a whole number.

    An edit list shifts a stream's start in these ticks; libavformat's 1000 would round it.
    """
    scales = [reader.info.time_base.denominator]
    scales += [s.time_base.denominator for s in reader.container.streams if s.time_base]
    common = math.lcm(*scales)
    return common if common < 1 << 31 else scales[0]


# tags that a container writes of itself
_OWN_METADATA = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "handler_name", "vendor_id"}
    | {"DURATION", "duration", "rotate"}
)


def _kept_metadata(metadata: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key not in _OWN_METADATA}


def _output_format(codec: av.Codec, info: ClipInfo) -> tuple[str, PlaneLayout]:
    """Choose the encoder's planar format nearest to the clip's, and say what its planes mean."""
    layout = info.layout
    offered = [name for name in (f.name for f in codec.video_formats or []) if is_planar(name)]
    if not offered:
        raise MediaError(f"encoder {codec.name!r} takes no planar pixel format")
    wanted = format_name(layout)
    if wanted in offered:
        best = wanted
    else:
        found, _ = find_best_pix_fmt_of_list(offered, wanted)
        best = found.name if found else offered[0]
    kind, depth, step, full, _ = read_layout(best)
    matrix = layout.matrix if layout.kind == "yuv" else guess_matrix(*info.size)
    if matrix not in _MATRIX_TAGS:
        matrix = "bt601"
    return best, PlaneLayout(
        kind=kind,
        depth=depth,
        full_range=full or (layout.full_range and layout.kind != "rgb"),
        matrix=matrix,
        chroma_step=step,
        siting="centre" if codec.canonical_name == "mjpeg" else "left",
    )


def _check_size(size: tuple[int, int], layout: PlaneLayout, encoder: str) -> None:
    down, across = layout.chroma_step if layout.kind == "yuv" else (1, 1)
    if size[0] % down or size[1] % across:
        raise MediaError(
            f"{encoder} cannot encode {size[1]}x{size[0]} with subsampled chroma: "
            f"use {size[1] + size[1] % across}x{size[0] + size[0] % down}"
        )


def write_still(path: Path, planes: Sequence[Tensor], *, kind: Kind, alpha: bool) -> None:
    """Write a lossless PNG; a crash leaves no half file.

    Args:
        path: the output.
        planes: R, G, B or Y, then alpha if there is; (H, W) each, all uint8 or all uint16.
        kind: "rgb" or "grey".
        alpha: whether the last plane is alpha.

    Raises:
        MediaError: the file cannot be written.
    """
    wide = planes[0].dtype == torch.uint16
    name = {
        ("grey", False): "gray16be" if wide else "gray",
        ("grey", True): "ya16be" if wide else "ya8",
        ("rgb", False): "rgb48be" if wide else "rgb24",
        ("rgb", True): "rgba64be" if wide else "rgba",
    }[kind, alpha]
    pixels = np.stack([plane.numpy() for plane in planes], axis=-1)
    height, width = pixels.shape[:2]
    frame = av.VideoFrame(width, height, name)
    rows = np.frombuffer(cast(Any, frame.planes[0]), np.uint8)
    rows = rows.reshape(-1, frame.planes[0].line_size)
    data = pixels.astype(">u2" if wide else np.uint8).reshape(height, -1).view(np.uint8)
    rows[:height, : data.shape[1]] = data
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, name
    encoder.time_base = Fraction(1)
    frame.color_range = FULL_RANGE
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    partial = None
    try:
        partial = new_partial(path)
        partial.write_bytes(b"".join(bytes(packet) for packet in packets))
        os.replace(partial, path)
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise MediaError(f"cannot write {path}: {reason(error)}") from error
