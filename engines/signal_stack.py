"""Keeps a thread's alternate signal stack what it is while a library has its way.

OpenVINO's CPU plugin gives the thread that loads it an alternate stack for signals, where the CPU
has AMX, and unmaps it when the plugin goes: in whatever thread that happens. The first thread keeps
a stack that is no longer there, and the next signal with a handler, such as Ctrl-C, is its end.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """`stack_t` of Linux, sigaltstack(2)."""

    _fields_ = [
        ("sp", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    ]


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """Put this thread's alternate signal stack back after the block."""
    if not sys.platform.startswith("linux"):
        yield
        return
    sigaltstack = ctypes.CDLL(None).sigaltstack
    before = _Stack()
    known = sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            sigaltstack(ctypes.byref(before), None)
