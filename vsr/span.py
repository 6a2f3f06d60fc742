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
        return f"{_decimals(self.start)}-" + (
            "end" if self.end == inf else f"{_decimals(self.end)}s"
        )


def _decimals(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def packets_within(
    packets: Iterable[Any],
    begin_seconds: Fraction | float,
    end_seconds: Fraction | float,
    *,
    lasting: Set[int],
) -> Iterator[Any]:
    """Yield the packets that begin in a span, on the clip's own clock.

    Args:
        packets: PyAV's, of streams beside the picture; they may be changed.
        begin_seconds: of the span; -inf where it has none.
        end_seconds: of the span; inf where it has none.
        lasting: indices of the streams, of subtitles and data, whose packets last: one that has
            begun when the span begins lasts from then on, and none beyond its end.
    """
    for packet in packets:
        if packet.pts is None:  # a cover has no time
            yield packet
            continue
        tick = packet.time_base
        at = packet.pts * tick
        if packet.stream_index in lasting and packet.duration:
            end = at + packet.duration * tick
            if at < begin_seconds < end:
                late = ceil((Fraction(begin_seconds) - at) / tick)
                packet.pts += late
                packet.dts = None if packet.dts is None else packet.dts + late
                packet.duration -= late
                at = packet.pts * tick
            if at < end_seconds < end:
                packet.duration = ceil((Fraction(end_seconds) - at) / tick)
        if begin_seconds <= at < end_seconds:
            yield packet


def chapters_within(
    chapters: list[dict[str, Any]],
    begin_seconds: Fraction,
    end_seconds: Fraction | float,
    *,
    zero_seconds: Fraction,
) -> list[dict[str, Any]]:
    """Cut chapters, as PyAV has them, to a span.

    Args:
        chapters: on the clip's own clock.
        begin_seconds: of the span.
        end_seconds: of the span; inf where it has none.
        zero_seconds: what their times are to count from.
    """
    kept = []
    for chapter in chapters:
        tick = chapter["time_base"]
        start, end = chapter["start"] * tick, chapter["end"] * tick
        if end <= begin_seconds or start >= end_seconds:
            continue
        start, end = max(start, begin_seconds), min(end, end_seconds)
        times = (round((at - zero_seconds) / tick) for at in (start, Fraction(end)))
        kept.append(chapter | dict(zip(("start", "end"), times, strict=True)))
    return kept
