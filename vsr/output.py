"""The output of a job: its size, its shape, its name, and whether it may have it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from engines.errors import MediaError, UnsupportedShape
from vsr.address import Address
from vsr.clip import ClipInfo
from vsr.config import UpscaleConfig
from vsr.ffmpeg import reason
from vsr.journal import awaits_removal
from vsr.pattern import is_pattern

# input suffixes whose container the output keeps; any other clip becomes .mp4
_KEPT_SUFFIXES = {".mkv": ".mkv", ".webm": ".mkv", ".mov": ".mov", ".m4v": ".m4v"}


class OutputExists(MediaError):
    """The output is there already, and is not to be replaced."""


def output_size(
    config: UpscaleConfig, info: ClipInfo, scale: int, *, is_encoded: bool = True
) -> tuple[int, int]:
    """Work out (height, width) of the output.

    Args:
        config: of the job.
        info: of the input.
        scale: of the model.
        is_encoded: whether the output is an encoded clip, which may have even sides alone.

    Raises:
        UnsupportedShape: larger than the model's factor reaches.
    """
    height, width = info.size
    if config.size is not None:
        size = config.size
    elif config.scale in (None, scale):
        # of an odd factor, where chroma is half as large, a side may be one short
        bound = is_encoded and not info.is_still
        down, across = (min(2, n) if bound else 1 for n in info.layout.chroma_step)
        size = (height * scale // down * down, width * scale // across * across)
    else:
        factor = config.scale
        even = 1 if info.is_still else 2  # encoders take 4:2:0 in even sizes
        size = (
            max(1, round(height * factor / even)) * even,
            max(1, round(width * factor / even)) * even,
        )
    if config.scale is not None and config.scale > scale:
        raise UnsupportedShape(
            f"--scale {config.scale:g} is more than {scale}, the largest that the model reaches"
        )
    if size[0] > height * scale or size[1] > width * scale:
        raise UnsupportedShape(
            f"--size {size[1]}x{size[0]} is more than {scale} times {width}x{height}: the largest "
            f"that the model reaches is {width * scale}x{height * scale}"
        )
    return size


def kept_aspect_ratio(config: UpscaleConfig, info: ClipInfo, size: tuple[int, int]) -> Fraction:
    """Return the sample aspect ratio with which the output is displayed in the input's shape.

    It is the input's own for a `scale`, and for a `size` that is the input's shape rounded to the
    nearest even number.
    """
    if config.size is None:
        return info.sample_aspect_ratio
    height, width = info.size
    even = 1 if info.is_still else 2
    if (
        size[0] == round(Fraction(height * size[1], width * even)) * even
        or size[1] == round(Fraction(width * size[0], height * even)) * even
    ):
        return info.sample_aspect_ratio
    ratio = info.sample_aspect_ratio * Fraction(width * size[0], height * size[1])
    return ratio.limit_denominator(1 << 15)


def refuse_other_shape(config: UpscaleConfig, info: ClipInfo, size: tuple[int, int]) -> None:
    """Raise where a picture, whose samples stay as they are, would be distorted.

    Raises:
        MediaError: (height, width) of the output has another shape than the input.
    """
    if kept_aspect_ratio(config, info, size) != info.sample_aspect_ratio:
        raise MediaError(
            f"--size {size[1]}x{size[0]} would change the shape of {info.path} "
            f"({info.size[1]}x{info.size[0]})"
        )


def default_output(config: UpscaleConfig, info: ClipInfo, scale: int) -> Path:
    """Name the output: `clip_x4.mp4`, beside the source or in the folder that is asked for.

    That of `frames/%06d.png` is `frames/%06d_x4.png`.
    """
    source = config.source
    if isinstance(source, Address):  # a file that can be played however it ends
        source = Path(f"{source.stem}.mkv")
    folder = config.output or source.parent
    if config.size is not None:
        mark = f"{config.size[1]}x{config.size[0]}"
    else:
        mark = f"x{config.scale or scale:g}"
    if config.region is not None:
        mark = f"{type(config.region).__name__.lower()}{config.region}_{mark}"
    is_picture = info.is_still or is_pattern(source)
    if config.span is not None:
        mark = f"{config.span}_{mark}"
    suffix = ".png" if is_picture else default_suffix(source)
    return folder / f"{source.stem}_{mark}{suffix}"


def default_suffix(source: Path) -> str:
    """Choose the container of a clip's output."""
    return _KEPT_SUFFIXES.get(source.suffix.lower(), ".mp4")


def check_output(source: Path | Address, output: Path, *, overwrite: bool) -> None:
    """Find out before the work whether the output can have its name.

    Raises:
        OutputExists: it may not be replaced.
        MediaError: its folder is missing, or it is a folder or the source.
    """
    try:
        if output.is_dir():
            raise MediaError(f"{output} is a folder, expected the name of a file")
        if not output.parent.is_dir():
            raise MediaError(f"the folder of the output, {output.parent}, does not exist")
        if output.exists():
            if isinstance(source, Path) and source.exists() and output.samefile(source):
                raise MediaError(f"{output} is the input itself")
            if not overwrite and not awaits_removal(output):
                raise OutputExists(f"{output} exists: --overwrite replaces it")
    except OSError as error:
        raise MediaError(f"cannot write {output}: {reason(error)}") from error
