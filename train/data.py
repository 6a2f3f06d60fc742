"""Photos to training patches: high-resolution crops and their antialiased bicubic shrinks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from train.recolour import in_other_colours

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]
"""low and high resolution"""

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


def find_sets(folder: Path) -> list[Path]:
    """List the test sets of a folder, sorted: its folders of pictures, but for hidden ones.

    Raises:
        FileNotFoundError: the folder does not exist, holds no set, or a set holds no picture.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder of test sets {folder} does not exist: give --eval FOLDER")
    sets = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not sets:
        raise FileNotFoundError(f"no test sets (folders of pictures) in {folder}")
    for path in sets:
        find_photos(path)
    return sets


def load_rgb(path: Path) -> NDArray[np.uint8]:
    """Read a photo as (H, W, 3) uint8 RGB; grey becomes three equal channels, 16 bits become 8.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or has samples of 32 bits, whose range nobody knows.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):  # Pillow would cut them off at 255
                levels = (np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8)
                return np.repeat(levels[..., None], 3, axis=2)
            if image.mode in ("I", "F"):
                raise ValueError("samples of 32 bits: make it 8 or 16 bits")
            return np.asarray(image.convert("RGB"))
    except SyntaxError as error:  # Pillow's, of a damaged PNG
        raise ValueError(str(error)) from error


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
        half_size: hold each photo at half its size too, if a crop still fits: denser detail, and
            fainter traces of its camera and its JPEG. Memory: a quarter more.
        recolour: share of the patches that get other colours (see `train.recolour`).
        seed: of the random draws; `state` and `load_state` carry them over a restart.

    Raises:
        ValueError: `crop` does not divide by `scale`, or no photo is left.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        *,
        crop: int,
        scale: int,
        seed: int,
        candidates: int = 1,
        half_size: bool = False,
        recolour: float = 0.0,
    ) -> None:
        if crop < scale or crop % scale:
            raise ValueError(f"crop must be a multiple of the scale {scale}, got {crop}")
        if not 0 <= recolour <= 1:
            raise ValueError(f"recolour must be in [0, 1], got {recolour}")
        self.lr_crop = crop // scale
        self.candidates = candidates
        self.recolour = recolour
        self.scale = scale
        load = partial(self._load, half_size=half_size)
        with ThreadPoolExecutor() as pool:
            loaded = [pairs for pairs in pool.map(load, paths) if pairs]
        self.photos = len(loaded)
        self.pairs = [pair for pairs in loaded for pair in pairs]
        if not self.pairs:
            raise ValueError(f"no photo could be read that holds a crop of {crop}x{crop}")
        self.random = torch.Generator().manual_seed(seed)

    @property
    def held_bytes(self) -> int:
        """Memory the decoded photos take."""
        return sum(hr.nbytes + lr.nbytes for hr, lr in self.pairs)

    def _load(self, path: Path, *, half_size: bool) -> list[tuple[Tensor, Tensor]]:
        crop = self.lr_crop * self.scale
        try:
            photo = load_rgb(path)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            log.warning("skipping %s: %s", path, error)
            return []
        if min(photo.shape[:2]) < crop:
            log.warning("skipping %s: %dx%d is smaller than a crop", path, *photo.shape[1::-1])
            return []
        sizes = [photo]
        if half_size and min(photo.shape[:2]) >= 2 * crop:
            sizes.append(shrink_bicubic(crop_to_multiple(photo, 2), 2))
        return [self._pair(one) for one in sizes]

    def _pair(self, photo: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        photo = crop_to_multiple(photo, self.scale)
        small = shrink_bicubic(photo, self.scale)
        return (
            torch.from_numpy(photo.copy()).permute(2, 0, 1),
            torch.from_numpy(small.copy()).permute(2, 0, 1),
        )

    def batch(self, size: int, *, part: tuple[int, int] = (0, 1)) -> Batch:
        """Draw a batch.

        Args:
            size: patches of the joint batch of all processes.
            part: (rank, processes): every one draws the same places, and returns its own share.

        Returns:
            lr: (size/processes, 3, crop/scale, crop/scale) and hr: (size/processes, 3, crop, crop),
            float32 RGB in [0, 1] on the CPU, contiguous.
        """
        rank, processes = part
        lr_patches: list[Tensor] = []
        hr_patches: list[Tensor] = []
        for index in range(size):
            pair = self._draw_patch()
            turns, mirrored = self._draw(4), bool(self._draw(2))
            if index % processes != rank:
                continue
            for patch, patches in zip(pair, (lr_patches, hr_patches), strict=True):
                turned = torch.rot90(patch, turns, (1, 2))
                patches.append(turned.flip(2) if mirrored else turned)
        return torch.stack(lr_patches).float() / 255, torch.stack(hr_patches).float() / 255

    def _draw_patch(self) -> Batch:
        """Draw a pair of patches, (3, h, w) and (3, H, W) uint8, as they lie in a photo."""
        places = [self._draw_place() for _ in range(self.candidates)]
        (hr, lr), top, left = max(places, key=self._detail) if places[1:] else places[0]
        side, scale = self.lr_crop, self.scale
        hr = hr[:, top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        if self.recolour and self._draw(1 << 30) < self.recolour * (1 << 30):
            hr = in_other_colours(hr, np.random.default_rng(self._draw(1 << 30)))
            return self._pair(hr.permute(1, 2, 0).numpy())[::-1]
        return lr[:, top : top + side, left : left + side], hr

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

    @property
    def state_bytes(self) -> int:
        """Size of the state of the random draws alone."""
        return self.random.get_state().numel()

    def state(self) -> Tensor:
        """State of the random draws, for a checkpoint."""
        return self.random.get_state()

    def load_state(self, state: Tensor) -> None:
        """Continue the random draws where `state` was taken, of this or the other sampler."""
        self.random.set_state(state[: self.state_bytes].clone())

    def close(self) -> None:
        """Stop what was begun ahead of the next batch: nothing here."""


class Sampler(Protocol):
    """What draws batches: the same ones again after `load_state`."""

    def batch(self, size: int, *, part: tuple[int, int] = (0, 1)) -> Batch:
        """Draw a batch (see `PatchSampler.batch`)."""

    def state(self) -> Tensor:
        """State of the random draws, for a checkpoint."""

    def load_state(self, state: Tensor) -> None:
        """Continue the random draws where `state` was taken."""


class Prefetcher:
    """Draws the next batch in a thread while the present one is computed with.

    Args:
        sampler: what draws; nothing else may draw from it.
        size: patches of the joint batch.
        part: see `PatchSampler.batch`.
        pinned: in memory that a GPU copies from while the host goes on.
    """

    def __init__(
        self,
        sampler: Sampler,
        size: int,
        *,
        part: tuple[int, int] = (0, 1),
        pinned: bool = False,
    ) -> None:
        self._sampler, self._size, self._part = sampler, size, part
        self._pinned = pinned
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self.state = sampler.state()
        """state of the draws after the last batch that was taken, for a checkpoint"""
        self.waited_seconds = 0.0
        self._next = self._pool.submit(self._draw)

    def _draw(self) -> tuple[Batch, Tensor]:
        lr, hr = self._sampler.batch(self._size, part=self._part)
        state = self._sampler.state()
        return ((lr.pin_memory(), hr.pin_memory()) if self._pinned else (lr, hr)), state

    def take(self) -> Batch:
        """Return the next batch; an exception of the thread is raised here."""
        began = time.monotonic()
        batch, self.state = self._next.result()
        self.waited_seconds += time.monotonic() - began
        self._next = self._pool.submit(self._draw)
        return batch

    def close(self) -> None:
        """Stop the thread after the batch at hand."""
        self._pool.shutdown(cancel_futures=True)
