"""Kills a job again and again, runs it again each time, and reports what came of it.

    python tests/crashing.py INPUT WEIGHTS KILLS SEED

The process forks for each run, so that PyTorch is imported once. A run dies by SIGKILL: at its n-th
step that leaves a trace on the disk (n drawn by lot, up to what an uninterrupted run takes), or,
every other time, at a moment drawn by lot. Writes one JSON object to stdout.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vsr import mux, packets, segments
from vsr.cli import main

segments.SEGMENT_FRAMES = 20
STEPS: list[tuple[Any, str]] = [
    (packets.PacketFile, "write"), (packets.PacketFile, "close"), (mux.Muxer, "_mux_picture"),
    (mux.Muxer, "_mux_other"), (segments, "compare_times"), (os, "fsync"), (os, "replace"),
    (Path, "unlink"), (Path, "rmdir"), (Path, "mkdir"),
]  # fmt: skip


def run(arguments: list[str], *, steps: int | None = None, seconds: float | None = None) -> int:
    """Run the command in a child that may die; return its exit code, -9 if it did."""
    child = os.fork()
    if child == 0:
        count_steps(steps)
        os._exit(main(arguments))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def count_steps(most: int | None) -> None:
    """Wrap all steps: SIGKILL instead of number `most`, or their count in a file."""
    done = Counter[str]()

    def counted(step: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            done[name] += 1
            if most is None:
                Path("steps").write_text(str(done.total()))
            elif done.total() == most:
                with Path("deaths").open("a") as deaths:
                    deaths.write(f"{name}\n")
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args, **kwargs)

        return call

    for owner, name in STEPS:
        setattr(owner, name, counted(getattr(owner, name), name))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def report(source: str, weights: str, kills: int, seed: int) -> dict[str, Any]:
    lot = random.Random(seed)
    output = Path("out.mp4")
    command = ["upscale", source, "-o", str(output), "--weights", weights, "-q"]
    command += ["--backend", "pytorch", "--threads", "1", "--preset", "ultrafast"]
    began = time.monotonic()
    assert run(command) == 0
    whole_seconds, most = time.monotonic() - began, int(Path("steps").read_text())
    Path("steps").unlink()
    expected = digest(output)
    output.unlink()
    killed = finished = 0
    wrong: list[str] = []
    while killed < kills:
        by_moment = killed % 2
        code = run(
            command,
            steps=None if by_moment else lot.randint(1, most),
            seconds=lot.uniform(0, whole_seconds) if by_moment else None,
        )
        killed += code == -signal.SIGKILL
        if code != -signal.SIGKILL or killed == kills:
            code = run(command) if code == -signal.SIGKILL else code
            finished += 1
            # 1: it died after the very last step but one, and the output exists
            if code not in (0, 1) or digest(output) != expected:
                wrong.append(f"exit code {code}, {sorted(p.name for p in Path().iterdir())}")
            output.unlink(missing_ok=True)
    names = Path("deaths").read_text().split() if Path("deaths").exists() else []
    left = sorted(path.name for path in Path().iterdir() if path.name not in ("steps", "deaths"))
    return {
        "killed": killed, "finished": finished, "wrong": wrong, "left": left, "steps": most,
        "deaths": dict(Counter(names)),
    }  # fmt: skip


if __name__ == "__main__":
    source, weights, kills, seed = sys.argv[1:]
    sys.stdout.write(json.dumps(report(source, weights, int(kills), int(seed))))
