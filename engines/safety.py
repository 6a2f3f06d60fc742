"""An engine that goes on: short memory makes its tiles smaller, and a spoilt frame is noticed.

Half precision ends at 65,504, and eight bits at what calibration has seen: a frame beyond that
comes out as "not a number", infinite, or black. Whether one did is found out on the device and read
with the frame itself, so nobody waits for it; such a frame is computed again in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from engines.base import Engine
from engines.errors import OutOfMemory
from engines.finish import Finish
from engines.pytorch import PyTorchEngine
from engines.tiles import SMALLEST_TILE, Known, TiledEngine

log = logging.getLogger(__name__)

T = TypeVar("T")

BLACK = 0.5 / 255  # what is below comes out as 8-bit black
LIT = 0.1  # a frame that reaches it has something to show

# how libraries that have no exception of their own for it say so
_SHORTAGES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "failed to allocate",
    "alloc_failed",
)


class SafeEngine(Engine):
    """An engine that runs another one, whole frames or tiles; same contract, same results.

    Out of memory, it halves its tiles and computes the same frame again, and goes on with these.

    Args:
        engine: closed with this one.
        side: of a tile's core, in pixels of the input; None: whole frames.

    Attributes:
        recomputed: frames computed again in float32, so far.

    Raises:
        OutOfMemory: by a call: not even the smallest tiles fit.
    """

    def __init__(
        self, engine: Engine, *, side: int | None = None, whole_frames: bool = False
    ) -> None:
        super().__init__(
            engine.model, device=engine.device, dtype=engine.dtype, precision=engine.precision
        )
        self.backend = engine.backend
        self.recomputed = 0
        self._bare = engine
        self._judge = None if engine.precision == "fp32" else _Judge(engine)
        self._engine = self._judge or engine
        self._tiled = (
            None if side is None else TiledEngine(self._engine, side, whole_frames=whole_frames)
        )
        self.lanes = engine.lanes if self._tiled is None else 1
        self._exact: SafeEngine | None = None
        self._start_anew = False
        self._last_verdict: Tensor | None = None

    @property
    def description(self) -> str:
        """What runs where, for people."""
        return self._engine.description

    @property
    def side(self) -> int | None:
        """Side of the tiles at the moment; None: whole frames."""
        return None if self._tiled is None else self._tiled.side

    @property
    def judges(self) -> bool:
        """Whether `verdict` has something to say: whether float32 could do better."""
        return self._judge is not None

    def __call__(self, frames: Tensor) -> Tensor:
        """Upscale frames (the contract is that of `Engine`)."""
        return self._run(frames)  # checked and clamped by the engine within

    def fuses(self, finish: Finish) -> bool:
        return self._engine.fuses(finish)

    def finished(self, frames: Tensor, finish: Finish) -> list[Tensor]:
        return self._with_memory(
            lambda: (self._tiled or self._engine).finished(frames, finish), frames
        )

    def begin(self, frames: Tensor, finish: Finish | None = None) -> Callable[[], list[Tensor]]:
        whole = super().begin(frames, finish)  # the call that waits does the work
        if self.lanes == 1:
            return whole
        begun = self._in_lane(lambda: self._engine.begin(frames, finish))
        if begun is None:
            return whole
        return lambda: self._in_lane(begun) or whole()

    def update(
        self,
        frames: Tensor,
        known: Known | None,
        finish: Finish | None = None,
        *,
        tolerance: float = 0.0,
    ) -> Known:
        """Upscale frames of which the last ones may be known (see `TiledEngine.update`).

        What is taken over of a spoilt result is spoilt: the verdict stays until all is new.
        """
        if self._tiled is None:
            raise ValueError("only an engine with tiles can leave out some of them")
        if self._start_anew:
            self._start_anew, known = False, None
        if self._judge is not None:
            self._judge.spoilt = None if known is None else self._last_verdict
        side = self.side

        def update() -> Known:
            assert self._tiled is not None
            # smaller tiles after a shortage of memory know nothing of the larger ones
            still_known = known if self.side == side else None
            return self._tiled.update(frames, still_known, finish, tolerance=tolerance)

        return self._with_memory(update, frames)

    def verdict(self) -> Tensor | None:
        if self._judge is None:
            return None
        self._last_verdict, self._judge.spoilt = self._judge.spoilt, None
        return self._last_verdict

    def again(self, frames: Tensor) -> Tensor:
        """Upscale in float32 what came out spoilt; in any thread.

        Args:
            frames: (N, 3, H, W) float32 RGB in [0, 1] on the engine's device.

        Returns:
            (N, 3, H*scale, W*scale) float32 on the same device; a fresh tensor.
        """
        if not self.recomputed:
            log.warning(
                "a frame came out of %s not finite or black: it is computed again in float32",
                self.description,
            )
        self.recomputed += 1
        self._start_anew = True
        if self._exact is None:
            exact = PyTorchEngine(self.model, precision="fp32")
            self._exact = SafeEngine(exact, side=self.side)
        return self._exact(frames.to(self._exact.device)).to(frames.device)

    def say_what_was_recomputed(self) -> None:
        """Warn, at the end, of the frames that had to be computed again."""
        if self.recomputed:
            log.warning(
                "%d frames that came out not finite or black were computed again in float32",
                self.recomputed,
            )

    def upscale(self, rgb: Tensor) -> Tensor:
        """Upscale float32 RGB from the CPU to the CPU, again if it is spoilt, and wait for it."""
        result = self(rgb.to(self.device, self.dtype)).float()
        spoilt = self.verdict()
        if spoilt is not None and bool(spoilt):
            result = self.again(rgb.to(self.device))
        return result.cpu()

    def frame_begins(self, number: int) -> None:
        """Pass it on."""
        self._engine.frame_begins(number)

    def cancel(self) -> None:
        """Give up what takes long."""
        self._engine.cancel()

    def close(self) -> None:
        """Give back what the engine holds."""
        self._engine.close()
        self.close_exact()

    def close_exact(self) -> None:
        """Give back what computes in float32 only, and keep the engine for another."""
        exact, self._exact = self._exact, None
        if exact is not None:
            exact.close()

    def _run(self, frames: Tensor) -> Tensor:
        return self._with_memory(lambda: (self._tiled or self._engine)(frames), frames)

    def _with_memory(self, call: Callable[[], T], frames: Tensor) -> T:
        while True:
            try:
                return call()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                shortage = " ".join(str(error).split())
            self._halve_tiles(frames, shortage)  # here: the exception holds on to memory

    def _in_lane(self, call: Callable[[], T]) -> T | None:
        """Return what a call returns; None where memory is short, and from then on one lane."""
        try:
            return call()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if self.lanes > 1:
            log.warning("out of memory on %s: from here on one frame at a time", self.device)
        self.lanes = self._bare.lanes = 1
        return None

    def _halve_tiles(self, frames: Tensor, shortage: str) -> None:
        height, width = frames.shape[2:]
        side = min(self.side or max(height, width), max(height, width))
        if side <= SMALLEST_TILE:
            raise OutOfMemory(
                f"no memory for a frame of {width}x{height} on {self.device}, not even in tiles of "
                f"{SMALLEST_TILE} pixels: {shortage}"
            )
        side = max(SMALLEST_TILE, side // 2)
        log.warning(
            "out of memory on %s: from here on computed in tiles of %d pixels", self.device, side
        )
        self._engine.forget_shapes()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._tiled = TiledEngine(self._engine, side)
        self.lanes = self._bare.lanes = 1


class _Judge(Engine):
    """Runs an engine and looks at what it gives before it is clamped."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(
            engine.model, device=engine.device, dtype=engine.dtype, precision=engine.precision
        )
        self.backend = engine.backend
        self.lanes = engine.lanes
        self.spoilt: Tensor | None = None
        """(1,) bool on the device: whether any result since it was None is spoilt"""
        self._engine = engine

    @property
    def description(self) -> str:
        return self._engine.description

    def _run(self, frames: Tensor) -> Tensor:
        result = self._engine._run(frames)
        self._note(spoilt(frames, result))
        return result

    def fuses(self, finish: Finish) -> bool:
        return self._engine.fuses(finish)

    def finished(self, frames: Tensor, finish: Finish) -> list[Tensor]:
        if not self.fuses(finish):
            return super().finished(frames, finish)
        return self._noted(frames, self._engine.finished(frames, finish), finish)

    def begin(self, frames: Tensor, finish: Finish | None = None) -> Callable[[], list[Tensor]]:
        if self.lanes == 1:
            return super().begin(frames, finish)
        if finish is not None and not self.fuses(finish):
            enlarged = self.begin(frames)
            return lambda: finish(enlarged()[0].float())
        begun = self._engine.begin(frames, finish)
        return lambda: self._noted(frames, begun(), finish)

    def _noted(self, frames: Tensor, results: list[Tensor], finish: Finish | None) -> list[Tensor]:
        """Look at what has been clamped already, where the network is."""
        if finish is None:
            self._note(spoilt(frames, results[0]))
        else:  # what fuses (see `engines.ov`) has the range of float32: it cannot be infinite
            self._note(((frames.amax() >= LIT) & finish.is_black(results)).reshape(1))
        return results

    def _note(self, found: Tensor) -> None:
        self.spoilt = found if self.spoilt is None else self.spoilt | found

    def frame_begins(self, number: int) -> None:
        self._engine.frame_begins(number)

    def forget_shapes(self) -> None:
        self._engine.forget_shapes()

    def cancel(self) -> None:
        self._engine.cancel()

    def close(self) -> None:
        self._engine.close()


def spoilt(frames: Tensor, result: Tensor) -> Tensor:
    """Tell whether one of the results is not finite, or black where its frame is not.

    Launched on the device without waiting for it.

    Args:
        frames: (N, 3, H, W) what went in.
        result: (N, 3, H*scale, W*scale) what came out, not yet clamped.

    Returns:
        (1,) bool on the device.
    """
    # frame by frame: along a dimension it takes five times as long; "not a number" is passed on
    extremes = [torch.aminmax(frame) for frame in result]
    low = torch.stack([frame.min for frame in extremes])
    high = torch.stack([frame.max for frame in extremes])
    finite = torch.isfinite(low) & torch.isfinite(high)
    black = (high < BLACK) & (frames.amax((1, 2, 3)) >= LIT)
    return (~finite | black).any().reshape(1)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an exception, of whatever library, says that memory is short."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError, OutOfMemory)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _SHORTAGES)
