from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from train.metrics import evaluate, flicker, psnr, ssim, to_luma, to_picture

EVAL_SETS = Path(__file__).parents[2] / "shared" / "data" / "eval"

# float64 sums in another order
SUM_TOLERANCE = 1e-9
# the published figures have two decimals
PUBLISHED_TOLERANCE_DB = 0.01
# BT.601's coefficients are published with three decimals of 255
LUMA_TOLERANCE = 1e-3


def random_picture(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(
        0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8
    )
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def enlarge_bicubic(frame):
    picture = to_picture(frame)
    size = (picture.shape[1] * 4, picture.shape[0] * 4)
    large = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    return torch.from_numpy(large.copy()).permute(2, 0, 1)[None].float() / 255


# --- luma -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rgb", "luma"),
    [
        ((0, 0, 0), 16.0),
        ((255, 255, 255), 235.0),
        ((255, 0, 0), 16 + 65.481),  # 219 * 0.299
        ((0, 255, 0), 16 + 128.553),  # 219 * 0.587
        ((0, 0, 255), 16 + 24.966),  # 219 * 0.114
        ((128, 128, 128), 16 + 219 * 128 / 255),
    ],
)
def test_luma_is_that_of_bt601_in_studio_range(rgb, luma):
    picture = np.full((2, 3, 3), rgb, np.uint8)
    assert to_luma(picture, shave=0) == pytest.approx(np.full((2, 3), luma), abs=LUMA_TOLERANCE)


def test_shaving_leaves_the_border_out():
    picture = random_picture(12, 15)
    whole = to_luma(picture, shave=0)
    assert np.array_equal(to_luma(picture, shave=4), whole[4:8, 4:11])


# --- PSNR -----------------------------------------------------------------------------------------


def test_psnr_is_the_value_worked_out_by_hand():
    a = np.zeros((2, 2))
    assert psnr(a, np.full((2, 2), 25.5)) == pytest.approx(20.0, abs=SUM_TOLERANCE)
    one_of_four = np.array([[0.0, 0.0], [0.0, 10.0]])  # mean square error 25
    expected = 10 * math.log10(255**2 / 25)
    assert psnr(a, one_of_four) == pytest.approx(expected, abs=SUM_TOLERANCE)
    assert psnr(a, np.full((2, 2), 0.1), peak=1.0) == pytest.approx(20.0, abs=SUM_TOLERANCE)


def test_psnr_of_equal_pictures_is_infinite():
    a = to_luma(random_picture(12, 12), shave=0)
    assert psnr(a, a.copy()) == math.inf


# --- SSIM -----------------------------------------------------------------------------------------


def plain_ssim(a, b):
    """Wang et al. 2004, equations 12 to 14, window by window."""
    steps = np.arange(-5, 6)
    gaussian = np.exp(-(steps**2) / (2 * 1.5**2))
    window = np.outer(gaussian, gaussian) / gaussian.sum() ** 2

    def mean(x):
        return (sliding_window_view(x, (11, 11)) * window).sum(axis=(2, 3))

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return float((luminance * structure).mean())


def test_ssim_of_equal_pictures_is_one():
    a = to_luma(random_picture(20, 24), shave=0)
    assert ssim(a, a.copy()) == pytest.approx(1.0, abs=SUM_TOLERANCE)


@pytest.mark.parametrize("noise", [2.0, 30.0])
def test_ssim_is_that_of_wang_et_al_over_the_valid_region(noise):
    a = to_luma(random_picture(30, 26), shave=0)
    b = a + np.random.default_rng(1).normal(0, noise, a.shape)
    found = ssim(a, b)
    assert found == pytest.approx(plain_ssim(a, b), abs=SUM_TOLERANCE)
    assert found < 0.999


# --- flicker --------------------------------------------------------------------------------------


def test_flicker_is_zero_for_the_same_changes_and_counts_others():
    grey = [np.full((4, 4, 3), level, np.uint8) for level in (100, 110, 130)]
    darker = [frame - 50 for frame in grey]
    assert flicker(darker, grey) == pytest.approx(0, abs=SUM_TOLERANCE)
    frozen = [grey[0]] * 3
    # 10 and 20 levels of RGB, 219/255 of that on Y
    assert flicker(frozen, grey) == pytest.approx(15 * 219 / 255, abs=LUMA_TOLERANCE)


# --- whole test sets ------------------------------------------------------------------------------


def test_a_picture_is_the_frame_rounded_and_clamped():
    frame = torch.tensor([-0.5, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.5])
    picture = to_picture(frame.view(1, 1, 1, 5).expand(1, 3, 1, 5))
    assert picture.shape == (1, 5, 3)
    assert picture[0, :, 1].tolist() == [0, 0, 1, 255, 255]


def test_evaluate_is_the_mean_over_the_pictures(tmp_path):
    for seed in range(2):
        Image.fromarray(random_picture(42, 39, seed)).save(tmp_path / f"{seed}.png")
    sizes = []

    def enlarge_nearest(frame):
        sizes.append(tuple(frame.shape))
        return F.interpolate(frame, scale_factor=4, mode="nearest")

    score = evaluate(enlarge_nearest, tmp_path)
    assert sizes == [(1, 3, 10, 9)] * 2  # cropped to 40x36
    parts = []
    for seed in range(2):
        original = random_picture(42, 39, seed)[:40, :36]
        small = np.asarray(Image.fromarray(original).resize((9, 10), Image.Resampling.BICUBIC))
        large = small.repeat(4, axis=0).repeat(4, axis=1)
        a, b = to_luma(large, shave=4), to_luma(original, shave=4)
        parts.append((psnr(a, b), plain_ssim(a, b)))
    expected_psnr, expected_ssim = np.mean(parts, axis=0)
    assert score.psnr_y == pytest.approx(expected_psnr, abs=SUM_TOLERANCE)
    assert score.ssim_y == pytest.approx(expected_ssim, abs=SUM_TOLERANCE)


@pytest.mark.parametrize(("name", "psnr_y"), [("Set5", 28.43), ("Set14", 26.09)])
def test_bicubic_scores_its_known_figures(name, psnr_y):
    if not (EVAL_SETS / name).is_dir():
        pytest.skip(f"the test set {name} is not beside the checkout")
    score = evaluate(enlarge_bicubic, EVAL_SETS / name)
    assert score.psnr_y == pytest.approx(psnr_y, abs=PUBLISHED_TOLERANCE_DB)
