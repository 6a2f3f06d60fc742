"""Pixel formats: which planes a format has, what they mean, and getting at them.

The pipeline works on planar, little-endian formats; everything else is brought there first, without
losing depth or chroma (`planar_format`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsr.convert import Kind, Matrix, PlaneLayout

# The names of planar formats: yuv420p, yuvj422p, yuva444p10le, gray12le ...
_YUV = re.compile(r"yuv(?P<full>j?)(?P<alpha>a?)(?P<layout>4\d\d)p(?P<depth>\d*)(le)?")
_CHROMA_STEPS = {"410": (4, 4), "411": (1, 4), "420": (2, 2), "422": (1, 2)} | {
    "440": (2, 1),
    "444": (1, 1),
}
_GREY = re.compile(r"gray(?P<depth>\d*)(le)?")
_RGB = re.compile(r"gbr(?P<alpha>a?)p(?P<depth>\d*)(le)?")


def is_planar(name: str) -> bool:
    """Tell whether the pipeline works on a pixel format as it is."""
    return any(pattern.fullmatch(name) for pattern in (_YUV, _RGB, _GREY))


def planar_format(pixel_format: av.VideoFormat) -> str:
    """Name the planar, little-endian format that holds all that this one can hold."""
    name: str = pixel_format.name
    if is_planar(name):
        return name
    components = pixel_format.components
    depth = max(component.bits for component in components)
    alpha = any(component.is_alpha for component in components)
    colours = len(components) - alpha
    if pixel_format.has_palette or pixel_format.is_rgb or pixel_format.is_bayer:
        return ("gbrap" if alpha or pixel_format.has_palette else "gbrp") + _suffix(depth)
    if colours == 1:
        return "gbrap" + _suffix(depth) if alpha else "gray" + _suffix(depth)
    step = tuple(
        -(-side // chroma)
        for side, chroma in (
            (pixel_format.height or 64, pixel_format.chroma_height(pixel_format.height or 64)),
            (pixel_format.width or 64, pixel_format.chroma_width(pixel_format.width or 64)),
        )
    )
    layout = next((key for key, value in _CHROMA_STEPS.items() if value == step), "444")
    if alpha:  # packed _YUV with alpha: only these exist in planes at every depth
        layout = "444"
    return f"yuv{'a' if alpha else ''}{layout}p" + (f"{depth}le" if depth > 8 else "")


def _suffix(depth: int) -> str:
    return "16le" if depth > 8 else ""


def read_layout(name: str) -> tuple[Kind, int, tuple[int, int], bool, bool]:
    """Split a planar format's name into kind, depth, chroma step, "is full range", "has alpha"."""
    if match := _YUV.fullmatch(name):
        step = _CHROMA_STEPS[match["layout"]]
        return "yuv", int(match["depth"] or 8), step, bool(match["full"]), bool(match["alpha"])
    if match := _RGB.fullmatch(name):
        return "rgb", int(match["depth"] or 8), (1, 1), True, bool(match["alpha"])
    if match := _GREY.fullmatch(name):
        return "grey", int(match["depth"] or 8), (1, 1), False, False
    raise ValueError(f"not a planar format: {name}")


def guess_matrix(height: int, width: int) -> Matrix:
    """Guess the matrix of an untagged clip by its size, as players do."""
    return "bt709" if height > 576 or width >= 1280 else "bt601"


def read_planes(frame: av.VideoFrame) -> list[Tensor]:
    """Return the planes of a planar frame without copying; they keep the frame alive."""
    planes = []
    wide = frame.format.components[0].bits > 8
    for plane in frame.planes:
        rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, abs(plane.line_size))
        samples = rows.view(np.uint16) if wide else rows
        planes.append(torch.from_numpy(samples[: plane.height, : plane.width]))
    if frame.format.is_rgb:  # stored as G, B, R
        planes[:3] = [planes[2], planes[0], planes[1]]
    return planes


def write_planes(planes: Sequence[Tensor], name: str) -> av.VideoFrame:
    """Copy planes into a new frame of a planar format."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, name)
    ordered = list(planes)
    if frame.format.is_rgb:
        ordered[:3] = [planes[1], planes[2], planes[0]]
    for plane, samples in zip(frame.planes, ordered, strict=True):
        values: NDArray[Any] = samples.numpy()
        rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)
        rows.view(values.dtype)[: plane.height, : plane.width] = values
    return frame


def format_name(layout: PlaneLayout) -> str:
    """Name the planar format of a layout; the inverse of `read_layout`, full range aside."""
    depth = f"{layout.depth}le" if layout.depth > 8 else ""
    if layout.kind == "grey":
        return "gray" + depth
    if layout.kind == "rgb":
        return "gbrp" + depth
    name = next(key for key, step in _CHROMA_STEPS.items() if step == layout.chroma_step)
    return f"yuv{name}p{depth}"
