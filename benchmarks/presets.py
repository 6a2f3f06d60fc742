"""What do x264's presets cost and keep of an enlarged clip?

    python benchmarks/presets.py [--clip FILE] [--frames N] [--json FILE] [--smoke]

Upscales the first frames of `--clip` (default: the sample clip) by the default model, without loss,
and puts them through x264 in one thread with each of PRESETS at each of QUALITIES: CPU time of the
encoder, size, and PSNR-Y against what went in. Prints an environment card and a table; the last
line of stdout is one JSON document, which goes to `--json` too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from fractions import Fraction
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import av  # noqa: E402
import numpy as np  # noqa: E402

import vsr  # noqa: E402
from benchmarks.report import environment, publish  # noqa: E402

PRESETS = ("superfast", "veryfast", "faster", "fast", "medium")
QUALITIES = (16, 15)
RATE = 25


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--clip", type=Path, default=ROOT / "samples" / "bbb.mp4", metavar="FILE")
    p.add_argument("--frames", type=int, default=40, metavar="N")
    p.add_argument("--json", type=Path, metavar="FILE")
    p.add_argument("--smoke", action="store_true", help="all of it in seconds, for tests")
    options = p.parse_args(argv)
    frames = 3 if options.smoke else options.frames
    scale = 0.25 if options.smoke else None
    return publish("presets", lambda: measure(options.clip, frames, scale), options.json)


def measure(clip: Path, count: int, scale: float | None) -> dict[str, Any]:
    """Measure each preset, print the table, return the whole document."""
    if count < 1:
        raise ValueError(f"frames must be at least 1, got {count}")
    card = environment("av")
    for name, value in card.items():
        print(f"{name:<13} {value}")
    with tempfile.TemporaryDirectory() as folder:
        large = vsr.upscale(clip, Path(folder) / "large.mkv", encoder="ffv1", scale=scale).output
        with av.open(str(large)) as container:
            frames = list(islice(container.decode(video=0), count))
        print(f"\n{'':<12}{'CRF':>4}{'CPU ms':>9}{'kB a frame':>12}{'PSNR-Y':>8}")
        rows = []
        for preset in PRESETS:
            for crf in QUALITIES:
                row = encoded(frames, preset, crf, Path(folder) / "out.mkv")
                rows.append(row)
                print(
                    f"{preset:<12}{crf:>4}{row['cpu_ms']:>9.1f}{row['kilobytes']:>12.1f}"
                    f"{row['psnr_y']:>8.2f}"
                )
    return {
        "benchmark": "presets",
        "environment": card,
        "clip": f"{frames[0].width}x{frames[0].height}, {len(frames)} frames, srgan-lite",
        "rows": rows,
    }


def encoded(frames: list[av.VideoFrame], preset: str, crf: int, path: Path) -> dict[str, Any]:
    """Encode frames and compare what comes out with them."""
    began = time.process_time()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {
            "preset": preset, "crf": str(crf), "x264-params": "log-level=none",
        }  # fmt: skip
        packets = []
        for index, frame in enumerate(frames):
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        seconds = time.process_time() - began
        size = sum(packet.size for packet in packets)
        container.mux(packets)
    with av.open(str(path)) as container:
        pairs = zip(frames, container.decode(video=0), strict=True)
        error = fmean(float(np.mean((luma(a) - luma(b)) ** 2)) for a, b in pairs)
    return {
        "preset": preset,
        "crf": crf,
        "cpu_ms": round(1000 * seconds / len(frames), 2),
        "kilobytes": round(size / len(frames) / 1000, 2),
        "psnr_y": round(10 * float(np.log10(255**2 / error)), 2),
    }


def luma(frame: av.VideoFrame) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the luma samples of a 4:2:0 frame, (H, W)."""
    return frame.to_ndarray()[: frame.height].astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
