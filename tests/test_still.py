"""Pictures: depth, alpha, profile and the right way up, in PNG and TIFF."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

import vsr
from engines.errors import MediaError
from vsr.convert import oriented
from vsr.photo import PhotoTags, read_tags
from vsr.picture import write_file
from vsr.still import warn_of_precision

# kind: channels, format in a PNG, format in a TIFF
KINDS = {
    "grey": (1, "gray", "gray"),
    "grey 16": (1, "gray16be", "gray16le"),
    "grey with alpha": (2, "ya8", "ya8"),
    "grey 16 with alpha": (2, "ya16be", "ya16le"),
    "rgb": (3, "rgb24", "rgb24"),
    "rgb 16": (3, "rgb48be", "rgb48le"),
    "rgb with alpha": (4, "rgba", "rgba"),
    "rgb 16 with alpha": (4, "rgba64be", "rgba64le"),
}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def smooth(channels: int, top: int, size: tuple[int, int] = (24, 40)) -> np.ndarray:
    """A picture (H, W, C) with a fine ramp in each channel, in as many levels as there are."""
    height, width = size
    ramp = np.linspace(0.3, 0.34, height * width).reshape(height, width)
    return (np.stack([ramp + 0.1 * c for c in range(channels)], -1) * top).astype(
        np.uint16 if top > 255 else np.uint8
    )


def write_picture(path: Path, pixels: np.ndarray, pixel_format: str) -> Path:
    """Write (H, W, C) with libavcodec, by the path's suffix."""
    height, width = pixels.shape[:2]
    frame = av.VideoFrame(width, height, pixel_format)
    stored = pixels.astype(">u2") if pixel_format.endswith("be") else pixels
    data = stored.reshape(height, -1).view(np.uint8)
    rows = np.frombuffer(frame.planes[0], np.uint8).reshape(-1, frame.planes[0].line_size)
    rows[:height, : data.shape[1]] = data
    encoder = av.CodecContext.create("png" if path.suffix == ".png" else "tiff", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, pixel_format
    encoder.time_base = Fraction(1)
    path.write_bytes(b"".join(bytes(p) for p in [*encoder.encode(frame), *encoder.encode(None)]))
    return path


def read_picture(path: Path) -> tuple[str, np.ndarray]:
    """Return the pixel format as it is in the file, and (H, W, C)."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    name = frame.format.name
    channels = len(frame.format.components)
    kind = ">u2" if name.endswith("be") else "<u2" if name.endswith("le") else np.uint8
    rows = np.frombuffer(frame.planes[0], np.uint8).reshape(-1, frame.planes[0].line_size)
    samples = np.ascontiguousarray(rows[: frame.height]).view(kind)
    return name, samples[:, : frame.width * channels].reshape(frame.height, frame.width, channels)


@pytest.mark.parametrize("suffixes", [(".png", ".tif"), (".tiff", ".png")])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_picture_keeps_its_depth(kind, suffixes, tmp_path, tiny_weights):
    channels, in_png, in_tiff = KINDS[kind]
    names = {".png": in_png, ".tif": in_tiff, ".tiff": in_tiff}
    top = 65535 if "16" in kind else 255
    pixels = smooth(channels, top)
    source = write_picture(tmp_path / f"in{suffixes[0]}", pixels, names[suffixes[0]])
    result = vsr.upscale(source, tmp_path / f"out{suffixes[1]}", **weights_of(tiny_weights))
    found, large = read_picture(result.output)
    assert found == names[suffixes[1]]
    assert large.shape == (48, 80, channels)
    assert np.abs(large[::2, ::2].astype(int) - pixels).max() <= 0.03 * top  # of the tiny network
    if "16" in kind:  # 8 bits would leave a dozen of levels, or multiples of 257
        assert len(np.unique(large[..., 0])) > 500
        assert len(np.unique(large % 256)) > 100


def weights_of(path: Path) -> dict[str, object]:
    return {"model": path, "backend": "pytorch"}


def test_pillow_reads_a_16_bit_grey_tiff_alike(tmp_path, tiny_weights):
    source = write_picture(tmp_path / "in.tif", smooth(1, 65535), "gray16le")
    result = vsr.upscale(source, tmp_path / "out.tif", **weights_of(tiny_weights))
    with Image.open(result.output) as image:
        assert image.mode == "I;16"
        assert image.tag_v2[259] == 8  # deflate, by the number that is in the standard
        assert (np.asarray(image) == read_picture(result.output)[1][..., 0]).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_a_profile_comes_along(suffix, tmp_path, tiny_weights):
    source = tmp_path / f"in{suffix}"
    Image.fromarray(smooth(3, 255)).save(source, icc_profile=SRGB)
    for output in (tmp_path / "out.png", tmp_path / "out.tif"):
        vsr.upscale(source, output, **weights_of(tiny_weights))
        with Image.open(output) as image:
            assert image.info["icc_profile"] == SRGB
            image.load()  # all checksums hold
        assert read_picture(output)[1].shape == (48, 80, 3)


def test_a_long_profile_in_many_segments_comes_along(tmp_path, tiny_weights):
    profile = SRGB + np.random.default_rng(0).bytes(150_000)
    Image.fromarray(smooth(3, 255)).save(tmp_path / "in.jpg", icc_profile=profile)
    vsr.upscale(tmp_path / "in.jpg", tmp_path / "out.tif", **weights_of(tiny_weights))
    with Image.open(tmp_path / "out.tif") as image:
        assert image.info["icc_profile"] == profile


def test_a_profile_for_other_colours_is_dropped_with_a_warning(tmp_path, tiny_weights, caplog):
    Image.fromarray(smooth(1, 255)[..., 0]).save(tmp_path / "in.jpg", icc_profile=SRGB)
    vsr.upscale(tmp_path / "in.jpg", tmp_path / "out.png", **weights_of(tiny_weights))
    assert "is dropped: it is for RGB, and the picture is grey" in caplog.text
    assert b"iCCP" not in (tmp_path / "out.png").read_bytes()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_what_pillow_makes_of_it(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"in{suffix}"
    Image.fromarray(smooth(3, 255)).save(path, exif=exif)
    matrix = read_tags(path).display_matrix
    index = np.arange(6, dtype=np.uint8).reshape(2, 3)
    image = Image.fromarray(index)
    image.getexif()[0x0112] = orientation
    ours = torch.from_numpy(index)
    ours = ours if matrix is None else oriented(ours, matrix)
    assert np.array_equal(ours.numpy(), np.asarray(ImageOps.exif_transpose(image)))


def test_a_crop_of_a_mirrored_photo_is_where_it_is_seen(tmp_path, tiny_weights):
    pixels = np.full((16, 32, 3), 40, np.uint8)
    pixels[:8, :8] = 200
    exif = Image.Exif()
    exif[0x0112] = 5  # transposed: the corner stays where it is, 16 wide and 32 high
    Image.fromarray(pixels).save(tmp_path / "in.tif", exif=exif)
    result = vsr.upscale(
        tmp_path / "in.tif",
        tmp_path / "out.tif",
        region=vsr.Crop(0, 0, 16, 8),
        **weights_of(tiny_weights),
    )
    found = read_picture(result.output)[1]
    assert found.shape == (16, 32, 3)
    assert found[:, :12].min() > 150
    assert found[:, 20:].max() < 90


def test_a_tiff_where_white_is_zero_comes_out_as_it_is_seen(tmp_path, tiny_weights):
    levels = np.full((8, 12), 10_000, "<u2")
    tags = {256: 12, 257: 8, 258: 16, 259: 1, 262: 0, 273: 8, 277: 1, 278: 8, 279: levels.nbytes}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    end = 8 + levels.nbytes
    data = struct.pack("<2sHI", b"II", 42, end) + levels.tobytes()
    (tmp_path / "in.tif").write_bytes(data + struct.pack("<H", len(tags)) + directory + bytes(4))
    vsr.upscale(tmp_path / "in.tif", tmp_path / "out.tif", **weights_of(tiny_weights))
    name, found = read_picture(tmp_path / "out.tif")
    assert name == "gray16le"
    assert abs(int(found[8, 12, 0]) - (65535 - 10_000)) < 1500  # of the tiny network


def test_further_pages_are_told_of(tmp_path, tiny_weights, caplog):
    pages = [Image.fromarray(smooth(1, 255)[..., 0]) for _ in range(3)]
    pages[0].save(tmp_path / "in.tif", save_all=True, append_images=pages[1:])
    vsr.upscale(tmp_path / "in.tif", tmp_path / "out.tif", **weights_of(tiny_weights))
    assert "has 3 pages: the first is taken" in caplog.text


def test_samples_that_are_not_square_stay_so_when_turned(tmp_path, tiny_weights):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth(3, 255)).save(tmp_path / "square.png", exif=exif)
    data = (tmp_path / "square.png").read_bytes()
    content = b"pHYs" + struct.pack(">IIB", 1, 2, 0)  # a sample is twice as wide as high
    chunk = struct.pack(">I", 9) + content + struct.pack(">I", zlib.crc32(content))
    (tmp_path / "in.png").write_bytes(data[:33] + chunk + data[33:])
    for output in (tmp_path / "out.png", tmp_path / "out.tif"):
        vsr.upscale(tmp_path / "in.png", output, **weights_of(tiny_weights))
    data = (tmp_path / "out.png").read_bytes()
    assert struct.unpack(">II", data[16:24]) == (48, 80)
    across, down = struct.unpack_from(">II", data, data.index(b"pHYs") + 4)
    assert across == 2 * down
    with Image.open(tmp_path / "out.tif") as image:
        assert float(image.tag_v2[282]) == 2 * float(
            image.tag_v2[283]
        )  # twice as many samples an inch across


def test_colour_tags_are_in_the_png_and_missed_in_the_tiff(tmp_path, tiny_weights, caplog):
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 16, 8, "rgb48be"
    encoder.time_base = Fraction(1)
    frame = av.VideoFrame(16, 8, "rgb48be")
    frame.color_primaries, frame.color_trc = 9, 16  # BT.2020, PQ
    data = b"".join(bytes(p) for p in [*encoder.encode(frame), *encoder.encode(None)])
    (tmp_path / "in.png").write_bytes(data)
    vsr.upscale(tmp_path / "in.png", tmp_path / "out.png", **weights_of(tiny_weights))
    with av.open(str(tmp_path / "out.png")) as container:
        found = next(container.decode(video=0))
    assert (found.color_primaries, found.color_trc) == (9, 16)
    assert caplog.text == ""
    vsr.upscale(tmp_path / "in.png", tmp_path / "out.tif", **weights_of(tiny_weights))
    assert "primaries 9, transfer 16) are dropped" in caplog.text


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_damaged_tags_are_as_if_not_there(suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    kind = {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
    Image.fromarray(smooth(3, 255)).save(buffer, kind, exif=exif, icc_profile=SRGB)
    whole = buffer.getvalue()
    path = tmp_path / f"in{suffix}"
    path.write_bytes(whole)
    assert read_tags(path) == PhotoTags(6, SRGB)
    rng = np.random.default_rng(0)
    for _ in range(100):  # never an exception, whatever is in the file
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for at in rng.integers(0, len(data), 8):
            data[at] = rng.integers(0, 256)
        path.write_bytes(data)
        found = read_tags(path)
        assert found.orientation in (None, *range(1, 9))


def test_other_suffixes_are_refused_before_the_work(tmp_path, tiny_weights):
    source = write_picture(tmp_path / "in.png", smooth(1, 255), "gray")
    with pytest.raises(MediaError, match=r"a still is written as .png, .tif or .tiff, got .*x.jpg"):
        vsr.upscale(source, tmp_path / "x.jpg", **weights_of(tiny_weights))


@pytest.mark.parametrize(("precision", "depth", "said"), [
    ("fp32", 16, False), ("fp16", 10, False), ("fp16", 16, True), ("int8", 10, True),
    ("int8", 8, False),
])  # fmt: skip
def test_less_precision_than_a_picture_has_is_told(precision, depth, said, caplog):
    layout = SimpleNamespace(layout=SimpleNamespace(depth=depth), path=Path("in.tif"))
    warn_of_precision(layout, SimpleNamespace(precision=precision, backend="tensorrt"))
    assert ("--precision fp32 keeps them all" in caplog.text) == said


# --- what is damaged ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["cut short", "progressive, cut short", "flipped bits", "jpeg tiff"]
)
def test_half_a_picture_is_refused(tmp_path, tiny_weights, kind):
    """FFmpeg would fill what is missing with green or black, and say nothing."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    path = tmp_path / "in.jpg"
    if kind == "jpeg tiff":
        path = tmp_path / "in.tif"
        Image.fromarray(noise).save(path, compression="jpeg")
    else:
        Image.fromarray(noise).save(path, quality=90, progressive="progressive" in kind)
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        if kind == "flipped bits":
            data[middle : middle + 2] = (255 - byte for byte in data[middle : middle + 2])
        else:
            del data[middle:]
        path.write_bytes(data)
    message = "compressed as JPEG" if kind == "jpeg tiff" else "damaged, or no picture that can be"
    with pytest.raises(MediaError, match=rf"{path.name} is .*{message}"):
        vsr.upscale(path, tmp_path / "out.png", model=tiny_weights, backend="pytorch")
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("change", [lambda data: data[:-2], lambda data: data + bytes(1000)])
def test_a_jpeg_that_is_all_there_is_read_whatever_its_end(tmp_path, tiny_weights, change):
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "in.jpg", quality=90)
    (tmp_path / "odd.jpg").write_bytes(change((tmp_path / "in.jpg").read_bytes()))
    for name in ("in", "odd"):
        source, output = tmp_path / f"{name}.jpg", tmp_path / f"{name}.png"
        vsr.upscale(source, output, model=tiny_weights, backend="pytorch")
    assert (tmp_path / "odd.png").read_bytes() == (tmp_path / "in.png").read_bytes()


def test_a_jpeg_in_cmyk_becomes_rgb_without_alpha(tmp_path, tiny_weights):
    picture = Image.merge("CMYK", [Image.new("L", (24, 16), ink) for ink in (40, 90, 200, 20)])
    picture.save(tmp_path / "in.jpg", quality=95)
    vsr.upscale(tmp_path / "in.jpg", tmp_path / "out.png", model=tiny_weights, backend="pytorch")
    with Image.open(tmp_path / "out.png") as found:
        assert found.mode == "RGB"
        assert found.size == (48, 32)


def test_a_picture_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("vsr.picture.os.fsync", lambda number: synced.append(number))
    write_file(tmp_path / "a.png", b"whole")
    assert synced
    assert (tmp_path / "a.png").read_bytes() == b"whole"


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vsr.picture.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.png", b"whole")
    assert list(tmp_path.iterdir()) == []


def test_a_long_name_in_letters_of_three_bytes_is_no_problem(tmp_path):
    path = tmp_path / ("字" * 80 + ".png")
    write_file(path, b"whole")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
