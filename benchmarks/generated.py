"""Clips made for the benchmarks: small, the same on each run, one property or kind at a time."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

MILLISECOND = Fraction(1, 1000)
RATE = 48_000
_FRAME_SAMPLES = 1024


def write_clip(
    path: Path,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (48, 64),
    times: Sequence[int] = range(0, 480, 40),
    time_base: Fraction = MILLISECOND,
    sound_seconds: float = 0.0,
) -> Path:
    """Write a clip of moving bars, (height, width) large, with a tone of AAC if asked for."""
    with av.open(str(path), "w") as container:
        stream = add_picture(container, codec=codec, size=size, time_base=time_base)
        tone = container.add_stream("aac", rate=RATE) if sound_seconds else None
        for index, at in enumerate(times):
            container.mux(stream.encode(picture(size, index, at, time_base)))
        container.mux(stream.encode(None))
        if tone is not None:
            for frame in tones(sound_seconds):
                container.mux(tone.encode(frame))
            container.mux(tone.encode(None))
    return path


def add_picture(
    container: Any,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (48, 64),
    time_base: Fraction = MILLISECOND,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> Any:
    """Add a stream for `picture`; H.264 in haste."""
    quick = {"preset": "ultrafast", "crf": "18"} if codec in ("libx264", "libx265") else {}
    if codec == "libx265":
        quick["x265-params"] = "log-level=none"
    stream = container.add_stream(
        codec, rate=25, width=size[1], height=size[0], options=quick | (options or {})
    )
    stream.pix_fmt = pixel_format
    stream.codec_context.time_base = time_base
    return stream


def picture(
    size: tuple[int, int], index: int, at: int, time_base: Fraction, pixel_format: str = "yuv420p"
) -> av.VideoFrame:
    """Draw frame `index` of colour bars that move, to be shown at `at` ticks."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    waves = [(x + (3 + k) * index) * (k + 1) * 6 + y * (3 - k) for k in range(3)]
    levels = np.stack([(wave % 200 + 28).astype(np.uint8) for wave in waves], axis=-1)
    frame = av.VideoFrame.from_ndarray(levels, "rgb24").reformat(format=pixel_format)
    frame.pts, frame.time_base = at, time_base
    return frame


def tones(seconds: float, hertz: float = 440.0) -> list[av.AudioFrame]:
    """Return a stereo tone, in frames as AAC takes them."""
    frames = []
    for start in range(0, round(seconds * RATE), _FRAME_SAMPLES):
        time = np.arange(start, start + _FRAME_SAMPLES) / RATE
        wave: NDArray[np.float32] = (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), "fltp", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
        frames.append(frame)
    return frames
