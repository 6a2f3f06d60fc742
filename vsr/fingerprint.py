"""Which file is it? Told by what is in it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_BLOCK_BYTES = 1 << 20


def fingerprint(path: Path, *, block_bytes: int = _BLOCK_BYTES) -> dict[str, int | str]:
    """Tell an input by what is in it: its size, and a hash of its head, middle and tail.

    A copy is the same input, whatever its time; a clip that another has replaced is not, since
    its head, which holds sizes and codecs, or its tail, an index, would have to be equal.

    Args:
        path: of the input.
        block_bytes: of its head, its middle and its tail.

    Raises:
        OSError: it cannot be read.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        for start in sorted({0, max(0, (size - block_bytes) // 2), max(0, size - block_bytes)}):
            file.seek(start)
            found.update(file.read(block_bytes))
    return {"bytes": size, "sha256 of three blocks": found.hexdigest()[:32]}
