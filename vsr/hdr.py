"""HDR10 static metadata: read from a decoded frame, told to the encoders that can carry it.

It goes into the bitstream (SEI, or OBU in AV1), where players find it whatever the container.

What the network sees of an HDR clip is what it was trained on, code values: V' of PQ (SMPTE ST
2084) or HLG (ARIB STD-B67), scaled from the range of the clip to [0, 1], as BT.709's are of an SDR
clip. Each of the three transfer functions was made so that equal steps of code look about equally
large, and that, not the light they stand for, is what edges and texture are learned from. Nothing
is mapped from one function to another, and nothing clipped but what lies outside the legal range:
so the same function turns the output into light, neutral stays neutral, and order stays order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction

# FFmpeg's AVMasteringDisplayMetadata: R, G, B and white as (x, y), least and most luminance, all as
# rational numbers; then whether there are primaries, and luminance
_MASTERING = struct.Struct("=20i2i")
_LIGHT = struct.Struct("=2I")


@dataclass(frozen=True, slots=True)
class MasteringDisplay:
    """The display a clip was graded on, SMPTE ST 2086."""

    red: tuple[Fraction, Fraction]
    """CIE 1931 (x, y)"""
    green: tuple[Fraction, Fraction]
    blue: tuple[Fraction, Fraction]
    white: tuple[Fraction, Fraction]
    luminance: tuple[Fraction, Fraction]
    """(least, most), in cd/m2"""


@dataclass(frozen=True, slots=True)
class StaticMetadata:
    """What HDR10 adds to a PQ clip; None where the clip does not say."""

    mastering: MasteringDisplay | None = None
    light: tuple[int, int] | None = None
    """(most of any pixel, most of any frame's mean), in cd/m2: MaxCLL, MaxFALL"""


def parse(mastering: bytes | None, light: bytes | None) -> StaticMetadata:
    """Read FFmpeg's side data of a frame; what is incomplete is left out."""
    display = None
    if mastering is not None and len(mastering) >= _MASTERING.size:
        *numbers, has_primaries, has_luminance = _MASTERING.unpack_from(mastering)
        pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
        if has_primaries and has_luminance and all(below for _, below in pairs):
            red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y, least, most = (
                Fraction(above, below) for above, below in pairs
            )
            display = MasteringDisplay(
                (red_x, red_y), (green_x, green_y), (blue_x, blue_y), (white_x, white_y),
                (least, most),
            )  # fmt: skip
    levels = None
    if light is not None and len(light) >= _LIGHT.size:
        levels = _LIGHT.unpack_from(light)
    return StaticMetadata(display, levels)


def encoder_options(encoder: str, metadata: StaticMetadata) -> dict[str, str] | None:
    """Say it in an encoder's own words.

    Returns:
        Option and value, or None where we know no words for it.
    """
    display, light = metadata.mastering, metadata.light
    if encoder == "libsvtav1":
        words = [f"mastering-display={_display(display, 1, 1)}"] if display else []
        words += [f"content-light={light[0]},{light[1]}"] if light else []
        return {"svtav1-params": ":".join(words)}
    names = {"libx264": ("x264-params", "cll"), "libx265": ("x265-params", "max-cll")}
    if encoder not in names:
        return None
    option, light_name = names[encoder]
    # ST 2086 counts in 0.00002 and in 0.0001 cd/m2
    words = [f"{'mastering-display' if encoder == 'libx264' else 'master-display'}="
             f"{_display(display, 50_000, 10_000)}"] if display else []  # fmt: skip
    words += [f"{light_name}={light[0]},{light[1]}"] if light else []
    return {option: ":".join(words)}


def _display(display: MasteringDisplay, colour_steps: int, luminance_steps: int) -> str:
    def number(value: Fraction, steps: int) -> str:
        return f"{float(value):.5f}" if steps == 1 else str(round(value * steps))

    points = {"G": display.green, "B": display.blue, "R": display.red, "WP": display.white}
    text = "".join(
        f"{name}({number(x, colour_steps)},{number(y, colour_steps)})"
        for name, (x, y) in points.items()
    )
    least, most = (number(value, luminance_steps) for value in display.luminance)
    return f"{text}L({most},{least})"
