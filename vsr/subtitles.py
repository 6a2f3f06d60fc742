"""Text subtitles that a container cannot hold as they are: the same words in a form that it can."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
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
_UNSAID_SECONDS = Fraction(3)  # that a text is shown for which nobody says how long
_MOST_TOGETHER = 2000  # more than anybody reads, of typeset signs


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

        self._lines = OneAtATime() if encoder == "mov_text" else None
        self._tick: Any = None

    def convert(self, packet: Any) -> Iterator[Any]:
        """Yield what becomes of a packet of the input: nothing where nothing is to be shown.

        MP4 shows one text at a time: there it comes when the next one does.
        """
        try:
            decoded = packet.stream.codec_context.decode2(packet)
            if decoded is None or not len(decoded):
                return
            text = self.stream.codec_context.encode_subtitle(decoded)
        except FFmpegError as error:
            log.debug("a subtitle that does not decode: %s", error)
            return
        self._tick = packet.time_base
        if self._lines is None:
            yield self._packet(packet.pts, packet.duration, bytes(text))
        elif packet.pts is not None:
            ticks = packet.duration or round(_UNSAID_SECONDS / packet.time_base)
            lines = self._lines.add(packet.pts, packet.pts + ticks, bytes(text))
            for begin, end, shown in lines:
                yield self._packet(begin, end - begin, shown)

    def rest(self) -> Iterator[Any]:
        """Yield what is still to be shown."""
        for begin, end, shown in self._lines.rest() if self._lines is not None else ():
            yield self._packet(begin, end - begin, shown)

    def _packet(self, pts: int | None, duration: int | None, text: bytes) -> Any:
        found: av.Packet[Any] = av.Packet(text)
        found.pts = found.dts = pts
        found.duration, found.time_base = duration, self._tick
        return found


class OneAtATime:
    """Turns texts that overlap into ones that follow each other, which show them together.

    A text is MP4's sample: the length of its words in two bytes, the words, and styles, which are
    left out where several are shown (3GPP TS 26.245). The older one stands above, equal ones once,
    and what is more than `_MOST_TOGETHER` bytes is left out.
    """

    def __init__(self) -> None:
        self._shown: list[tuple[int, bytes]] = []  # end, text
        self._from = 0

    def add(self, begin: int, end: int, text: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Take a text; yield what is shown before it, or, where it comes late, before the last."""
        yield from self._until(begin)
        self._from = max(self._from, begin)
        if end > self._from:
            self._shown.append((end, text))

    def rest(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield all that is left."""
        yield from self._until(max((end for end, _ in self._shown), default=0))

    def _until(self, time: int) -> Iterator[tuple[int, int, bytes]]:
        while self._shown and self._from < time:
            end = min(time, *(end for end, _ in self._shown))
            yield self._from, end, _together([text for _, text in self._shown])
            self._from = end
            self._shown = [(last, text) for last, text in self._shown if last > end]


def _together(texts: list[bytes]) -> bytes:
    if len(texts) == 1:
        return texts[0]
    words = b""
    for line in dict.fromkeys(text[2 : 2 + int.from_bytes(text[:2], "big")] for text in texts):
        longer = words + b"\n" * bool(words) + line
        words = longer if len(longer) <= _MOST_TOGETHER else words
    return len(words).to_bytes(2, "big") + words
