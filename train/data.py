"""Photos to training patches: high-resolution crops and their antialiased bicubic shrinks."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

log = logging.getLogger(__name__)

PHOTO_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def find_photos(folder: Path) -> list[Path]:
    """List the photos below a folder, sorted.

    Raises:
        FileNotFoundError: the folder does not exist or holds no photo.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"photo folder {folder} does not exist")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no photos below {folder} ({', '.join(sorted(PHOTO_SUFFIXES))})")
    return paths


def load_rgb(path: Path) -> NDArray[np.uint8]:
    """Read a photo as (H, W, 3) uint8 RGB; grey becomes three equal channels."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def crop_to_multiple(photo: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Cut the right and lower edge off so that both sides divide by `factor`."""
    height, width = photo.shape[:2]
    return photo[: height - height % factor, : width - width % factor]


def shrink_bicubic(photo: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Shrink by antialiased bicubic interpolation, as MATLAB's imresize does (within 0.005 dB).

    Args:
        photo: (H, W, 3) uint8, sides divisible by `factor`.
        factor: how many times smaller.
    """
    height, width = photo.shape[:2]
    size = (width // factor, height // factor)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))


def to_frame(photo: NDArray[np.uint8]) -> Tensor:
    """Turn (H, W, 3) uint8 into a (1, 3, H, W) float32 frame in [0, 1]."""
    return torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255


class PatchSampler:
    """Draws random training batches from photos that are held decoded in memory.

    Memory: 3 bytes a photo pixel, plus 1/scale**2 of that for the low-resolution side. Each patch
    has a random place on the low-resolution grid, a random photo, flip and rotation by 90 degrees.

    Args:
        paths: photos; one that cannot be read, or is smaller than a crop, is named in a warning and
            left out.
        crop: side of the high-resolution patch, pixels; a multiple of `scale`.
        scale: the factor of the network.
        candidates: of this many random places the one with the most detail is taken; most of a
            photo is smooth, and teaches little.
        seed: of the random draws; `state` and `load_state` carry them over a restart.

    Raises:
        ValueError: `crop` does not divide by `scale`, or no photo is left.
    """

    def __init__(
        self, paths: Iterable[Path], *, crop: int, scale: int, seed: int, candidates: int = 1
    ) -> None:
        if crop < scale or crop % scale:
            raise ValueError(f"crop must be a multiple of the scale {scale}, got {crop}")
        self.lr_crop = crop // scale
        self.candidates = candidates
        self.scale = scale
        with ThreadPoolExecutor() as pool:
            pairs = list(pool.map(self._load, paths))
        self.pairs = [pair for pair in pairs if pair is not None]
        if not self.pairs:
            raise ValueError(f"no photo could be read that holds a crop of {crop}x{crop}")
        self.random = torch.Generator().manual_seed(seed)

    @property
    def held_bytes(self) -> int:
        """Memory the decoded photos take."""
        return sum(hr.nbytes + lr.nbytes for hr, lr in self.pairs)

    def _load(self, path: Path) -> tuple[Tensor, Tensor] | None:
        try:
            photo = crop_to_multiple(load_rgb(path), self.scale)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            log.warning("skipping %s: %s", path, error)
            return None
        if min(photo.shape[:2]) < self.lr_crop * self.scale:
            log.warning("skipping %s: %dx%d is smaller than a crop", path, *photo.shape[1::-1])
            return None
        small = shrink_bicubic(photo, self.scale)
        return (
            torch.from_numpy(photo.copy()).permute(2, 0, 1),
            torch.from_numpy(small.copy()).permute(2, 0, 1),
        )

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Draw a batch.

        Returns:
            lr: (size, 3, crop/scale, crop/scale) and hr: (size, 3, crop, crop), float32 RGB in
            [0, 1] on the CPU, contiguous.
        """
        lr_patches: list[Tensor] = []
        hr_patches: list[Tensor] = []
        for _ in range(size):
            places = [self._draw_place() for _ in range(self.candidates)]
            (hr, lr), top, left = max(places, key=self._detail) if places[1:] else places[0]
            turns, mirrored = self._draw(4), bool(self._draw(2))
            for photo, factor, patches in ((lr, 1, lr_patches), (hr, self.scale, hr_patches)):
                y, x, side = top * factor, left * factor, self.lr_crop * factor
                patch = torch.rot90(photo[:, y : y + side, x : x + side], turns, (1, 2))
                patches.append(patch.flip(2) if mirrored else patch)
        return torch.stack(lr_patches).float() / 255, torch.stack(hr_patches).float() / 255

    def _draw_place(self) -> tuple[tuple[Tensor, Tensor], int, int]:
        """Draw a pair of photos, and the top left corner of a patch on its low-resolution grid."""
        pair = self.pairs[self._draw(len(self.pairs))]
        height, width = pair[1].shape[1:]
        return (
            pair,
            self._draw(height - self.lr_crop + 1),
            self._draw(width - self.lr_crop + 1),
        )

    def _detail(self, place: tuple[tuple[Tensor, Tensor], int, int]) -> float:
        """Measure detail: the mean step between neighbours of the low-resolution patch."""
        (_, lr), top, left = place
        patch = lr[:, top : top + self.lr_crop, left : left + self.lr_crop].float()
        return float(patch.diff(dim=1).abs().mean() + patch.diff(dim=2).abs().mean())

    def _draw(self, bound: int) -> int:
        return int(torch.randint(bound, (), generator=self.random))

    def state(self) -> Tensor:
        """State of the random draws, for a checkpoint."""
        return self.random.get_state()

    def load_state(self, state: Tensor) -> None:
        """Continue the random draws where `state` was taken."""
        self.random.set_state(state)
