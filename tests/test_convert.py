from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vsr.convert import LUMA_WEIGHTS, PlaneLayout, from_rgb, oriented, resize, to_rgb

# One code value: half a code for each of the two roundings to 8 bits that a round trip has
ONE_CODE = 1
# float32 against float64 on values up to 1
FLOAT32 = 2e-6


def layouts(**fixed):
    for matrix, full in itertools.product(("bt601", "bt709", "bt2020"), (False, True)):
        yield PlaneLayout("yuv", matrix=matrix, full_range=full, **fixed)


def name_of(layout: PlaneLayout) -> str:
    return f"{layout.matrix}-{'full' if layout.full_range else 'limited'}-{layout.depth}"


def reference_rgb(y, u, v, layout: PlaneLayout) -> np.ndarray:
    """ITU-R BT.601/709/2020 in float64, from the definition of the colour differences."""
    kr, kb = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}[
        layout.matrix
    ]
    y, u, v = (np.asarray(plane, np.float64) for plane in (y, u, v))
    step = 2.0 ** (layout.depth - 8)
    if layout.full_range:
        top = 2.0**layout.depth - 1
        y, u, v = y / top, (u - 128 * step) / top, (v - 128 * step) / top
    else:
        y = (y / step - 16) / 219
        u, v = (u / step - 128) / 224, (v / step - 128) / 224
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.stack([red, green, blue])


def every_legal_colour(layout: PlaneLayout) -> list[torch.Tensor]:
    """Planes that hold a grid of RGB colours, so that no value clips on the way."""
    levels = torch.linspace(0, 1, 24, dtype=torch.float32)
    grid = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 24 * 24, 24)
    return from_rgb(grid.contiguous(), layout)


@pytest.mark.parametrize(
    "layout", [*layouts(), *layouts(depth=10), *layouts(depth=16)], ids=name_of
)
def test_to_rgb_equals_the_standard_in_float64(layout):
    planes = every_legal_colour(layout)
    expected = reference_rgb(*(plane.numpy() for plane in planes), layout).clip(0, 1)
    assert np.abs(to_rgb(planes, layout)[0].numpy() - expected).max() < FLOAT32


@pytest.mark.parametrize(
    "layout", [*layouts(), *layouts(depth=10), *layouts(depth=16)], ids=name_of
)
def test_a_round_trip_stays_within_one_code_value(layout):
    planes = every_legal_colour(layout)
    again = from_rgb(to_rgb(planes, layout), layout)
    for before, after in zip(planes, again, strict=True):
        assert after.dtype == before.dtype
        assert (before.int() - after.int()).abs().max() <= ONE_CODE


@pytest.mark.parametrize("step", [(2, 2), (1, 2), (2, 1), (1, 4), (4, 4)])
@pytest.mark.parametrize("siting", ["left", "centre", "topleft", "bottom"])
def test_a_smooth_subsampled_picture_survives_a_round_trip(step, siting):
    layout = PlaneLayout("yuv", chroma_step=step, siting=siting)
    height, width = 64, 96
    planes = []
    for index, (rows, columns) in enumerate(layout.plane_sizes(height, width)):
        y, x = torch.meshgrid(
            torch.linspace(0, 1, rows), torch.linspace(0, 1, columns), indexing="ij"
        )
        planes.append((100 + 30 * y + 20 * x + 5 * index).round().to(torch.uint8))
    again = from_rgb(to_rgb(planes, layout), layout)
    for before, after in zip(planes, again, strict=True):
        assert (before.int() - after.int()).abs().max() <= ONE_CODE


@pytest.mark.parametrize("step", [(2, 2), (1, 2), (1, 1), (4, 4)])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5), (121, 161)])
def test_odd_sizes_have_planes_of_the_right_size(step, size):
    layout = PlaneLayout("yuv", chroma_step=step)
    planes = [
        torch.full(plane_size, 128, dtype=torch.uint8) for plane_size in layout.plane_sizes(*size)
    ]
    rgb = to_rgb(planes, layout)
    assert rgb.shape == (1, 3, *size)
    assert [tuple(plane.shape) for plane in from_rgb(rgb, layout)] == layout.plane_sizes(*size)


# (down, across) from the first luma sample of a 4:2:0 group, ITU-T H.273 figure 1
POSITIONS = {
    "left": (0.5, 0), "centre": (0.5, 0.5), "topleft": (0, 0), "top": (0, 0.5),
    "bottomleft": (1, 0), "bottom": (1, 0.5),
}  # fmt: skip


