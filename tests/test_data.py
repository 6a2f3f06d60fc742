from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from train.data import (
    PatchSampler,
    crop_to_multiple,
    find_photos,
    find_sets,
    load_rgb,
    shrink_bicubic,
    to_frame,
)

# Pillow rounds to 8 bits after each of two passes; a quarter turn swaps them (2 is the most seen)
TURNED_SHRINK_LEVELS = 2
# low-resolution pixels at the edge of a crop whose bicubic window (2 of them) reaches outside it
WINDOW = 2


def smooth_photo(height, width, seed=0):
    """Random but smooth (H, W, 3) uint8: no two places or orientations alike."""
    noise = np.random.default_rng(seed).integers(
        0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8
    )
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def write_photo(path, height, width, seed=0):
    Image.fromarray(smooth_photo(height, width, seed)).save(path)
    return path


def to_levels(patch):
    """(3, H, W) in [0, 1] to (H, W, 3) uint8."""
    return (patch * 255).round().byte().permute(1, 2, 0).numpy()


# --- reading photos -------------------------------------------------------------------------------


def test_photos_are_found_in_subfolders_sorted_whatever_the_case_of_the_suffix(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/2.JPG", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in find_photos(tmp_path)] == [
        "a.png",
        "b/2.JPG",
    ]


