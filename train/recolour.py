"""Photographs in colours that they hardly ever have, and slides, screens and lamps do.

A network that was trained on photographs alone meets a corner of the RGB cube for the first time
when somebody upscales a blue screen, and draws patterns there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageDraw
from torch import Tensor

from train.losses import LUMA

_GRAPHIC, _FLAT, _GREY, _CONTRAST, _EXTREME = 0.35, 0.15, 0.5, 0.5, 0.7  # how often
_MOST_CONTRAST = 16.0
_PIXELS_A_SHAPE = 600


def in_other_colours(photo: Tensor, random: Generator) -> Tensor:
    """Return a photo in other colours, or at times a drawing of its size.

    Args:
        photo: (3, H, W) uint8 RGB.
        random: the draws.

    Returns:
        Likewise; fresh and contiguous.
    """
    if random.random() < _GRAPHIC:
        return draw_graphic(random, (photo.shape[1], photo.shape[2]))
    return Recolouring.draw(random)(photo)


def draw_graphic(random: Generator, size: tuple[int, int]) -> Tensor:
    """Draw lines, bars and rings of few colours, with hard edges, (3, H, W) uint8 RGB.

    Args:
        random: the draws.
        size: (height, width).
    """
    height, width = size
    colours = [tuple(map(round, _draw_colour(random))) for _ in range(random.integers(2, 6))]
    picture = Image.new("RGB", (width, height), colours[0])
    drawing = ImageDraw.Draw(picture)
    for _ in range(random.integers(2, 3 + height * width // _PIXELS_A_SHAPE)):
        colour = colours[random.integers(len(colours))]
        x, y = int(random.integers(width)), int(random.integers(height))
        across, down = (int(2 ** random.uniform(0, 6.5)) for _ in range(2))
        shape = random.integers(3)
        if shape == 0:
            drawing.rectangle((x, y, x + across, y + down), fill=colour)
        elif shape == 1:
            drawing.ellipse((x, y, x + across, y + down), outline=colour, width=1 + down // 8)
        else:
            end = (x + across * int(random.choice((-1, 1))), y + down)
            drawing.line((x, y, *end), fill=colour, width=int(random.integers(1, 9)))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True, slots=True)
class Recolouring:
    """A map from colours to colours, the same everywhere in a picture."""

    sources: tuple[int, int, int]
    """of R, G and B: a channel, or 3 for Y"""
    contrast: float
    middle: float
    """level that contrast leaves where it is"""
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    """what level 0 and level 255 become"""

    @classmethod
    def draw(cls, random: Generator) -> Recolouring:
        """Draw one: two colours that a grey picture lies between, or other channels and tints."""
        is_grey = random.random() < _GREY
        red, green, blue = (3, 3, 3) if is_grey else random.permutation(3).tolist()
        has_contrast = random.random() < _CONTRAST
        contrast = _MOST_CONTRAST ** random.random() if has_contrast else 1.0
        low = _draw_colour(random)
        high = low if random.random() < _FLAT else _draw_colour(random)
        return cls((red, green, blue), contrast, float(random.uniform(64, 192)), low, high)

    def __call__(self, picture: Tensor) -> Tensor:
        """Recolour (3, H, W) uint8 RGB; a fresh contiguous tensor."""
        rgb = picture.float()
        luma = torch.tensordot(torch.tensor(LUMA), rgb, 1)[None]
        levels = torch.cat([rgb, luma])[list(self.sources)]
        levels = ((levels - self.middle) * self.contrast + self.middle).clamp(0, 255)
        low, high = (torch.tensor(ends).view(3, 1, 1) for ends in (self.low, self.high))
        return (low + (high - low) * levels / 255).round().clamp(0, 255).byte()


def _draw_colour(random: Generator) -> tuple[float, float, float]:
    """Draw R, G and B in 0..255, each more often than not an end of it."""
    red, green, blue = (
        255.0 * int(random.integers(2)) if random.random() < _EXTREME else random.random() * 255
        for _ in range(3)
    )
    return red, green, blue
