"""Fixtures that several test files share: a tiny model, generated clips."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from benchmarks.report import available_cores
from engines.networks import build_network
from engines.weights import save_weights

NO_GPU = "needs an NVIDIA GPU and a CUDA build of PyTorch"
REAL_CLIPS = Path(__file__).parents[2] / "shared" / "data" / "clips"


def pytest_configure() -> None:
    """Hear Ctrl-C in a background job too, where shells have it ignored; children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot do; without a GPU fail instead where one is required."""
    if item.get_closest_marker("two_cores") and available_cores() < 2:
        pytest.skip("needs two CPU cores")
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        if os.environ.get("VSR_REQUIRE_GPU") == "1":
            pytest.fail(NO_GPU, pytrace=False)
        pytest.skip(NO_GPU)


@pytest.fixture(scope="session", autouse=True)
def _own_engine_cache(tmp_path_factory):
    """Keep tests away from the user's compiled engines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VSR_ENGINE_CACHE", str(tmp_path_factory.getbasetemp() / "engines"))
        yield


@pytest.fixture(autouse=True)
def _no_process_outlives_a_failure(monkeypatch):
    """Kill what a failed test has started: leaving `with Popen(...)` would wait for its end."""
    leave = subprocess.Popen.__exit__

    def kill_and_leave(process, kind, *error):
        if kind is not None:
            process.kill()
        leave(process, kind, *error)

    monkeypatch.setattr(subprocess.Popen, "__exit__", kill_and_leave)


@pytest.fixture(autouse=True)
def _no_gpu_unless_asked_for(request, monkeypatch):
    """Let a test see a GPU only if it is marked so: the others mean the CPU, whatever is there."""
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        if not request.node.get_closest_marker("tensorrt"):  # whose builder may be a GPU's
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for the processes that it starts


@pytest.fixture(autouse=True)
def _own_random_state():
    """Give each test the same random numbers, and the next one an untouched state."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)


@pytest.fixture(autouse=True)
def _own_process_state():
    """Undo what a command line sets for its process: signal handlers, loggers, threads.

    PyTorch computes in one thread: for tiny networks two only wait for each other.
    """
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)
    for name in ("vsr", "engines"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """A lite network of one block, times 2, that all but copies its input: fast, and no noise."""
    torch.manual_seed(1)
    net = build_network("srgan-lite", {"channels": 4, "blocks": 1, "scale": 2}, deployed=True)
    net.tail.weight.data.mul_(0.01)
    net.tail.bias.data.zero_()
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, net, network="srgan-lite", training={})
    return path


def write_clip(
    path: Path,
    *,
    size: tuple[int, int] = (38, 50),
    pts: tuple[int, ...] = tuple(range(0, 5000, 500)),
    time_base: Fraction = Fraction(1, 12800),
    pixel_format: str = "yuv420p",
    codec: str = "libx264",
    tags: tuple[int, int, int, int] = (2, 2, 2, 0),
    sample_aspect_ratio: Fraction = Fraction(1),
    audio_seconds: float = 0.0,
    level: int | None = None,
) -> Path:
    """Write a clip of a moving gradient (or one grey level), with a tone if asked for."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            codec, rate=25, width=size[1], height=size[0], time_base=time_base
        )
        context = stream.codec_context
        context.pix_fmt = pixel_format
        context.sample_aspect_ratio = sample_aspect_ratio
        if codec == "libx264":
            context.options = {"crf": "10", "preset": "ultrafast"}
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = tags
        tone = container.add_stream("aac", rate=48000) if audio_seconds else None
        for index, at in enumerate(pts):
            frame = _gradient(size, index, level).reformat(format=pixel_format, threads=1)
            frame.pts, frame.time_base = at, time_base
            frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range = tags
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            for start in range(0, int(audio_seconds * 48000), 1024):
                time = np.arange(start, start + 1024) / 48000
                wave = np.sin(2 * np.pi * 440 * time).astype(np.float32)
                sound = av.AudioFrame.from_ndarray(np.stack([wave, wave]), "fltp", "stereo")
                sound.sample_rate, sound.pts = 48000, start
                container.mux(tone.encode(sound))
            container.mux(tone.encode(None))
    return path


def _gradient(size: tuple[int, int], index: int, level: int | None) -> av.VideoFrame:
    height, width = size
    if level is not None:
        return av.VideoFrame.from_ndarray(np.full((height, width, 3), level, np.uint8), "rgb24")
    y, x = np.mgrid[:height, :width]
    red, green = 60 + 120 * x / width + 2 * (index % 20), 190 - 110 * y / height
    picture = np.stack([red, green, (red + green) / 2], axis=-1)
    return av.VideoFrame.from_ndarray(picture.astype(np.uint8), "rgb24")


@pytest.fixture(scope="session")
def plain_clip(tmp_path_factory) -> Path:
    """Ten frames of 50x38, constant rate, with sound."""
    return write_clip(tmp_path_factory.mktemp("clips") / "plain.mp4", audio_seconds=0.4)


@pytest.fixture(scope="session")
def uneven_clip(tmp_path_factory) -> Path:
    """Twelve frames at uneven times, the first one late."""
    pts = (700, 1200, 1300, 2900, 3000, 3100, 5000, 9000, 9001, 9400, 12000, 20000)
    return write_clip(tmp_path_factory.mktemp("clips") / "uneven.mp4", pts=pts)
