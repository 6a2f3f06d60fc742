"""YUV4MPEG2 through pipes: the same frames as from a file, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_clip

import vsr
from vsr.cli import main
from vsr.config import Progress
from vsr.video import Reader
from vsr.y4m import Y4mHeader, Y4mReader

ROOT = Path(__file__).parents[1]
SECONDS = 60  # that no wait takes, unless something hangs

# tag: format of libavcodec, (height, width) of chroma, samples' type
FORMATS = {
    "420jpeg": ("yuv420p", (6, 9), "u1"),
    "420mpeg2": ("yuv420p", (6, 9), "u1"),
    "420paldv": ("yuv420p", (6, 9), "u1"),
    "422": ("yuv422p", (11, 9), "u1"),
    "444": ("yuv444p", (11, 17), "u1"),
    "411": ("yuv411p", (11, 5), "u1"),
    "mono": ("gray", None, "u1"),
    "420p10": ("yuv420p10le", (6, 9), "<u2"),
    "422p12": ("yuv422p12le", (11, 9), "<u2"),
    "444p16": ("yuv444p16le", (11, 17), "<u2"),
    "mono16": ("gray16le", None, "<u2"),
}


def stream(tag: str = "420mpeg2", *, frames: int = 4, tags: str = "F30000:1001 Ip A4:3") -> bytes:
    """A stream of noise, 17x11."""
    _, chroma, kind = FORMATS[tag]
    top = 1 << int(tag.partition("p")[2] or 16) if kind != "u1" and tag != "mono16" else 1 << 16
    top = 256 if kind == "u1" else top
    shapes = [(11, 17)] + ([chroma] * 2 if chroma else [])
    parts = [f"YUV4MPEG2 W17 H11 {tags} C{tag} XSOMETHING=else\n".encode()]
    for index in range(frames):
        rng = np.random.default_rng(index)
        parts += [b"FRAME\n"] + [rng.integers(0, top, s).astype(kind).tobytes() for s in shapes]
    return b"".join(parts)


def split(data: bytes) -> tuple[Y4mHeader, list[bytes]]:
    """Read a stream whole, and nothing beside it."""
    line, _, rest = data.partition(b"\n")
    header = Y4mHeader.parse(line)
    step = header.frame_bytes + 6
    assert len(rest) % step == 0
    frames = [rest[at : at + step] for at in range(0, len(rest), step)]
    assert all(frame.startswith(b"FRAME\n") for frame in frames)
    return header, [frame[6:] for frame in frames]


def planes_of(path: Path) -> list[bytes]:
    """Each frame of a lossless clip as the bytes of its planes."""
    with Reader(path) as reader:
        return [
            b"".join(p.contiguous().numpy().tobytes() for p in f.value) for f in reader.frames()
        ]


@contextmanager
def descriptor(number: int, file: int) -> Iterator[None]:
    """Put a file in the place of standard input or output."""
    kept = os.dup(number)
    os.dup2(file, number)
    os.close(file)
    try:
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)


@contextmanager
def fed(write: Callable[[int], object]) -> Iterator[None]:
    """Have standard input written by a thread, which gets the pipe's end."""
    ours, theirs = os.pipe()

    def feed() -> None:
        try:
            write(theirs)
        except BrokenPipeError:
            pass
        finally:
            os.close(theirs)

    thread = threading.Thread(target=feed, daemon=True)
    with descriptor(0, ours):
        thread.start()
        yield
    thread.join(SECONDS)
    assert not thread.is_alive()


@contextmanager
def drained() -> Iterator[bytearray]:
    """Have standard output read by a thread into a buffer, which is whole in the end."""
    ours, theirs = os.pipe()
    found = bytearray()

    def drain() -> None:
        while part := os.read(ours, 1 << 16):
            found.extend(part)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    with descriptor(1, theirs):
        yield found
    thread.join(SECONDS)
    assert not thread.is_alive()
    os.close(ours)


def upscale(source: object, output: object, weights: Path, **more: object) -> vsr.Result:
    return vsr.upscale(str(source), str(output), model=weights, backend="pytorch", **more)


def piped(data: bytes, weights: Path, **more: object) -> bytes:
    """Upscale a stream from standard input to standard output."""
    with fed(lambda file: os.write(file, data)), drained() as found:
        upscale("-", "-", weights, **more)
    return bytes(found)


