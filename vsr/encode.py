"""Encoding the picture of a clip, as often as asked for and always alike."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf
from typing import Any, cast

import av
import torch
from av.codec.codec import find_best_pix_fmt_of_list
from av.codec.context import Flags
from torch import Tensor

from engines.errors import MediaError
from engines.x264 import repeatable_options
from vsr.clip import FULL_RANGE, MATRICES, UNTAGGED, ClipInfo, ColourTags
from vsr.convert import Matrix, PlaneLayout
from vsr.hardware import NVENC, GpuPictures, check_nvenc
from vsr.hdr import StaticMetadata, encoder_options
from vsr.pixels import (
    SEMI_PLANAR,
    format_name,
    guess_matrix,
    is_planar,
    read_layout,
    write_planes,
)
from vsr.siting import output_siting, siting_options
from vsr.timeline import Timed

log = logging.getLogger(__name__)

_LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG
_LEAST_X265 = 64  # pixels; x265 4.2 writes beyond its memory where a picture is much smaller
_MATRIX_TAGS: dict[Matrix, int] = {"bt601": 6, "bt709": 1, "bt2020": 9}


@dataclass(frozen=True, slots=True)
class EncoderKind:
    """How one encoder is told its quality."""

    quality: str
    """name of the option that takes the constant quality"""
    default_quality: float
    """visually lossless"""
    worst_quality: int
    """the largest value there is; the smallest is 0"""
    default_preset: str | None
    options: tuple[tuple[str, str], ...] = ()
    presets: tuple[str, ...] = ()
    """the presets there are; empty: the encoder itself refuses a wrong one in one line"""


_X26X_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow", "placebo"),
)

ENCODERS: dict[str, EncoderKind] = {
    "libx264": EncoderKind("crf", 16, 51, "veryfast", presets=_X26X_PRESETS),
    "libx265": EncoderKind(
        "crf", 18, 51, "fast", (("x265-params", "log-level=none"),), presets=_X26X_PRESETS
    ),
    "libsvtav1": EncoderKind("crf", 20, 63, "8"),
    "libvpx-vp9": EncoderKind("crf", 20, 63, None, (("row-mt", "1"),)),
    "h264_nvenc": EncoderKind("cq", 17, 51, "p5"),
    "hevc_nvenc": EncoderKind("cq", 19, 51, "p5"),
    "av1_nvenc": EncoderKind("cq", 22, 63, "p5"),
}


def check_crf(encoder: str, crf: float) -> None:
    """Refuse a quality outside the encoder's range, which libx264 would cut to it silently.

    Raises:
        ValueError: it is.
    """
    with suppress(ValueError):  # an unknown one is said later
        encoder = av.Codec(encoder, "w").name  # "h264" is libx264
    kind = ENCODERS.get(encoder)
    if not 0 <= crf < inf:
        raise ValueError(f"crf must be 0 or more, got {crf:g}")
    if kind is not None and crf > kind.worst_quality:
        raise ValueError(f"crf of {encoder} must be 0 to {kind.worst_quality}, got {crf:g}")


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """Which encoder, and how good."""

    name: str = "libx264"
    crf: float | None = None
    """constant quality in the encoder's own scale; None: visually lossless"""
    preset: str | None = None
    threads: int | None = None
    pixel_format: str | None = None
    """one of FFmpeg's names; None: the encoder's nearest to the clip's"""

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
        return options | repeatable_options(self.name)


