"""Sound that a container cannot hold as it is: decoded and encoded again, in sync.

Only where the container demands it. What was without loss stays so where the container has a codec
for that; anything else becomes AAC, or Opus in WebM, at a rate that is above suspicion.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
from av.audio.frame import AudioFrame
from av.error import FFmpegError
from av.filter import Graph

log = logging.getLogger(__name__)

# libavformat's name of a container: codec for sound that has no loss yet, and for any other
_CODECS: dict[str, tuple[str, str]] = {
    "mp4": ("alac", "aac"),
    "mov": ("alac", "aac"),
    "ipod": ("alac", "aac"),  # .m4v
    "matroska": ("flac", "aac"),
    "webm": ("libopus", "libopus"),
    "mpegts": ("aac", "aac"),
    "3gp": ("aac", "aac"),
    "flv": ("aac", "aac"),
}
_LOSSY_PCM = ("pcm_alaw", "pcm_mulaw", "pcm_vidc")
_LOSSLESS = frozenset({"alac", "ape", "flac", "mlp", "shorten", "truehd", "tta", "wavpack"})
_CHANNEL_BITS = 128_000  # a second; for codecs that ask
_MOST_BITS = 640_000
_SIZED_CODECS = frozenset({"aac", "libopus"})
# gaps and overlaps larger than this are filled with silence or cut, so that sound stays in sync
_DRIFT_SECONDS = 0.03


def sound_codec(container: str, codec: str) -> str | None:
    """Choose the codec for sound that a container cannot hold.

    Args:
        container: libavformat's name of it.
        codec: that the sound has.

    Returns:
        The encoder's name; None where we know none for this container.
    """
    if container not in _CODECS:
        return None
    lossless = codec in _LOSSLESS or (codec.startswith("pcm_") and codec not in _LOSSY_PCM)
    return _CODECS[container][0 if lossless else 1]


def known_layout(stream: Any) -> str:
    """Name the channels of a sound stream; where it only counts them, as usual for so many."""
    layout = stream.codec_context.layout
    if " " not in layout.name or not layout.nb_channels:
        return str(layout.name)
    return str(av.AudioLayout(f"{layout.nb_channels}c").name)


class SoundConverter:
    """Decodes one sound stream and encodes it into an output stream.

    The decoder leaves out the samples that prime it, by the input's own account, and the encoder
    says how many it adds, which the container writes down: what is heard stays at its time.

    Args:
        container: the output.
        source: the input's stream.
        encoder: name.

    Attributes:
        stream: of the output.

    Raises:
        ValueError, FFmpegError: there is no such encoder here, or it does not take such sound.
    """

    def __init__(self, container: Any, source: Any, encoder: str) -> None:
        codec = av.Codec(encoder, "w")
        context = source.codec_context
        if context.format is None or not context.sample_rate:  # it begins later than FFmpeg looks
            raise ValueError("its kind of samples is unknown")
        self._layout = known_layout(source)
        self._rate = _nearest_rate(context.sample_rate, codec.audio_rates)
        self._format = _nearest_format(context.format, codec.audio_formats)
        options = {}
        if encoder in _SIZED_CODECS:
            options["b"] = str(min(_MOST_BITS, _CHANNEL_BITS * context.layout.nb_channels))
        self.stream = container.add_stream(encoder, rate=self._rate, options=options)
        self.stream.codec_context.layout = self._layout
        self.stream.codec_context.format = self._format
        self.stream.time_base = Fraction(1, self._rate)
        self._decoder: Any = None
        self._graph: Graph | None = None
        self._shape: tuple[str, str, int] | None = None

    def convert(self, packet: Any) -> Iterator[Any]:
        """Yield what becomes of a packet of the input; damaged sound becomes silence."""
        if self._decoder is None:
            self._decoder = packet.stream.codec_context
        yield from self._encoded(self._decoded(packet))

    def rest(self) -> Iterator[Any]:
        """Yield what decoder and encoder still hold."""
        if self._decoder is not None:
            yield from self._encoded(self._decoded(None))
        yield from self._encoded(self._finished_graph())
        if self._shape is not None:
            yield from self.stream.encode(None)

    def _decoded(self, packet: Any) -> Iterator[AudioFrame]:
        try:
            yield from self._decoder.decode(packet)
        except EOFError:
            pass
        except FFmpegError as error:
            log.debug("sound that does not decode: %s", error)

    def _encoded(self, frames: Iterator[AudioFrame]) -> Iterator[Any]:
        for frame in frames:
            for evened in self._evened(frame):
                yield from self.stream.encode(evened)

    def _evened(self, frame: AudioFrame) -> Iterator[AudioFrame]:
        """Bring a frame to the encoder's format, without gaps or overlaps."""
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if shape != self._shape:
            yield from self._finished_graph()
            self._graph, self._shape = self._new_graph(frame), shape
        assert self._graph is not None
        self._graph.push(frame)
        yield from _pulled(self._graph)

    def _finished_graph(self) -> Iterator[AudioFrame]:
        if self._graph is not None:
            self._graph.push(None)
            yield from _pulled(self._graph)
            self._graph = None

    def _new_graph(self, frame: AudioFrame) -> Graph:
        graph = Graph()
        layout = frame.layout.name
        source = graph.add_abuffer(
            sample_rate=frame.sample_rate, format=frame.format.name,
            layout=self._layout if " " in layout else layout, time_base=frame.time_base,
        )  # fmt: skip
        graph.link_nodes(
            source,
            graph.add("aresample", f"async=1:min_hard_comp={_DRIFT_SECONDS}"),
            graph.add(
                "aformat",
                f"sample_fmts={self._format}:sample_rates={self._rate}"
                f":channel_layouts={self._layout}",
            ),
            graph.add("abuffersink"),
        ).configure()
        return graph


def _pulled(graph: Graph) -> Iterator[AudioFrame]:
    while True:
        try:
            frame = graph.pull()
        except (BlockingIOError, EOFError):
            return
        assert isinstance(frame, AudioFrame)
        yield frame


def _nearest_rate(rate: int, offered: list[int] | None) -> int:
    """Return the least rate offered that loses nothing, or the highest."""
    if not offered or rate in offered:
        return rate
    return min((found for found in offered if found > rate), default=max(offered))


def _nearest_format(wanted: Any, offered: list[Any] | None) -> str:
    """Return the sample format offered that holds the wanted one with the fewest bits."""
    if not offered:
        return str(wanted.name)
    enough = [found for found in offered if found.bits >= wanted.bits]
    if wanted.name.startswith(("flt", "dbl")):
        enough = [found for found in enough if found.name.startswith(("flt", "dbl"))] or enough
    best = min(enough, key=lambda found: found.bits) if enough else offered[0]
    return str(best.name)
