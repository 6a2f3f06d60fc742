"""The gate that a compiled engine must pass, with runners that are near, far, and broken."""

from __future__ import annotations

import math

import pytest
import torch
from test_engines import tiny_model

from engines import parity
from engines.errors import EngineBuildError
from engines.parity import check_parity, difference_db, parity_frames

SHAPE = (2, 20, 33)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return tiny_model("srgan-lite")


def check(model, change, *, dtype=torch.float32, shape=SHAPE) -> float:
    def run(frames: torch.Tensor) -> torch.Tensor:
        assert frames.dtype == dtype
        assert frames.shape == (shape[0], 3, *shape[1:])
        return change(model.net(frames.float())).clamp(0, 1).to(dtype)

    return check_parity(run, model, shape, dtype=dtype, device=CPU, name="the engine")


def test_the_network_itself_passes_without_a_difference(model):
    assert check(model, lambda result: result) == math.inf


def test_half_precision_passes(model):
    assert check(model, lambda result: result, dtype=torch.float16) >= 50


def test_a_level_off_now_and_then_passes_and_more_does_not(model):
    def off(step: int):
        def change(result: torch.Tensor) -> torch.Tensor:
            levels = (result.clamp(0, 1) * 255).round()
            levels[..., ::step] += torch.where(levels[..., ::step] > 127, -1, 1)
            return levels / 255

        return change

    assert check(model, off(4)) == pytest.approx(20 * math.log10(255) + 10 * math.log10(4), abs=0.1)
    with pytest.raises(
        EngineBuildError, match=r"the engine is only 48\.1 dB near float32 PyTorch .* expected 50"
    ):
        check(model, off(1))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda result: result.flip(1),  # BGR
        lambda result: result.roll(1, -1),  # one pixel aside
        lambda result: torch.full_like(result, torch.nan),
        lambda result: result.flip(0),  # frames of the batch exchanged
    ],
)
def test_wrong_results_do_not_pass(model, wrong):
    with pytest.raises(EngineBuildError, match=r"is only (\d+\.\d|nan) dB"):
        check(model, wrong)


def test_frames_of_more_than_one_part_are_compared_whole(model, monkeypatch):
    monkeypatch.setattr(parity, "_PART", 16)
    frames = parity_frames((1, 40, 50))
    result = model.net(frames).clamp(0, 1)
    assert difference_db(result, model, frames) > 90  # sums in another order
    result[..., -1, -1] += 0.5
    assert difference_db(result, model, frames) < 70


def test_the_test_frames_are_the_same_each_time_and_have_something_of_everything():
    frames = parity_frames(SHAPE)
    assert torch.equal(frames, parity_frames(SHAPE))
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert not torch.equal(frames[0], frames[1])
    assert not torch.equal(frames[:, 0], frames[:, 1])
    assert parity_frames((1, 1, 1)).shape == (1, 3, 1, 1)
