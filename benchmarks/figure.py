"""The comparison of the SRGAN paper's figure 2: one crop, all systems side by side, with scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from train.data import shrink_bicubic, to_frame
from train.metrics import Distance, load_original, psnr, to_luma, to_picture

SCALE = 4
SIDE = 200  # of the crop, pixels of the original
BAND = 44  # height of the captions
GAP = 6
COLUMNS = 8  # of more pictures there are two rows


@torch.inference_mode()
def draw_figure(
    path: Path,
    photo: Path,
    upscalers: dict[str, Callable[[Tensor], Tensor]],
    lpips: Distance | None,
) -> None:
    """Draw one crop as each upscaler makes it, and the original, into a PNG.

    Args:
        path: the PNG.
        photo: the original; its middle is shown.
        upscalers: by name; (1, 3, H, W) RGB in [0, 1] to four times the size.
        lpips: None leaves it out of the captions.
    """
    original = load_original(photo, scale=SCALE)
    frame = to_frame(shrink_bicubic(original, SCALE))
    pictures = {name: to_picture(upscale(frame)) for name, upscale in upscalers.items()}
    captions = {name: caption(picture, original, lpips) for name, picture in pictures.items()}
    pictures["original"], captions["original"] = original, "PSNR-Y / LPIPS"
    wide = min(SIDE, original.shape[1])
    tall = min(SIDE, original.shape[0])
    top, left = (original.shape[0] - tall) // 2, (original.shape[1] - wide) // 2
    columns = len(pictures) if len(pictures) <= COLUMNS else -(-len(pictures) // 2)
    rows = -(-len(pictures) // columns)
    size = (columns * (wide + GAP) - GAP, rows * (tall + BAND))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, picture) in enumerate(pictures.items()):
        x, y = index % columns * (wide + GAP), index // columns * (tall + BAND)
        crop = np.ascontiguousarray(picture[top : top + tall, left : left + wide])
        sheet.paste(Image.fromarray(crop), (x, y + BAND))
        draw.text((x + 2, y + 2), name, "black", ImageFont.load_default(15))
        draw.text((x + 2, y + 22), captions[name], "black", ImageFont.load_default(13))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def caption(picture: NDArray[np.uint8], original: NDArray[np.uint8], lpips: Distance | None) -> str:
    """Return the scores of one picture."""
    error = psnr(to_luma(picture, shave=SCALE), to_luma(original, shave=SCALE))
    if lpips is None:
        return f"{error:.2f} dB"
    return f"{error:.2f} dB / {float(lpips(to_frame(picture), to_frame(original))):.3f}"
