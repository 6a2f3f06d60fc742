"""The job of a single picture."""

from __future__ import annotations

import logging
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from engines.errors import MediaError
from engines.safety import SafeEngine
from vsr.clip import ClipInfo
from vsr.config import UpscaleConfig
from vsr.convert import PlaneLayout, from_rgb, oriented, quarter_turn, resize, to_rgb
from vsr.memory import automatic_strip
from vsr.output import refuse_other_shape
from vsr.photo import PhotoTags, read_tags
from vsr.picture import (
    PICTURE_SUFFIXES,
    TIFF_SUFFIXES,
    PictureFormat,
    picture_layout,
    write_file,
)
from vsr.strips import StripUpscaler
from vsr.video import Reader

log = logging.getLogger(__name__)

# of H.273, what viewers assume where nothing is said, or nearly: BT.709, none, gamma 2.2, sRGB
_USUAL_PRIMARIES, _USUAL_TRANSFERS = (1, 2), (1, 2, 4, 6, 13)
# between 0 and 1: what lies closer is one number; int8 and bf16 have 8
_KEPT_BITS = {"fp32": 24, "fp16": 11}


def upscale_still(
    config: UpscaleConfig, reader: Reader, engine: SafeEngine, output: Path, size: tuple[int, int]
) -> int:
    """Upscale a picture to (height, width), and return the number of frames: 1.

    Raises:
        MediaError: the output is no picture that we write, or the size would change the picture's
            shape.
    """
    info = reader.info
    if output.suffix.lower() not in PICTURE_SUFFIXES:
        raise MediaError(f"a still is written as .png, .tif or .tiff, got {output}")
    refuse_other_shape(config, info, size)
    assert isinstance(info.path, Path), "a stream is no picture"
    tags = read_tags(info.path)
    if tags.pages > 1:
        log.warning("%s has %d pages: the first is taken", info.path, tags.pages)
    stored = stored_format(info, output.suffix.lower(), tags)
    warn_of_precision(info, engine)
    planes = enlarged(next(reader.frames()).value, info, engine, size)
    write_file(output, stored.encode(planes))
    return 1


def warn_of_precision(info: ClipInfo, engine: SafeEngine) -> None:
    """Say so where the engine computes in fewer bits than a deep picture has."""
    if info.layout.depth > _KEPT_BITS.get(engine.precision, 8):
        log.warning(
            "%s has %d bits a sample, and %s computes in %s: --precision fp32 keeps them all",
            info.path, info.layout.depth, engine.backend, engine.precision,
        )  # fmt: skip


def stored_format(info: ClipInfo, suffix: str, tags: PhotoTags) -> PictureFormat:
    """Choose how pictures made of a clip's frames or of a still are stored; warn of what is lost.

    Args:
        info: of the input.
        suffix: of the pictures.
        tags: of the input's file.
    """
    layout = picture_layout(info.layout)
    profile = tags.profile_for(layout.kind)
    if tags.profile is not None and profile is None:
        log.warning(
            "the ICC profile of %s is dropped: it is for %s, and the picture is %s",
            info.path, tags.profile[16:20].decode("ascii", "replace").strip(), layout.kind,
        )  # fmt: skip
    usual = info.tags.primaries in _USUAL_PRIMARIES and info.tags.transfer in _USUAL_TRANSFERS
    if suffix in TIFF_SUFFIXES and profile is None and not usual:
        log.warning(
            "the colour tags of %s (H.273 primaries %d, transfer %d) are dropped: TIFF has none; "
            ".png keeps them",
            info.path, info.tags.primaries, info.tags.transfer,
        )  # fmt: skip
    aspect = info.sample_aspect_ratio
    if info.display_matrix is not None and quarter_turn(info.display_matrix)[0]:
        aspect = 1 / aspect
    return PictureFormat(
        suffix=suffix,
        kind=layout.kind,
        alpha=info.alpha,
        sample_aspect_ratio=Fraction(aspect),
        primaries=info.tags.primaries,
        transfer=info.tags.transfer,
        profile=profile,
    )


def enlarged(
    planes: list[Tensor], info: ClipInfo, engine: SafeEngine, size: tuple[int, int]
) -> list[Tensor]:
    """Upscale one picture, its alpha too, and turn it upright.

    Args:
        planes: of `info.layout`, then alpha if `info.alpha`.
        info: of the input.
        engine: upscales it.
        size: (height, width) of the output before it is turned.

    Returns:
        Planes of `picture_layout(info.layout)`, then alpha if there is.
    """
    alpha = planes[-1] if info.alpha else None
    planes = planes[: len(info.layout.plane_sizes(1, 1))]
    layout = picture_layout(info.layout)
    rows = automatic_strip(engine, info.size)

    def planes_of(rgb: Tensor, layout: PlaneLayout) -> list[Tensor]:
        if rows is not None:
            return StripUpscaler(engine, layout, size, rows)(rgb)
        return from_rgb(resize(engine.upscale(rgb), size), layout)

    result = planes_of(to_rgb(planes, info.layout), layout)
    if alpha is not None:
        grey = PlaneLayout(kind="grey", depth=info.layout.depth, full_range=True)
        levels, deep = to_rgb([alpha], grey), replace(grey, depth=layout.depth)
        if levels.min() == levels.max():  # what is opaque stays wholly opaque
            (level,) = from_rgb(levels[..., :1, :1], deep)
            result.append(level.expand(size).contiguous())
        else:
            result += planes_of(levels, deep)
    if info.display_matrix is not None:  # a picture's file is not turned by its viewer: do it here
        result = [oriented(plane, info.display_matrix) for plane in result]
    return result
