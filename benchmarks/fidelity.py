"""What of a clip is still the same once it is upscaled?

    python benchmarks/fidelity.py [--clips FOLDER] [--json FILE]

Upscales each clip of a folder, and of those in it (default: shared/data/clips beside the checkout),
by a tiny network, at a quarter of the size and the encoder in haste, for this is about all but
the pixels. Then reads input and output with PyAV and compares property by property: "equal", or
what it was and what it is. A clip that is refused has the reason instead.

Where a difference is known and meant, the reason says so; `unexplained` in the JSON counts the
others. The last line of stdout is one JSON document; the
same goes to `--json` (default: benchmarks/results/fidelity.json).
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

import vsr  # noqa: E402
from benchmarks.report import environment, tiny_weights, write_atomically  # noqa: E402
from engines.errors import VSRError  # noqa: E402
from vsr.pixels import read_layout  # noqa: E402

# differences that are meant: property and what the difference begins with, then why
MEANT = {
    ("matrix", "2 "): "an untagged matrix is named as it was assumed, by the size",
    ("matrix", "3 "): "an untagged matrix is named as it was assumed, by the size",
    ("range", "0 "): "H.264 cannot leave the range open; unsaid is limited",
    ("range", "1 "): "a yuvj format is full range, whatever its tag",
    ("pixel format", "yuvj"): "the same format by its present name; the range is in the tag",
    ("languages", "{"): "of streams that the container cannot hold",
    ("dispositions", "[0"): "MP4 makes the first track of a kind the default one",
}
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
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = tiny_weights(Path(folder))
        for clip in clips:
            table[clip.name] = compare_clip(clip, weights, Path(folder))
            print(describe(clip.name, table[clip.name]), flush=True)
    card = environment("numpy", "av")
    document = {"environment": card, "clips": table, "unexplained": unexplained(table)}
    write_atomically(options.json, json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
    return 0


def compare_clip(clip: Path, weights: Path, folder: Path) -> dict[str, str]:
    """Upscale one clip; return "equal" or the difference for each property."""
    source = folder / clip.name
    source.symlink_to(clip.resolve())
    try:
        result = vsr.upscale(
            source, model=weights, backend="pytorch", scale=0.25, preset="ultrafast", threads=1
        )
    except VSRError as error:
        return {"refused": str(error).replace(f"{folder}/", "")}
    before, after = read_properties(clip), read_properties(result.output)
    result.output.unlink()
    found = {}
    for name in before:
        if before[name] == after[name]:
            found[name] = "equal"
            continue
        found[name] = difference = f"{shorten(before[name])} -> {shorten(after[name])}"
        for (known, begin), why in MEANT.items():
            if name == known and difference.startswith(begin):
                found[name] = f"{difference} (meant: {why})"
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
        picture = video.index
        kinds = {s.index: s.type for s in container.streams if s.index != picture}
        tags = {s.index: s.metadata for s in container.streams}
        dispositions = {s.index: int(s.disposition) for s in container.streams}
        found["sample aspect ratio"] = Fraction(video.sample_aspect_ratio or 1)
        found["metadata"] = kept(container.metadata)
        for packet in container.demux():
            if packet.stream.index != picture:  # `stream_index` of the last, empty packet is 0
                if packet.size and packet.pts is not None:
                    others[packet.stream_index].append(packet.pts * packet.time_base)
                    digests[packet.stream_index].update(bytes(packet))
                continue
            try:
                frames: list[Any] = packet.decode()
            except FFmpegError:  # what a damaged clip does not give
                continue
            for frame in frames:
                if not times:
                    found |= read_frame(frame)
                times.append(frame.pts * frame.time_base)
                durations.append(frame.duration * frame.time_base)
    found |= {"frames": len(times), "frame times": times, "frame durations": durations}
    for kind in ("audio", "subtitle", "data", "attachment"):
        indices = [index for index in kinds if kinds[index] == kind]
        found[f"{kind} streams"] = len(indices)
        found[f"{kind} times"] = [others[index] for index in indices]
        found[f"{kind} bytes"] = [digests[index].hexdigest()[:16] for index in indices]
    found["languages"] = {
        f"{kinds[index]} {n}": tags[index].get("language", "und") for n, index in enumerate(kinds)
    }
    found["dispositions"] = [dispositions[picture], *(dispositions[index] for index in kinds)]
    return found


def read_frame(frame: Any) -> dict[str, Any]:
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
        "display matrix": None if matrix is None else np.frombuffer(matrix, np.int32).tolist(),
        "mastering display": side_data.get("MASTERING_DISPLAY_METADATA"),
        "content light": side_data.get("CONTENT_LIGHT_LEVEL"),
    }


def kept(metadata: dict[str, str]) -> dict[str, str]:
    """Leave out what a container writes of itself."""
    return {key: metadata[key] for key in sorted(metadata) if key.lower() not in _LEFT_ALONE}


def shorten(value: object) -> str:
    """Show a value in a table."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def unexplained(table: dict[str, dict[str, str]]) -> int:
    """Count the differences that nobody has explained."""
    return sum(
        not (value == "equal" or "(meant: " in value or name == "refused")
        for properties in table.values()
        for name, value in properties.items()
    )


def describe(name: str, found: dict[str, str]) -> str:
    """Return the lines of the table for one clip."""
    if "refused" in found:
        return f"{name}: refused: {found['refused']}"
    lines = [f"  {key}: {value}" for key, value in found.items() if value != "equal"]
    equal = sum(value == "equal" for value in found.values())
    return "\n".join([f"{name}: {equal} of {len(found)} equal", *lines])


if __name__ == "__main__":
    sys.exit(main())
