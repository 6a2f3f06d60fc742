"""How do upscalers do on compressed video? Real clips, shrunk, through x264 and back.

From each clip FRAMES consecutive frames, the middle SIDE x SIDE pixels (less where it is smaller),
shrunk to a quarter by Pillow's antialiased bicubic, through x264 (preset veryfast, 4:2:0) at each
CRF of QUALITIES, upscaled, compared with the original: PSNR on Y, LPIPS over AlexNet of every other
frame, DISTS of every fourth, and flicker (see `train.metrics.flicker`). Means over all clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.data import shrink_bicubic, to_frame
from train.degrade import CODECS, through_encoder
from train.metrics import Distance, flicker, psnr, to_luma, to_picture

SCALE = 4
FRAMES = 8
FIRST = 10  # frames left out: many clips fade in
SIDE = 448
EVERY = {"lpips": 2, "dists": 4}  # frames: neighbours hardly differ, and DISTS takes seconds
QUALITIES = (23, 28)
X264 = replace(next(codec for codec in CODECS if codec.encoder == "libx264"), best=0, worst=51)

Picture = NDArray[np.uint8]


def score_clips(
    clips: dict[str, list[Picture]],
    upscalers: dict[str, Callable[[Tensor], Tensor]],
    distances: Mapping[str, Distance],
    *,
    kept: dict[str, dict[str, dict[str, float]]] | None = None,
) -> list[dict[str, Any]]:
    """Score upscalers on clips, print a table, return its rows.

    Args:
        clips: by name (see `read_clips`).
        upscalers: by name; (1, 3, H, W) RGB in [0, 1] to four times the size.
        distances: by the names in EVERY; others are not measured.
        kept: scores by name that are known already; those that lack a distance are not taken.
    """
    count = sum(map(len, clips.values()))
    print(f"\n{len(clips)} clips, {count} frames, shrunk by {SCALE}, through x264")
    print(f"{'':<22}" + "".join(f"{f'CRF {crf}':^36}" for crf in QUALITIES))
    print(f"{'':<22}" + f"{'PSNR-Y':>9}{'LPIPS':>9}{'DISTS':>9}{'flicker':>9}" * len(QUALITIES))
    distances = {name: distances[name] for name in EVERY if name in distances}
    inputs = {
        crf: {
            name: through_encoder([shrink_bicubic(f, SCALE) for f in frames], X264, crf)
            for name, frames in clips.items()
        }
        for crf in QUALITIES
    }
    rows = []
    for upscaler, upscale in upscalers.items():
        print(f"{upscaler:<22}", end="", flush=True)
        scores: dict[str, dict[str, float]] = {}
        old = (kept or {}).get(upscaler, {})
        if old and all(distances.keys() <= found.keys() for found in old.values()):
            print("kept")
            rows.append({"name": upscaler, "scores": old})
            continue
        for crf, encoded in inputs.items():
            parts = [score_clip(upscale, encoded[name], clips[name], distances) for name in clips]
            means = {key: round(fmean(part[key] for part in parts), 6) for key in parts[0]}
            scores[f"crf {crf}"] = means
            shown = (f"{means[name]:.4f}" if name in means else "-" for name in EVERY)
            line = "".join(f"{cell:>9}" for cell in shown)
            print(f"{means['psnr_y']:>9.2f}{line}{means['flicker']:>9.2f}", end="", flush=True)
        print()
        rows.append({"name": upscaler, "scores": scores})
    return rows


@torch.inference_mode()
def score_clip(
    upscale: Callable[[Tensor], Tensor],
    encoded: list[Picture],
    originals: list[Picture],
    distances: Mapping[str, Distance],
) -> dict[str, float]:
    """Score an upscaler on one clip."""
    results = [to_picture(upscale(to_frame(frame))) for frame in encoded]
    pairs = list(zip(results, originals, strict=True))
    errors = [psnr(to_luma(a, shave=SCALE), to_luma(b, shave=SCALE)) for a, b in pairs]
    found = {"psnr_y": fmean(errors), "flicker": flicker(results, originals)}
    for name, distance in distances.items():
        shown = ((to_frame(a), to_frame(b)) for a, b in pairs[:: EVERY[name]])
        found[name] = fmean(float(distance(*pair)) for pair in shown)
    return found


def read_clips(folder: Path) -> dict[str, list[Picture]]:
    """Read the middles of the clips of a folder, by name; folders in it are not looked at.

    Raises:
        ValueError: a file is no clip, or too short.
    """
    return {path.stem: read_middle(path) for path in sorted(folder.iterdir()) if path.is_file()}


def read_middle(path: Path) -> list[Picture]:
    """Read the middle of some frames of a clip as (H, W, 3) uint8 RGB, sides divisible by 8.

    Raises:
        ValueError: it cannot be decoded, or has no two frames after those left out.
    """
    try:
        with av.open(str(path)) as container:
            frames = islice(container.decode(video=0), FIRST, FIRST + FRAMES)
            pictures = [frame.to_ndarray(format="rgb24", threads=1) for frame in frames]
    except (av.FFmpegError, IndexError) as error:  # IndexError: there is no video stream
        raise ValueError(f"{path} cannot be read as a clip: {error}") from error
    if len(pictures) < 2:
        raise ValueError(f"{path} is too short: it needs {FIRST + 2} frames, better more")
    height, width = (min(SIDE, side) // 8 * 8 for side in pictures[0].shape[:2])
    top, left = (pictures[0].shape[0] - height) // 2, (pictures[0].shape[1] - width) // 2
    return [picture[top : top + height, left : left + width] for picture in pictures]
