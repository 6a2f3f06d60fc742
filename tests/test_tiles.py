"""Tiles: the same result as the whole frame, in less memory."""

from __future__ import annotations

import pytest
import torch
from test_engines import SMALL, tiny_model

import vsr
from engines import BACKENDS, create_engine, load_model
from engines.networks import build_network
from engines.pytorch import PyTorchEngine
from engines.tiles import (
    TiledEngine,
    bytes_per_pixel,
    receptive_radius,
    tiles,
    values_per_pixel,
)
from engines.weights import Model
from vsr import memory
from vsr.config import UpscaleConfig

# float32 sums in another order
TOLERANCE = 1e-5


@pytest.mark.parametrize("network", list(SMALL))
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "tensorrt"])
@pytest.mark.parametrize(
    ("size", "side"),
    [((45, 70), 16), ((33, 16), 16), ((17, 61), 23), ((50, 47), 49), ((64, 64), 32), ((5, 90), 20)],
)
def test_the_result_is_that_of_the_whole_frame(network, backend, size, side):
    model = tiny_model(network)
    whole = create_engine(model, backend=backend)
    frames = torch.rand(1, 3, *size)
    expected = whole(frames)
    tiled = TiledEngine(whole, side)
    result = tiled(frames)
    assert result.shape == expected.shape
    assert result.is_contiguous()
    torch.testing.assert_close(result, expected, atol=TOLERANCE, rtol=0)
    tiled.close()


@pytest.mark.parametrize("network", ["srgan-lite", "srcnn"])  # srgan's far taps are too weak to see
def test_one_pixel_less_of_overlap_is_seen(network):
    """The radius is no larger than it must be, and the comparison above can fail."""
    model = tiny_model(network)
    tiled = TiledEngine(create_engine(model, backend="pytorch"), 16)
    frames = torch.rand(1, 3, 64, 64)
    exact = tiled(frames)
    tiled.overlap -= 1
    assert (tiled(frames) - exact).abs().max() > TOLERANCE


@pytest.mark.parametrize(
    ("network", "config", "radius"),
    [
        ("srgan-lite", {"channels": 4, "blocks": 1}, 3),  # a 3x3 convolution a pixel
        ("srgan-lite", {"channels": 4, "blocks": 9}, 11),
        ("srgan-lite", {"channels": 4, "blocks": 30}, 32),  # further than the first try sees
        ("srcnn", {"channels": 4, "scale": 4}, 3),  # 6 large pixels and 2 of the bicubic kernel
        ("srcnn", {"channels": 4, "scale": 1}, 6),
    ],
)
def test_the_radius_is_that_of_the_layers(network, config, radius):
    net = build_network(network, config, deployed=True)
    for parameter in net.parameters():
        parameter.data.zero_()  # trained weights may be zero: the layers are there all the same
    assert receptive_radius(net) == radius


