"""Frames strip by strip: the same planes as those of the whole frame."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from PIL import Image

import vsr
from engines import create_engine, load_model
from engines.networks import build_network
from engines.safety import SafeEngine
from engines.weights import save_weights
from vsr.convert import PlaneLayout, from_rgb, resize
from vsr.strips import StripUpscaler, strips

# float32 sums in another order may round a level to its neighbour
ROUNDING = 1


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    torch.manual_seed(1)
    net = build_network("srgan-lite", {"channels": 8, "blocks": 2}, deployed=True)
    path = tmp_path_factory.mktemp("weights") / "x4.safetensors"
    save_weights(path, net, network="srgan-lite", training={})
    return SafeEngine(create_engine(load_model(path), backend="pytorch"))


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (PlaneLayout(kind="yuv", chroma_step=(2, 2)), (160, 96)),
        (PlaneLayout(kind="yuv", chroma_step=(2, 2)), (80, 48)),
        (PlaneLayout(kind="yuv", depth=10, chroma_step=(2, 2)), (120, 72)),
        (PlaneLayout(kind="yuv", chroma_step=(1, 2)), (50, 30)),
        (PlaneLayout(kind="yuv", chroma_step=(1, 1), full_range=True), (157, 95)),
        (PlaneLayout(kind="rgb", depth=16), (81, 96)),
        (PlaneLayout(kind="grey"), (160, 96)),
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 16, 37, 1000])
def test_strips_give_the_planes_of_the_whole_frame(layout, size, rows, engine):
    frame = torch.rand(1, 3, 40, 24, generator=torch.Generator().manual_seed(1))
    whole = from_rgb(resize(engine(frame), size), layout)
    parts = StripUpscaler(engine, layout, size, rows)(frame)
    assert [part.shape for part in parts] == [plane.shape for plane in whole]
    for part, plane in zip(parts, whole, strict=True):
        assert part.dtype == plane.dtype
        assert (part.int() - plane.int()).abs().max() <= ROUNDING


def test_strips_cover_each_row_once_and_stay_within_their_number_of_rows():
    parts = list(strips(4320, output_height=8640, scale=4, radius=11, chroma_step=2, rows=256))
    covered = [row for part in parts for row in range(part.rows.start, part.rows.stop)]
    assert covered == list(range(8640))
    assert max(part.rows.stop - part.rows.start for part in parts) == 256
    # 256 rows of half the enlarged size, their margins, and the radius on both sides
    assert {part.window.stop - part.window.start for part in parts} == {128 + 6 + 2 * 11 + 1}
    for part in parts:  # what the engine sees reaches as far as the network looks
        assert part.window.start <= max(0, part.enlarged.start // 4 - 11)
        assert part.window.stop >= min(4320, -(-part.enlarged.stop // 4) + 11)


def test_a_window_without_the_radius_would_show(engine, monkeypatch):
    monkeypatch.setattr("vsr.strips.receptive_radius", lambda net: 0)
    layout = PlaneLayout(kind="grey")
    frame = torch.rand(1, 3, 40, 24, generator=torch.Generator().manual_seed(1))
    whole = from_rgb(engine(frame), layout)
    parts = StripUpscaler(engine, layout, (160, 96), 16)(frame)
    assert (parts[0].int() - whole[0].int()).abs().max() > ROUNDING


def test_a_filter_without_a_margin_would_show(engine, monkeypatch):
    monkeypatch.setattr("vsr.strips._CUBIC_SUPPORT", -2)
    layout = PlaneLayout(kind="grey")
    frame = torch.rand(1, 3, 40, 24, generator=torch.Generator().manual_seed(1))
    whole = from_rgb(resize(engine(frame), (40, 24)), layout)
    parts = StripUpscaler(engine, layout, (40, 24), 4)(frame)
    assert (parts[0].int() - whole[0].int()).abs().max() > ROUNDING


@pytest.mark.parametrize("scale", [2, 1])
def test_a_clip_whose_frames_do_not_fit_is_made_in_strips(
    scale, plain_clip, tiny_weights, tmp_path, monkeypatch
):
    made = []
    original = StripUpscaler.__call__

    def counted(self, frame):
        made.append(frame)
        return original(self, frame)

    monkeypatch.setattr(StripUpscaler, "__call__", counted)
    results = []
    for name, free in (("whole", None), ("strips", 100_000)):
        monkeypatch.setattr("vsr.memory.free_bytes", lambda free=free: free)
        monkeypatch.setattr("vsr.memory._LEAST_STRIP", 16)
        output = tmp_path / f"{name}.mkv"
        vsr.upscale(
            plain_clip, output, model=tiny_weights, backend="pytorch", scale=scale, encoder="ffv1"
        )
        with av.open(str(output)) as container:
            frames = [frame.to_ndarray() for frame in container.decode(video=0)]
        results.append(np.stack(frames).astype(int))
    assert len(made) == 10
    assert np.abs(results[0] - results[1]).max() <= ROUNDING


def test_a_picture_that_does_not_fit_is_made_in_strips(tiny_weights, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    source = tmp_path / "in.png"
    Image.fromarray(rng.integers(0, 256, (60, 44, 4), np.uint8), "RGBA").save(source)
    results = []
    for name, free in (("whole", None), ("strips", 100_000)):
        monkeypatch.setattr("vsr.memory.free_bytes", lambda free=free: free)
        monkeypatch.setattr("vsr.memory._LEAST_STRIP", 16)
        output = tmp_path / f"{name}.png"
        vsr.upscale(source, output, model=tiny_weights, backend="pytorch")
        results.append(np.asarray(Image.open(output)).astype(int))
    assert results[0].shape == (120, 88, 4)
    assert np.abs(results[0] - results[1]).max() <= ROUNDING
