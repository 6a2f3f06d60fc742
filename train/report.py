"""What a run tells: a CSV that any tool plots, and TensorBoard where it is asked for."""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.files import replaced
from train.metrics import Score

log = logging.getLogger("train")

# columns of the log; a run fills those that it has
TERMS = ("loss", "pixel", "content", "lpips", "grid", "adversarial", "discriminator", "r1")


@dataclass
class Means:
    """Means of numbers since the last look at them."""

    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, values: dict[str, float]) -> None:
        """Take in the numbers of one step."""
        for name, value in values.items():
            self.sums[name] += value
            self.counts[name] += 1

    def take(self) -> dict[str, float]:
        """Return the means, and start anew."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums.clear()
        self.counts.clear()
        return means


class Report:
    """Writes `log.csv`, and `tensorboard/` if asked, into the folder of a run.

    Args:
        folder: where to; it exists.
        tensorboard: write scalars and pictures for TensorBoard too.
        step: where the run goes on; what a crashed one told of later steps is taken back.

    Raises:
        ValueError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool, step: int = 0) -> None:
        self.path = folder / "log.csv"
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError(
                    f"--tensorboard needs TensorBoard: pip install tensorboard ({error})"
                ) from error
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        columns, rows = self._read()
        if columns:
            self._write(columns, [row for row in rows if int(row["step"]) <= step])

    def evaluation(
        self, step: int, means: dict[str, float], scores: dict[str, Score], *, busy: float
    ) -> None:
        """Add one line: the mean of each term since the last one, and the scores.

        Args:
            step: steps done.
            means: by the names in `TERMS`.
            scores: by test set.
            busy: share of the time that the step did not wait for data.
        """
        row: dict[str, object] = {"step": step}
        row |= {name: f"{means[name]:.6f}" if name in means else "" for name in TERMS}
        row["busy"] = f"{busy:.3f}"
        for name, result in scores.items():
            row[f"{name} PSNR-Y"] = f"{result.psnr_y:.3f}"
            row[f"{name} SSIM"] = f"{result.ssim_y:.4f}"
            if result.lpips is not None:
                row[f"{name} LPIPS"] = f"{result.lpips:.4f}"
        self._append(row)
        log.info("%s", ", ".join(f"{name} {value}" for name, value in row.items() if value != ""))
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and value != "":
                    self._board.add_scalar(name.replace(" ", "/"), float(str(value)), step)

    def _append(self, row: dict[str, object]) -> None:
        """Add a line to the log; where it has columns of its own, all lines get them."""
        columns, earlier = self._read()
        columns += [name for name in row if name not in columns]
        self._write(columns, [*earlier, row])

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        if not self.path.exists():
            return [], []
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            return list(reader.fieldnames or []), rows

    def _write(self, columns: list[str], rows: Iterable[Mapping[str, object]]) -> None:
        with replaced(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")  # what no column names
            writer.writeheader()
            writer.writerows(rows)

    def pictures(self, step: int, lr: Tensor, sr: Tensor, hr: Tensor) -> None:
        """Show patches in TensorBoard, a row each: input (enlarged), output, original.

        Args:
            step: steps done.
            lr: (N, 3, h, w) RGB in [0, 1].
            sr: (N, 3, H, W) the same patches upscaled.
            hr: (N, 3, H, W) the originals.
        """
        if self._board is None:
            return
        large = F.interpolate(lr, size=hr.shape[2:], mode="nearest")
        columns = [torch.cat(list(patches), dim=1) for patches in (large, sr, hr)]  # (3, N*H, W)
        grid = torch.cat(columns, dim=2).clamp(0, 1).detach().float().cpu()
        self._board.add_image("input, output, original", grid, step)

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self._board is not None:
            self._board.close()
