"""What of a clip its output cannot hold, in sentences that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# MPEG-TS takes anything, and what is not in this list nobody can read back
_TRANSPORT_STREAM = frozenset(
    {"aac", "aac_latm", "ac3", "dts", "eac3", "mp1", "mp2", "mp3", "mp3float", "opus", "s302m"}
    | {"truehd", "dvb_subtitle", "dvbsub", "dvb_teletext", "hdmv_pgs_subtitle", "pgssub"}
    | {"klv", "scte_35", "timed_id3"}
)


# tags that a container writes of itself
_OWN_METADATA = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "handler_name", "vendor_id"}
    | {"DURATION", "duration", "rotate"}
)


def kept_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Leave out the tags that a container writes of itself."""
    return {key: value for key, value in metadata.items() if key not in _OWN_METADATA}


def cannot_be_read_back(container: str, codec: str) -> bool:
    """Tell whether a container takes a codec only to lose what it is."""
    return container == "mpegts" and codec not in _TRANSPORT_STREAM


def label(stream: Any) -> str:
    """Name a stream in a message."""
    return f"{stream.type} stream {stream.index} ({stream.name or 'unknown'})"


def left_out(stream: Any, why: str, output: Path) -> str:
    """Say that a stream is not in the output."""
    return f"{label(stream)} is not kept: {why}{_hint(output)}"


def converted(stream: Any, codec: str, why: str, output: Path, *, loses_style: bool = False) -> str:
    """Say that a stream is in the output in another form."""
    loss = ", without its styles" if loses_style else ""
    return f"{label(stream)} is converted to {codec}{loss}: {why}{_hint(output)}"


def refused_packets(stream: Any, count: int, why: str) -> str:
    """Say that the container took a stream but not all of it."""
    return f"{label(stream)}: {count} packets are not kept: {why}"


def _hint(output: Path) -> str:
    return "" if output.suffix.lower() == ".mkv" else "; an .mkv output may hold it as it is"
