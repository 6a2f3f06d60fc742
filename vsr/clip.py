"""What a clip's picture is like: its size, planes, colours, times, and how it is to be shown."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType

from engines.errors import MediaError
from vsr.address import Address
from vsr.convert import Matrix, PlaneLayout
from vsr.hdr import StaticMetadata, parse
from vsr.photo import read_tags
from vsr.pixels import guess_matrix, planar_format, read_layout, read_planes
from vsr.siting import read_siting

log = logging.getLogger(__name__)

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

# PyAV 18.1 frees the name of a PNG's ICC profile twice where its side data is looked at
_BAD_SIDE_DATA = frozenset({"png", "apng"})
# libavcodec takes a PNG's samples per unit for the sides of a sample, reading and writing
INVERTED_ASPECT = frozenset({"png", "apng"})
_DOLBY_VISION = frozenset({SideDataType.DOVI_RPU_BUFFER, SideDataType.DOVI_METADATA})
_NOT_KEPT = {
    SideDataType.A53_CC: "closed captions within its picture",
    SideDataType.SPHERICAL: "the mark that it is a 360-degree picture",
    SideDataType.STEREO3D: "the mark that it is a picture in 3D",
}
_FASTEST_RATE = 240  # frames a second; more is a time base, not a rate


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

    path: Path | Address
    size: tuple[int, int]
    """(height, width) as stored, before rotation and sample aspect ratio; of the region if cut"""
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
    hdr: StaticMetadata
    not_kept: tuple[str, ...] = ()
    """what its first frame carries and no output will, in words"""


def describe(
    path: Path | Address,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    frame: av.VideoFrame,
    *,
    is_still: bool,
) -> tuple[ClipInfo, str]:
    """Tell what a clip's picture is like, by its first frame and what its container says.

    Args:
        path: of the clip, for messages, and for the tags of a still.
        container: opened.
        stream: of the container, with the picture.
        frame: the first that was decoded.
        is_still: whether it is one picture.

    Returns:
        The description; the name of the planar format to bring its frames to.

    Raises:
        MediaError: its colour matrix is not supported.
    """
    context = stream.codec_context
    name = planar_format(frame.format)
    kind, depth, step, full, alpha = read_layout(name)
    if frame.format.has_palette:  # which may hold transparent colours, and seldom does
        alpha = bool((read_planes(frame.reformat(format=name, threads=1))[-1] < 255).any())
    if context.name == "mjpeg":  # which has none: of CMYK an opaque one comes out
        alpha = False
    if frame.format.name.startswith("ya"):  # grey with alpha, read as equal R, G, B
        kind = "grey"
    tags = ColourTags(frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range)
    if kind == "yuv" and tags.matrix not in MATRICES and tags.matrix not in UNTAGGED:
        raise MediaError(f"{path} has colour matrix {tags.matrix} (H.273), not supported")
    guess: Matrix = "bt601" if is_still else guess_matrix(frame.height, frame.width)
    full = full or tags.range == FULL_RANGE
    if kind == "grey" and is_still:
        full = full or tags.range == 0
    deepest = max(component.bits for component in frame.format.components)
    if deepest > 16:
        log.warning("%s has %d bits a sample: rounded to 16", path, deepest)
    side_data = {} if context.name in _BAD_SIDE_DATA else _side_data(frame)
    display_matrix = _display_matrix(frame, side_data)
    if is_still and isinstance(path, Path):
        display_matrix = read_tags(path).display_matrix or display_matrix
    if _DOLBY_VISION & side_data.keys():
        log.warning(
            "%s is Dolby Vision: its HDR10, HLG or SDR base is upscaled, its Dolby Vision "
            "layer is not kept",
            path,
        )
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    time_base = Fraction(stream.time_base or Fraction(1, 1000))
    rate, frames = _rate_and_length(container, stream, time_base)
    info = ClipInfo(
        path=path,
        size=(frame.height, frame.width),
        layout=PlaneLayout(
            kind=kind,
            depth=depth,
            full_range=full,
            matrix=MATRICES.get(tags.matrix, guess),
            chroma_step=step,
            siting=read_siting(frame, context.name) if step != (1, 1) else "left",
        ),
        tags=tags,
        alpha=alpha,
        is_still=is_still,
        sample_aspect_ratio=1 / aspect if context.name in INVERTED_ASPECT else aspect,
        time_base=time_base,
        average_rate=rate,
        frames=frames,
        display_matrix=display_matrix,
        hdr=parse(
            side_data.get(SideDataType.MASTERING_DISPLAY_METADATA),
            side_data.get(SideDataType.CONTENT_LIGHT_LEVEL),
        ),
        not_kept=_not_kept(stream, side_data),
    )
    return info, name


def warn_of_marks(info: ClipInfo) -> None:
    """Say what of the picture no output will have."""
    if info.not_kept:
        log.warning("not kept of %s: %s", info.path, ", ".join(info.not_kept))


def _not_kept(stream: av.VideoStream, side_data: dict[SideDataType, bytes]) -> tuple[str, ...]:
    found = [said for kind, said in _NOT_KEPT.items() if kind in side_data]
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    if tags.get("alpha_mode") == "1":  # of WebM, which FFmpeg decodes without it
        found.append("its alpha channel")
    return tuple(found)


def _rate_and_length(
    container: av.container.InputContainer, stream: av.VideoStream, time_base: Fraction
) -> tuple[Fraction, int | None]:
    """Return frames a second and number of frames, as far as the container says or suggests."""
    rates = (stream.average_rate, stream.guessed_rate, Fraction(25))
    rate = next(rate for rate in rates if rate and 0 < rate <= _FASTEST_RATE)
    seconds = float(stream.duration * time_base) if stream.duration else 0.0
    if not seconds and container.duration:
        seconds = container.duration / av.time_base
    return Fraction(rate), stream.frames or round(seconds * rate) or None


def _side_data(frame: av.VideoFrame) -> dict[SideDataType, bytes]:
    """Return a frame's side data by kind."""
    try:
        return {data.type: bytes(data) for data in cast(Any, frame.side_data)}
    except ValueError:  # a kind of side data that PyAV has no name for, such as EXIF
        return {}


def _display_matrix(
    frame: av.VideoFrame, side_data: dict[SideDataType, bytes]
) -> tuple[int, ...] | None:
    stored = side_data.get(SideDataType.DISPLAYMATRIX)
    if stored is not None:
        return tuple(int(value) for value in np.frombuffer(stored, np.int32))
    turn = frame.rotation % 360  # where a kind without a name hides the matrix
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}.get(turn, (1, 0))
    matrix = (cos, -sin, 0, sin, cos, 0, 0, 0)
    return (*(value << 16 for value in matrix), 1 << 30) if turn else None
