"""The engine of a job, kept for the next one: loading or building it anew would be waste."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from engines import Building, Engine, create_engine
from engines.base import CompiledEngine
from engines.switching import SwitchingEngine
from engines.weights import Model
from vsr.choices import segment_frames
from vsr.config import UpscaleConfig


class KeptEngine:
    """Holds one engine, for as many jobs in a row as ask for the same.

    Args:
        building: called while an engine is compiled, from any thread.
    """

    def __init__(self, building: Callable[[Building], None] | None = None) -> None:
        self._building = building
        self._settings: tuple[object, ...] | None = None
        self._engine: Engine | None = None
        self._sides: dict[object, int | None] = {}
        self._whole: dict[tuple[int, int], bool] = {}
        self._lanes: dict[object, int] = {}

    def __enter__(self) -> KeptEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def engine(
        self, config: UpscaleConfig, model: Model, size: tuple[int, int] | None = None
    ) -> Engine:
        """Return the engine for a job; closed by this one.

        Args:
            config: of the job.
            model: of the job.
            size: (height, width) of the frames that go in; None: not known yet.

        Raises:
            BackendUnavailable, EngineBuildError: see `create_engine`.
        """
        settings = (
            model.sha256, config.backend, config.precision, config.threads,
            (size, config.tile) if config.start_now else None,
        )  # fmt: skip
        if self._engine is None or settings != self._settings:
            self.close()
            self._engine, self._settings = self._make(config, model, size), settings
        self._engine.frame_begins(0)  # nothing of the job before is this one's
        return self._engine

    def tile_side(
        self, config: UpscaleConfig, size: tuple[int, int], choose: Callable[[], int | None]
    ) -> int | None:
        """Return the side of the tiles for frames of (height, width); None: no tiles.

        Chosen once while the engine is kept: the memory that it holds would speak for smaller ones
        at the next clip, and a compiled engine fits one size.
        """
        key = (size, config.tile, config.changed_only)
        if key not in self._sides:
            self._sides[key] = choose()
        return self._sides[key]

    def fits_whole(self, size: tuple[int, int], ask: Callable[[], bool]) -> bool:
        """Return whether memory holds whole frames of (height, width); asked once, as the tiles."""
        if size not in self._whole:
            self._whole[size] = ask()
        return self._whole[size]

    def lanes(self, size: tuple[int, int], side: int | None, choose: Callable[[], int]) -> int:
        """Return how many frames of (height, width), or tiles of a side, are computed at once.

        Chosen once likewise.
        """
        if (size, side) not in self._lanes:
            self._lanes[size, side] = choose()
        return self._lanes[size, side]

    @property
    def switched_at(self) -> int | None:
        """Number of the frame of this run at which `start_now` changed the back end, if it did."""
        return self._engine.switched_at if isinstance(self._engine, SwitchingEngine) else None

    def close(self) -> None:
        """Give back what the engine holds; the next job makes a new one."""
        engine, self._engine = self._engine, None
        self._sides.clear()
        self._whole.clear()
        self._lanes.clear()
        if engine is not None:
            engine.close()

    def _make(self, config: UpscaleConfig, model: Model, size: tuple[int, int] | None) -> Engine:
        engine = create_engine(
            model, backend=config.backend, precision=config.precision, threads=config.threads,
            building=self._building,
        )  # fmt: skip
        if not config.start_now:
            return engine
        first = create_engine(
            model, backend="pytorch", precision="fp32" if config.precision == "fp32" else "auto",
            threads=config.threads,
        )  # fmt: skip
        assert isinstance(engine, CompiledEngine), "start_now is for such alone"
        return SwitchingEngine(first, engine, every=segment_frames(model, size or (1, 1)))
