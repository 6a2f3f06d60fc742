"""Training patches in colours that photographs do not have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from train.config import TrainConfig
from train.data import PatchSampler, shrink_bicubic
from train.degrade import VideoSampler
from train.recolour import Recolouring, draw_graphic, in_other_colours


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(96, 160, (160, 160, 1), dtype=np.uint8)
    Image.fromarray(np.repeat(grey, 3, axis=2)).save(tmp_path / "a.png")
    return [tmp_path / "a.png"]


def test_a_recolouring_is_what_it_says():
    picture = torch.tensor([[0, 100, 255], [10, 20, 30], [255, 255, 0]], dtype=torch.uint8)
    picture = picture[:, None]  # one row of three pixels
    swapped = Recolouring((2, 1, 0), 1.0, 128.0, (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
    assert swapped(picture).squeeze(1).tolist() == picture.flip(0).squeeze(1).tolist()
    blue = Recolouring((3, 3, 3), 1.0, 128.0, (0.0, 0.0, 255.0), (255.0, 255.0, 255.0))
    luma = [round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in picture.squeeze(1).T.tolist()]
    assert blue(picture).squeeze(1).tolist() == [luma, luma, [255] * 3]
    hard = Recolouring((0, 0, 0), 1e6, 128.0, (255.0, 0.0, 9.0), (0.0, 0.0, 9.0))
    assert hard(picture).squeeze(1).tolist() == [[255, 255, 0], [0, 0, 0], [9, 9, 9]]
    assert swapped(picture).dtype == torch.uint8


def test_all_corners_of_the_cube_are_drawn():
    random = np.random.default_rng(0)
    drawn = [Recolouring.draw(random) for _ in range(400)]
    ends = {end for found in drawn for end in (found.low, found.high)}
    corners = {(r, g, b) for r in (0.0, 255.0) for g in (0.0, 255.0) for b in (0.0, 255.0)}
    assert corners <= ends
    assert any(found.low == found.high for found in drawn)
    assert {len(set(found.sources)) for found in drawn} == {1, 3}


@pytest.mark.parametrize("kind", [PatchSampler, VideoSampler])
def test_so_many_patches_are_recoloured_and_their_input_with_them(kind, photos):
    sampler = kind(photos, crop=96, scale=4, seed=0, recolour=0.5)
    lr, hr = (
        torch.cat(parts) for parts in zip(*(sampler.batch(16) for _ in range(8)), strict=True)
    )
    sampler.close()
    coloured = (hr.amax(1) - hr.amin(1)).amax((1, 2)) > 0
    assert 0.25 < coloured.float().mean() < 0.75
    means = (hr.mean((2, 3)) - lr.mean((2, 3))).abs()
    assert means.max() < 0.1  # blur, noise and encoders leave the colours where they are
    if kind is PatchSampler:
        for low, high in zip(lr[coloured], hr[coloured], strict=True):
            # turned and mirrored alike, as shrinking is
            picture = (high.permute(1, 2, 0) * 255).round().byte().numpy()
            again = torch.from_numpy(shrink_bicubic(picture, 4).copy()).permute(2, 0, 1)
            assert ((low * 255).round() - again).abs().mean() < 1  # rounded in another order


@pytest.mark.parametrize("kind", [PatchSampler, VideoSampler])
def test_the_draws_go_on_where_they_were(kind, photos):
    sampler = kind(photos, crop=96, scale=4, seed=0, recolour=0.5)
    sampler.batch(4)
    state = sampler.state()
    expected = sampler.batch(4)
    sampler.close()
    other = kind(photos, crop=96, scale=4, seed=0, recolour=0.5)
    other.load_state(state)
    for one, two in zip(expected, other.batch(4), strict=True):
        assert torch.equal(one, two)
    other.close()


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match=r"recolour must be in \[0, 1\], got 1.5"):
        TrainConfig(recolour=1.5)


def test_a_graphic_has_few_colours_and_hard_edges():
    random = np.random.default_rng(0)
    for _ in range(20):
        picture = draw_graphic(random, (48, 64))
        assert picture.shape == (3, 48, 64)
        assert picture.dtype == torch.uint8
        assert picture.is_contiguous()
        colours = picture.flatten(1).unique(dim=1).shape[1]
        assert 1 <= colours <= 5


def test_both_kinds_of_other_colours_occur_and_are_as_large():
    random, photo = np.random.default_rng(0), torch.randint(256, (3, 40, 56)).byte()
    counts = [in_other_colours(photo, random).flatten(1).unique(dim=1).shape[1] for _ in range(60)]
    assert min(counts) <= 5
    assert max(counts) > 100
