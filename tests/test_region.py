"""Digital zoom: the right part of the picture, and nothing resampled on the way."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import REAL_CLIPS, write_clip
from media import probe
from PIL import Image

from engines.errors import MediaError
from vsr.cli import main
from vsr.convert import PlaneLayout, oriented
from vsr.region import Crop, Window, Zoom, window
from vsr.video import Reader

RGB = PlaneLayout(kind="rgb", full_range=True)
PLANAR = PlaneLayout(kind="yuv", chroma_step=(2, 2))
ONE = 1 << 16


def planes_of(path: Path, region: Crop | None = None) -> list[list[np.ndarray]]:
    with Reader(path) as reader:
        if region is not None:
            reader.cut(region)
        return [[plane.numpy().copy() for plane in frame.value] for frame in reader.frames()]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
def test_a_region_is_cut_from_the_decoded_planes(pixel_format, tmp_path):
    source = write_clip(tmp_path / "in.mp4", pixel_format=pixel_format)
    down, across = {"yuv422p": (1, 2), "yuv444p": (1, 1)}.get(pixel_format, (2, 2))
    cut = planes_of(source, Crop(10, 6, 20, 14))
    for whole, part in zip(planes_of(source), cut, strict=True):
        assert np.array_equal(part[0], whole[0][6:20, 10:30])
        for index in (1, 2):
            rows = slice(6 // down, 20 // down)
            columns = slice(10 // across, 30 // across)
            assert np.array_equal(part[index], whole[index][rows, columns])


@pytest.mark.parametrize(("turned", "a", "d"), list(product([False, True], [1, -1], [1, -1])))
def test_coordinates_are_those_of_the_upright_picture(turned, a, d):
    matrix = [0] * 9
    matrix[1 if turned else 0], matrix[3 if turned else 4] = (
        (d * ONE, a * ONE) if turned else (a * ONE, d * ONE)
    )
    stored = torch.arange(9 * 14).view(9, 14)
    found = window(Crop(3, 2, 4, 5), (9, 14), RGB, matrix)
    part = oriented(found.cut([stored] * 3, RGB)[0], matrix)
    assert torch.equal(part, oriented(stored, matrix)[2:7, 3:7])


def test_a_crop_through_chroma_samples_is_refused_with_the_nearest_that_fits():
    with pytest.raises(MediaError, match=r"each of which is 2x2 .* use --crop 10,6,22,16$"):
        window(Crop(11, 6, 20, 15), (38, 50), PLANAR, None)
    quarter = (0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30)  # upright: 37 wide, 50 high
    with pytest.raises(MediaError, match="splits chroma") as refused:
        window(Crop(2, 3, 8, 8), (37, 50), PLANAR, quarter)
    named = Crop(*map(int, str(refused.value).split()[-1].split(",")))
    assert window(named, (37, 50), PLANAR, quarter).height >= 8


def test_an_odd_edge_of_the_picture_splits_nothing():
    assert window(Crop(10, 6, 41, 33), (39, 51), PLANAR, None) == Window(6, 10, 33, 41)
    planes = [torch.zeros(39, 51), torch.zeros(20, 26), torch.zeros(20, 26), torch.zeros(39, 51)]
    cut = Window(6, 10, 33, 41).cut(planes, PLANAR)
    assert [tuple(plane.shape) for plane in cut] == [(33, 41), (17, 21), (17, 21), (33, 41)]


@pytest.mark.parametrize(
    ("zoom", "expected"),
    [
        (Zoom(2, 160, 90), Window(44, 80, 92, 160)),  # rounded outwards to whole chroma samples
        (Zoom(2, 0, 0), Window(0, 0, 90, 160)),
        (Zoom(4, 319, 179), Window(134, 240, 46, 80)),
        (Zoom(1, 5, 5), Window(0, 0, 180, 320)),
        (Zoom(1000, 7, 7), Window(6, 6, 2, 2)),
    ],
)
def test_a_zoom_stays_in_the_picture_and_on_chroma_samples(zoom, expected):
    assert window(zoom, (180, 320), PLANAR, None) == expected


def test_what_lies_outside_is_refused():
    with pytest.raises(MediaError, match="reaches over the picture of 50x38"):
        window(Crop(40, 0, 12, 10), (38, 50), PLANAR, None)
    with pytest.raises(MediaError, match="is not in the picture of 50x38"):
        window(Zoom(2, 50, 0), (38, 50), PLANAR, None)


def test_a_cropped_clip_keeps_everything_but_its_size(tmp_path, tiny_weights, capsys):
    ratio = Fraction(4, 3)
    source = write_clip(
        tmp_path / "in.mp4", tags=(1, 1, 1, 1), sample_aspect_ratio=ratio, audio_seconds=0.4
    )
    arguments = [str(source), "--weights", str(tiny_weights), "--crop", "10,6,20,14"]
    assert main(["upscale", *arguments]) == 0
    before, after = probe(source), probe(tmp_path / "in_crop10,6,20,14_x2.mp4")
    assert after.size == (28, 40)
    assert after.sample_aspect_ratio == ratio
    assert after.pts_seconds == before.pts_seconds
    assert after.packets == before.packets
    assert after.tags == before.tags


def test_a_cropped_picture_is_that_part_of_the_upright_one(tmp_path, tiny_weights, capsys):
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[4:12, 8:20] = (250, 120, 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise: 24 wide, 40 high
    source = tmp_path / "in.jpg"
    Image.fromarray(pixels).save(source, quality=98, subsampling=0, exif=exif)
    arguments = [str(source), "--weights", str(tiny_weights), "--crop", "12,8,8,12"]
    assert main(["upscale", *arguments]) == 0
    result = np.asarray(Image.open(tmp_path / "in_crop12,8,8,12_x2.png"))
    assert result.shape == (24, 16, 3)
    assert np.abs(result[4:-4, 4:-4].astype(int) - (250, 120, 10)).max() < 12


def test_another_region_is_another_job(tmp_path, tiny_weights, monkeypatch, caplog, capsys):
    monkeypatch.setattr("vsr.segments.SEGMENT_FRAMES", 4)
    source = write_clip(tmp_path / "in.mp4")
    output = tmp_path / "out.mp4"
    arguments = ["upscale", str(source), "-o", str(output), "--weights", str(tiny_weights)]
    with monkeypatch.context() as patch:

        def stop(self):
            raise KeyboardInterrupt

        patch.setattr("vsr.segments.SegmentedWriter.commit", stop)
        assert main([*arguments, "--crop", "0,0,20,14"]) == 130
    assert main([*arguments, "--crop", "2,0,20,14"]) == 0
    assert "starting anew" in capsys.readouterr().err
    assert probe(output).size == (28, 40)


@pytest.mark.parametrize(
    "arguments",
    [["--crop", "1,2,3"], ["--zoom", "2"], ["--crop", "0,0,2,2", "--zoom", "2@1,1"]],
)
def test_a_region_that_cannot_be_read_is_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["upscale", "a.mp4", *arguments])
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--crop", "0,0,0,2"], ["--zoom", "0.5@1,1"]])
def test_a_region_out_of_range_is_wrong_usage(arguments, plain_clip, capsys):
    assert main(["upscale", str(plain_clip), *arguments]) == 2
    assert capsys.readouterr().err.startswith("vsr: error: ")


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason="needs the real clips")
def test_a_rotated_phone_clip_is_cropped_where_it_is_seen():
    path = REAL_CLIPS / "hard" / "video_90.mov"
    with Reader(path) as reader:
        matrix = reader.info.display_matrix
    assert matrix is not None
    whole = oriented(torch.from_numpy(planes_of(path)[0][0]), matrix)
    part = oriented(torch.from_numpy(planes_of(path, Crop(20, 100, 64, 32))[0][0]), matrix)
    assert torch.equal(part, whole[100:132, 20:84])
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).rotation == -90
