"""What of a clip is still the same once it is upscaled?

    python benchmarks/fidelity.py [--clips FOLDER] [--json FILE]

Upscales a corner of each clip of a folder, and of those in it (default: shared/data/clips beside
the checkout), and clips made for one property each (`benchmarks/generated.py`), by a tiny network
and with the encoder in haste, for this is about all but the pixels. Then reads input and output
with PyAV and compares property by property: "equal", or what it was and what it is. A clip that is
refused has the reason instead.

Where a difference is known and meant, or the command said it in a warning, the reason says so;
`unexplained` in the JSON counts the others. The last line of stdout is one JSON document; the same
goes to `--json` (default: benchmarks/results/fidelity.json). The exit code is 1 if a difference has
no explanation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import tempfile
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import av  # noqa: E402
import numpy as np  # noqa: E402
from av.error import FFmpegError  # noqa: E402
from av.format import Flags as Format  # noqa: E402

import vsr  # noqa: E402
from benchmarks.generated import RECIPES  # noqa: E402
from benchmarks.report import environment, tiny_weights, write_atomically  # noqa: E402
from engines.errors import VSRError  # noqa: E402
from vsr.pixels import read_layout  # noqa: E402
from vsr.siting import read_siting  # noqa: E402

# differences that are meant: property and what the difference begins with, then why
MEANT = {
    ("matrix", "2 "): "an untagged matrix is named as it was assumed, by the size",
    ("matrix", "3 "): "an untagged matrix is named as it was assumed, by the size",
    ("range", "0 "): "H.264 cannot leave the range open; unsaid is limited",
    ("range", "1 "): "a yuvj format is full range, whatever its tag",
    ("pixel format", "yuvj"): "the same format by its present name; the range is in the tag",
    ("frame durations", "[Fraction(0, 1)"): "a clip that does not say gets that of its rate",
    ("frame durations", "[Fraction(1001, 24000)"): "in MP4 a frame lasts until the next one",
    ("metadata", "{'com.android"): "MP4 loses tags that only QuickTime's own list has",
    ("metadata", "{'software': 'Lavf"): "the name of the program that wrote the AVI",
    ("metadata", "{'location'"): "the same place, with more digits",
    ("languages", "{'audio 0': 'deu'} -> {'audio 0': 'ger'}"): "QuickTime's name of the same",
    ("audio times", "[[Fraction(-"): "below zero is nothing to hear: all streams move on together",
    ("frame times", "[Fraction(-"): "below zero is nothing to show: all streams move on together",
    ("dispositions", "[0"): "MP4 makes the first track of a kind the default one",
}
CORNER = vsr.Crop(0, 0, 48, 48)  # of real clips; the smallest has 50 by 50 pixels
# words of a warning, and the properties that it explains, by the first word of their names
SAID = {
    "is not kept": (
        *("audio", "subtitle", "data", "attachment", "cover"),
        *("languages", "titles", "dispositions"),
    ),
    "is converted": ("audio", "subtitle"),
    "samples become": ("pixel", "depth"),
    "with less chroma": ("pixel", "depth"),
    "is damaged": ("frame",),
    "no usable timestamp": ("frame",),
}
_HANDLERS = ("", "VideoHandler", "SoundHandler", "SubtitleHandler", "DataHandler")  # no titles
_LEFT_ALONE = frozenset(
    {"encoder", "major_brand", "minor_version", "compatible_brands", "handler_name", "vendor_id"}
    | {"duration", "creation_time", "language", "rotate"}
)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    p = argparse.ArgumentParser(description="What of a clip is the same once it is upscaled?")
    p.add_argument("--clips", type=Path, default=ROOT.parent / "shared" / "data" / "clips")
    p.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/fidelity.json")
    options = p.parse_args(argv)
    clips = sorted(path for path in options.clips.rglob("*") if path.suffix and path.is_file())
    if not clips:
        print(f"fidelity: error: no clips in {options.clips}", file=sys.stderr)
        return 1
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    table: dict[str, dict[str, str]] = {}
    made: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = tiny_weights(folder)
        for clip in clips:
            (folder / clip.name).symlink_to(clip.resolve())
            table[clip.name] = compare_clip(
                folder / clip.name, weights, {"scale": 1.0, "region": CORNER}
            )
            print(describe(clip.name, table[clip.name]), flush=True)
        (folder / "generated").mkdir()
        for recipe in RECIPES:
            clip = recipe.write(folder / "generated")
            arguments = {"scale": 1.0, **recipe.arguments}
            if recipe.output is not None:
                arguments["output"] = clip.with_name(f"{clip.stem}_x1{recipe.output}")
            found = compare_clip(clip, weights, arguments)
            made[recipe.name] = {"holds": recipe.holds, **found}
            print(describe(recipe.name, found), flush=True)
    card = environment("numpy", "av")
    left = unexplained(table) + unexplained(made)
    document = {"environment": card, "clips": table, "generated": made, "unexplained": left}
    write_atomically(options.json, json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
    return int(left > 0)


class Sentences(logging.Handler):
    """Keeps what the library says."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def compare_clip(source: Path, weights: Path, arguments: dict[str, Any]) -> dict[str, str]:
    """Upscale one clip; return "equal" or the difference for each property."""
    sentences, logger = Sentences(), logging.getLogger("vsr")
    logger.addHandler(sentences)
    try:
        result = vsr.upscale(
            source, model=weights, backend="pytorch", preset="ultrafast", threads=1, **arguments
        )
    except VSRError as error:
        return {"refused": str(error).replace(f"{source.parent}/", "")}
    finally:
        logger.removeHandler(sentences)
    before, after = read_properties(source), read_properties(result.output)
    said = [sentence.replace(f"{source.parent}/", "") for sentence in sentences.said]
    paths = [source, result.output]
    found = {name: compare(name, before[name], after[name], said, paths) for name in before}
    result.output.unlink()
    return found | ({"said": "; ".join(said)} if said else {})


