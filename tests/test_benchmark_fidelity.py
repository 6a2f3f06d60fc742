"""Clips made for one property each come out with it, or with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fidelity import MEANT, compare, compare_clip, unexplained
from benchmarks.generated import RECIPES, Recipe

# recipe: properties that nothing excuses
MUST_BE_EQUAL = {
    "negative.ts": ("frames", "audio streams", "audio bytes"),  # MP4's edit list cuts nothing off
    "chapters.mp4": ("chapters", "data streams"),
    "words.mp4": ("subtitle times", "subtitle bytes"),
    "words_to.mkv": ("titles", "languages", "subtitle streams"),
    "sounds.mkv": ("titles", "languages", "dispositions", "audio bytes"),
    "12bit.mp4": ("pixel format",),
    "chroma_bottom.mp4": ("chroma location",),
    "chroma_topleft_x265.mp4": ("chroma location",),
    "hdr10.mp4": ("mastering display", "content light", "transfer"),
    "data.ts": ("frames", "frame times"),
    "cover.mp4": ("frames", "cover pictures"),
    "cover.mkv": ("frames", "cover pictures"),
    "cover_to.mp4": ("frames", "cover pictures"),
}
# recipe: words of what it is to say
SAYS = {
    "data.ts": "data stream 1 (klv) is not kept: ",  # refused at header time alone
    "bitmaps_to.mkv": "; an .mkv output may hold it as it is",
    "cover_to.mkv": "video stream 1 (png) is not kept: mov has no place for it",
    "12bit_by_default.mp4": "12-bit samples become 10-bit",
}


def upscaled(recipe: Recipe, folder: Path, weights: Path) -> dict[str, str]:
    clip = recipe.write(folder)
    arguments = {"scale": 1.0, **recipe.arguments}
    if recipe.output is not None:
        arguments["output"] = folder / f"out{recipe.output}"
    return compare_clip(clip, weights, arguments)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_property_is_kept_or_there_is_a_reason(recipe, tiny_weights, tmp_path):
    found = upscaled(recipe, tmp_path, tiny_weights)
    if recipe.name == "interlaced.mp4":
        assert "is interlaced: --deinterlace" in found["refused"]
        return
    assert "refused" not in found
    assert unexplained({recipe.name: found}) == 0, found
    for name in MUST_BE_EQUAL.get(recipe.name, ()):
        assert found[name] == "equal"
    assert SAYS.get(recipe.name, "") in found.get("said", "")
    if recipe.output is None and recipe.name not in SAYS:
        assert "said" not in found


def test_a_difference_without_a_reason_counts(tmp_path):
    assert compare("frames", 12, 12, [], []) == "equal"
    found = {"frames": compare("frames", 12, 7, ["data stream 1 is not kept: so"], [])}
    found["data streams"] = compare("data streams", 1, 0, ["data stream 1 is not kept: so"], [])
    found["matrix"] = compare("matrix", 2, 6, [], [])
    assert found["frames"] == "12 -> 7"
    assert found["data streams"] == "1 -> 0 (said: in a warning)"
    assert found["matrix"] == f"2 -> 6 (meant: {MEANT['matrix', '2 ']})"
    assert unexplained({"clip": found | {"said": "something", "holds": "all"}}) == 1