# --- in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", FORMATS)
def test_each_format_is_read_as_libavformat_reads_it(tag, tmp_path):
    sitings = {"420jpeg": "centre", "420paldv": "topleft"}
    path = tmp_path / "in.y4m"
    path.write_bytes(stream(tag, tags="F30000:1001 Ip A4:3 XCOLORRANGE=FULL"))
    with Reader(path) as theirs, Y4mReader(path) as ours:
        layout = ours.info.layout
        assert layout.siting == sitings.get(tag, "left")
        assert replace(layout, siting=theirs.info.layout.siting) == theirs.info.layout
        for name in (
            "size",
            "layout",
            "tags",
            "sample_aspect_ratio",
            "time_base",
            "average_rate",
            "frames",
        ):
            assert getattr(ours.info, name) == getattr(theirs.info, name), name
        found, expected = list(ours.frames()), list(theirs.frames())
    assert ours.frames_read == len(found) == len(expected) == 4
    for frame, other in zip(found, expected, strict=True):
        assert (frame.pts, frame.duration) == (other.pts, other.duration)
        assert all(map(torch.equal, frame.value, other.value))


def test_a_pipe_gives_what_a_file_gives(tmp_path, tiny_weights):
    data = stream("422p12")
    (tmp_path / "in.y4m").write_bytes(data)
    upscale(tmp_path / "in.y4m", tmp_path / "file.mkv", tiny_weights, encoder="ffv1")
    with fed(lambda file: os.write(file, data)):
        result = upscale("-", tmp_path / "pipe.mkv", tiny_weights, encoder="ffv1")
    assert result.frames == 4
    assert (tmp_path / "pipe.mkv").read_bytes() == (tmp_path / "file.mkv").read_bytes()
    with Reader(tmp_path / "file.mkv") as reader:
        assert reader.info.layout.depth == 12


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is not YUV4MPEG2, as ffmpeg"),
        (b"\x00\x00\x00\x20ftypisom" * 2000, "is not YUV4MPEG2, as ffmpeg"),
        (b"YUV4MPEG2 W17 H11", "breaks off in the middle of a line"),
        (b"YUV4MPEG2 W17\nFRAME\n", "does not say its width and height"),
        (b"YUV4MPEG2 W17 H11 C444alpha\nFRAME\n", "C444alpha is not supported"),
        (b"YUV4MPEG2 W999999 H999999\nFRAME\n", "999999x999999 is no size"),
        (b"YUV4MPEG2 W17 H11\n", "has no frame"),
        (b"YUV4MPEG2 W17 H11\nFLAME\n", "where a frame should begin"),
        (stream(frames=1)[:-1], "in the middle of a frame: 294 bytes of 295"),
        (stream(frames=3)[:-100], "in the middle of a frame: 195 bytes of 295"),
        (stream(tags="It"), "interlaced: --deinterlace"),
    ],
)
def test_what_is_no_whole_stream_is_one_line(data, said, tmp_path, tiny_weights, capfd):
    arguments = ["upscale", "-", "-o", str(tmp_path / "out.mkv"), "--weights", str(tiny_weights)]
    with fed(lambda file: os.write(file, data)):
        assert main([*arguments, "--backend", "pytorch"]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert "standard input" in err
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_fields_from_a_pipe_are_made_whole_as_those_from_a_file(tmp_path, tiny_weights):
    data = stream(tags="F25:1 Ib")
    (tmp_path / "in.y4m").write_bytes(data)
    with Reader(tmp_path / "in.y4m", deinterlace=True) as theirs:
        expected = [frame.value for frame in theirs.frames()]
    with Y4mReader(tmp_path / "in.y4m", deinterlace=True) as ours:
        found = [frame.value for frame in ours.frames()]
    assert len(found) == len(expected) == 4
    for frame, other in zip(found, expected, strict=True):
        assert all(map(torch.equal, frame, other))


def test_standard_input_needs_an_output(capsys):
    assert main(["upscale", "-"]) == 1
    assert "-o says where the result of standard input goes" in capsys.readouterr().err


# --- out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["420jpeg", "420paldv", "420mpeg2", "422p12", "mono16"])
def test_the_stream_that_comes_out_is_the_clip_that_would(tag, tmp_path, tiny_weights):
    data = stream(tag, tags="F30000:1001 Ip A4:3 XCOLORRANGE=FULL")
    (tmp_path / "in.y4m").write_bytes(data)
    upscale(tmp_path / "in.y4m", tmp_path / "out.mkv", tiny_weights, encoder="ffv1")
    header, frames = split(piped(data, tiny_weights))
    assert header == Y4mHeader((22, 34), tag, Fraction(30000, 1001), Fraction(4, 3), "p", True)
    if tag in ("420jpeg", "420paldv"):  # an ffv1 has its chroma elsewhere: luma alone is the same
        frames = [frame[: 22 * 34] for frame in frames]
        assert frames == [frame[: 22 * 34] for frame in planes_of(tmp_path / "out.mkv")]
    else:
        assert frames == planes_of(tmp_path / "out.mkv")


def test_a_clip_goes_to_a_pipe_without_what_a_pipe_does_not_hold(
    tmp_path, tiny_weights, caplog, plain_clip, uneven_clip
):
    with drained() as found:
        assert upscale(plain_clip, "-", tiny_weights).frames == 10
    header, frames = split(bytes(found))
    assert (header.chroma, header.size, len(frames)) == ("420mpeg2", (76, 100), 10)
    assert "holds the picture alone, without audio" in caplog.text
    assert "holds no times" not in caplog.text
    with drained() as found:
        assert upscale(uneven_clip, "-", tiny_weights).frames == 12
    assert len(split(bytes(found))[1]) == 12
    assert "YUV4MPEG2 holds no times, only their order" in caplog.text


def test_pictures_go_to_a_pipe_as_yuv_of_full_depth(tmp_path, tiny_weights):
    clip = write_clip(tmp_path / "in.mkv", codec="ffv1", pixel_format="gbrp10le", pts=(0, 40, 80),
                      time_base=Fraction(1, 1000))  # fmt: skip
    with drained() as found:
        upscale(clip, "-", tiny_weights)
    header, frames = split(bytes(found))
    assert (header.chroma, header.full_range, len(frames)) == ("444p10", False, 3)


def test_a_terminal_gets_no_samples(tiny_weights, plain_clip, capsys):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    arguments = ["upscale", str(plain_clip), "-o", "-", "--weights", str(tiny_weights)]
    with descriptor(1, theirs):
        assert main(arguments) == 1
    os.close(ours)
    assert "standard output is a terminal" in capsys.readouterr().err


# --- pipes that stand still or end ----------------------------------------------------------------


@pytest.mark.timeout(SECONDS)
def test_frames_come_out_while_the_input_is_still_open(tmp_path, tiny_weights):
    data = stream(frames=6)
    line = data.index(b"\n") + 1
    step = (len(data) - line) // 6
    three_are_out = threading.Event()

    def feed(file: int) -> None:
        os.write(file, data[: line + 3 * step])
        assert three_are_out.wait(SECONDS)
        os.write(file, data[line + 3 * step :])

    def watch(progress: Progress) -> None:
        if progress.frames == 3:
            three_are_out.set()

    with fed(feed), drained() as found:
        assert upscale("-", "-", tiny_weights, progress=watch).frames == 6
    assert len(split(bytes(found))[1]) == 6


@pytest.mark.timeout(SECONDS)
@pytest.mark.skipif(sys.platform == "win32", reason="signals there are others")
def test_ctrl_c_ends_the_wait_for_a_writer_that_stands_still(tmp_path, tiny_weights):
    both_are_out, ended = threading.Event(), threading.Event()

    def feed(file: int) -> None:
        os.write(file, stream(frames=2))
        assert both_are_out.wait(SECONDS)
        time.sleep(0.2)  # by now all threads wait for one another
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        assert ended.wait(SECONDS)

    def watch(progress: Progress) -> None:
        if progress.frames == 2:
            both_are_out.set()

    with fed(feed):
        with pytest.raises(KeyboardInterrupt):
            upscale("-", tmp_path / "out.mkv", tiny_weights, progress=watch)
        ended.set()
    assert list(tmp_path.iterdir()) == []


def test_the_command_as_the_middle_of_a_pipe(tmp_path, tiny_weights):
    data = stream("420p10", frames=5)
    command = [sys.executable, "-m", "vsr", "upscale", "-", "-o", "-", "--json"]
    command += ["--weights", str(tiny_weights), "--backend", "pytorch"]
    done = subprocess.run(
        command, cwd=ROOT, input=data, capture_output=True, timeout=SECONDS, check=True
    )
    header, frames = split(done.stdout)
    assert (header.size, len(frames)) == ((22, 34), 5)
    assert json.loads(done.stderr)["frames"] == 5  # the only line, where it disturbs nobody
    assert done.stdout == piped(data, tiny_weights)


def test_a_reader_that_goes_away_is_one_line(tiny_weights, plain_clip, capsys):
    arguments = ["upscale", str(plain_clip), "-o", "-", "--weights", str(tiny_weights), "-q"]
    ours, theirs = os.pipe()
    os.close(ours)
    with descriptor(1, theirs):
        assert main([*arguments, "--backend", "pytorch"]) == 1
    said = capsys.readouterr().err
    assert said == "vsr: error: the reader of standard output has gone away after 0 frames\n"
