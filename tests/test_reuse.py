"""Work that need not be done twice: the result is the same as if it had been."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import av
import numpy as np
import pytest
import torch

import engines.tiles
import vsr
from engines import BACKENDS, create_engine, load_model
from engines.safety import SafeEngine
from engines.tiles import TiledEngine
from vsr import stages
from vsr.choices import CHANGE_TILE
from vsr.convert import PlaneLayout
from vsr.pixels import read_planes
from vsr.timeline import Timed

upscale = partial(vsr.upscale, backend="pytorch", preset="ultrafast")

LAYOUT = PlaneLayout("yuv", chroma_step=(2, 2))


def write_lossless(path, pictures, pixel_format="yuv420p"):
    """Write pictures (H, W) of luma so that they decode to the same bits."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = pictures[0].shape
        stream.pix_fmt = pixel_format
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "gray").reformat(
                format=pixel_format, threads=1
            )
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoded(path):
    with av.open(str(path)) as container:
        return [
            [plane.numpy().copy() for plane in read_planes(frame)]
            for frame in container.decode(video=0)
        ]


def assert_same_frames(one, other):
    for mine, theirs in zip(decoded(one), decoded(other), strict=True):
        assert all(map(np.array_equal, mine, theirs))


@pytest.fixture
def moving():
    """Twelve frames of luma: 0 0 0 1 2 2 1 0 0 3 3 4, each with a texture of its own."""
    textures = np.random.default_rng(0).integers(60, 200, (5, 32, 48), np.uint8)
    return [textures[index] for index in (0, 0, 0, 1, 2, 2, 1, 0, 0, 3, 3, 4)]


@pytest.fixture
def calls(monkeypatch):
    """Counts what each stage computes."""
    counted = dict.fromkeys(("to_rgb", "from_rgb"), 0)

    def wrap(name):
        original = getattr(stages, name)

        def call(*arguments):
            counted[name] += 1
            return original(*arguments)

        return call

    for name in counted:
        monkeypatch.setattr(stages, name, wrap(name))
    return counted


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p10le"])
def test_a_repeated_frame_is_not_computed_again(
    pixel_format, moving, calls, tiny_weights, tmp_path, monkeypatch
):
    source = write_lossless(tmp_path / "in.mkv", moving, pixel_format)
    upscale = partial(vsr.upscale, source, model=tiny_weights, backend="pytorch")
    result = upscale(tmp_path / "reused.mkv")
    assert (result.frames, result.reused) == (12, 5)
    assert calls == {"to_rgb": 7, "from_rgb": 7}
    monkeypatch.setattr(stages, "without_repeats", lambda frames, **_: frames)
    result = upscale(tmp_path / "full.mkv")
    assert (result.frames, result.reused) == (12, 0)
    assert_same_frames(tmp_path / "reused.mkv", tmp_path / "full.mkv")


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_one_sample_of_difference_in_any_plane_is_no_repetition(plane, tiny_weights):
    first = [torch.full(size, 90, dtype=torch.uint8) for size in LAYOUT.plane_sizes(6, 8)]
    second = [part.clone() for part in first]
    second[plane][-1, -1] += 1
    frames = [Timed(value, index, 1) for index, value in enumerate((first, second, second))]
    engine = create_engine(load_model(tiny_weights), backend="pytorch")
    with ExitStack() as stack:
        chain = stages.chained(iter(frames), LAYOUT, engine, LAYOUT, (12, 16), stack)
        results = [frame.value for frame in chain]
    assert results[1] is not results[0]
    assert results[2] is results[1]


@pytest.mark.parametrize("kind", ["whole", "changed only", "strips"])
def test_the_stages_announce_each_frame_once(kind, tiny_weights):
    planes = [torch.full(shape, 90, dtype=torch.uint8) for shape in LAYOUT.plane_sizes(6, 8)]
    frames = [Timed([plane + index for plane in planes], index, 1) for index in range(3)]
    bare = create_engine(load_model(tiny_weights), backend="pytorch")
    engine = SafeEngine(bare, side=16 if kind == "changed only" else None)
    numbers = []
    engine.frame_begins = numbers.append
    with ExitStack() as stack:
        chain = stages.chained(
            iter(frames), LAYOUT, engine, LAYOUT, (12, 16), stack,
            changed_only=kind == "changed only", strip_rows=4 if kind == "strips" else None,
        )  # fmt: skip
        assert len(list(chain)) == 3
    assert numbers == [0, 1, 2]


