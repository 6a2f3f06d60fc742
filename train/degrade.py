"""Low-resolution patches as real footage has them: panned, blurred, shrunk, noisy, compressed.

A photo becomes a short clip: a window that pans over it, shrunk frame by frame, in 4:2:0, through
a real encoder at a random quality and back. The network learns from the decoded frames, P and B
frames among them, what blocks, ringing and smeared chroma look like, and what was there before.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from engines.x264 import repeatable_options
from train.data import PatchSampler
from train.recolour import in_other_colours

FRAMES = 6  # a clip: enough for I, P and B frames
POOL = 48  # clips that patches are drawn from
MOST_WORKERS = 8  # threads that make clips; each batch wants a new one
MOST_PAN = 6.0  # pixels a frame, at high resolution
MOST_WINDOW = 448  # pixels of a photo that a clip shows: all of a large one would take long

_RESIZE = Image.Resampling
_KERNELS = (_RESIZE.BICUBIC, _RESIZE.BILINEAR, _RESIZE.LANCZOS, _RESIZE.BOX, _RESIZE.HAMMING)


@dataclass(frozen=True, slots=True)
class Codec:
    """An encoder, and the range of its quality knob from good to bad."""

    encoder: str
    decoder: str
    best: int
    worst: int
    options: dict[str, str]
    quantiser: bool = False
    """the knob is a fixed quantiser, not a constant rate factor"""
    full_range: bool = False
    smallest: int = 0
    """frames below this side do not come out the same each time"""


# silent, and in one thread: with more, its output is not always the same
_X265 = "log-level=none:pools=none:frame-threads=1:wpp=0"
CODECS = (
    Codec("libx264", "h264", 18, 35, {"preset": "veryfast"}),
    Codec("libx265", "hevc", 20, 36, {"preset": "ultrafast", "x265-params": _X265}, smallest=64),
    Codec("libvpx-vp9", "vp9", 20, 50, {"deadline": "realtime", "cpu-used": "8"}),
    Codec("mpeg2video", "mpeg2video", 2, 14, {"bf": "2"}, quantiser=True),
    Codec("mjpeg", "mjpeg", 2, 16, {}, quantiser=True, full_range=True),
)


@dataclass(frozen=True, slots=True)
class DegradedClip:
    """The low-resolution frames of a pan over a photo."""

    photo: Tensor
    """(3, H, W) uint8 RGB"""
    places: list[tuple[int, int]]
    """(top, left) of the window in the photo for each frame, pixels"""
    frames: list[Tensor]
    """(3, h, w) uint8 RGB each"""


def pan(random: Generator, *, room: tuple[int, int], frames: int) -> list[tuple[int, int]]:
    """Draw a straight path of a window, in whole high-resolution pixels.

    Args:
        random: the draws.
        room: how far (down, right) the window may move.
        frames: length of the path.
    """
    places = []
    start = random.uniform(0, 1, 2) * room
    speed = random.uniform(-MOST_PAN, MOST_PAN, 2) * (random.random() > 0.2)  # or stand still
    for index in range(frames):
        top, left = np.clip(start + index * speed, 0, room).round().astype(int)
        places.append((int(top), int(left)))
    return places


def degrade(
    photo: NDArray[np.uint8], random: Generator, *, window: int, scale: int
) -> tuple[list[tuple[int, int]], list[NDArray[np.uint8]]]:
    """Make a low-resolution clip of a photo.

    Args:
        photo: (H, W, 3) uint8 RGB.
        random: the draws.
        window: side of the part of the photo that is seen, pixels; a multiple of 2 * `scale`.
        scale: how many times smaller the frames are.

    Returns:
        (top, left) of the window for each frame, and the (window/scale, window/scale, 3) frames.
    """
    height, width = photo.shape[:2]
    places = pan(random, room=(height - window, width - window), frames=FRAMES)
    side = window // scale
    kernel = _KERNELS[random.integers(len(_KERNELS))]
    blur = float(random.uniform(0, 1.5)) if random.random() < 0.5 else 0.0
    noise = float(random.uniform(0, 6)) if random.random() < 0.5 else 0.0
    one_level = random.random() < 0.5  # the same noise in R, G and B
    frames = []
    for top, left in places:
        picture = Image.fromarray(photo[top : top + window, left : left + window])
        if blur:
            picture = picture.filter(ImageFilter.GaussianBlur(blur))
        frame = np.asarray(picture.resize((side, side), kernel)).astype(np.float32)
        frame += random.normal(0, 1, (side, side, 1 if one_level else 3)) * noise
        frames.append(frame.round().clip(0, 255).astype(np.uint8))
    codecs = [codec for codec in CODECS if side >= codec.smallest]
    codec = codecs[random.integers(len(codecs))]
    quality = int(random.integers(codec.best, codec.worst + 1))
    return places, through_encoder(frames, codec, quality)


def through_encoder(
    frames: list[NDArray[np.uint8]], codec: Codec, quality: int
) -> list[NDArray[np.uint8]]:
    """Encode frames in 4:2:0 and decode them again.

    Args:
        frames: (H, W, 3) uint8 RGB, sides even.
        codec: with what.
        quality: on the codec's own knob; larger is worse.
    """
    height, width = frames[0].shape[:2]
    # Any: PyAV's stubs give a codec context without the fields of a video codec
    encoder: Any = av.CodecContext.create(codec.encoder, "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
    encoder.thread_count = 1
    colour_range = 2 if codec.full_range else 1
    encoder.color_range = colour_range
    if codec.quantiser:
        encoder.qmin = encoder.qmax = quality
        encoder.bit_rate = 100_000_000  # never the limit: the quantiser is
        encoder.options = codec.options
    else:
        encoder.bit_rate = 0
        options = codec.options | {"crf": str(quality)}
        encoder.options = options | repeatable_options(codec.encoder)
    decoder: Any = av.CodecContext.create(codec.decoder, "r")
    decoder.thread_count = 1
    packets = []
    for index, frame in enumerate(frames):
        picture = av.VideoFrame(width, height, "yuv420p")
        picture.color_range, picture.pts = colour_range, index
        for plane, values in zip(picture.planes, to_420(frame, codec), strict=True):
            rows = np.zeros((plane.height, plane.line_size), np.uint8)
            rows[:, : plane.width] = values
            plane.update(rows.tobytes())
        packets += encoder.encode(picture)
    packets += encoder.encode(None)
    decoded = [picture for packet in [*packets, None] for picture in decoder.decode(packet)]
    if len(decoded) != len(frames):  # the pairs would be of different moments
        raise RuntimeError(f"{codec.encoder} made {len(decoded)} frames of {len(frames)}")
    return [
        from_420(
            [
                np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width]
                for plane in picture.planes
            ],
            codec,
        )
        for picture in decoded
    ]


# Y', Cb, Cr from R'G'B' in 0..1, without offsets (ITU-R BT.601)
_TO_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
_TO_RGB = np.linalg.inv(_TO_YCC).astype(np.float32)


def to_420(frame: NDArray[np.uint8], codec: Codec) -> list[NDArray[np.uint8]]:
    """Turn (H, W, 3) uint8 RGB into Y, Cb and Cr planes, rounded to nearest.

    swscale's fast path would darken by a level, and the network would learn to brighten.
    """
    gain, offset = _levels(codec)
    ycc = frame.astype(np.float32) / 255 @ _TO_YCC.T * gain + offset
    height, width = frame.shape[:2]
    chroma = ycc[..., 1:].reshape(height // 2, 2, width // 2, 2, 2).mean(axis=(1, 3))
    planes = (ycc[..., 0], chroma[..., 0], chroma[..., 1])
    return [plane.round().clip(0, 255).astype(np.uint8) for plane in planes]


def from_420(planes: list[NDArray[np.uint8]], codec: Codec) -> NDArray[np.uint8]:
    """Turn Y, Cb and Cr planes into (H, W, 3) uint8 RGB, chroma enlarged bilinearly."""
    gain, offset = _levels(codec)
    size = planes[0].shape[::-1]
    chroma = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, _RESIZE.BILINEAR))
        for plane in planes[1:]
    ]
    ycc = (np.stack([planes[0].astype(np.float32), *chroma], axis=-1) - offset) / gain
    return (ycc @ _TO_RGB.T * 255).round().clip(0, 255).astype(np.uint8)


def _levels(codec: Codec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return gain and offset of Y, Cb, Cr in 8 bits."""
    gain = (255, 255, 255) if codec.full_range else (219, 224, 224)
    offset = (0, 128, 128) if codec.full_range else (16, 128, 128)
    return np.array(gain, np.float32), np.array(offset, np.float32)