def test_a_folder_without_photos_is_named(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no photos below .*\.jpg"):
        find_photos(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        find_photos(tmp_path / "absent")


def test_a_grey_photo_becomes_three_equal_channels(tmp_path):
    grey = smooth_photo(8, 9)[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(load_rgb(tmp_path / "grey.png"), np.stack([grey] * 3, axis=2))


def test_sixteen_bits_of_grey_become_eight(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(3, axis=0)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    assert np.array_equal(load_rgb(tmp_path / "grey.png")[1, :, 2], np.arange(256))


def test_samples_whose_range_nobody_knows_are_refused(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="samples of 32 bits"):
        load_rgb(tmp_path / "float.tif")


def test_cropping_cuts_the_right_and_lower_edge():
    photo = smooth_photo(11, 14)
    assert np.array_equal(crop_to_multiple(photo, 4), photo[:8, :12])


def test_shrinking_keeps_a_flat_colour_and_averages_detail():
    flat = np.full((16, 24, 3), (10, 200, 77), np.uint8)
    assert np.array_equal(shrink_bicubic(flat, 4), flat[:4, :6])
    checkers = np.zeros((32, 32, 3), np.uint8)
    checkers[::2, ::2] = checkers[1::2, 1::2] = 254
    # antialiased: without it, the shrink would be 0 or 254 everywhere
    assert np.abs(shrink_bicubic(checkers, 4).astype(int) - 127).max() <= 2


def test_a_frame_is_the_photo_in_zero_to_one():
    photo = smooth_photo(4, 5)
    frame = to_frame(photo)
    assert frame.shape == (1, 3, 4, 5)
    assert frame.dtype is torch.float32
    assert frame[0, 2, 3, 1] == torch.tensor(photo[3, 1, 2] / 255, dtype=torch.float32)
    assert np.array_equal(to_levels(frame[0]), photo)


# --- drawing patches ------------------------------------------------------------------------------


def test_both_patches_stay_aligned_under_every_flip_and_rotation(tmp_path):
    # the crop is the photo, so that only the orientation is left to draw
    path = write_photo(tmp_path / "a.png", 32, 32)
    sampler = PatchSampler([path], crop=32, scale=4, seed=0)
    seen = set()
    for lr, hr in zip(*sampler.batch(64), strict=True):
        shrunk = shrink_bicubic(to_levels(hr), 4).astype(int)
        assert np.abs(shrunk - to_levels(lr)).max() <= TURNED_SHRINK_LEVELS
        seen.add(to_levels(hr).tobytes())
    photo = load_rgb(path)
    turned = [np.rot90(side, turns) for side in (photo, photo[:, ::-1]) for turns in range(4)]
    assert seen == {np.ascontiguousarray(one).tobytes() for one in turned}


def test_both_patches_come_from_the_same_place(tmp_path):
    path = write_photo(tmp_path / "a.png", 70, 93)
    sampler = PatchSampler([path], crop=32, scale=4, seed=1)
    lr, hr = sampler.batch(32)
    assert (lr.shape, hr.shape) == ((32, 3, 8, 8), (32, 3, 32, 32))
    inner = slice(WINDOW, -WINDOW)
    for lr_patch, hr_patch in zip(lr, hr, strict=True):
        shrunk = shrink_bicubic(to_levels(hr_patch), 4).astype(int)
        difference = np.abs(shrunk - to_levels(lr_patch))[inner, inner]
        assert difference.max() <= TURNED_SHRINK_LEVELS
        # and one pixel beside it would show
        beside = np.abs(np.roll(shrunk, 1, axis=1) - to_levels(lr_patch))[inner, inner]
        assert beside.max() > 10 * TURNED_SHRINK_LEVELS


def test_patches_reach_every_photo_and_every_corner(tmp_path):
    paths = [write_photo(tmp_path / f"{i}.png", 12, 12, seed=i) for i in range(2)]
    sampler = PatchSampler(paths, crop=8, scale=4, seed=0)
    lr, _ = sampler.batch(1000)
    # 2 photos x 4 places x 8 orientations
    assert len({to_levels(patch).tobytes() for patch in lr}) == 64


def test_a_batch_is_float_rgb_in_zero_to_one_and_contiguous(tmp_path):
    sampler = PatchSampler([write_photo(tmp_path / "a.png", 40, 40)], crop=16, scale=2, seed=0)
    for patches, side in zip(sampler.batch(3), (8, 16), strict=True):
        assert patches.shape == (3, 3, side, side)
        assert patches.dtype is torch.float32
        assert patches.is_contiguous()
        assert patches.min() >= 0
        assert 0.5 < patches.max() <= 1


def test_the_memory_held_is_that_of_both_sides(tmp_path):
    sampler = PatchSampler([write_photo(tmp_path / "a.png", 43, 40)], crop=16, scale=4, seed=0)
    assert sampler.held_bytes == 3 * 40 * 40 + 3 * 10 * 10


def test_unreadable_and_small_photos_are_named_and_skipped(tmp_path, caplog):
    good = write_photo(tmp_path / "good.png", 32, 32)
    text = tmp_path / "text.png"
    text.write_text("not a photo")
    cut = write_photo(tmp_path / "cut.png", 32, 32)
    cut.write_bytes(cut.read_bytes()[:-200])
    small = write_photo(tmp_path / "small.png", 40, 30)
    with caplog.at_level(logging.WARNING, "train.data"):
        sampler = PatchSampler(
            [good, text, cut, small, tmp_path / "gone.png"], crop=32, scale=4, seed=0
        )
    assert len(sampler.pairs) == 1
    warnings = sorted(caplog.messages)
    assert len(warnings) == 4
    for warning, path in zip(warnings, (cut, tmp_path / "gone.png", small, text), strict=True):
        assert warning.startswith(f"skipping {path}: ")
    assert warnings[2].endswith("30x40 is smaller than a crop")


def test_a_png_that_breaks_between_its_chunks_is_skipped_too(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    broken = tmp_path / "broken.png"
    Image.fromarray(noise).save(broken)
    data = bytearray(broken.read_bytes())
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)
    data[second : second + 4] = b"\x00\x01\x02\x03"
    broken.write_bytes(data)
    good = write_photo(tmp_path / "good.png", 32, 32)
    with caplog.at_level(logging.WARNING, "train.data"):
        sampler = PatchSampler([broken, good], crop=32, scale=4, seed=0)
    assert len(sampler.pairs) == 1
    (warning,) = caplog.messages
    assert warning.startswith(f"skipping {broken}: broken PNG file")


def test_photos_at_half_their_size_are_drawn_from_too_where_a_crop_fits(tmp_path):
    paths = [
        write_photo(tmp_path / "large.png", 33, 34),
        write_photo(tmp_path / "small.png", 31, 16, seed=1),  # at half its size no crop fits
    ]
    sampler = PatchSampler(paths, crop=16, scale=4, seed=0, half_size=True)
    photos = [load_rgb(path) for path in paths]
    halved = shrink_bicubic(photos[0][:32], 2)
    assert sampler.photos == 2
    wanted = [crop_to_multiple(photo, 4) for photo in (photos[0], halved, photos[1])]
    for (hr, lr), photo in zip(sampler.pairs, wanted, strict=True):
        assert np.array_equal(hr.permute(1, 2, 0), photo)
        assert np.array_equal(lr.permute(1, 2, 0), shrink_bicubic(photo, 4))
    assert PatchSampler(paths, crop=16, scale=4, seed=0).photos == 2
    assert len(PatchSampler(paths, crop=16, scale=4, seed=0).pairs) == 2


def test_test_sets_are_the_folders_of_pictures_but_hidden_ones(tmp_path):
    for name in ("Set5", "Mine", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    for name in ("Set5", "Mine"):
        write_photo(tmp_path / name / "a.png", 8, 8)
    assert find_sets(tmp_path) == [tmp_path / "Mine", tmp_path / "Set5"]
    with pytest.raises(FileNotFoundError, match=r"no test sets \(folders of pictures\) in"):
        find_sets(tmp_path / "Mine")
    (tmp_path / "Empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no photos below .*Empty"):
        find_sets(tmp_path)


def test_a_sampler_without_a_usable_photo_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no photo could be read that holds a crop of 64x64"):
        PatchSampler([write_photo(tmp_path / "a.png", 32, 32)], crop=64, scale=4, seed=0)


@pytest.mark.parametrize("crop", [0, 2, 30])
def test_a_crop_that_does_not_divide_by_the_scale_is_refused(crop):
    with pytest.raises(ValueError, match=f"crop must be a multiple of the scale 4, got {crop}"):
        PatchSampler([], crop=crop, scale=4, seed=0)


def test_the_seed_decides_the_patches(tmp_path):
    path = write_photo(tmp_path / "a.png", 60, 60)
    first, same, other = (
        PatchSampler([path], crop=16, scale=4, seed=seed).batch(4)[1] for seed in (3, 3, 4)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_saved_state_continues_the_draws(tmp_path):
    path = write_photo(tmp_path / "a.png", 60, 60)
    sampler = PatchSampler([path], crop=16, scale=4, seed=0)
    sampler.batch(4)
    state = sampler.state()
    expected = sampler.batch(4)
    restarted = PatchSampler([path], crop=16, scale=4, seed=99)
    restarted.load_state(state)
    for found, wanted in zip(restarted.batch(4), expected, strict=True):
        assert torch.equal(found, wanted)


def test_of_several_candidates_the_most_detailed_patch_is_taken(tmp_path):
    flat = np.full((64, 64, 3), 128, np.uint8)
    flat[:, 32:] = np.random.default_rng(0).integers(0, 256, (64, 32, 3))  # the right half is busy
    Image.fromarray(flat).save(tmp_path / "half.png")

    def detail(candidates: int) -> float:
        sampler = PatchSampler(
            [tmp_path / "half.png"], crop=16, scale=4, seed=0, candidates=candidates
        )
        return float(sampler.batch(40)[1].std(dim=(1, 2, 3)).mean())

    assert detail(4) > 1.3 * detail(1)
