"""What of a clip its output cannot hold, in sentences that say what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from av.stream import Disposition

# MPEG-TS takes anything, and what is not in this list nobody can read back
_TRANSPORT_STREAM = frozenset(
    {"aac", "aac_latm", "ac3", "dts", "eac3", "mp1", "mp2", "mp3", "mp3float", "opus", "s302m"}
    | {"truehd", "dvb_subtitle", "dvbsub", "dvb_teletext", "hdmv_pgs_subtitle", "pgssub"}
    | {"klv", "scte_35", "timed_id3"}
)


# of a stream's packets and who made them, perhaps with a language, as mkvmerge and FFmpeg have them
_STATISTICS = re.compile(
    r"(BPS|DURATION|NUMBER_OF_(BYTES|FRAMES)|_STATISTICS_\w+|ENCODER|encoder)(-[a-z]{2,3})?"
)
# tags that a container writes of itself
_OWN_METADATA = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "handler_name", "vendor_id"}
    | {"DURATION", "duration", "rotate", "alpha_mode", "ALPHA_MODE"}
)
TIMECODES = frozenset({"timecode", "TIMECODE"})
"""tag of the first frame's; MP4 and MOV make a track of it"""
QUICKTIME_SUFFIXES = frozenset({".mp4", ".m4v", ".mov"})
TIMECODE_SUFFIXES = QUICKTIME_SUFFIXES | {".mkv", ".nut", ".webm"}
"""of containers that keep the tag"""
# QuickTime's own list of languages knows these by their older ISO 639-2/B names
_QUICKTIME_LANGUAGES = {
    "deu": "ger", "ell": "gre", "isl": "ice", "mkd": "mac", "nld": "dut", "sqi": "alb",
    "zho": "chi",
}  # fmt: skip


def kept_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Leave out the tags that a container writes of itself."""
    return {key: value for key, value in metadata.items() if key not in _OWN_METADATA}


def stream_metadata(metadata: dict[str, str], output: Path) -> dict[str, str]:
    """Return the tags of a stream as the output's container takes them.

    MP4 has no title of a stream but the name of its handler, which players show.
    """
    kept, suffix = kept_metadata(metadata), output.suffix.lower()
    name = metadata.get("title") or metadata.get("handler_name")
    if name and suffix in QUICKTIME_SUFFIXES:
        kept["handler_name"] = name
    if "language" in kept and suffix == ".mov":
        kept["language"] = _QUICKTIME_LANGUAGES.get(kept["language"], kept["language"])
    return kept


def encoded_metadata(metadata: dict[str, str], output: Path) -> dict[str, str]:
    """Return the tags of a stream that is encoded anew or cut: not those of size and encoder."""
    kept = stream_metadata(metadata, output)
    return {key: value for key, value in kept.items() if not _STATISTICS.fullmatch(key)}


def cannot_be_read_back(container: str, codec: str) -> bool:
    """Tell whether a container takes a codec only to lose what it is."""
    return container == "mpegts" and codec not in _TRANSPORT_STREAM


def label(stream: Any) -> str:
    """Name a stream in a message."""
    return f"{stream.type} stream {stream.index} ({stream.name or 'unknown'})"


def left_out(stream: Any, why: str, output: Path) -> str:
    """Say that a stream is not in the output."""
    return f"{label(stream)} is not kept: {why}{_hint(stream, output)}"


def converted(stream: Any, codec: str, why: str, output: Path, *, loses_style: bool = False) -> str:
    """Say that a stream is in the output in another form."""
    loss = ", without its styles" if loses_style else ""
    return f"{label(stream)} is converted to {codec}{loss}: {why}{_hint(stream, output)}"


def refused_packets(stream: Any, count: int, why: str) -> str:
    """Say that the container took a stream but not all of it."""
    return f"{label(stream)}: {count} packets are not kept: {why}"


def _hint(stream: Any, output: Path) -> str:
    second_picture = stream.type == "video" and not stream.disposition & Disposition.attached_pic
    if stream.type == "data" or second_picture or output.suffix.lower() == ".mkv":
        return ""
    return "; an .mkv output may hold it as it is"