class VideoSampler(PatchSampler):
    """Draws half of the patches from degraded clips, the other half as `PatchSampler` does.

    Clips wait in a pool of `POOL`, and with each batch one is replaced; threads make the next ones
    ahead. Which clips there are depends on the seed and the count of batches alone, so a resumed
    run draws what an unbroken one would. Memory: that of `PatchSampler`, 6 frames a
    clip, and what it shows of a photo, below 1 MB, where the colours are its own.

    Args: as for `PatchSampler`; `candidates` counts for the other half alone.
    """

    def __init__(self, paths: Iterable[Path], *, seed: int, **options: Any) -> None:
        super().__init__(paths, seed=seed, **options)
        self._seed = seed
        workers = min(MOST_WORKERS, max(2, os.cpu_count() or 1))
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="degrade")
        self._restart(0)

    def _restart(self, number: int) -> None:
        """Fill the pool as it is before batch `number`."""
        self._made = number
        self._clips: deque[Future[DegradedClip]] = deque(
            self._threads.submit(self._make, number + i) for i in range(POOL)
        )

    def _make(self, number: int) -> DegradedClip:
        random = np.random.default_rng((self._seed, number))
        index = int(random.integers(len(self.pairs)))
        photo, small = self.pairs[index]
        if self.recolour and random.random() < self.recolour:
            most = MOST_WINDOW + 32
            top, left = (int(random.integers(max(1, side - most + 1))) for side in photo.shape[1:])
            part = photo[:, top : top + most, left : left + most]
            photo, small = self._pair(in_other_colours(part, random).permute(1, 2, 0).numpy())
        step = 2 * self.scale
        crop = -(-self.lr_crop * self.scale // step) * step
        room = min(*photo.shape[1:], MOST_WINDOW + 32) - 32
        window = max(crop, room - room % step)
        if window > min(photo.shape[1:]):  # a photo of just one crop: no room for an even window
            return DegradedClip(photo, [(0, 0)], [small])
        levels = photo.permute(1, 2, 0).numpy()
        places, frames = degrade(levels, random, window=window, scale=self.scale)
        tensors = [torch.from_numpy(frame.copy()).permute(2, 0, 1) for frame in frames]
        return DegradedClip(photo, places, tensors)

    def batch(self, size: int, *, part: tuple[int, int] = (0, 1)) -> tuple[Tensor, Tensor]:
        """Draw a batch (see `PatchSampler.batch`)."""
        drawn = super().batch(size, part=part)
        self._clips.popleft()
        self._clips.append(self._threads.submit(self._make, self._made + POOL))
        self._made += 1
        return drawn

    def _draw_patch(self) -> tuple[Tensor, Tensor]:
        if self._draw(2):
            return super()._draw_patch()
        clip = self._clips[self._draw(POOL)].result()
        index = self._draw(len(clip.frames))
        lr, (top, left) = clip.frames[index], clip.places[index]
        y, x = (self._draw(side - self.lr_crop + 1) for side in lr.shape[1:])
        side = self.lr_crop * self.scale
        top, left = top + y * self.scale, left + x * self.scale
        return (
            lr[:, y : y + self.lr_crop, x : x + self.lr_crop],
            clip.photo[:, top : top + side, left : left + side],
        )

    def state(self) -> Tensor:
        """State of the random draws and of the pool, for a checkpoint."""
        return torch.cat([super().state(), torch.tensor([self._made]).view(torch.uint8)])

    def load_state(self, state: Tensor) -> None:
        """Continue the random draws where `state` was taken; the pool is made anew."""
        super().load_state(state)
        for clip in self._clips:
            clip.cancel()
        made = state[self.state_bytes :].clone().view(torch.int64)  # none of `PatchSampler`
        self._restart(int(made) if len(made) else 0)

    def close(self) -> None:
        """Stop the threads after the clips at hand."""
        self._threads.shutdown(cancel_futures=True)