def compare(name: str, before: object, after: object, said: list[str], paths: list[Path]) -> str:
    """Return "equal", or the difference, with the reason if there is one."""
    if before == after:
        return "equal"
    difference = f"{shorten(before)} -> {shorten(after)}"
    for (known, begin), why in MEANT.items():
        if name == known and difference.startswith(begin):
            return f"{difference} (meant: {why})"
    if name == "frame times" and paths[1].suffix == ".mkv" and same_milliseconds(before, after):
        return f"{difference} (meant: Matroska counts milliseconds)"
    if name.startswith("audio ") and same_sound(paths):
        return f"{difference} (meant: in packets of another form, the same samples as decoded)"
    for words, names in SAID.items():
        for sentence in said:
            if words in sentence and name.split()[0] in names:
                return f"{difference} (said: in a warning)"
    return difference


def same_milliseconds(before: Any, after: Any) -> bool:
    """Tell whether two lists of times in seconds are the same, rounded to milliseconds."""
    return len(before) == len(after) and all(
        abs(was - found) <= Fraction(1, 2000) for was, found in zip(before, after, strict=True)
    )


def same_sound(paths: list[Path]) -> bool:
    """Tell whether two clips' sound streams decode to the same samples, from the same time on."""
    return read_sound(paths[0]) == read_sound(paths[1])


def read_sound(path: Path) -> list[tuple[float, str]]:
    """Read the time from the picture's to the sound's beginning, and the samples' digest."""
    with av.open(str(path), metadata_errors="replace") as container:
        begin = next(container.decode(video=0)).time
        streams = len(container.streams.audio)
    found = []
    for number in range(streams):
        digest, start = hashlib.sha256(), None
        with av.open(str(path), metadata_errors="replace") as container:
            for frame in container.decode(audio=number):
                start = frame.time - begin if start is None else start
                digest.update(frame.to_ndarray().tobytes())
        found.append((round(start or 0, 3), digest.hexdigest()))
    return found


