"""How much does --changed-only save where the camera stands still?

    python benchmarks/still_camera.py [--frames N] [--threads N] [--json FILE] [--smoke]

Makes clips like those of a camera on a wall, 480x270 at 15 frames/s: a view that stands still, for
the middle half of the clip someone who walks through it, a clock that jumps once a second, sensor
noise. x264 as such cameras use it: preset veryfast, crf 26, a key frame every 4 seconds. One clip
without noise, one with noise of 1 and one of 2 code values (standard deviation).

Upscales each as a whole, with --changed-only, and with a --changed-threshold of THRESHOLD levels as
well. With the first the files must be the same; for the second PSNR-Y against the whole is given.
The time is that of the whole program, encoder and all. Prints an environment card and a table; the
last line of stdout is one JSON document, which goes to `--json` too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import av  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

import vsr  # noqa: E402
from benchmarks.report import environment, publish  # noqa: E402

SIZE = (270, 480)
RATE = 15  # frames a second
NOISES = (0.0, 1.0, 2.0)
THRESHOLD = 10.0  # levels of 255, for the noise
WALKER = (90, 36)
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"changed_only": True},
    {"changed_only": True, "changed_threshold": THRESHOLD},
)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--frames", type=int, default=120, metavar="N")
    p.add_argument("--threads", type=int, default=1, metavar="N")
    p.add_argument("--json", type=Path, metavar="FILE")
    p.add_argument("--smoke", action="store_true", help="all of it in seconds, for tests")
    options = p.parse_args(argv)
    size = (64, 96) if options.smoke else SIZE
    frames = 8 if options.smoke else options.frames
    return publish("still_camera", lambda: measure(size, frames, options.threads), options.json)


def measure(size: tuple[int, int], frames: int, threads: int) -> dict[str, Any]:
    """Measure each clip, print the table, return the whole document."""
    if frames < 4:
        raise ValueError(f"frames must be at least 4, got {frames}")
    torch.set_num_threads(threads)
    card = environment("av", "openvino")
    for name, value in card.items():
        print(f"{name:<13} {value}")
    print(
        f"\n{'noise':<8}{'whole, s':>10}{'changed, s':>12}{'factor':>8}{'same file':>11}"
        f"{f'threshold {THRESHOLD:g}, s':>17}{'factor':>8}{'PSNR-Y, dB':>12}"
    )
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for noise in NOISES:
            source = write_scene(folder / "in.mp4", size, frames, noise)
            whole, changed, nearly = (
                vsr.upscale(
                    source, folder / f"{index}.mp4", threads=threads, overwrite=True, **options
                )
                for index, options in enumerate(WAYS)
            )
            same = whole.output.read_bytes() == changed.output.read_bytes()
            row = {
                "noise": noise,
                "backend": whole.backend,
                "precision": whole.precision,
                "whole_seconds": round(whole.seconds, 2),
                "changed_only_seconds": round(changed.seconds, 2),
                "factor": round(whole.seconds / changed.seconds, 2),
                "repeated_frames": whole.reused,
                "same_file": same,
                "threshold_seconds": round(nearly.seconds, 2),
                "threshold_factor": round(whole.seconds / nearly.seconds, 2),
                "threshold_psnr_y": psnr_y(whole.output, nearly.output),
            }
            rows.append(row)
            print(
                f"{noise:<8}{whole.seconds:>10.2f}{changed.seconds:>12.2f}{row['factor']:>8.2f}"
                f"{'yes' if same else 'NO':>11}{nearly.seconds:>17.2f}"
                f"{row['threshold_factor']:>8.2f}{row['threshold_psnr_y'] or 'equal':>12}"
            )
    clip = f"{size[1]}x{size[0]}, {frames} frames, x264 veryfast crf 26"
    return {
        "benchmark": "still_camera",
        "environment": card,
        "clip": clip,
        "threshold": THRESHOLD,
        "rows": rows,
    }


def psnr_y(one: Path, other: Path) -> float | None:
    """Return PSNR of the luma samples of two 4:2:0 clips, dB; None: all are equal."""
    with av.open(str(one)) as a, av.open(str(other)) as b:
        errors = [
            float(np.mean((plane(x) - plane(y)) ** 2))
            for x, y in zip(a.decode(video=0), b.decode(video=0), strict=True)
        ]
    error = float(np.mean(errors))
    return round(10 * float(np.log10(255**2 / error)), 2) if error else None


def plane(frame: av.VideoFrame) -> NDArray[np.float32]:
    """Return luma (H, W) in 8-bit code values."""
    return frame.to_ndarray()[: frame.height].astype(np.float32)


def write_scene(path: Path, size: tuple[int, int], frames: int, noise: float) -> Path:
    """Film the scene.

    Args:
        path: of the clip.
        size: (height, width), even.
        frames: in the clip.
        noise: standard deviation, in 8-bit code values.
    """
    height, width = size
    random = np.random.default_rng(0)
    view = still_view(size)
    walker = still_view(WALKER)[:, ::-1] // 2
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, width=width, height=height)
        stream.codec_context.pix_fmt = "yuv420p"
        stream.codec_context.options = {
            "preset": "veryfast", "crf": "26", "g": str(4 * RATE), "x264-params": "log-level=none",
        }  # fmt: skip
        for index in range(frames):
            picture = view.astype(np.float32)
            along = (index - frames / 4) / (frames / 2)
            if 0 <= along < 1:
                put(picture, walker, int(height * 0.4) + index % 3, int(width * along))
            picture[4:12, 4:44] = 255 * (np.arange(40) // 4 % 2 ^ (index // RATE % 2))[:, None]
            picture += noise * random.standard_normal((height, width, 1), np.float32)
            frame = av.VideoFrame.from_ndarray(picture.round().clip(0, 255).astype(np.uint8))
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def still_view(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) of the sample clip, at a size."""
    with av.open(str(ROOT / "samples" / "bbb.mp4")) as container:
        frame = next(container.decode(video=0))
    return frame.reformat(width=size[1], height=size[0], format="rgb24", threads=1).to_ndarray()


def put(picture: NDArray[np.float32], part: NDArray[np.uint8], top: int, left: int) -> None:
    """Put a part into a picture; what hangs over is cut off."""
    height, width = (max(0, size) for size in (picture.shape[0] - top, picture.shape[1] - left))
    part = part[:height, :width]
    picture[top : top + part.shape[0], left : left + part.shape[1]] = part


if __name__ == "__main__":
    sys.exit(main())
