"""A part of a clip in time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, inf
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """From a time on, to before another; in seconds from the clip's beginning.

    They are meant as they are written, in decimals: 0.4 is two fifths.
    """

    start: float = 0.0
    end: float = inf

    def __post_init__(self) -> None:
        if not 0 <= self.start < inf:
            raise ValueError(f"start must be 0 seconds or more, and finite, got {self.start:g}")
        if not self.end > self.start:
            raise ValueError(f"end must be after start, {self.start:g} s, got {self.end:g} s")

    @property
    def begin_seconds(self) -> Fraction:
        """The start, exactly."""
        return Fraction(str(self.start))

    @property
    def end_seconds(self) -> Fraction | float:
        """The end, exactly; inf where there is none."""
        return inf if self.end == inf else Fraction(str(self.end))

    def __str__(self) -> str:
        return f"{self.start:g}-" + ("end" if self.end == inf else f"{self.end:g}s")


def packets_within(
    packets: Iterable[Any],
    begin_seconds: Fraction,
    end_seconds: Fraction | float,
    *,
    lasting: Set[int],
) -> Iterator[Any]:
    """Yield the packets that begin in a span, on the clip's own clock.

    Args:
        packets: PyAV's, of streams beside the picture; they may be changed.
        begin_seconds: of the span.
        end_seconds: of the span; inf where it has none.
        lasting: indices of the streams, of subtitles, whose packets are shown for a while: one that
            is shown when the span begins is shown from then on, and none beyond its end.
    """
    for packet in packets:
        if packet.pts is None:
            continue
        tick = packet.time_base
        at = packet.pts * tick
        if packet.stream_index in lasting and packet.duration:
            end = at + packet.duration * tick
            if at < begin_seconds < end:
                late = ceil((begin_seconds - at) / tick)
                packet.pts += late
                packet.dts = None if packet.dts is None else packet.dts + late
                packet.duration -= late
                at = packet.pts * tick
            if at < end_seconds < end:
                packet.duration = ceil((Fraction(end_seconds) - at) / tick)
        if begin_seconds <= at < end_seconds:
            yield packet


def chapters_within(
    chapters: list[dict[str, Any]], begin_seconds: Fraction, end_seconds: Fraction | float
) -> list[dict[str, Any]]:
    """Cut chapters, as PyAV has them, to a span, and count their times from its beginning."""
    kept = []
    for chapter in chapters:
        tick = chapter["time_base"]
        start, end = chapter["start"] * tick, chapter["end"] * tick
        if end <= begin_seconds or start >= end_seconds:
            continue
        start, end = max(start, begin_seconds), min(end, end_seconds)
        times = (round((at - begin_seconds) / tick) for at in (start, Fraction(end)))
        kept.append(chapter | dict(zip(("start", "end"), times, strict=True)))
    return kept