@pytest.mark.parametrize("siting", POSITIONS)
def test_chroma_lies_where_the_siting_says(siting):
    """The centre of gravity of an impulse of chroma, and of what an impulse of blue leaves."""
    layout = PlaneLayout("yuv", chroma_step=(2, 2), siting=siting)
    planes = [torch.full((16, 16), 128, dtype=torch.uint8)]
    planes += [torch.full((8, 8), 128, dtype=torch.uint8) for _ in range(2)]
    planes[1][4, 3] = 228
    down, across = POSITIONS[siting]
    blue = to_rgb(planes, layout)[0, 2]
    assert centre_of_gravity(blue - blue[0, 0]) == pytest.approx((8 + down, 6 + across), abs=1e-4)
    ramp = torch.linspace(0.3, 0.6, 16)
    for axis, picture in enumerate((ramp[:, None].expand(16, 16), ramp.expand(16, 16))):
        rgb = torch.stack([torch.zeros(16, 16), torch.zeros(16, 16), picture])[None]
        u = from_rgb(rgb, replace(layout, depth=16))[1].float()
        codes = from_rgb(rgb, PlaneLayout("yuv", depth=16))[1].float()  # at each luma sample
        if axis == 0:
            u, codes = u.T, codes.T
        at = 6 + POSITIONS[siting][axis]
        low, high = codes[3, int(at)].item(), codes[3, math.ceil(at)].item()
        assert u[3, 3].item() == pytest.approx((low + high) / 2, abs=1)


def centre_of_gravity(plane: torch.Tensor) -> tuple[float, float]:
    rows, columns = torch.meshgrid(*map(torch.arange, plane.shape), indexing="ij")
    return tuple(float((plane * at).sum() / plane.sum()) for at in (rows, columns))


@pytest.mark.parametrize("full", [False, True])
def test_black_white_and_grey_have_their_codes(full):
    layout = PlaneLayout("yuv", full_range=full, matrix="bt601")
    rgb = torch.tensor([0.0, 1.0, 0.5]).expand(1, 3, 1, 3).contiguous()
    y, u, v = from_rgb(rgb, layout)
    assert y.tolist() == [[0, 255, 128] if full else [16, 235, 126]]
    assert u.tolist() == v.tolist() == [[128, 128, 128]]


def test_the_luma_of_primaries_is_that_of_the_matrix():
    primaries = torch.eye(3).reshape(1, 3, 1, 3)
    for matrix, (kr, kb) in LUMA_WEIGHTS.items():
        y = from_rgb(primaries, PlaneLayout("yuv", depth=16, full_range=True, matrix=matrix))[0]
        measured = y[0].int().double() / 65535
        expected = torch.tensor([kr, 1 - kr - kb, kb], dtype=torch.float64)
        assert (measured - expected).abs().max() < 1e-5  # half a code of 16 bits


def test_grey_and_rgb_pass_through():
    grey = PlaneLayout("grey", full_range=True)
    plane = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    assert torch.equal(from_rgb(to_rgb([plane], grey), grey)[0], plane)
    colour = PlaneLayout("rgb", depth=16, full_range=True)
    planes = [torch.randint(0, 65536, (8, 8)).to(torch.uint16) for _ in range(3)]
    for before, after in zip(planes, from_rgb(to_rgb(planes, colour), colour), strict=True):
        assert torch.equal(before.int(), after.int())


def test_values_outside_the_gamut_are_clamped():
    layout = PlaneLayout("yuv")
    planes = [torch.tensor([[255, 0]], dtype=torch.uint8)] + [
        torch.tensor([[255, 0]], dtype=torch.uint8)
    ] * 2
    rgb = to_rgb(planes, layout)
    assert rgb.min() == 0
    assert rgb.max() == 1


def test_resize_is_antialiased_and_keeps_what_fits():
    stripes = torch.tensor([0.0, 1.0]).repeat(32).expand(1, 3, 64, 64).contiguous()
    small = resize(stripes, (16, 16))
    assert (small - 0.5).abs().max() < 0.1  # aliasing would leave black and white
    assert resize(stripes, (64, 64)) is stripes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 7}, "depth must be 8 to 16 bits, got 7"),
        ({"chroma_step": (3, 1)}, r"chroma_step must be of 1, 2 and 4, got \(3, 1\)"),
    ],
)
def test_bad_layouts_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PlaneLayout("yuv", **fields)
    with pytest.raises(ValueError, match=r"rgb must be \(1, 3, H, W\), got \(3, 4, 4\)"):
        from_rgb(torch.zeros(3, 4, 4), PlaneLayout("rgb"))


@pytest.mark.parametrize("matrix", [*itertools.product((1, -1), (1, -1), (False, True))])
def test_planes_of_16_bits_are_turned_and_mirrored_as_those_of_8(matrix):
    across, down, turned = matrix
    terms = (0, across, 0, down, 0, 0) if turned else (across, 0, 0, 0, down, 0)
    plane = torch.arange(6, dtype=torch.uint8).view(2, 3)
    expected = oriented(plane, (*terms, 0, 0, 1))
    found = oriented(plane.to(torch.uint16), (*terms, 0, 0, 1))
    assert found.dtype == torch.uint16
    assert found.tolist() == expected.tolist()
