"""Text subtitles that a container cannot hold as they are: the same words in a form that it can."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import av
from av.error import FFmpegError

log = logging.getLogger(__name__)

# libavformat's name of a container: its encoder for text
_CODECS = {
    "mp4": "mov_text",
    "mov": "mov_text",
    "ipod": "mov_text",
    "matroska": "srt",
    "webm": "webvtt",
}
_STYLED = frozenset({"ass", "ssa"})


def subtitle_codec(container: str, source: Any) -> str | None:
    """Choose the codec for subtitles that a container cannot hold.

    Returns:
        The encoder's name; None where we know none, or the subtitles are pictures.
    """
    if source.codec_context is None or not source.codec_context.codec.text_sub:
        return None
    return _CODECS.get(container)


def loses_style(codec: str) -> bool:
    """Tell whether subtitles of a codec have fonts, colours and places that are not kept."""
    return codec in _STYLED


class SubtitleConverter:
    """Decodes one stream of text subtitles and encodes it into an output stream.

    Args:
        container: the output.
        source: the input's stream.
        encoder: name.

    Attributes:
        stream: of the output.

    Raises:
        ValueError, FFmpegError: it cannot be converted.
    """

    def __init__(self, container: Any, source: Any, encoder: str) -> None:
        decoder = source.codec_context
        decoder.open(strict=False)
        self.stream = container.add_stream(encoder)
        self.stream.codec_context.subtitle_header = decoder.subtitle_header or b""
        self.stream.codec_context.time_base = source.time_base
        self.stream.time_base = source.time_base

    def convert(self, packet: Any) -> Iterator[Any]:
        """Yield what becomes of a packet of the input: nothing where nothing is to be shown."""
        try:
            decoded = packet.stream.codec_context.decode2(packet)
            if decoded is None or not len(decoded):
                return
            text = self.stream.codec_context.encode_subtitle(decoded)
        except FFmpegError as error:
            log.debug("a subtitle that does not decode: %s", error)
            return
        found: av.Packet[Any] = av.Packet(bytes(text))
        found.pts, found.dts, found.duration = packet.pts, packet.dts, packet.duration
        found.time_base = packet.time_base
        yield found

    def rest(self) -> Iterator[Any]:
        """Yield nothing: each subtitle stands alone."""
        yield from ()
