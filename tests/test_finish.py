"""Planes as the engine's own last step: the same as those made of its result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_engines import tiny_model

from engines import create_engine
from engines.algebra import Rewrites, rewrite, without_shuffle
from engines.base import Engine
from engines.safety import SafeEngine
from engines.tiles import TiledEngine
from vsr.choices import share_threads
from vsr.convert import LUMA_WEIGHTS, PlaneLayout, from_rgb
from vsr.finish import ToPlanes, planes_finish

LAYOUT = PlaneLayout("yuv", chroma_step=(2, 2))
FEW = 1e-3
"""of the samples may be one level apart: where rounding turns, the order of float32 sums tells"""


def assert_close(made, expected) -> None:
    assert [plane.shape for plane in made] == [plane.shape for plane in expected]
    for mine, theirs in zip(made, expected, strict=True):
        assert mine.dtype == theirs.dtype
        apart = (mine.int() - theirs.int()).abs()
        assert apart.max() <= 1
        assert (apart > 0).sum() <= max(2, FEW * apart.numel())


# --- before the pixel shuffle ---------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("matrix", list(LUMA_WEIGHTS))
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(
    ("step", "siting"),
    [
        ((2, 2), "left"),
        ((2, 2), "centre"),
        ((1, 2), "left"),
        ((1, 2), "topleft"),
        ((1, 1), "left"),
        ((1, 4), "left"),
    ],
)
def test_planes_of_cells_are_those_of_the_pixels(factor, matrix, full_range, step, siting):
    layout = PlaneLayout("yuv", 8, full_range, matrix, step, siting)
    finish = ToPlanes(layout).before_shuffle(factor)
    if factor % step[1]:
        assert finish is None
        return
    rgb = torch.rand(1, 3, 7 * factor, 5 * factor)
    made = finish.assembled(finish(F.pixel_unshuffle(rgb, factor)))
    assert_close(made, from_rgb(rgb, layout))


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 10},
        {"kind": "grey"},
        {"kind": "rgb"},
        {"siting": "topleft"},
        {"siting": "bottom"},
        {"chroma_step": (4, 4), "siting": "top"},
    ],
)
def test_what_cells_cannot_make_is_left_to_the_pixels(change):
    assert ToPlanes(replace(LAYOUT, **change)).before_shuffle(4) is None


def test_chroma_coarser_than_the_engine_enlarges_has_no_finish():
    assert planes_finish(replace(LAYOUT, chroma_step=(1, 4)), 2) is None
    assert planes_finish(replace(LAYOUT, chroma_step=(1, 4)), 4) is not None


@pytest.mark.parametrize(("network", "factor"), [("srgan-lite", 4), ("srgan", 2)])
def test_a_network_without_its_last_shuffle_is_the_same_before_it(network, factor):
    net = tiny_model(network).net
    module = rewrite(net, Rewrites(nearest=True))
    frames = torch.rand(1, 3, 9, 11)
    expected = module(frames)
    cut, found = without_shuffle(module)
    assert found == factor
    assert torch.equal(F.pixel_shuffle(cut(frames), factor), expected)
    assert torch.equal(module(frames), expected)  # the module itself is left as it was
    assert set(cut.state_dict()) == set(module.state_dict())


def test_a_network_that_ends_otherwise_is_not_cut():
    assert without_shuffle(rewrite(tiny_model("srcnn").net)) is None
    assert without_shuffle(rewrite(tiny_model("srgan").net, Rewrites(tail_below=0))) is None
    assert without_shuffle(rewrite(tiny_model("srgan-lite").net, Rewrites(clamp=False))) is None


# --- engines --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["openvino", "pytorch"])
@pytest.mark.parametrize("network", ["srgan-lite", "srgan", "srcnn"])
def test_an_engine_with_a_finish_makes_what_the_finish_makes_of_its_result(backend, network):
    engine = create_engine(tiny_model(network), backend=backend, precision="fp32")
    for layout in (LAYOUT, replace(LAYOUT, siting="centre"), replace(LAYOUT, depth=10)):
        finish = ToPlanes(layout)
        fuses = backend == "openvino" and network != "srcnn" and layout.depth == 8
        assert engine.fuses(finish) == fuses
        for size in ((10, 14), (7, 5), (10, 14)):
            frames = torch.rand(1, 3, *size)
            made = engine.finished(frames, finish)
            assert_close(made, from_rgb(engine(frames), layout))
            assert all(plane.is_contiguous() for plane in made)
    engine.close()


def test_what_an_engine_made_stays_when_it_runs_again():
    engine = create_engine(tiny_model("srgan-lite"), backend="openvino", precision="fp32")
    first = engine.finished(torch.rand(1, 3, 8, 8), ToPlanes(LAYOUT))
    copies = [plane.clone() for plane in first]
    engine.finished(torch.rand(1, 3, 8, 8), ToPlanes(LAYOUT))
    assert all(map(torch.equal, first, copies))


@pytest.mark.parametrize("backend", ["openvino", "pytorch"])
@pytest.mark.parametrize("siting", ["left", "topleft", "centre"])
def test_tiles_with_a_finish_make_the_planes_of_the_whole_frame(backend, siting):
    bare = create_engine(tiny_model("srgan-lite"), backend=backend, precision="fp32")
    finish = ToPlanes(replace(LAYOUT, siting=siting))
    frames = torch.rand(1, 3, 41, 50)
    tiled = TiledEngine(bare, 16)
    assert_close(tiled.finished(frames, finish), bare.finished(frames, finish))


@pytest.mark.parametrize("kind", ["yuv", "rgb", "grey"])
def test_black_is_told_from_a_little_light(kind):
    finish = ToPlanes(replace(LAYOUT, kind=kind))
    rgb = torch.zeros(1, 3, 8, 8)
    assert bool(finish.is_black(finish(rgb)))
    rgb[0, :, 3, 3] = 0.02
    assert not bool(finish.is_black(finish(rgb)))


class Fusing(Engine):
    """Makes planes by itself, of black frames only."""

    backend = "fusing"

    def __init__(self) -> None:
        model = tiny_model("srgan-lite")
        device = torch.device("cpu")
        super().__init__(model, device=device, dtype=torch.float32, precision="int8")

    def fuses(self, finish):
        return True

    def finished(self, frames, finish):
        return finish(torch.zeros(1, 3, *(4 * side for side in frames.shape[2:])))

    def _run(self, frames):
        raise AssertionError("not asked for")


@pytest.mark.parametrize(("lit", "spoilt"), [(0.5, True), (0.05, False)])
def test_planes_that_come_out_black_are_noticed(lit, spoilt):
    engine = SafeEngine(Fusing())
    finish = ToPlanes(LAYOUT)
    assert engine.fuses(finish)
    engine.finished(torch.full((1, 3, 6, 6), lit), finish)
    assert bool(engine.verdict()) == spoilt


# --- what has changed -----------------------------------------------------------------------------


@pytest.mark.parametrize("finish", [None, ToPlanes(LAYOUT)])
def test_within_the_tolerance_nothing_is_computed_and_drift_adds_up(finish, monkeypatch):
    engine = TiledEngine(create_engine(tiny_model("srgan-lite"), backend="pytorch"), 32)
    put = []
    original = TiledEngine._put_one
    monkeypatch.setattr(
        TiledEngine,
        "_put_one",
        lambda self, begun, *more: (put.append(begun[0]), original(self, begun, *more)),
    )
    frames = torch.rand(1, 3, 96, 96) * 0.5
    known = first = engine.update(frames, None, finish)
    computed = []
    for _ in range(5):  # each a little lighter than the one before
        frames = frames.clone()
        frames[..., 48, 48] += 0.01
        put.clear()
        known = engine.update(frames, known, finish, tolerance=0.025)
        computed.append(len(put))
        kept = all(map(torch.equal, known.results, first.results))
        assert kept == (not any(computed))
    assert computed == [0, 0, 1, 0, 0]  # compared with what it was made of, not the last frame


def test_beside_another_engine_pytorch_takes_a_part_of_the_cores():
    class Other:
        backend = "openvino"

    before = torch.get_num_threads()
    try:
        for threads, expected in ((1, 1), (2, 1), (4, 1), (8, 2), (16, 4)):
            share_threads(Other(), threads)
            assert torch.get_num_threads() == expected
        share_threads(create_engine(tiny_model("srgan-lite"), backend="pytorch"), 3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
