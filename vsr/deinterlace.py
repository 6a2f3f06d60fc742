"""Whole frames out of fields, by FFmpeg's bwdif: as many frames as before, at the same times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
from av.filter import Graph


def deinterlaced(frames: Iterable[av.VideoFrame], time_base: Fraction) -> Iterator[av.VideoFrame]:
    """Make a whole frame of the first field of each frame and what moves around it.

    Args:
        frames: of one clip, flagged as interlaced or not; size and format may change.
        time_base: of their timestamps.
    """
    graph: Graph | None = None
    shape: tuple[int, int, str] | None = None
    for frame in frames:
        if shape != (frame.width, frame.height, frame.format.name):
            if graph is not None:
                yield from _finish(graph, time_base)
            shape = (frame.width, frame.height, frame.format.name)
            graph = _graph(frame, time_base)
        assert graph is not None
        graph.push(frame)
        yield from _pull(graph, time_base)
    if graph is not None:
        yield from _finish(graph, time_base)


def _graph(frame: av.VideoFrame, time_base: Fraction) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=time_base
    )
    graph.link_nodes(
        source,
        graph.add("bwdif", "mode=send_frame:parity=auto:deint=all"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _pull(graph: Graph, time_base: Fraction) -> Iterator[av.VideoFrame]:
    while True:
        try:
            frame = graph.vpull()
        except (BlockingIOError, EOFError):
            return
        if frame.time_base and frame.time_base != time_base:  # it counts in half ticks
            ratio = frame.time_base / time_base
            if frame.pts is not None:
                frame.pts = round(frame.pts * ratio)
            frame.duration = round(frame.duration * ratio)
            frame.time_base = time_base
        yield frame


def _finish(graph: Graph, time_base: Fraction) -> Iterator[av.VideoFrame]:
    graph.vpush(None)
    yield from _pull(graph, time_base)