class PictureEncoding:
    """How the picture of a clip is encoded: opens any number of encoders, all alike.

    Args:
        info: of the input.
        size: (height, width) of the output.
        sample_aspect_ratio: of the output.
        settings: the encoder.
        device: where the planes will be; None: in the host's memory.

    Attributes:
        layout: of the planes that `picture` takes.
        name: of the encoder.
        on_gpu: whether `picture` takes planes on `device`, for NVENC, instead of on the CPU.

    Raises:
        MediaError: the encoder is unknown, cannot be used here, or does not fit the clip.
    """

    def __init__(
        self,
        info: ClipInfo,
        *,
        size: tuple[int, int],
        sample_aspect_ratio: Fraction,
        settings: EncoderSettings,
        device: torch.device | None = None,
    ) -> None:
        try:
            self._codec = av.Codec(settings.name, "w")
        except ValueError:
            raise MediaError(
                f"unknown encoder {settings.name!r}; for example {', '.join(ENCODERS)}"
            ) from None
        settings = replace(settings, name=self._codec.name)  # "hevc" is libx265
        self.name = settings.name
        self.info = info
        self._size, self._aspect, self._settings = size, sample_aspect_ratio, settings
        if self._codec.type != "video":
            raise MediaError(f"{settings.name!r} is no video encoder but one of {self._codec.type}")
        self._format, self.layout = _output_format(self._codec, info, settings.pixel_format)
        if settings.pixel_format is None:
            self._say_what_is_lost()
        _check_size(size, self.layout, settings.name)
        if settings.name in NVENC:
            check_nvenc(settings.name, self._format)
        semi_planar = {twin: name for name, twin in SEMI_PLANAR.items()}
        self._gpu_format = semi_planar.get(self._format, self._format)
        self._pictures: GpuPictures | None = None
        if device is not None and device.type == "cuda" and self._gpu_format in SEMI_PLANAR:
            self._pictures = GpuPictures(device) if settings.name in NVENC else None
        self.on_gpu = self._pictures is not None
        self._options = settings.options() | siting_options(self.name, self.layout)
        self._add_hdr_options()
        self._rate = info.average_rate.limit_denominator(1 << 30)
        self._tags = self._output_tags()

    def add_stream(self, container: av.container.OutputContainer) -> av.VideoStream:
        """Add the picture's stream to a container; its encoder opens with the container."""
        stream = container.add_stream(
            self._codec.name,
            rate=self._rate,
            options=self._options,
            width=self._size[1],
            height=self._size[0],
            time_base=self.info.time_base,
        )
        self._set_up(cast(Any, stream.codec_context))
        return cast(av.VideoStream, stream)

    def open(self, *, global_header: bool) -> av.VideoCodecContext:
        """Open an encoder of its own; one for pictures on a GPU opens with its first picture.

        Args:
            global_header: whether its parameter sets go into `extradata`, as most containers want.

        Raises:
            FFmpegError, ValueError: it does not open.
        """
        context = cast(Any, av.CodecContext.create(self._codec, "w"))
        context.width, context.height = self._size[1], self._size[0]
        context.bit_rate, context.bit_rate_tolerance = 0, 128_000  # as PyAV has it for streams
        context.time_base, context.framerate = self.info.time_base, self._rate
        context.options = dict(self._options)
        if global_header:
            context.flags |= Flags.global_header
        self._set_up(context)
        if self.on_gpu:  # the first picture brings what it has to know of the memory
            context.pix_fmt = "cuda"
        else:
            context.open()
        return cast(av.VideoCodecContext, context)

    def picture(self, frame: Timed[list[Tensor]]) -> av.VideoFrame:
        """Make of planes of `layout` what the encoder takes."""
        if self._pictures is None:
            picture = write_planes(frame.value, self._format)
        else:
            picture = self._pictures.picture(frame.value, self._gpu_format)
        picture.pts, picture.time_base = frame.pts, self.info.time_base
        picture.duration = frame.duration
        tags = self._tags
        picture.color_primaries, picture.color_trc = tags.primaries, tags.transfer
        picture.colorspace, picture.color_range = tags.matrix, tags.range
        return picture

    def _say_what_is_lost(self) -> None:
        before, after = self.info.layout, self.layout
        lost = []
        if after.depth < before.depth:
            lost.append(f"{before.depth}-bit samples become {after.depth}-bit")
        if before.kind == "yuv" and any(map(int.__gt__, after.chroma_step, before.chroma_step)):
            lost.append(f"{format_name(before)} becomes {self._format}, with less chroma")
        if lost:
            keeps = "" if self.name == "libx265" else "; libx265 takes up to 12 bits and 4:4:4"
            log.warning("%s: %s: %s%s", self.info.path, self.name, ", ".join(lost), keeps)

    def _add_hdr_options(self) -> None:
        if self.info.hdr == StaticMetadata():
            return
        options = encoder_options(self.name, self.info.hdr)
        if options is None:
            log.warning(
                "HDR10 mastering metadata is not kept: %s takes none from us; libx264, libx265 and "
                "libsvtav1 do",
                self.name,
            )
            return
        for name, words in options.items():
            self._options[name] = ":".join(filter(None, [self._options.get(name), words]))

    def _set_up(self, context: av.VideoCodecContext) -> None:
        context.pix_fmt = self._format
        context.thread_count = self._settings.threads or 0
        context.sample_aspect_ratio = self._aspect
        context.flags |= Flags.frame_duration
        context.color_primaries, context.color_trc = self._tags.primaries, self._tags.transfer
        context.colorspace, context.color_range = self._tags.matrix, self._tags.range

    def _output_tags(self) -> ColourTags:
        """Take the clip's tags; where it has no matrix, name the one that was computed with."""
        tags, layout = self.info.tags, self.layout
        if layout.kind == "yuv" and (
            tags.matrix in UNTAGGED or MATRICES[tags.matrix] != layout.matrix
        ):
            tags = replace(tags, matrix=_MATRIX_TAGS[layout.matrix])
        if layout.full_range:
            tags = replace(tags, range=FULL_RANGE)
        elif tags.range == FULL_RANGE:  # RGB is full range, the YUV made of it is not
            tags = replace(tags, range=_LIMITED_RANGE)
        return tags