@pytest.mark.parametrize("network", list(SMALL))
def test_the_radius_is_what_the_network_does(network):
    """Numerically: a pixel changes the result as far away as the radius says, and no further."""
    net = build_network(network, SMALL[network], deployed=True).double().eval()
    for parameter in net.parameters():
        parameter.data.abs_()  # nothing cancels
    radius = receptive_radius(net)
    frames = torch.full((1, 3, 61, 61), 0.5, dtype=torch.float64)
    changed = frames.clone()
    changed[:, :, 30, 30] += 1
    with torch.no_grad():
        rows, columns = (net(frames) != net(changed)).any(1)[0].nonzero().unbind(1)
    for places in (rows, columns):
        assert (places // 4 - 30).abs().max() == radius


@pytest.mark.parametrize("size", [(1, 1), (16, 200), (31, 97), (100, 64)])
@pytest.mark.parametrize(("side", "overlap"), [(16, 3), (16, 40), (33, 11)])
def test_cores_cover_the_frame_once_and_windows_have_one_shape(size, side, overlap):
    covered = torch.zeros(size, dtype=torch.int32)
    shapes = set()
    for tile in tiles(size, side=side, overlap=overlap):
        covered[tile.core] += 1
        shapes.add(tuple(part.stop - part.start for part in tile.window))
        for core, window, length in zip(tile.core, tile.window, size, strict=True):
            assert window.start <= max(0, core.start - overlap)
            assert window.stop >= min(length, core.stop + overlap)
            assert 0 <= window.start < window.stop <= length
    assert bool((covered == 1).all())
    assert len(shapes) == 1


def test_a_tile_too_small_is_refused(tiny_weights):
    engine = create_engine(load_model(tiny_weights), backend="pytorch")
    with pytest.raises(ValueError, match="a tile must be at least 16 pixels, got 15"):
        TiledEngine(engine, 15)
    with pytest.raises(ValueError, match="tile must be at least 16, got 8"):
        UpscaleConfig(source="in.mp4", tile=8)


# --- the choice -----------------------------------------------------------------------------------


def test_a_frame_that_fits_is_computed_whole_and_one_that_does_not_in_what_fits():
    model = tiny_model("srgan-lite")
    needed, radius = bytes_per_pixel(model.net), receptive_radius(model.net)
    result = 192 * 1000 * 1000
    enough = result + 2 * needed * 1000 * 1000
    assert memory.fitting_tile(model, (1000, 1000), enough) is None
    side = memory.fitting_tile(model, (1000, 1000), enough - 2)
    assert 900 < side + 2 * radius < 1000
    small = memory.fitting_tile(model, (1000, 1000), enough // 3)
    assert needed * (small + 2 * radius) ** 2 <= enough // 6
    assert small < side
    assert memory.fitting_tile(model, (1000, 1000), 0) == 16


def test_no_tensor_within_a_tile_has_more_numbers_than_back_ends_count():
    net = build_network("srgan", {"channels": 64, "blocks": 1}, deployed=True)
    model = Model("large", "srgan", net, 4, {}, "")
    assert values_per_pixel(net) == 64 * 16
    plenty = 1 << 45
    assert memory.fitting_tile(model, (1080, 1920), plenty) is None
    side = memory.fitting_tile(model, (1440, 2560), plenty)
    window = side + 2 * receptive_radius(net)
    assert 2**30 < window**2 * 1024 < 2**31


def test_bytes_a_pixel_are_those_of_the_largest_layer_twice():
    # pixel shuffle: 48 channels in, as many numbers out, four bytes each
    net = build_network("srgan-lite", {"channels": 8, "blocks": 1}, deployed=True)
    assert bytes_per_pixel(net) == 2 * (48 + 48) * 4
    wide = build_network("srgan-lite", {"channels": 100, "blocks": 1}, deployed=True)
    assert bytes_per_pixel(wide) == 2 * (100 + 100) * 4


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, 2048 * 1024), ("max", 2048 * 1024), ("1000000", 900_000)]
)
def test_a_limit_of_the_container_counts(tmp_path, limit, expected):
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable:    2048 kB\n")
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text("100000\n")
    assert memory.free_bytes(tmp_path / "meminfo", tmp_path) == expected
    assert memory.free_bytes(tmp_path / "absent", tmp_path) is None
    if limit == "1000000":  # what files take of it can be had
        (tmp_path / "memory.stat").write_text("anon 60000\ninactive_file 40000\nactive_file 1\n")
        assert memory.free_bytes(tmp_path / "meminfo", tmp_path) == 940_000


def test_short_memory_leads_to_tiles_and_says_so(
    plain_clip, tiny_weights, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)
    vsr.upscale(plain_clip, tmp_path / "out.mp4", model=tiny_weights, backend="pytorch")
    assert "50x38 is much at once for the memory there is: computed in tiles of 16" in caplog.text


def test_the_network_never_sees_more_than_a_window(plain_clip, tiny_weights, tmp_path, monkeypatch):
    seen = []
    original = PyTorchEngine._run

    def run(engine, frames):
        seen.append(tuple(frames.shape[2:]))
        return original(engine, frames)

    monkeypatch.setattr(PyTorchEngine, "_run", run)
    vsr.upscale(plain_clip, tmp_path / "out.mp4", model=tiny_weights, backend="pytorch", tile=16)
    assert set(seen) == {(22, 22)}  # 16 and 3 on each side
    assert len(seen) == 10 * 3 * 4  # frames of 38x50


@pytest.mark.parametrize(("changed_rows", "whole"), [(10, False), (64, True)])
def test_a_frame_that_has_changed_all_over_is_computed_whole(
    changed_rows, whole, tiny_weights, monkeypatch
):
    bare = create_engine(load_model(tiny_weights), backend="pytorch")
    engine = TiledEngine(bare, 16, whole_frames=True)
    before = torch.rand(1, 3, 64, 64)
    after = before.clone()
    after[..., :changed_rows, :] = 1 - before[..., :changed_rows, :]
    known = engine.update(before, None)
    shapes = []
    original = PyTorchEngine.__call__
    monkeypatch.setattr(
        PyTorchEngine,
        "__call__",
        lambda self, frames: (shapes.append(frames.shape[2:]), original(self, frames))[1],
    )
    result = engine.update(after, known).results[0]
    assert ((64, 64) in shapes) == whole
    assert len(shapes) == (1 if whole else 4)
    torch.testing.assert_close(result, bare(after), atol=1e-5, rtol=0)
