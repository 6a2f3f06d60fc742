"""Numbered pictures, in and out: every one, whole, and the same as if it had been alone."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import write_clip
from media import probe
from PIL import Image
from test_still import SRGB, read_picture, write_picture

import vsr
from engines.errors import MediaError
from vsr import frames
from vsr.arguments import parser
from vsr.cli import main
from vsr.config import UpscaleConfig
from vsr.output import OutputExists
from vsr.pattern import Pattern, gaps, pattern_in
from vsr.sequence import SequenceReader


def upscale(source: Path, output: Path | None, weights: Path, **more: object) -> vsr.Result:
    return vsr.upscale(source, output, model=weights, backend="pytorch", **more)


def noise(index: int, channels: int = 3, top: int = 255, size=(12, 16)) -> np.ndarray:
    values = np.random.default_rng(index).integers(0, top + 1, (*size, channels))
    return values.astype(np.uint16 if top > 255 else np.uint8)


def write_sequence(folder: Path, numbers=range(1, 7), pixel_format="rgb24", **kind) -> Path:
    """Write pictures of noise, and return their pattern."""
    folder.mkdir()
    for number in numbers:
        write_picture(folder / f"{number:04d}.png", noise(number, **kind), pixel_format)
    return folder / "%04d.png"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number", "file"),
    [
        ("%06d.png", 17, "000017.png"),
        ("a%d.tif", 17, "a17.tif"),
        ("50%%_%03d.png", 1234, "50%_1234.png"),
        ("%04d_x4.png", 0, "0000_x4.png"),
    ],
)
def test_a_pattern_names_files(name, number, file, tmp_path):
    pattern = Pattern.of(tmp_path / name)
    assert pattern is not None
    assert pattern.path(number) == tmp_path / file
    assert str(pattern) == str(tmp_path / name)
    (tmp_path / file).touch()
    assert pattern.numbers() == [number]


@pytest.mark.parametrize("name", ["a.png", "100%.png", "%s.png", "%d_%d.png", "%%d.png", "%6d.png"])
def test_what_is_no_pattern_is_a_name(name):
    assert Pattern.of(Path(name)) is None


def test_only_names_of_the_very_pattern_count(tmp_path):
    for name in ("0002.png", "0010.png", "2.png", "00002.png", "0003.tif", "0004_x.png", "x.png"):
        (tmp_path / name).touch()
    assert Pattern.of(tmp_path / "%04d.png").numbers() == [2, 10]


def test_gaps_are_named():
    assert gaps([1, 2, 3]) == gaps([7]) == ""
    assert gaps([1, 3, 7]) == "2, 4 to 6"
    assert gaps([1, 3, 5, 7, 9, 11]) == "2, 4, 6 and 2 gaps more"


def test_the_pattern_of_a_folder_is_found_or_refused(tmp_path):
    suffixes = frozenset({".png"})
    for number in (9, 10, 11):
        (tmp_path / f"shot_{number}.png").touch()
    (tmp_path / "notes.txt").touch()
    assert pattern_in(tmp_path, suffixes) == tmp_path / "shot_%d.png"
    (tmp_path / "other_1.png").touch()
    with pytest.raises(MediaError, match="holds 2 sequences of numbered pictures, expected one"):
        pattern_in(tmp_path, suffixes)
    (tmp_path / "other_1.png").rename(tmp_path / "cover.png")
    with pytest.raises(MediaError, match=r"cover.png has no number"):
        pattern_in(tmp_path, suffixes)


# --- in -------------------------------------------------------------------------------------------


def test_pictures_become_a_clip_at_the_rate_that_is_asked_for(tmp_path, tiny_weights):
    source = write_sequence(tmp_path / "in", range(8, 14))
    rate = Fraction(30000, 1001)
    result = upscale(source, tmp_path / "out.mkv", tiny_weights, fps=rate, encoder="ffv1")
    assert result.frames == 6
    found = probe(tmp_path / "out.mkv")
    assert found.size == (24, 32)
    assert found.pts_seconds == [pytest.approx(index / float(rate), abs=1e-3) for index in range(6)]
    assert upscale(source, tmp_path / "out.mp4", tiny_weights).frames == 6
    assert probe(tmp_path / "out.mp4").pts_seconds == [Fraction(index, 25) for index in range(6)]


def test_a_missing_number_is_an_error_that_names_it(tmp_path, tiny_weights):
    source = write_sequence(tmp_path / "in", [1, 2, 4, 5, 9])
    with pytest.raises(MediaError, match=r"from 1 to 9, but 3, 6 to 8 missing"):
        upscale(source, tmp_path / "out.mp4", tiny_weights)
    with pytest.raises(MediaError, match="there is no picture of such a name"):
        upscale(tmp_path / "in" / "x%d.png", tmp_path / "out.mp4", tiny_weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_picture_that_is_damaged_or_unlike_the_others_is_an_error(tmp_path, tiny_weights):
    source = write_sequence(tmp_path / "in")
    third = tmp_path / "in" / "0003.png"
    for pixels, pixel_format, found in (
        (noise(3, size=(12, 18)), "rgb24", "18x12, 8-bit rgb"),
        (noise(3, top=65535), "rgb48be", "16x12, 16-bit rgb"),
        (noise(3, channels=4), "rgba", "16x12, 8-bit rgb with alpha"),
    ):
        write_picture(third, pixels, pixel_format)
        with pytest.raises(
            MediaError, match=rf"0003.png \({found}\) is unlike the first, 0001.png"
        ):
            upscale(source, tmp_path / "out.mp4", tiny_weights)
    write_picture(third, noise(3, size=(120, 160)), "rgb24")
    third.write_bytes(third.read_bytes()[:100])
    with pytest.raises(MediaError, match=r"0003.png"):
        upscale(source, tmp_path / "out.mp4", tiny_weights)


def test_a_grey_or_opaque_picture_among_others_is_taken_as_it_looks(tmp_path):
    source = write_sequence(tmp_path / "in", pixel_format="rgba", channels=4)
    grey, opaque = noise(2, channels=2), noise(3)
    write_picture(tmp_path / "in" / "0002.png", grey, "ya8")
    write_picture(tmp_path / "in" / "0003.png", opaque, "rgb24")
    with SequenceReader(source) as reader:
        frames = [np.stack([plane.numpy() for plane in f.value], -1) for f in reader.frames()]
    assert all(frame.shape == (12, 16, 4) for frame in frames)
    assert (frames[0] == noise(1, channels=4)).all()
    assert (frames[1] == np.concatenate([grey[..., :1].repeat(3, -1), grey[..., 1:]], -1)).all()
    assert (frames[2][..., :3] == opaque).all()
    assert (frames[2][..., 3] == 255).all()


def test_a_rate_is_for_pictures_alone(tmp_path, tiny_weights, plain_clip):
    with pytest.raises(MediaError, match="--fps is for numbered pictures"):
        upscale(plain_clip, tmp_path / "out.mp4", tiny_weights, fps=30)
    with pytest.raises(ValueError, match="fps must be above 0 and at most 1000, got 0"):
        upscale(plain_clip, tmp_path / "out.mp4", tiny_weights, fps=0)


def test_a_file_of_such_a_name_is_that_file(tmp_path, tiny_weights):
    source = write_picture(tmp_path / "%d.png", noise(1), "rgb24")
    assert upscale(source, tmp_path / "out.png", tiny_weights).frames == 1
    assert read_picture(tmp_path / "out.png")[1].shape == (24, 32, 3)


# --- out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixel_format", "kind", "suffix"),
    [
        ("rgb24", {}, ".png"),
        ("gray16be", {"channels": 1, "top": 65535}, ".tif"),
        ("rgba64be", {"channels": 4, "top": 65535}, ".png"),
        ("ya8", {"channels": 2}, ".tif"),
    ],
)
def test_each_picture_is_as_if_it_had_been_alone(
    pixel_format, kind, suffix, tmp_path, tiny_weights
):
    source = write_sequence(tmp_path / "in", range(5, 8), pixel_format, **kind)
    result = upscale(source, tmp_path / "out" / f"%03d{suffix}", tiny_weights)
    assert (result.frames, result.resumed) == (3, 0)
    assert sorted(contents(tmp_path / "out")) == [f"{n:03d}{suffix}" for n in (5, 6, 7)]
    assert not list(tmp_path.glob("**/*.partial"))
    for number in (5, 6, 7):
        alone = tmp_path / f"alone{suffix}"
        upscale(tmp_path / "in" / f"{number:04d}.png", alone, tiny_weights, overwrite=True)
        found = tmp_path / "out" / f"{number:03d}{suffix}"
        assert found.read_bytes() == alone.read_bytes()


def test_a_turned_sequence_with_a_profile_is_as_its_pictures_alone(tmp_path, tiny_weights):
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 7
    for number in (1, 2):
        path = tmp_path / "in" / f"{number}.png"
        Image.fromarray(noise(number)).save(path, exif=exif, icc_profile=SRGB)
    upscale(tmp_path / "in" / "%d.png", None, tiny_weights)
    for number in (1, 2):
        upscale(tmp_path / "in" / f"{number}.png", tmp_path / "alone.png", tiny_weights,
                overwrite=True)  # fmt: skip
        found = tmp_path / "in" / f"{number}_x2.png"  # beside the input, with the factor
        assert found.read_bytes() == (tmp_path / "alone.png").read_bytes()
    with Image.open(found) as image:
        assert image.size == (24, 32)
        assert image.info["icc_profile"] == SRGB


def test_a_deep_clip_becomes_deep_pictures_of_the_same_colours(tmp_path, tiny_weights):
    source = write_clip(
        tmp_path / "in.mkv", codec="ffv1", pixel_format="yuv444p10le", tags=(1, 1, 1, 1),
        pts=(0, 700, 900), time_base=Fraction(1, 1000), level=100,
    )  # fmt: skip
    result = upscale(source, tmp_path / "out" / "%d.png", tiny_weights)
    assert result.frames == 3
    assert sorted(contents(tmp_path / "out")) == ["1.png", "2.png", "3.png"]
    name, pixels = read_picture(tmp_path / "out" / "2.png")
    assert name == "rgb48be"
    assert np.abs(pixels.astype(int) / 257 - 100).max() < 4  # of the tiny network
    with av.open(str(tmp_path / "out" / "2.png")) as container:
        frame = next(container.decode(video=0))
    assert (frame.color_primaries, frame.color_trc) == (1, 1)


def test_a_repeated_frame_is_a_picture_of_its_own(tmp_path, tiny_weights):
    (tmp_path / "in").mkdir()
    for number, seed in enumerate((1, 1, 2, 2, 2, 1)):
        write_picture(tmp_path / "in" / f"{number}.png", noise(seed), "rgb24")
    result = upscale(tmp_path / "in" / "%d.png", tmp_path / "out" / "%d.png", tiny_weights)
    assert (result.frames, result.reused) == (6, 3)
    found = contents(tmp_path / "out")
    assert found["0.png"] == found["1.png"] == found["5.png"] != found["2.png"]


def test_pictures_that_exist_are_not_replaced_unasked(tmp_path, tiny_weights, caplog):
    source = write_sequence(tmp_path / "in", range(1, 4))
    (tmp_path / "out").mkdir()
    for name in ("0002.png", "0009.png"):
        (tmp_path / "out" / name).write_text("precious")
    output = tmp_path / "out" / "%04d.png"
    with pytest.raises(OutputExists, match=r"0002.png exists: --overwrite replaces it"):
        upscale(source, output, tiny_weights)
    assert set(contents(tmp_path / "out").values()) == {b"precious"}
    upscale(source, output, tiny_weights, overwrite=True)
    assert "1 pictures named as" in caplog.text
    found = contents(tmp_path / "out")
    assert found.pop("0009.png") == b"precious"
    assert [data[:4] for data in found.values()] == [b"\x89PNG"] * 3
    with pytest.raises(OutputExists, match=r"0001.png exists"):
        upscale(source, output, tiny_weights)


def test_a_clip_to_one_picture_is_refused_with_advice(tmp_path, tiny_weights, plain_clip):
    for name in ("out.png", "%d.jpg"):
        with pytest.raises(MediaError, match=r"cannot hold a clip: a pattern such as .*%06d.png"):
            upscale(plain_clip, tmp_path / name, tiny_weights)
    assert contents(tmp_path) == {}


# --- again after a crash --------------------------------------------------------------------------


class Killed(BaseException):
    """What no handler catches, as SIGKILL."""


def die_at(step: int, monkeypatch) -> None:
    """Die at the n-th step that leaves a trace on the disk, without tidying up."""
    done = 0

    def counted(function):
        def call(*arguments):
            nonlocal done
            done += 1
            if done == step:
                raise Killed
            return function(*arguments)

        return call

    monkeypatch.setattr(frames.os, "replace", counted(os.replace))
    monkeypatch.setattr(frames.os, "fsync", counted(os.fsync))
    close_only = lambda self: (self._list.close(), self._lock.close())  # noqa: E731
    monkeypatch.setattr(frames.FrameWriter, "abort", close_only)


def test_wherever_a_run_dies_the_next_one_ends_in_the_same_pictures(
    tmp_path, tiny_weights, monkeypatch
):
    source = write_sequence(tmp_path / "in", range(1, 4))
    upscale(source, tmp_path / "whole" / "%04d.png", tiny_weights)
    whole = contents(tmp_path / "whole")
    output = tmp_path / "out" / "%04d.png"
    resumed = []
    for step in range(1, 11):  # one for the list's head, then three a picture
        with monkeypatch.context() as patch:
            die_at(step, patch)
            with pytest.raises(Killed):
                upscale(source, output, tiny_weights)
        left = contents(tmp_path / "out")
        assert left.items() <= whole.items()  # what is there is whole
        result = upscale(source, output, tiny_weights)
        assert (result.frames, result.resumed) == (3, len(left))
        assert contents(tmp_path / "out") == whole
        assert not list((tmp_path / "out").glob("*.partial"))
        resumed.append(result.resumed)
        for path in (tmp_path / "out").iterdir():
            path.unlink()
    assert resumed == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_run_that_dies_while_it_tidies_up_leaves_nothing_for_ever(
    step, tmp_path, tiny_weights, monkeypatch
):
    source = write_sequence(tmp_path / "in", range(1, 4))
    output = tmp_path / "out" / "%04d.png"
    steps = 0

    def dying(function):
        def call(path, *arguments, **named):
            nonlocal steps
            steps += path.name in ("lock", "frames.jsonl", "%04d.png.partial")
            if steps == step:
                raise Killed
            return function(path, *arguments, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dying(Path.unlink))
        patch.setattr(Path, "rmdir", dying(Path.rmdir))
        patch.setattr(frames.FrameWriter, "abort", lambda self: self._lock.close())
        with pytest.raises(Killed):
            upscale(source, output, tiny_weights)
    with suppress(OutputExists):
        upscale(source, output, tiny_weights)
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == [
        "0001.png",
        "0002.png",
        "0003.png",
    ]


def interrupted(source: Path, output: Path, weights: Path, monkeypatch, **more: object) -> None:
    with monkeypatch.context() as patch:
        done = frames.FrameWriter.write

        def write(self, planes):
            if self.frames == 3:
                raise KeyboardInterrupt
            done(self, planes)

        patch.setattr(frames.FrameWriter, "write", write)
        with pytest.raises(KeyboardInterrupt):
            upscale(source, output, weights, **more)


def test_a_damaged_or_deleted_picture_alone_is_made_again(
    tmp_path, tiny_weights, monkeypatch, caplog
):
    source = write_sequence(tmp_path / "in")
    output = tmp_path / "out" / "%04d.png"
    interrupted(source, output, tiny_weights, monkeypatch)
    assert "3 pictures are whole in" in caplog.text
    (tmp_path / "out" / "0001.png").write_bytes(b"torn")
    (tmp_path / "out" / "0002.png").unlink()
    result = upscale(source, output, tiny_weights)
    assert (result.frames, result.resumed) == (6, 1)
    assert "1 pictures are damaged: made again" in caplog.text
    upscale(source, tmp_path / "whole" / "%04d.png", tiny_weights)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_job_drops_what_is_left_and_nothing_foreign(
    tmp_path, tiny_weights, monkeypatch, caplog
):
    source = write_sequence(tmp_path / "in")
    output = tmp_path / "out" / "%04d.png"
    interrupted(source, output, tiny_weights, monkeypatch)
    foreign = tmp_path / "out" / "0005.png"
    foreign.write_bytes(b"precious")
    with pytest.raises(OutputExists, match=r"0005.png exists"):
        upscale(source, output, tiny_weights)
    foreign.unlink()
    result = upscale(source, output, tiny_weights, scale=1.5)
    assert "starting anew, without the 3 pictures" in caplog.text
    assert (result.frames, result.resumed) == (6, 0)
    assert {read_picture(path)[1].shape for path in (tmp_path / "out").iterdir()} == {(18, 24, 3)}


def test_without_resuming_nothing_is_left(tmp_path, tiny_weights, monkeypatch):
    source = write_sequence(tmp_path / "in")
    interrupted(source, tmp_path / "out" / "%d.png", tiny_weights, monkeypatch, resume=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_two_runs_cannot_make_the_same_pictures(tmp_path, tiny_weights, monkeypatch):
    source = write_sequence(tmp_path / "in")
    output = tmp_path / "out" / "%d.png"
    found: list[Exception] = []

    def again(progress) -> None:
        if progress.frames == 2:
            with pytest.raises(MediaError, match="is being made by another run") as caught:
                upscale(source, output, tiny_weights)
            found.append(caught.value)

    assert upscale(source, output, tiny_weights, progress=again).frames == 6
    assert len(found) == 1


# --- the command ----------------------------------------------------------------------------------


def test_a_folder_is_a_sequence_for_a_clip_and_jobs_for_a_folder(tmp_path, tiny_weights, capsys):
    folder = write_sequence(tmp_path / "in", range(1, 4)).parent
    more = ["--weights", str(tiny_weights), "--backend", "pytorch", "--json"]
    arguments = ["upscale", str(folder), "-o", str(tmp_path / "out.mp4"), "--fps", "24000/1001"]
    assert main([*arguments, *more]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 3
    clip = probe(tmp_path / "out.mp4").pts_seconds
    assert clip == [Fraction(1001 * index, 24000) for index in range(3)]
    assert main(["upscale", str(folder), "-o", str(tmp_path / "out") + "/", *more]) == 0
    assert len(json.loads(capsys.readouterr().out)["jobs"]) == 3
    assert sorted(contents(tmp_path / "out")) == [f"000{n}_x2.png" for n in (1, 2, 3)]


def test_a_rate_that_is_none_is_wrong_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["upscale", "in/%d.png", "--fps", "fast"])
    assert "for example 25 or 30000/1001, got fast" in capsys.readouterr().err


@pytest.mark.parametrize("explicit", [False, True])
def test_a_clip_or_picture_called_like_a_pattern_makes_one_of_its_kind(
    explicit, plain_clip, tiny_weights, tmp_path
):
    clip, picture = tmp_path / "100%done.mkv", tmp_path / "a%04d.png"
    with av.open(str(plain_clip)) as before, av.open(str(clip), "w") as after:
        copies = {s.index: after.add_stream_from_template(s) for s in before.streams}
        for packet in before.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                after.mux(packet)
    Image.new("RGB", (24, 16), (40, 90, 200)).save(picture)
    large = tmp_path / "large"
    large.mkdir()
    for source in (clip, picture):
        vsr.upscale(source, large if explicit else None, model=tiny_weights, backend="pytorch")
    folder = large if explicit else tmp_path
    outputs = {"100%done_x2.mkv", "a%04d_x2.png"}
    assert {path.name for path in folder.iterdir()} - {clip.name, picture.name, "large"} == outputs
    with av.open(str(folder / "100%done_x2.mkv")) as container:
        assert {stream.type for stream in container.streams} == {"video", "audio"}
        assert sum(1 for _ in container.decode(video=0)) == 10


def test_another_picture_of_the_same_size_and_time_is_noticed_and_a_copy_is_not(tmp_path):
    one, other = (write_sequence(tmp_path / name, range(1, 3)) for name in "ab")
    with SequenceReader(one) as a, SequenceReader(other) as b:
        assert a.stamp() == b.stamp()
        path = tmp_path / "b" / "0002.png"
        found, data = path.stat(), bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        assert a.stamp() != b.stamp()


def test_rates_as_tools_print_them_are_televisions(capsys):
    rates = {
        "23.976": Fraction(24000, 1001), "29.97002997": Fraction(30000, 1001), "25": 25,
        "23.976023976": Fraction(24000, 1001), "24.0": 24, "12.5": Fraction(25, 2),
    }  # fmt: skip
    for text, rate in rates.items():
        arguments = parser().parse_args(["upscale", "a_%d.png", "--fps", text])
        assert arguments.fps == rate
    with pytest.raises(ValueError, match="fps must be a fraction of numbers up to 2147483647"):
        UpscaleConfig(Path("a_%d.png"), fps=Fraction(10**10 + 1, 10**9))