# --- --changed-only -------------------------------------------------------------------------------


@pytest.fixture
def still_camera():
    """Sixteen frames of 96x80 luma: a texture, in which a small square moves and then rests."""
    background = np.random.default_rng(1).integers(60, 200, (80, 96), np.uint8)
    pictures = []
    for index in range(16):
        picture = background.copy()
        at = 4 * min(index, 12)
        picture[at : at + 6, at : at + 6] = 240
        picture[79, 95] = 16 + 8 * index  # and a clock that never rests, at the very corner
        pictures.append(picture)
    return pictures


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "tensorrt"])
@pytest.mark.parametrize("tile", [16, 33, None])
def test_only_what_changed_is_computed_and_the_frames_are_the_same(
    backend, tile, still_camera, tiny_weights, tmp_path, monkeypatch
):
    source = write_lossless(tmp_path / "in.mkv", still_camera)
    convert = partial(
        vsr.upscale, source, model=tiny_weights, backend=backend, preset="ultrafast", crf=0
    )
    windows = []
    original = TiledEngine._put_one

    def put(engine, begun, *arguments):
        windows.append(begun[0])
        original(engine, begun, *arguments)

    monkeypatch.setattr(TiledEngine, "_put_one", put)
    convert(tmp_path / "changed.mkv", tile=tile, changed_only=True)
    computed = len(windows)
    convert(tmp_path / "tiled.mkv", tile=tile or CHANGE_TILE)
    assert computed < (len(windows) - computed) * (0.9 if tile is None else 0.5)
    convert(tmp_path / "whole.mkv")
    assert_same_frames(tmp_path / "changed.mkv", tmp_path / "tiled.mkv")
    assert_same_frames(tmp_path / "changed.mkv", tmp_path / "whole.mkv")


def test_all_is_computed_anew_where_a_segment_begins(
    still_camera, tiny_weights, tmp_path, monkeypatch
):
    source = write_lossless(tmp_path / "in.mkv", [*still_camera[:1] * 8])
    calls = []
    original = SafeEngine.update
    monkeypatch.setattr("vsr.segments.SEGMENT_FRAMES", 3)
    monkeypatch.setattr(
        SafeEngine,
        "update",
        lambda self, frames, known, *more, **options: (
            calls.append(known),
            original(self, frames, known, *more, **options),
        )[1],
    )
    result = vsr.upscale(source, model=tiny_weights, backend="pytorch", changed_only=True)
    assert calls == [None] * 3
    assert result.reused == 5


def test_a_change_reaches_as_far_as_the_network_sees(tiny_weights):
    """A pixel changed just outside of a core, and one a radius further."""
    engine = TiledEngine(create_engine(load_model(tiny_weights), backend="pytorch"), 16)
    assert engine.overlap == 3
    before = torch.rand(1, 3, 48, 48)
    known = engine.update(before, None)
    result = known.results[0]
    assert torch.equal(result, engine(before))
    for x in range(48):
        after = before.clone()
        after[..., 20, x] += 0.5
        updated = engine.update(after, known).results[0]
        assert torch.equal(updated, engine(after))
        assert not torch.equal(updated, result)
    assert torch.equal(result, engine(before))  # what was given is left as it was


def test_all_windows_compared_at_once_are_those_compared_one_by_one():
    """As a GPU does it, to be waited for once."""
    before = torch.rand(2, 3, 70, 50)
    windows = [tile.window for tile in engines.tiles.tiles((70, 50), side=16, overlap=3)]
    for place in [(0, 0, 0, 0), (1, 2, 69, 49), (0, 1, 20, 31), None]:
        after = before.clone()
        if place is not None:
            after[place] += 0.5
        new, old = ([frames[(..., *part)] for part in windows] for frames in (after, before))
        expected = engines.tiles._differ(new, old, 0.0)
        assert engines.tiles._differ(new, old, 1e-9) == expected  # the other way
        assert any(expected) == (place is not None)


def test_planes_on_another_device_are_no_repetition():
    frames = [torch.zeros(2, 2), torch.zeros(2, 2, device="meta"), torch.zeros(2, 2)]
    timed = (Timed([plane], number, 1) for number, plane in enumerate(frames))
    assert [frame.value is None for frame in stages.without_repeats(timed)] == [False] * 3
