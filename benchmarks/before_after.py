"""How much faster is the whole program than it was?

    python benchmarks/before_after.py CLIP [--before COMMIT] [--runs N] [--json FILE]

Checks out an older commit into a temporary folder, and upscales the clip by that and by the present
tree in turn, several times each, with the defaults of each: the time is that of the whole command,
start and encoder included, as a user sees it. Both run with the packages that are installed here.
The default commit is the last one before the work on speed: float32, no reuse of frames, no tiles.

Prints an environment card and the medians; the last line of stdout is one JSON document, which goes
to `--json` too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import environment, publish  # noqa: E402

BEFORE = "525d45f"
LONGEST_SECONDS = 1800.0  # one run; beyond it the benchmark gives up


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("clip", type=Path)
    p.add_argument("--before", default=BEFORE, metavar="COMMIT")
    p.add_argument("--runs", type=int, default=3, metavar="N", help="of each; default 3")
    p.add_argument("--json", type=Path, metavar="FILE")
    options = p.parse_args(argv)
    return publish(
        "before_after", lambda: measure(options.clip, options.before, options.runs), options.json
    )


def measure(clip: Path, before: str, runs: int) -> dict[str, Any]:
    """Time both trees in turn and return the document.

    Raises:
        ValueError: fewer than one run, no such clip or commit, or a run that failed.
    """
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    if not clip.is_file():
        raise ValueError(f"{clip} does not exist")
    card = environment("av", "openvino")
    for name, value in card.items():
        print(f"{name:<13} {value}")
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "before"
        git("worktree", "add", "--detach", str(old), before)
        try:
            trees = {"before": old, "after": ROOT}
            seconds: dict[str, list[float]] = {name: [] for name in trees}
            for _ in range(runs):
                for name, tree in trees.items():
                    output = Path(folder) / f"{name}.mp4"
                    seconds[name].append(timed(tree, clip.resolve(), output))
        finally:
            git("worktree", "remove", "--force", str(old))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    factor = median["before"] / median["after"]
    print(f"before {median['before']:.1f} s, after {median['after']:.1f} s: {factor:.2f} times")
    return {
        "benchmark": "before_after",
        "environment": card,
        "clip": clip.name,
        "before": before,
        "seconds": {name: [round(v, 2) for v in values] for name, values in seconds.items()},
        "median_seconds": {name: round(value, 2) for name, value in median.items()},
        "factor": round(factor, 3),
    }


def timed(tree: Path, clip: Path, output: Path) -> float:
    """Upscale the clip by the program in a tree and return the seconds that it took."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "vsr", "upscale", str(clip), "-o", str(output), "--overwrite", "-q"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"vsr of {tree.name} failed: {done.stderr.strip()}")
    return time.monotonic() - began


def git(*arguments: str) -> None:
    """Run git in this checkout.

    Raises:
        ValueError: it fails, with its last line.
    """
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["git failed"])[-1])


if __name__ == "__main__":
    sys.exit(main())
