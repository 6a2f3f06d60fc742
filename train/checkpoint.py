"""Checkpoints: everything a resumed run needs, in one file that a crash cannot half-write."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from engines.files import replaced

CHECKPOINT_VERSION = 2


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a crash leaves either the old file or the new one.

    Raises:
        OSError: the disk does not take it; the old file is left.
    """
    try:
        with replaced(path) as partial:
            torch.save(state | {"version": CHECKPOINT_VERSION}, partial)
    except RuntimeError as error:  # torch's own of a full disk, in its words
        reason, *_ = str(error).splitlines()
        raise OSError(f"{path} cannot be written: is the disk full? ({reason})") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint written by `save_checkpoint`, without running code stored in it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, foreign or of another format version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a checkpoint of train.srgan, or damaged") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint of train.srgan")
    if state.get("version") != CHECKPOINT_VERSION:
        found = state.get("version")
        raise ValueError(f"{path} has version {found}, expected {CHECKPOINT_VERSION}")
    return state
