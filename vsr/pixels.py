"""Pixel formats: which planes a format has, what they mean, and getting at them.

The pipeline works on planar, little-endian formats; everything else is brought there first, without
losing depth or chroma (`planar_format`). Hardware codecs know U and V only in turn, in one plane:
these semi-planar formats are taken apart and put together here, on whatever device they are.
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

# the planar twins of semi-planar formats
SEMI_PLANAR = {"nv12": "yuv420p", "p010le": "yuv420p10le"}
_P010_SHIFT = 6  # it has its ten bits at the top of sixteen


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
    """Split a format's name into kind, depth, chroma step, "is full range", "has alpha"."""
    if match := _YUV.fullmatch(SEMI_PLANAR.get(name, name)):
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
    """Return the planes of a planar frame without copying; they keep the frame alive.

    Those of a semi-planar one are those of its planar twin; what had to be taken apart is a copy.
    """
    if frame.format.name in SEMI_PLANAR:
        luma, chroma = _semi_planar_parts(frame)
        return separated(luma, chroma, frame.format.name)
    planes = []
    wide = frame.format.components[0].bits > 8
    for plane in frame.planes:
        rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, abs(plane.line_size))
        samples = rows.view(np.uint16) if wide else rows
        planes.append(torch.from_numpy(samples[: plane.height, : plane.width]))
    if frame.format.is_rgb:  # stored as G, B, R
        planes[:3] = [planes[2], planes[0], planes[1]]
    return planes


def _semi_planar_parts(frame: av.VideoFrame) -> tuple[Tensor, Tensor]:
    """Return views of luma (H, W) and chroma (h, 2w) of a frame in the host's memory."""
    parts = []
    for plane, samples in zip(frame.planes, (1, 2), strict=True):
        rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, abs(plane.line_size))
        values: NDArray[Any] = rows if frame.format.name == "nv12" else rows.view(np.uint16)
        parts.append(torch.from_numpy(values[: plane.height, : samples * plane.width]))
    return parts[0], parts[1]


def separated(luma: Tensor, chroma: Tensor, name: str) -> list[Tensor]:
    """Take the planes of a semi-planar format apart.

    Args:
        luma: (H, W) uint8 for nv12, uint16 for p010le, on any device.
        chroma: (h, 2w) or (h, w, 2), U and V in turn, the same.
        name: of the format.

    Returns:
        Y (H, W), U and V (h, w) as in the planar twin, on their device. U and V are contiguous
        copies, and so is Y for p010le; for nv12 it is `luma`.
    """
    pairs = chroma.view(len(chroma), -1, 2)
    planes = [luma, pairs[..., 0], pairs[..., 1]]
    if name == "nv12":
        return [luma, *(plane.contiguous() for plane in planes[1:])]
    lowest = (1 << (16 - _P010_SHIFT)) - 1  # PyTorch shifts no uint16, and int16 with its sign
    return [
        (plane.view(torch.int16) >> _P010_SHIFT).bitwise_and_(lowest).view(torch.uint16)
        for plane in planes
    ]


def interleave(planes: Sequence[Tensor], luma: Tensor, chroma: Tensor, name: str) -> None:
    """Copy planes into those of a semi-planar format; the inverse of `separated`.

    Args:
        planes: Y (H, W), U and V (h, w), uint8 for nv12, uint16 for p010le.
        luma: (H, W), of the same type and device; is written.
        chroma: (h, 2w), the same.
        name: of the format.
    """
    pairs = chroma.view(len(chroma), -1, 2)
    for target, plane in zip((luma, pairs[..., 0], pairs[..., 1]), planes, strict=True):
        if name == "nv12":
            target.copy_(plane)
        else:
            target.view(torch.int16).copy_(plane.view(torch.int16) << _P010_SHIFT)


def write_planes(planes: Sequence[Tensor], name: str) -> av.VideoFrame:
    """Copy planes into a new frame of a planar or semi-planar format."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, name)
    if name in SEMI_PLANAR:
        luma, chroma = _semi_planar_parts(frame)
        interleave(planes, luma, chroma, name)
        return frame
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
