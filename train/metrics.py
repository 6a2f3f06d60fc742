"""How close a picture is to its original: PSNR and SSIM on luma, by the protocol of the SR papers.

The protocol (Ledig et al. 2017, section 3.1): 8-bit pictures, Y of BT.601 in studio range, a border
of `scale` pixels left out. SSIM is that of Wang et al. 2004 (MATLAB's: 11x11 Gaussian window, sigma
1.5, valid region); the paper's own figures are from the daala package and are not comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

from engines.networks import Network, fold
from train.data import crop_to_multiple, find_photos, load_rgb, shrink_bicubic, to_frame
from train.perceptual import LPIPS

Distance = Callable[[Tensor, Tensor], Tensor]
"""of two (1, 3, H, W) frames in [0, 1] on the CPU: LPIPS, DISTS"""

# Y of BT.601 in studio range from R, G, B in 0..255 (ITU-R BT.601, MATLAB's rgb2ycbcr)
_LUMA = np.array([65.481, 128.553, 24.966]) / 255
_LUMA_OFFSET = 16.0
_SSIM_WINDOW = 11


def to_luma(photo: NDArray[np.uint8], *, shave: int) -> NDArray[np.float64]:
    """Return Y of an (H, W, 3) uint8 RGB picture in 16..235, float64, without its border."""
    luma = photo.astype(np.float64) @ _LUMA + _LUMA_OFFSET
    return luma[shave : luma.shape[0] - shave, shave : luma.shape[1] - shave]


def psnr(a: NDArray[np.float64], b: NDArray[np.float64], *, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal arrays."""
    error = float(np.mean((a - b) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(peak**2 / error))


def ssim(a: NDArray[np.float64], b: NDArray[np.float64], *, peak: float = 255.0) -> float:
    """Structural similarity of Wang et al. 2004, mean over the valid region of the 11x11 window."""
    return float(
        structural_similarity(
            a, b, data_range=peak, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


@dataclass(frozen=True, slots=True)
class Score:
    """Means over one test set."""

    psnr_y: float
    """dB"""
    ssim_y: float
    """0..1"""
    lpips: float | None = None
    """LPIPS 0.1 over AlexNet, 0 for equal pictures, of the whole picture; None: not measured"""
    lpips_vgg: float | None = None
    """the same over VGG16"""
    dists: float | None = None
    """DISTS, 0 for equal pictures, of the whole picture; None: not measured"""


def to_picture(frame: Tensor) -> NDArray[np.uint8]:
    """Round a (1, 3, H, W) frame in [0, 1] to an (H, W, 3) uint8 picture."""
    return (frame[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def load_original(path: Path, *, scale: int) -> NDArray[np.uint8]:
    """Read a picture to score on, (H, W, 3) uint8 RGB, cut to sides that divide by `scale`.

    Raises:
        ValueError: it cannot be read, or is too small for SSIM within its border; both named.
    """
    try:
        picture = crop_to_multiple(load_rgb(path), scale)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: {error}") from error
    least = _SSIM_WINDOW + 2 * scale
    if min(picture.shape[:2]) < least:
        height, width = picture.shape[:2]
        raise ValueError(f"{path}: {width}x{height} is too small to score: {least} each way")
    return picture


def check_sets(sets: list[Path], *, photos: list[Path], scale: int) -> None:
    """Refuse test sets before the training, and not after it.

    Args:
        sets: folders of pictures to score on.
        photos: trained on.
        scale: of the network.

    Raises:
        ValueError: a picture cannot be scored (see `load_original`), or is trained on.
    """
    pictures = [path for folder in sets for path in find_photos(folder)]
    trained_on = {path.resolve() for path in photos}
    shared = [path for path in pictures if path.resolve() in trained_on]
    if shared:
        raise ValueError(
            f"{len(shared)} pictures of the test sets are below --data too, {shared[0]} among "
            "them: scores on what was trained on tell nothing"
        )
    for path in pictures:
        load_original(path, scale=scale)


@torch.inference_mode()
def evaluate(
    upscale: Callable[[Tensor], Tensor],
    folder: Path,
    *,
    scale: int = 4,
    lpips: Distance | None = None,
    lpips_vgg: Distance | None = None,
    dists: Distance | None = None,
) -> Score:
    """Score an upscaler on a folder of high-resolution pictures.

    Args:
        upscale: (1, 3, H, W) float32 RGB in [0, 1] to (1, 3, H*scale, W*scale).
        folder: the originals; the input is made from them by antialiased bicubic shrinking.
        scale: the factor of the upscaler, and the border that PSNR and SSIM leave out.
        lpips: measure LPIPS over AlexNet too.
        lpips_vgg: measure LPIPS over VGG16 too.
        dists: measure DISTS too.

    Raises:
        ValueError: there is a picture that cannot be scored (see `load_original`).
    """
    scores = []
    given = {"lpips": lpips, "lpips_vgg": lpips_vgg, "dists": dists}
    networks = {name: network for name, network in given.items() if network is not None}
    distances: dict[str, list[float]] = {name: [] for name in networks}
    for path in find_photos(folder):
        original = load_original(path, scale=scale)
        result = to_picture(upscale(to_frame(shrink_bicubic(original, scale))))
        a, b = to_luma(result, shave=scale), to_luma(original, shave=scale)
        scores.append((psnr(a, b), ssim(a, b)))
        pair = (to_frame(result), to_frame(original))
        for name, network in networks.items():
            distances[name].append(float(network(*pair)))
    return Score(
        psnr_y=fmean(s[0] for s in scores),
        ssim_y=fmean(s[1] for s in scores),
        **{name: fmean(column) for name, column in distances.items()},
    )


def score(net: Network, sets: list[Path], lpips: LPIPS | None = None) -> dict[str, Score]:
    """Score a network's deploy form on test sets, on the device where it lies.

    Args:
        net: in either form; left as it is.
        sets: folders of pictures.
        lpips: over AlexNet, on the same device; None leaves it out.

    Returns:
        The scores by the folder's name.
    """
    device = next(net.parameters()).device
    deployed = fold(net).to(device)

    def upscale(lr: Tensor) -> Tensor:
        return cast(Tensor, deployed(lr.to(device)))

    def distance(sr: Tensor, hr: Tensor) -> Tensor:
        return cast(Tensor, cast(LPIPS, lpips)(sr.to(device), hr.to(device)))

    measure = None if lpips is None else distance
    return {
        path.name: evaluate(upscale, path, scale=net.config.scale, lpips=measure) for path in sets
    }


def flicker(result: list[NDArray[np.uint8]], original: list[NDArray[np.uint8]]) -> float:
    """How differently two clips change from frame to frame, in 8-bit levels of Y.

    The mean of |(r[t+1] - r[t]) - (o[t+1] - o[t])|: 0 where the result changes exactly as the
    original does, whatever either looks like. A frozen picture of a moving scene scores too.

    Args:
        result: (H, W, 3) uint8 RGB frames, two or more.
        original: as many, of the same size.
    """
    luma = [
        np.stack([to_luma(frame, shave=0) for frame in frames]) for frames in (result, original)
    ]
    changes = [np.diff(clip, axis=0) for clip in luma]
    return float(np.abs(changes[0] - changes[1]).mean())
