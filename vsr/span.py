"""A part of a clip in time."""

from __future__ import annotations

import re
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


def moved_timecode(timecode: str, frames: int, rate: Fraction) -> str | None:
    """Move a timecode on; None where it is none.

    Args:
        timecode: hours, minutes, seconds and frames; a semicolon or point before the last means
            that the first 2 numbers of each minute but every tenth are left out (of 60 a second 4),
            so that the time keeps up with 30000/1001 frames a second (SMPTE ST 12-1).
        frames: to move by.
        rate: frames a second.
    """
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d)([:;.])(\d+)", timecode)
    nominal = round(rate)
    if match is None or nominal < 1:
        return None
    hours, minutes, seconds, number = (int(match[group]) for group in (1, 2, 3, 5))
    left_out = nominal // 15 if match[4] != ":" and nominal % 30 == 0 else 0
    minutes += hours * 60
    number += (minutes * 60 + seconds) * nominal - left_out * (minutes - minutes // 10)
    number = (number + frames) % (24 * 6 * (600 * nominal - 9 * left_out))
    tens, rest = divmod(number, 600 * nominal - 9 * left_out)
    number += 9 * left_out * tens
    if rest >= left_out:
        number += left_out * ((rest - left_out) // (60 * nominal - left_out))
    seconds, number = divmod(number, nominal)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{match[4]}{number:02}"


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
