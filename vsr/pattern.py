"""Names of numbered pictures: `frames/%06d.png`, as C's printf has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from engines.errors import MediaError

_NUMBER = re.compile(r"(?P<before>(?:[^%]|%%)*)%(?:0(?P<digits>\d\d?))?d(?P<after>(?:[^%]|%%)*)")
_NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>\d+)(?P<after>\D*)")
_MOST_GAPS = 3  # that a message names


@dataclass(frozen=True, slots=True)
class Pattern:
    """A folder and names in it that differ in a number."""

    folder: Path
    before: str
    digits: int
    """to which the number is filled up with zeros"""
    after: str
    """with the suffix"""

    @classmethod
    def of(cls, path: Path) -> Pattern | None:
        """Read a pattern; None for the name of a single file. `%%` stands for a percent sign."""
        match = _NUMBER.fullmatch(path.name)
        if match is None:
            return None
        before, after = (match[name].replace("%%", "%") for name in ("before", "after"))
        return cls(path.parent, before, int(match["digits"] or 1), after)

    @property
    def suffix(self) -> str:
        """Suffix of the files, in small letters."""
        return Path("x" + self.after).suffix.lower()

    def path(self, number: int) -> Path:
        """Name the file of a number."""
        return self.folder / f"{self.before}{number:0{self.digits}d}{self.after}"

    def numbers(self) -> list[int]:
        """Return the numbers of the files that are there, in ascending order.

        Raises:
            OSError: the folder cannot be read.
        """
        if not self.folder.is_dir():
            return []
        found = []
        for path in self.folder.iterdir():
            name = path.name
            if not (name.startswith(self.before) and name.endswith(self.after)):
                continue
            number = name[len(self.before) : len(name) - len(self.after)]
            if number.isascii() and number.isdigit() and self.path(int(number)).name == name:
                found.append(int(number))
        return sorted(found)

    def __str__(self) -> str:
        before, after = (text.replace("%", "%%") for text in (self.before, self.after))
        number = "%d" if self.digits == 1 else f"%0{self.digits}d"
        return str(self.folder / f"{before}{number}{after}")


def is_pattern(source: Path) -> bool:
    """Tell whether an input is numbered pictures: a pattern, and not the name of a file."""
    return Pattern.of(source) is not None and not source.exists()


def pattern_in(folder: Path, suffixes: frozenset[str]) -> Path:
    """Return the pattern of the numbered pictures that a folder holds.

    Args:
        folder: whose other files are left aside.
        suffixes: of pictures.

    Raises:
        MediaError: it holds none, or more than one run of them.
    """
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )
    lengths: dict[tuple[str, str], set[int]] = {}  # of the numbers, by what stands around them
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match is None:
            raise MediaError(f"{folder / name} has no number: each picture of a sequence has one")
        lengths.setdefault((match["before"], match["after"]), set()).add(len(match["number"]))
    if len(lengths) != 1:
        raise MediaError(
            f"{folder} holds {len(lengths)} sequences of numbered pictures, expected one: name it, "
            f"such as {folder / '%06d.png'}"
        )
    ((before, after), digits) = lengths.popitem()
    return Path(str(Pattern(folder, before, min(digits), after)))


def gaps(numbers: Sequence[int]) -> str:
    """Say in words which numbers are missing between the first and the last; "" where none is."""
    holes = [(low + 1, high - 1) for low, high in pairwise(numbers) if high > low + 1]
    named = [f"{low}" if low == high else f"{low} to {high}" for low, high in holes[:_MOST_GAPS]]
    more = len(holes) - len(named)
    return ", ".join(named) + (f" and {more} gaps more" if more else "")
