"""Making libx264 write the same bits of the same frames, for clips (`vsr`) and training data."""

from __future__ import annotations

import torch


def repeatable_options(encoder: str) -> dict[str, str]:
    """Return the options with which an encoder of FFmpeg writes the same bits on this CPU.

    With AVX-512 the look-ahead of x264 (core 165) makes small frames come out differently from run
    to run; without it (`asm=avx2`), or without macroblock trees, which compress, they do not. The
    words switch instruction sets on as well as off, so they are only for CPUs that have AVX-512.
    """
    if encoder == "libx264" and torch.backends.cpu.get_cpu_capability() == "AVX512":
        return {"x264-params": "asm=avx2"}
    return {}