def _output_format(
    codec: av.Codec, info: ClipInfo, asked: str | None = None
) -> tuple[str, PlaneLayout]:
    """Choose the encoder's format nearest to the clip's, and say what its planes mean.

    Raises:
        MediaError: the encoder does not take the format that is asked for, or none that we make.
    """
    layout = info.layout
    names = [pixel_format.name for pixel_format in codec.video_formats or []]
    offered = [
        name
        for name in names
        if is_planar(name) or (name in SEMI_PLANAR and SEMI_PLANAR[name] not in names)
    ]
    if not offered:
        raise MediaError(f"encoder {codec.name!r} takes no planar pixel format")
    if layout.kind != "rgb":  # players expect no RGB in a clip, least of all grey in it
        offered = [name for name in offered if read_layout(name)[0] != "rgb"] or offered
    wanted = format_name(layout) if asked is None else asked
    known = [name for name in offered if _may_be_asked_for(name)]
    if asked is not None and asked not in known:
        takes = f"but {', '.join(known)}" if known else "nor any other"
        raise MediaError(f"encoder {codec.name!r} takes no {asked!r} here, {takes}")
    if wanted in offered:
        best = wanted
    else:
        found, _ = find_best_pix_fmt_of_list(offered, wanted)
        best = found.name if found else offered[0]
    kind, depth, step, full, _ = read_layout(best)
    if kind == "grey" and layout.kind != "grey":
        raise MediaError(f"encoder {codec.name!r} takes no colours in a form that is made here")
    matrix = layout.matrix if layout.kind == "yuv" else guess_matrix(*info.size)
    if matrix not in _MATRIX_TAGS:
        matrix = "bt601"
    output = PlaneLayout(
        kind=kind,
        depth=depth,
        full_range=full or (layout.full_range and layout.kind != "rgb"),
        matrix=matrix,
        chroma_step=step,
    )
    return best, replace(output, siting=output_siting(codec.name, output, layout.siting))


def _may_be_asked_for(name: str) -> bool:
    """Tell whether a format is YUV without alpha, by its present name."""
    kind, *_, alpha = read_layout(name)
    return kind == "yuv" and not alpha and not name.startswith("yuvj")


def _check_size(size: tuple[int, int], layout: PlaneLayout, encoder: str) -> None:
    if encoder == "libx265" and min(size) < _LEAST_X265:
        raise MediaError(
            f"libx265 cannot be trusted with {size[1]}x{size[0]}: it needs {_LEAST_X265} pixels in "
            "both directions, libx264 does not"
        )
    down, across = layout.chroma_step if layout.kind == "yuv" else (1, 1)
    if size[0] % down or size[1] % across:
        raise MediaError(
            f"{encoder} cannot encode {size[1]}x{size[0]} with subsampled chroma: "
            f"use {size[1] + size[1] % across}x{size[0] + size[0] % down}"
        )
