"""Stand-ins for the process that measures a GPU's rows; small, so that they start at once."""

from __future__ import annotations

import os
import time


def well_behaved(pipe):
    """Answer with the row's title and this process's number."""
    _serve(pipe, lambda row: {"fps": 100.0, "median_ms": 10.0, "p95_ms": 11.0, "pid": os.getpid()})


def by_runner(pipe):
    """Fail in the way that the row's runner says."""

    def answer(row):
        if row.kind == "rates":
            return {
                "environment": {"device": "simulated"},
                "matrix_macs_per_second": 10**15,
                "down_bytes_per_second": 10**10,
            }
        if row.runner == "compile":
            os._exit(3)
        if row.runner == "onnxruntime":
            time.sleep(60)
        if row.runner == "tensorrt":
            return {"error": "RuntimeError: CUDA error: an illegal address", "broken": True}
        if row.runner == "pytorch":
            return {"error": "BackendUnavailable: not there", "broken": False}
        figures = {"fps": 100.0, "median_ms": 10.0, "p95_ms": 11.0, "pid": os.getpid()}
        return figures | {"macs_per_lr_pixel": 10_000_000, "scale": 4}

    _serve(pipe, answer)


def never_ready(pipe):
    """Hang before the first row."""
    time.sleep(60)


def _serve(pipe, answer):
    pipe.send("ready")
    while True:
        try:
            row = pipe.recv()
        except EOFError:
            return
        pipe.send(answer(row))
