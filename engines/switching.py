"""Begin at once on one back end, and go on on another when it is ready."""

from __future__ import annotations

import logging
from threading import Thread

from torch import Tensor

from engines.base import CompiledEngine, Engine

log = logging.getLogger(__name__)


class SwitchingEngine(Engine):
    """Two engines of one model: the second is made ready in a thread while the first computes.

    The switch takes place between two frames only, and only before one whose number is a multiple
    of `every`: so a whole run of frames comes from one engine. When that is depends on how long the
    second takes; where it is ready without a build, it computes from the first frame on.

    Args:
        now: computes until then; the frames are of its dtype.
        later: on the same device. Closed with this one, as is `now`.
        every: number of frames.

    Attributes:
        switched_at: number of the first frame of this job that `later` computed; None: not yet.

    Raises:
        ValueError: the engines do not fit together.
    """

    def __init__(self, now: Engine, later: CompiledEngine, *, every: int) -> None:
        if now.device.type != later.device.type or now.scale != later.scale:
            raise ValueError(f"{later.description} cannot take over from {now.description}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        super().__init__(later.model, device=now.device, dtype=now.dtype, precision=later.precision)
        self.backend = later.backend
        self.switched_at: int | None = None
        self._now, self._later, self._every = now, later, every
        self._switched = False
        self._frame = 0
        self._thread: Thread | None = None
        self._failure: BaseException | None = None

    @property
    def description(self) -> str:
        """What runs where, for people."""
        return f"{self._now.description}, then {self._later.description}"

    def frame_begins(self, number: int) -> None:
        """Switch, if it is time.

        Raises:
            VSRError: the second engine could not be made; whoever named it does not want another.
        """
        self._frame = number
        if number == 0:
            self.switched_at = 0 if self._switched else None
        if self._switched or number % self._every or self._thread is None:
            return
        if self._thread.is_alive():
            return
        if self._failure is not None:
            raise self._failure
        self._switch()

    def forget_shapes(self) -> None:
        """Give back what the engine at work has made ready."""
        (self._later if self._switched else self._now).forget_shapes()

    def cancel(self) -> None:
        """Give up making the second engine."""
        self._later.cancel()

    def close(self) -> None:
        """Give back what both hold, and end the build of the second if it is under way."""
        if self._thread is not None:
            if self._thread.is_alive():
                log.warning(
                    "%s was not ready before the last frame: its build is given up. `vsr engines "
                    "build` makes it beforehand", self._later.description,
                )  # fmt: skip
                self._later.cancel()
            self._thread.join()
        self._later.close()
        self._now.close()

    def _run(self, frames: Tensor) -> Tensor:
        if not self._switched and self._thread is None:
            self._look(frames)
        if not self._switched:
            result = self._now._run(frames)  # not clamped: who runs this one may want to look
            self._begin(frames)
            return result
        return self._later._run(frames.to(self._later.dtype)).to(self.dtype)

    def _look(self, frames: Tensor) -> None:
        """Change over at once where the second engine is only to be loaded."""
        shape = _shape(frames)
        if not self._later.takes_long(shape):
            self._later.prepare(shape)
            self._switch()

    def _begin(self, frames: Tensor) -> None:
        """Begin to make the second engine, once the first one's graph is captured."""
        if self._thread is not None:
            return
        shape = _shape(frames)
        self._thread = Thread(target=self._prepare, args=(shape,), name="start-now", daemon=True)
        self._thread.start()

    def _prepare(self, shape: tuple[int, int, int]) -> None:
        try:
            self._later.prepare(shape)
        except BaseException as error:
            self._failure = error

    def _switch(self) -> None:
        self._switched, self.switched_at = True, self._frame
        log.warning("from frame %d on: %s", self._frame, self._later.description)


def _shape(frames: Tensor) -> tuple[int, int, int]:
    count, _, height, width = frames.shape
    return count, height, width