def read_properties(path: Path) -> dict[str, Any]:
    """Read all that is to stay the same."""
    found: dict[str, Any] = {}
    times: list[Fraction] = []
    durations: list[Fraction] = []
    others: dict[int, list[Fraction]] = defaultdict(list)
    digests: dict[int, Any] = defaultdict(hashlib.sha256)
    with av.open(str(path), metadata_errors="replace") as container:
        video = container.streams.video[0]
        found["chapters"] = [
            (float(c["start"] * c["time_base"]), float(c["end"] * c["time_base"]), c["metadata"])
            for c in container.chapters()
        ]
        begin = Fraction(0)
        if container.format.flags & Format.ts_discont.value:  # a clock that began anywhere
            begin = Fraction(container.start_time or 0, av.time_base)
        picture = video.index
        kinds = {s.index: s.type for s in container.streams if s.index != picture}
        tags = {s.index: s.metadata for s in container.streams}
        dispositions = {s.index: int(s.disposition) for s in container.streams}
        found["sample aspect ratio"] = Fraction(video.sample_aspect_ratio or 1)
        found["metadata"] = kept(container.metadata)
        for packet in container.demux():
            if packet.stream.index != picture:  # `stream_index` of the last, empty packet is 0
                if packet.size:
                    digests[packet.stream_index].update(bytes(packet))
                    if packet.pts is not None:
                        at = packet.pts * packet.time_base
                        others[packet.stream_index].append(from_begin(at, begin, video))
                continue
            try:
                frames: list[Any] = packet.decode()
            except FFmpegError:  # what a damaged clip does not give
                continue
            for frame in frames:
                if not times:
                    found |= read_frame(frame, video.codec_context.name)
                times.append(from_begin(frame.pts * frame.time_base, begin, video))
                durations.append(frame.duration * frame.time_base)
    found |= {"frames": len(times), "frame times": times, "frame durations": durations}
    for kind in ("audio", "subtitle", "data", "attachment"):
        indices = [index for index in kinds if kinds[index] == kind]
        found[f"{kind} streams"] = len(indices)
        found[f"{kind} times"] = [others[index] for index in indices]
        found[f"{kind} bytes"] = [digests[index].hexdigest()[:16] for index in indices]
    covers = [digests[index].hexdigest()[:16] for index in kinds if kinds[index] == "video"]
    found["cover pictures"] = covers
    found["languages"] = {
        f"{kinds[index]} {n}": tags[index].get("language", "und") for n, index in enumerate(kinds)
    }
    found["titles"] = [read_title(tags[index]) for index in kinds]
    found["dispositions"] = [dispositions[picture], *(dispositions[index] for index in kinds)]
    return found


def from_begin(at: Fraction, begin: Fraction, video: Any) -> Fraction:
    """Return the seconds from a recording's begin, in whole ticks of its picture."""
    return at - begin // video.time_base * video.time_base


def read_frame(frame: Any, codec: str) -> dict[str, Any]:
    """Read what a frame says of itself."""
    kind, depth, step, *_ = read_layout(frame.format.name)
    side_data = {str(data.type).split(".")[-1]: bytes(data) for data in frame.side_data}
    matrix = side_data.get("DISPLAYMATRIX")
    return {
        "pixel format": frame.format.name,
        "depth and chroma": (kind, depth, step),
        "primaries": frame.color_primaries,
        "transfer": frame.color_trc,
        "matrix": frame.colorspace,
        "range": frame.color_range,
        "chroma location": read_siting(frame, codec) if step == (2, 2) else None,
        "display matrix": None if matrix is None else np.frombuffer(matrix, np.int32).tolist(),
        "mastering display": side_data.get("MASTERING_DISPLAY_METADATA"),
        "content light": side_data.get("CONTENT_LIGHT_LEVEL"),
    }


def read_title(tags: dict[str, str]) -> str | None:
    """Read a stream's title; MP4 has the name of its handler for it."""
    name = tags.get("handler_name", "")
    return tags.get("title") or (None if name in _HANDLERS else name)


def kept(metadata: dict[str, str]) -> dict[str, str]:
    """Leave out what a container writes of itself."""
    return {key: metadata[key] for key in sorted(metadata) if key.lower() not in _LEFT_ALONE}


def shorten(value: object) -> str:
    """Show a value in a table."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_ABOUT_ALL = ("refused", "said", "holds")  # what is no property of a clip


def unexplained(table: dict[str, dict[str, str]]) -> int:
    """Count the differences that nobody has explained."""
    return sum(
        not (value == "equal" or "(meant: " in value or "(said: " in value or name in _ABOUT_ALL)
        for properties in table.values()
        for name, value in properties.items()
    )


def describe(name: str, found: dict[str, str]) -> str:
    """Return the lines of the table for one clip."""
    if "refused" in found:
        return f"{name}: refused: {found['refused']}"
    lines = [f"  {key}: {value}" for key, value in found.items() if value != "equal"]
    equal = sum(value == "equal" for value in found.values())
    count = sum(key not in _ABOUT_ALL for key in found)
    return "\n".join([f"{name}: {equal} of {count} equal", *lines])


if __name__ == "__main__":
    sys.exit(main())
