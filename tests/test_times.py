"""Times that containers begin, jump and keep each in their own way."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media import probe

import vsr
from benchmarks.generated import Recipe
from engines.errors import MediaError

BEGIN_SECONDS = Fraction(50_000)  # of a broadcast's clock
LATE_SECONDS = Fraction(1, 4)  # the picture after the sound


def write_recording(path: Path, *, jump_seconds: int = 0) -> Path:
    """A second of sound, and 15 frames that begin later; the clock began long before."""
    base = Fraction(1, 90_000)
    with av.open(str(path), "w", container_options={"muxdelay": "0"}) as container:
        video = container.add_stream("mpeg2video", rate=25, width=64, height=48)
        video.pix_fmt, video.time_base = "yuv420p", base
        sound = container.add_stream("mp2", rate=48_000)
        for index in range(42):
            tone = np.sin(np.arange(index * 1152, (index + 1) * 1152) / 20).astype(np.float32)
            frame = av.AudioFrame.from_ndarray((tone[None] * 9999).astype(np.int16), "s16", "mono")
            frame.sample_rate, frame.time_base = 48_000, Fraction(1, 48_000)
            frame.pts = round(BEGIN_SECONDS * 48_000) + index * 1152
            container.mux(sound.encode(frame))
        for index in range(15):
            picture = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), 40 + 10 * index, np.uint8), "rgb24"
            ).reformat(format="yuv420p")
            late = LATE_SECONDS + (jump_seconds if index >= 9 else 0)
            picture.pts = round((BEGIN_SECONDS + late) / base) + index * 3600
            picture.time_base = base
            container.mux(video.encode(picture))
        for stream in (video, sound):
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".ts", ".vob"])
@pytest.mark.parametrize("output", [".mp4", ".mkv"])
def test_a_recording_whose_clock_began_anywhere_begins_at_zero(
    suffix, output, tiny_weights, tmp_path
):
    source = write_recording(tmp_path / f"in{suffix}")
    before = probe(source)
    assert before.pts_seconds[0] > 10_000  # DVDs' clock is cut short, but not to zero
    vsr.upscale(source, tmp_path / f"out{output}", model=tiny_weights, backend="pytorch")
    after = probe(tmp_path / f"out{output}")
    with av.open(str(tmp_path / f"out{output}")) as container:
        assert container.start_time == 0
        assert container.duration / av.time_base < 2
    begin = before.packets["audio"][0][0]
    assert len(after.pts_seconds) == len(before.pts_seconds) == 15
    for found, was in zip(after.pts_seconds, before.pts_seconds, strict=True):
        assert abs(found - (was - begin)) <= Fraction(1, 1000)  # Matroska's ticks
    assert after.packets["audio"][0][0] == 0
    assert abs(after.pts_seconds[0] - LATE_SECONDS) < Fraction(1, 100)


@pytest.mark.parametrize("suffix", [".mkv", ".m2ts"])
def test_text_from_before_the_picture_does_not_delay_it(suffix, tiny_weights, tmp_path):
    recipe = Recipe(
        "text.m2ts", "pictures of text, a second ahead of the picture", raw="pgssub",
        times=range(90_000, 130_000, 3600), time_base=Fraction(1, 90_000),
    )  # fmt: skip
    source = recipe.write(tmp_path)
    with av.open(str(source)) as clip:
        assert clip.streams.subtitles[0].start_time == 0
        assert clip.streams.video[0].start_time == 90_000
    output = tmp_path / f"out{suffix}"
    vsr.upscale(source, output, model=tiny_weights, backend="pytorch")
    with av.open(str(output)) as clip:
        assert {stream.type for stream in clip.streams} == {"video", "subtitle"}
        picture = clip.streams.video[0]
        assert picture.start_time * picture.time_base < Fraction(1, 5)  # MPEG-TS: of B-frames


def test_a_recording_whose_clock_jumps_ahead_is_kept_with_a_warning(tiny_weights, tmp_path, caplog):
    source = write_recording(tmp_path / "in.ts", jump_seconds=3600)
    vsr.upscale(source, tmp_path / "out.mkv", model=tiny_weights, backend="pytorch")
    assert "its time jumps ahead 1 times, first at frame 9 by 3600.0 s" in caplog.text
    assert probe(tmp_path / "out.mkv").pts_seconds[-1] > 3600


@pytest.mark.parametrize(
    "suffix",
    [".3g2", ".3gp", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".nut", ".ts", ".webm"],
)
def test_every_container_that_is_taken_keeps_the_time_of_each_frame(
    suffix, uneven_clip, tiny_weights, tmp_path
):
    vsr.upscale(
        uneven_clip,
        tmp_path / f"out{suffix}",
        model=tiny_weights,
        backend="pytorch",
        encoder="libvpx-vp9" if suffix == ".webm" else "libx264",
    )
    before, after = (probe(path).pts_seconds for path in (uneven_clip, tmp_path / f"out{suffix}"))
    assert len(after) == len(before) == 12
    for found, was in zip(after, before, strict=True):
        passed = found - after[0], was - before[0]
        assert abs(passed[0] - passed[1]) <= Fraction(1, 1000)  # FLV's ticks


@pytest.mark.parametrize("suffix", [".avi", ".gif", ".mpg", ".mxf", ".vob", ".wmv", ".y4m"])
def test_a_container_that_keeps_no_times_is_refused(suffix, plain_clip, tiny_weights, tmp_path):
    output = tmp_path / f"out{suffix}"
    message = rf"cannot write .*out\{suffix}: .* known to keep each frame's time, use \.mp4"
    with pytest.raises(MediaError, match=message):
        vsr.upscale(plain_clip, output, model=tiny_weights, backend="pytorch")
    assert not list(tmp_path.iterdir())
