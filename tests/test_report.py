from __future__ import annotations

import csv
import sys

import pytest
import torch

from train.metrics import Score
from train.report import Means, Report


def test_means_are_taken_and_begin_anew():
    means = Means()
    means.add({"loss": 1.0, "pixel": 4.0})
    means.add({"loss": 3.0})
    assert means.take() == {"loss": 2.0, "pixel": 4.0}
    means.add({"loss": 5.0})
    assert means.take() == {"loss": 5.0}


def test_lines_of_both_stages_share_their_columns(tmp_path):
    report = Report(tmp_path, tensorboard=False)
    score = Score(psnr_y=30.5, ssim_y=0.87, lpips=0.25)
    report.evaluation(5, {"loss": 0.5}, {"Set5": score}, busy=0.95)
    report.evaluation(9, {"loss": 0.4, "adversarial": 0.1}, {"Set5": score}, busy=1.0)
    with report.path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["step"], first["adversarial"], first["busy"]) == ("5", "", "0.950")
    assert float(second["adversarial"]) == 0.1
    assert float(second["Set5 LPIPS"]) == 0.25
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_tensorboard_gets_the_scalars_and_the_pictures(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = Report(tmp_path, tensorboard=True)
    report.evaluation(5, {"loss": 0.5}, {}, busy=0.95)
    hr = torch.rand(2, 3, 16, 16)
    report.pictures(5, torch.rand(2, 3, 4, 4), hr, hr)
    report.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert found.Scalars("loss")[0].value == 0.5
    (picture,) = found.Images("input, output, original")
    assert (picture.step, picture.width, picture.height) == (5, 48, 32)


def test_tensorboard_that_is_not_installed_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="--tensorboard needs TensorBoard: pip install"):
        Report(tmp_path, tensorboard=True)
