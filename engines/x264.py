"""Making libx264 write the same bits of the same frames, for clips (`vsr`) and training data."""

from __future__ import annotations

import torch


def x264_params() -> str:
    """Return what `x264-params` must say for that on this CPU; "" for nothing.

    With AVX-512 the output of x264 (core 165) differs from run to run where frames are small: seen
    up to 320 pixels wide, and no more with `mbtree=0`, which compresses worse, or `asm=avx2`, which
    costs nothing. The words switch instruction sets on as well as off, so they are only for CPUs
    that have AVX-512.
    """
    return "asm=avx2" if torch.backends.cpu.get_cpu_capability() == "AVX512" else ""
