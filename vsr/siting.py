"""Where the chroma samples of a clip lie: read from a decoded frame, told to the encoder.

PyAV does not show this property of a frame. FFmpeg's filter showinfo writes it to the log.
"""

from __future__ import annotations

import re
from fractions import Fraction

import av
import av.logging
from av.error import FFmpegError
from av.filter import Graph

from vsr.convert import PlaneLayout, Siting
from vsr.ffmpeg import log_lines

# FFmpeg's names of the types of ITU-T H.273, figure 1; "unspecified" is none of them
_NAMES: dict[str, Siting] = {
    "left": "left",
    "center": "centre",
    "topleft": "topleft",
    "top": "top",
    "bottomleft": "bottomleft",
    "bottom": "bottom",
}
_OPTION_VALUES: dict[Siting, str] = {siting: name for name, siting in _NAMES.items()}
_CENTRED_DECODERS = frozenset({"mjpeg", "mpeg1video", "vp8", "webp"})
_CENTRED_ENCODERS = frozenset({"mjpeg", "mpeg1video"})
# what each encoder writes into the bitstream, and a decoder reads from it; for 4:2:0 only
_TELLS: dict[str, frozenset[Siting]] = {
    "libx264": frozenset(_OPTION_VALUES),
    "libx265": frozenset(_OPTION_VALUES),
    "libsvtav1": frozenset({"left", "topleft"}),
}


def read_siting(frame: av.VideoFrame, decoder: str) -> Siting:
    """Return where the chroma samples of a frame lie: as it says, or as its codec has it."""
    match = re.search(r"\bcl:(\w+)", _showinfo(frame))
    default: Siting = "centre" if decoder in _CENTRED_DECODERS else "left"
    return _NAMES.get(match[1], default) if match else default


def _showinfo(frame: av.VideoFrame) -> str:
    try:
        with log_lines(av.logging.INFO) as lines:
            graph = Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format,
                time_base=Fraction(1, 1000),
            )  # fmt: skip
            graph.link_nodes(source, graph.add("showinfo"), graph.add("buffersink")).configure()
            graph.push(frame)
            graph.pull()
    except FFmpegError:  # a format that no filter takes
        return ""
    return " ".join(str(line[2]) for line in lines)


def output_siting(encoder: str, layout: PlaneLayout, wanted: Siting) -> Siting:
    """Return where chroma is to lie in what an encoder is given.

    It is where it lay, if the encoder can tell; elsewhere it is moved to where players expect it.

    Args:
        encoder: its name.
        layout: of the output's planes; its siting does not matter.
        wanted: where chroma lay in the input.
    """
    if layout.chroma_step == (2, 2) and wanted in _TELLS.get(encoder, ()):
        return wanted
    return "centre" if encoder in _CENTRED_ENCODERS else "left"


def siting_options(encoder: str, layout: PlaneLayout) -> dict[str, str]:
    """Return the option that makes an encoder tell the siting of its planes."""
    if layout.chroma_step != (2, 2) or encoder not in _TELLS:
        return {}
    return {"chroma_sample_location": _OPTION_VALUES[layout.siting]}
