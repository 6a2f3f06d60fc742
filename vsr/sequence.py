"""Numbered pictures as a clip: `frames/%06d.png`, so and so many a second."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from engines.errors import MediaError
from vsr.clip import ClipInfo
from vsr.convert import PlaneLayout
from vsr.ffmpeg import reason
from vsr.fingerprint import fingerprint
from vsr.pattern import Pattern, gaps
from vsr.span import Span
from vsr.timeline import Timed
from vsr.video import Reader

log = logging.getLogger(__name__)

DEFAULT_FPS = Fraction(25)
_BLOCK_BYTES = 1 << 16  # of a picture's fingerprint: there may be many


class SequenceReader(Reader):
    """Reads numbered pictures one after the other: a `Reader` of the first that goes on.

    Args:
        path: a pattern, see `vsr.pattern`.
        fps: pictures a second.

    Attributes:
        numbers: of the pictures, in order.
        first: the first picture's file.

    Raises:
        MediaError: there is none, one is missing between others, or the first cannot be read.
    """

    def __init__(self, path: Path, *, fps: Fraction | None = None) -> None:
        pattern = Pattern.of(path)
        if pattern is None:
            raise ValueError(f"{path} is no pattern, such as frames/%06d.png")
        try:
            self.numbers = pattern.numbers()
        except OSError as error:
            raise MediaError(f"cannot read {pattern.folder}: {reason(error)}") from error
        if not self.numbers:
            raise MediaError(f"cannot read {path}: there is no picture of such a name")
        if missing := gaps(self.numbers):
            raise MediaError(
                f"{path} has pictures from {self.numbers[0]} to {self.numbers[-1]}, but {missing} "
                "missing: give the runs one by one, or fill the gap"
            )
        super().__init__(pattern.path(self.numbers[0]), threads=1)
        self._pattern = pattern
        self._picture = self.info
        self.first = pattern.path(self.numbers[0])
        if not self.info.is_still:
            self.container.close()
            raise MediaError(f"{self.info.path} is a clip, expected a picture")
        rate = fps or DEFAULT_FPS
        self.info = replace(
            self.info,
            path=path,
            is_still=False,
            time_base=1 / rate,
            average_rate=rate,
            frames=len(self.numbers),
        )

    def trim(self, span: Span) -> None:
        """Read a part of the sequence alone (see `Reader.trim`)."""
        rate = self.info.average_rate
        begin, end = span.begin_seconds, span.end_seconds
        kept = [n for index, n in enumerate(self.numbers) if begin <= index / rate < end]
        if not kept:
            raise MediaError(f"{self.info.path} has no picture in the span {span}")
        self.numbers, self.span = kept, span
        self.info = replace(self.info, frames=len(kept))

    def stamp(self) -> dict[str, int | str]:
        """Return what tells these pictures from others of the same names."""
        found = hashlib.sha256()
        for number in self.numbers:
            picture = fingerprint(self._pattern.path(number), block_bytes=_BLOCK_BYTES)
            found.update(json.dumps([number, picture]).encode())
        return {"pictures": len(self.numbers), "sha256 of all": found.hexdigest()[:32]}

    def frames(self) -> Iterator[Timed[list[Tensor]]]:
        """Yield each picture, as a frame of one tick.

        Raises:
            MediaError: one cannot be read, or is unlike the first in more than lossless conversion
                can mend.
        """
        for index, number in enumerate(self.numbers):
            path = self._pattern.path(number)
            with Reader(path, threads=1) as picture:
                planes = next(picture.frames()).value
                if picture.lost_packets or picture.damaged_frames:
                    raise MediaError(f"{path} is damaged")
                planes = self._like_the_first(planes, picture.info)
            if self._window is not None:
                planes = self._window.cut(planes, self.info.layout)
            self.frames_read += 1
            yield Timed(planes, index, 1)

    def _like_the_first(self, planes: list[Tensor], info: ClipInfo) -> list[Tensor]:
        first = self._picture
        if (
            info.size != first.size
            or info.layout != _as_kind(first.layout, info.layout)
            or (info.alpha and not first.alpha)
            or info.display_matrix != first.display_matrix
        ):
            raise MediaError(
                f"{info.path} ({_words(info)}) is unlike the first, "
                f"{self.first.name} ({_words(first)}): a sequence is of pictures of one kind"
            )
        colours = planes[: len(info.layout.plane_sizes(1, 1))]
        alpha: Sequence[Tensor] = planes[-1:] if info.alpha else []
        if info.layout.kind != first.layout.kind:  # some programs write grey where none has colour
            colours = colours * 3
        if first.alpha and not info.alpha:
            opaque = (1 << first.layout.depth) - 1
            alpha = [torch.full(info.size, opaque, dtype=first.layout.dtype)]
        return [*colours, *alpha]


def _as_kind(first: PlaneLayout, found: PlaneLayout) -> PlaneLayout:
    """Return the first's layout, or as grey where a grey picture becomes RGB without a loss."""
    if first.kind == "rgb" and found.kind == "grey" and found.full_range and first.full_range:
        return replace(first, kind="grey")
    return first


def _words(info: ClipInfo) -> str:
    alpha = " with alpha" if info.alpha else ""
    turned = ", turned" if info.display_matrix else ""
    return (
        f"{info.size[1]}x{info.size[0]}, {info.layout.depth}-bit {info.layout.kind}{alpha}{turned}"
    )
