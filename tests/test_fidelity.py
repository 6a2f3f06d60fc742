"""Real clips, ordinary and awkward: nothing about them changes but their size.

Runs where the clips lie (shared/data/clips beside the checkout); each is upscaled times 2 by a tiny
network and shrunk back, so that the test is about everything but the pixels.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
from conftest import REAL_CLIPS
from media import Probe, probe

import vsr
from vsr.pixels import guess_matrix, read_layout

pytestmark = pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason=f"no clips in {REAL_CLIPS}")

upscale = partial(vsr.upscale, backend="pytorch", preset="ultrafast", scale=0.5, crf=30)

# clip: what its error says
REFUSED = {
    "invalid-bitstream.webm": "has no frame that can be decoded",
    "sample_audio_only.mp4": "has no video stream",
}
# more than a few seconds each; `python -m pytest -m slow` runs these too
LARGE = {
    "bbb_800x640_768kbps_30fps_avc_pyramid_3b.mp4",
    "bigbuckbunny.mp4",
    "bikes.mp4",
    "bt709_full_range.mp4",
    "cockatoo_yuv420.mp4",
    "corrupted.mp4",
    "hlg10-color-test.mp4",
    "kohlipe1.mp4",
    "lofoten.mp4",
    "palawan.mp4",
    "sample.avi",
    "sample_fragmented.mp4",
    "sample_portrait.mp4",
    "sample_with_colr_mdcv_and_clli.mp4",
    "sample_with_pgs_subtitles.mkv",
    "sample_with_vobsub.mkv",
}


def clips() -> list[object]:
    paths = sorted(path for path in REAL_CLIPS.rglob("*") if path.suffix and path.is_file())
    return [
        pytest.param(path, id=path.name, marks=[pytest.mark.slow] * (path.name in LARGE))
        for path in paths
    ]


def expected_tags(before: Probe) -> tuple[int, int, int, int]:
    primaries, transfer, matrix, colour_range = before.tags
    if matrix in (0, 2, 3):
        matrix = {"bt601": 6, "bt709": 1}[guess_matrix(*before.size)]
    if before.pixel_format.startswith("yuvj"):
        colour_range = 2
    return primaries, transfer, matrix, colour_range or 1  # H.264 cannot leave the range open


@pytest.mark.parametrize("path", clips())
def test_a_real_clip_changes_in_nothing_but_size(path: Path, tiny_weights, tmp_path):
    if path.name in REFUSED:
        with pytest.raises(vsr.VSRError, match=REFUSED[path.name]):
            upscale(path, tmp_path / "out.mp4", model=tiny_weights)
        assert not list(tmp_path.iterdir())
        return
    source = tmp_path / path.name
    source.symlink_to(path)
    result = upscale(source, model=tiny_weights)
    before, after = probe(path), probe(result.output)
    assert result.frames == len(after.pts_seconds) == len(before.pts_seconds) > 0
    begin = before.pts_seconds[0] if path.suffix == ".ts" else 0  # whose clock begins anywhere
    assert after.pts_seconds == [at - begin for at in before.pts_seconds]
    assert after.sample_aspect_ratio == before.sample_aspect_ratio
    assert after.display_matrix == before.display_matrix
    assert after.tags == expected_tags(before)
    assert read_layout(after.pixel_format)[:3] == read_layout(before.pixel_format)[:3]
    if path.suffix == ".AVI":  # PCM, which MP4 cuts into packets of its own
        before.packets, after.packets = (
            {kind: [(s[0], s[-1], len(s)) for s in streams] for kind, streams in p.packets.items()}
            for p in (before, after)
        )
    assert after.packets == before.packets
    assert after.languages == before.languages
    assert after.chapters == before.chapters
    assert result.output.suffix == {".webm": ".mkv"}.get(
        path.suffix, path.suffix if path.suffix in (".mkv", ".mov") else ".mp4"
    )


def test_an_output_that_cannot_hold_a_stream_says_so(tiny_weights, tmp_path, caplog):
    source = REAL_CLIPS / "hard" / "sample_with_srt.mkv"
    upscale(source, tmp_path / "out.mp4", model=tiny_weights)
    before, after = probe(source), probe(tmp_path / "out.mp4")
    said = set(after.packets["subtitle"][0])  # beside what MP4 writes for the time between
    assert {round(at, 3) for at in said} >= {round(at, 3) for at in before.packets["subtitle"][0]}
    assert len(after.packets["audio"][0]) == len(before.packets["audio"][0])
    assert "subtitle stream 2 (srt) is converted to mov_text" in caplog.text
    assert ".mkv output may hold it" in caplog.text


def test_the_shape_of_anamorphic_video_can_be_squared(tiny_weights, tmp_path):
    source = REAL_CLIPS / "carphone_distorted.mp4"
    vsr.upscale(
        source, tmp_path / "out.mp4", model=tiny_weights, backend="pytorch", size=(144, 192)
    )
    before, after = probe(source), probe(tmp_path / "out.mp4")
    shapes = [p.sample_aspect_ratio * Fraction(p.size[1], p.size[0]) for p in (before, after)]
    assert float(shapes[1]) == pytest.approx(float(shapes[0]), rel=1e-3)
