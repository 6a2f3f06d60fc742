"""The job of a single picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engines import Engine
from engines.errors import MediaError
from vsr.config import UpscaleConfig
from vsr.convert import PlaneLayout, from_rgb, oriented, resize, to_rgb
from vsr.encode import write_still
from vsr.output import kept_aspect_ratio
from vsr.video import Reader


def upscale_still(
    config: UpscaleConfig, reader: Reader, engine: Engine, output: Path, size: tuple[int, int]
) -> int:
    """Upscale a picture to (height, width), and return the number of frames: 1.

    Raises:
        MediaError: the output is no .png, or the size would change the picture's shape.
    """
    info = reader.info
    if output.suffix.lower() != ".png":
        raise MediaError(f"a still is written as .png, got {output}")
    if kept_aspect_ratio(config, info, size) != info.sample_aspect_ratio:
        raise MediaError(
            f"--size {size[1]}x{size[0]} would change the shape of {info.path} "
            f"({info.size[1]}x{info.size[0]})"
        )
    planes = next(reader.frames()).value
    alpha = planes[-1] if info.alpha else None
    planes = planes[: len(info.layout.plane_sizes(1, 1))]
    depth = 8 if info.layout.depth == 8 else 16
    layout = replace(
        info.layout,
        kind="grey" if info.layout.kind == "grey" else "rgb",
        depth=depth,
        full_range=True,
        chroma_step=(1, 1),
    )
    result = from_rgb(resize(engine(to_rgb(planes, info.layout)), size), layout)
    if alpha is not None:
        grey = PlaneLayout(kind="grey", depth=info.layout.depth, full_range=True)
        levels = to_rgb([alpha], grey)
        constant = bool(levels.min() == levels.max())  # what is opaque stays wholly opaque
        enlarged = levels[..., :1, :1].expand(1, 3, *size) if constant else engine(levels)
        result += from_rgb(resize(enlarged, size), replace(grey, depth=depth))
    if info.display_matrix is not None:  # PNG has no rotation: turn the pixels themselves
        result = [oriented(plane, info.display_matrix) for plane in result]
    write_still(output, result, kind=layout.kind, alpha=alpha is not None)
    return 1
