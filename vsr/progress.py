"""How far a job is: for programs one JSON object a line on stderr; and a bar for builds."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from engines import Building
    from vsr.config import Progress

_EVERY_SECONDS = 0.5


class JsonProgress:
    """Writes a line at the first frame, then at most two a second, and `last` writes the last.

    Args:
        source: the input that is at work, named by its `str`.

    The fields, which only ever grow in number:

        frame        frames written, those of an interrupted run among them
        frames       frames in the clip; null where it does not say
        fps          frames a second that this run has made; null before the second frame
        eta_seconds  until the last frame; null where `frames` or `fps` is
        segment      number of the segment that is being written, from 0
        stage_shares share of each stage in the time that all were at work, so far: decode, to-rgb,
                     engine, to-planes, encode; 1 in sum; waits do not count; {} for a picture
        queue_depths frames that wait after each stage but the last; {} for a picture. Where they
                     pile up, the next stage is the slow one
        dropped      frames of a live stream that came too fast, so far
        input        the clip, picture or stream
    """

    def __init__(self, source: object) -> None:
        self._source = source
        self._began: float | None = None
        self._first_frame = 0
        self._written = 0.0
        self._waiting: str | None = None

    def __call__(self, progress: Progress) -> None:
        """Take note of a frame."""
        now = time.monotonic()
        if self._began is None:
            self._began, self._first_frame = now, progress.frames
        passed = now - self._began
        made = progress.frames - self._first_frame
        fps = made / passed if made and passed else None
        frames = None if progress.total is None else max(progress.total, progress.frames)
        eta = None if frames is None or fps is None else (frames - progress.frames) / fps
        self._waiting = json.dumps(
            {
                "frame": progress.frames,
                "frames": frames,
                "fps": None if fps is None else round(fps, 3),
                "eta_seconds": None if eta is None else round(eta, 1),
                "segment": progress.segment,
                "stage_shares": {
                    name: round(share, 4) for name, share in progress.stage_shares.items()
                },
                "queue_depths": progress.queue_depths,
                "dropped": progress.dropped,
                "input": str(self._source),
            }
        )
        if now - self._written >= _EVERY_SECONDS:
            self._written = now
            self.last()

    def last(self) -> None:
        """Write what has not been written."""
        if self._waiting is not None:
            print(self._waiting, file=sys.stderr, flush=True)
            self._waiting = None


class JsonBuilding:
    """Writes a line at the beginning and the end of an engine's build, and at most two a second.

    The one field, `building`, holds:

        width, height  of the frames that the engine is for
        batch          how many it takes at once
        share          what is done, 0 to 1
    """

    def __init__(self) -> None:
        self._written = 0.0

    def __call__(self, building: Building) -> None:
        """Take note of a step."""
        now = time.monotonic()
        if 0 < building.share < 1 and now - self._written < _EVERY_SECONDS:
            return
        self._written = now
        batch, height, width = building.shape
        fields = {"width": width, "height": height, "batch": batch}
        line = json.dumps({"building": {**fields, "share": round(building.share, 3)}})
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing waits."""


class BuildingBar:
    """Shows a bar on stderr while an engine is built, where that is a terminal.

    Args:
        quiet: show none.

    Attributes:
        built: whether anything was built.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.built = False
        self._quiet = quiet
        self._bar: Any = None

    def __call__(self, building: Building) -> None:
        """Show a step."""
        self.built = True
        if self._bar is None:
            _, height, width = building.shape
            self._bar = tqdm(
                total=1.0,
                desc=f"TensorRT compiles for {width}x{height}",
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}",
                leave=False,
                disable=True if self._quiet else None,  # None: no bar where there is no terminal
            )
        self._bar.update(building.share - self._bar.n)
        if building.share >= 1:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()
