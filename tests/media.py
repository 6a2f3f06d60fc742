"""What a file holds, read with PyAV alone: the yardstick of the fidelity tests."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError


@dataclass
class Probe:
    pts_seconds: list[Fraction] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    sample_aspect_ratio: Fraction = Fraction(1)
    pixel_format: str = ""
    # primaries, transfer, matrix, range
    tags: tuple[int, int, int, int] = (2, 2, 2, 0)
    display_matrix: tuple[int, ...] | None = None
    # kind of stream: one list of packet times in seconds a stream
    packets: dict[str, list[list[Fraction]]] = field(default_factory=dict)
    languages: list[str] = field(default_factory=list)
    chapters: list[tuple[float, float, str]] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    broken_packets: int = 0


def probe(path: Path) -> Probe:
    found = Probe()
    others: dict[int, list[Fraction]] = defaultdict(list)
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        found.sample_aspect_ratio = Fraction(video.sample_aspect_ratio or 1)
        found.metadata = dict(container.metadata)
        found.chapters = [
            (
                float(chapter["start"] * chapter["time_base"]),
                float(chapter["end"] * chapter["time_base"]),
                chapter["metadata"].get("title", ""),
            )
            for chapter in container.chapters()
        ]
        kinds = {s.index: s.type for s in container.streams if s.type in ("audio", "subtitle")}
        found.languages = [container.streams[index].language or "und" for index in kinds]
        for packet in container.demux():
            if packet.stream.index == video.index:
                try:
                    frames: list[Any] = packet.decode()
                except FFmpegError:  # what a damaged clip does not give
                    found.broken_packets += 1
                    continue
                for frame in frames:
                    _look_at(found, frame)
            elif packet.stream.index in kinds and packet.size:
                others[packet.stream_index].append(packet.pts * packet.time_base)
        found.packets = {
            kind: [others[index] for index in kinds if kinds[index] == kind]
            for kind in ("audio", "subtitle")
        }
    return found


def _look_at(found: Probe, frame: Any) -> None:
    if not found.pts_seconds:
        found.size = (frame.height, frame.width)
        found.pixel_format = frame.format.name
        found.tags = (frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range)
        for data in frame.side_data:
            if "DISPLAYMATRIX" in str(data.type):
                found.display_matrix = tuple(np.frombuffer(bytes(data), np.int32).tolist())
    found.pts_seconds.append(frame.pts * frame.time_base)
