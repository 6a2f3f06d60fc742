"""The command line's words: what may be said, and the one record that it becomes."""

from __future__ import annotations

import argparse
import re
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vsr.address import Address, scrub
from vsr.version import __version__

if TYPE_CHECKING:
    from vsr.config import UpscaleConfig
    from vsr.region import Crop, Zoom
    from vsr.span import Span

_TELEVISION = frozenset({24, 30, 48, 60, 120})  # by 1000/1001, frames a second
_RATE_TOLERANCE = Fraction(2, 10**6)  # what 23.976 and 29.97 are from television's rates

_EXAMPLES = """\
examples:
  vsr upscale clip.mp4                         clip_x4.mp4, four times as large each way
  vsr upscale old.avi -o new.mkv --scale 2     twice as large, in Matroska
  vsr upscale dvd.mkv --size 1440x1080 --crf 20 --preset slow
  vsr upscale photo.jpg                        photo_x4.png, lossless
  vsr upscale clip.mp4 --encoder libx265 --json -q
  vsr upscale clip.mp4 --crop 100,50,64,48     only that part, 256x192
  vsr upscale film.mkv --start 1:20:00 --end 1:20:10   ten seconds, to try it
  vsr upscale holiday/ -o large/               each clip and picture in the folder
  vsr upscale frames/%06d.png --fps 24 -o clip.mp4     numbered pictures are a clip
  vsr upscale clip.mp4 -o out/%06d.png         a numbered picture for each frame
  vsr upscale clip.mp4 -o - | ffplay -         into a pipe, as YUV4MPEG2
  vsr upscale rtsp://camera/door -o door.mkv --live
"""


class _Parser(argparse.ArgumentParser):
    """Shows no password of an address in the wrong place, and takes no flag for another."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        super().error(scrub(message))


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    p = _Parser(
        prog="vsr",
        description="Video super-resolution: the same clip, up to four times as large each way.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--version", action="version", version=f"vsr {__version__}")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = commands.add_parser(
        "upscale",
        help="upscale a video or a picture",
        description="Upscale a video (sound, subtitles and timing are kept) or a picture.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    up.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="video, picture, or folder of them; of several, a bad one does not stop the others, "
        "and those whose output exists are skipped; or numbered pictures, such as "
        "frames/%%06d.png; or -, YUV4MPEG2 from standard input; or, with --live, the address of "
        "a stream",
    )
    up.add_argument(
        "-o",
        "--output",
        help="output file; its suffix names the container (default: INPUT_x4.mp4, .mkv for "
        "Matroska, .png for a picture, which may be .tif too); or a folder for outputs of these "
        "names, a new one with a slash at its end; or a numbered picture for each frame, such as "
        "out/%%06d.png or .tif; or -, YUV4MPEG2 to standard output",
    )
    up.add_argument(
        "--fps",
        type=_rate,
        metavar="N/D",
        help="pictures a second of a numbered sequence (default: 25); 23.976 and 29.97 are taken "
        "for 24000/1001 and 30000/1001",
    )
    _add_model(up)
    up.add_argument(
        "--backend",
        choices=("auto", "pytorch", "openvino", "tensorrt"),
        default="auto",
        help="what runs the network; auto takes the fastest that is there (default)",
    )
    up.add_argument(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16", "int8"),
        default="auto",
        help="what the network computes in; auto leaves it to the back end (default), and one that "
        "the back end does not have is an error",
    )
    target = up.add_mutually_exclusive_group()
    target.add_argument(
        "--scale", type=_factor, metavar="S", help="factor up to the model's own, e.g. 2 or 1.5"
    )
    target.add_argument(
        "--size", type=_size, metavar="WxH", help="output size; the picture's shape is kept"
    )
    part = up.add_mutually_exclusive_group()
    part.add_argument(
        "--crop",
        type=_crop,
        metavar="X,Y,W,H",
        help="only this part of the upright picture: left edge, top edge, width, height",
    )
    part.add_argument(
        "--zoom",
        type=_zoom,
        metavar="FACTOR@X,Y",
        help="only the part around a point that is a FACTORth as wide and high",
    )
    up.add_argument(
        "--start",
        type=_time,
        metavar="TIME",
        help="leave out what is before this time from the clip's beginning: seconds, or "
        "[HH:]MM:SS, with a fraction if need be",
    )
    up.add_argument("--end", type=_time, metavar="TIME", help="leave out what is from this time on")
    up.add_argument(
        "--decoder",
        choices=("auto", "cpu", "nvdec"),
        default="auto",
        help="where a clip is decoded; auto: by NVDEC where the engine is on an NVIDIA GPU and "
        "NVDEC gives the CPU's first frame to the bit, else on the CPU (default)",
    )
    up.add_argument(
        "--encoder",
        default="libx264",
        metavar="NAME",
        help="FFmpeg encoder (default: libx264); h264_nvenc, hevc_nvenc and av1_nvenc need a GPU "
        "with NVENC, and take its frames from its memory",
    )
    up.add_argument(
        "--crf",
        type=_quality,
        metavar="N",
        help="quality, lower is better: 0 to 51 for libx264 (default: 16), to 63 for AV1 and VP9",
    )
    up.add_argument("--preset", metavar="P", help="encoder preset (default: veryfast for libx264)")
    up.add_argument(
        "--pixel-format",
        metavar="NAME",
        help="depth and chroma of the encoded clip, such as yuv420p, for players that take no "
        "other (default: the encoder's nearest to the input's)",
    )
    up.add_argument(
        "--deinterlace",
        action=argparse.BooleanOptionalAction,
        help="make whole frames of interlaced ones, or take them as they are; without either, an "
        "interlaced clip is an error",
    )
    up.add_argument("--threads", type=int, metavar="N", help="CPU threads a stage (default: all)")
    up.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="compute frames in parts of NxN pixels of the input, with the same result in less "
        "memory (default: whole frames, or parts that fit into the memory that is free)",
    )
    up.add_argument(
        "--changed-only",
        action="store_true",
        help="compute only the tiles that differ from the frame before, with the same result: for "
        "a camera that stands still",
    )
    up.add_argument(
        "--changed-threshold",
        type=float,
        default=0.0,
        metavar="LEVELS",
        help="with --changed-only: take a tile as unchanged while no R, G or B in it is more than "
        "so many levels of 255 from what it was made of (default: 0, exact). For noise; the "
        "picture stands still where it is used",
    )
    up.add_argument(
        "--start-now",
        action="store_true",
        help="with --backend tensorrt: where the engine must be built first, begin on PyTorch and "
        "change over before the first frame of a segment; when that is differs from run to run, so "
        "the output of a second or a resumed run is not the same to the bit",
    )
    up.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    up.add_argument(
        "--no-resume",
        action="store_true",
        help="start anew where an interrupted run could go on, drop what it left, and keep nothing "
        "for a later one",
    )
    up.add_argument(
        "--progress",
        choices=("bar", "json"),
        default="bar",
        help="json: progress as one JSON object a line on stderr, instead of the bar",
    )
    up.add_argument(
        "--json", action="store_true", help="end with one line of JSON on stdout (stderr with -o -)"
    )
    _add_live(up)
    _add_verbosity(up)

    models = commands.add_parser("models", help="list the built-in models")
    _add_verbosity(models)
    _add_engines(commands)
    return p


def _add_live(up: argparse.ArgumentParser) -> None:
    live = up.add_argument_group(
        "live streams",
        "rtsp, rtmp, http, srt, udp or tcp, as far as FFmpeg's build has them. Ctrl-C or SIGTERM "
        "ends the recording as it is meant to end: a whole file and exit code 0; a second one "
        "breaks it off: what there is stays in OUTPUT.*.partial.* and the exit code is 130, as it "
        "is before the first frame",
    )
    live.add_argument(
        "--live",
        action="store_true",
        help="record the stream at an address at its own pace, frames dropped where the network "
        "is too slow; sound is copied, where the output's container can hold it",
    )
    live.add_argument(
        "--live-depth",
        type=int,
        metavar="N",
        help="frames waiting or at work at most; the oldest waiting is dropped (default: 4)",
    )
    live.add_argument(
        "--reconnect",
        type=_seconds,
        metavar="SECONDS",
        help="try so long to get a broken connection back, then end the recording (default: 10)",
    )


def _add_engines(commands: Any) -> None:
    engines = commands.add_parser(
        "engines",
        help="build, list and clear compiled TensorRT engines",
        description="TensorRT compiles an engine for each model and frame size, and keeps it in "
        "$VSR_ENGINE_CACHE or the user's cache folder.",
    )
    actions = engines.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser(
        "build",
        help="compile an engine before it is needed",
        description="Compile an engine, try it out on this machine's GPU, and keep it. `vsr "
        "upscale --backend tensorrt` takes the newest for its model, precision and frame size.",
    )
    build.add_argument(
        "--size", type=_size, metavar="WxH", required=True, help="size of the frames that go in"
    )
    _add_model(build)
    build.add_argument(
        "--batch", type=int, default=1, metavar="N",
        help="frames at once (default: 1, what `vsr upscale` takes)",
    )  # fmt: skip
    build.add_argument("--precision", choices=("fp16", "fp32"), default="fp16")
    build.add_argument(
        "--exporter",
        choices=("onnx", "torch-tensorrt"),
        default="onnx",
        help="what hands the network to TensorRT: a graph in ONNX (default), or Torch-TensorRT, "
        "which must be installed and says nothing of its progress",
    )
    build.add_argument(
        "--level", type=int, default=3, metavar="N",
        help="0 (quick build) to 5 (tries everything) (default: 3)",
    )  # fmt: skip
    build.add_argument(
        "--workspace", type=_bytes, metavar="BYTES",
        help="most scratch memory a layer may take on the GPU, e.g. 512M or 4G (default: all)",
    )  # fmt: skip
    build.add_argument(
        "--tiling",
        choices=("none", "fast", "moderate", "full"),
        default="none",
        help="how long to look for tiles that stay in the GPU's cache (default: none)",
    )
    _add_verbosity(build)
    _add_verbosity(actions.add_parser("list", help="say which engines are there"))
    _add_verbosity(actions.add_parser("clear", help="delete all engines and build timings"))


def _add_model(p: argparse.ArgumentParser) -> None:
    weights = p.add_mutually_exclusive_group()
    weights.add_argument("--model", metavar="NAME", help="built-in model, see `vsr models`")
    weights.add_argument("--weights", type=Path, metavar="FILE", help="own .safetensors weights")
    p.add_argument(
        "--texture",
        type=_share,
        metavar="T",
        help="0: fidelity, the model's best estimate, smooth where it is not sure, no texture made "
        "up: the choice for evidence, medicine and measuring; 1: all the texture that the model "
        "has learned to invent; between: a mix (default: the model's own, see `vsr models`)",
    )


def _add_verbosity(p: argparse.ArgumentParser) -> None:
    how = p.add_mutually_exclusive_group()
    how.add_argument("-q", "--quiet", action="store_true", help="errors only, no progress bar")
    how.add_argument("-v", "--verbose", action="store_true", help="say more; tracebacks on errors")


def _number(text: str, example: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number, for example {example}, got {text}"
        ) from None


def _factor(text: str) -> float:
    return _number(text, "2 or 1.5")


def _quality(text: str) -> float:
    return _number(text, "20")


def _share(text: str) -> float:
    return _number(text, "0 or 0.5")


def _seconds(text: str) -> float:
    return _number(text, "10")


def _time(text: str) -> float:
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+\.?\d*|\.\d+)", text)
    if (
        not match
        or (match[1] is not None and int(match[2]) >= 60)
        or (match[2] is not None and float(match[3]) >= 60)
    ):
        raise argparse.ArgumentTypeError(
            f"expected seconds or [HH:]MM:SS, for example 90.5 or 1:30.5, got {text}"
        )
    return int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + float(match[3])


def _rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"expected a number of pictures a second, for example 25 or 30000/1001, got {text}"
        ) from None
    television = Fraction(round(rate * 1001 / 1000) * 1000, 1001)
    is_rounded = "." in text and abs(rate - television) <= television * _RATE_TOLERANCE
    return television if is_rounded and round(television) in _TELEVISION else rate


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT, for example 1280x720, got {text}")
    return int(match[2]), int(match[1])


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMGkmg]?)", text)
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(
            f"expected a number of bytes such as 512M or 4G, got {text}"
        )
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]


def _crop(text: str) -> tuple[int, int, int, int]:
    match = re.fullmatch(r"(\d+),(\d+),(\d+),(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected X,Y,W,H, for example 100,50,64,48, got {text}")
    return int(match[1]), int(match[2]), int(match[3]), int(match[4])


def _zoom(text: str) -> tuple[float, int, int]:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)@(\d+),(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected FACTOR@X,Y, for example 2@320,180, got {text}")
    return float(match[1]), int(match[2]), int(match[3])


class UsageError(Exception):
    """An argument that only the job's own checks could refuse."""


def to_config(
    arguments: argparse.Namespace, source: Path | Address, output: Path | None
) -> UpscaleConfig:
    """Make one record of the arguments.

    Raises:
        UsageError: one of them is out of its range.
    """
    from vsr.config import DEFAULT_MODEL, UpscaleConfig

    pace = {"live_depth": arguments.live_depth, "reconnect_seconds": arguments.reconnect}
    pace = {name: value for name, value in pace.items() if value is not None}
    if pace and not arguments.live:
        raise UsageError("--live-depth and --reconnect are for --live")
    try:
        return UpscaleConfig(
            source=source,
            output=output,
            fps=arguments.fps,
            model=arguments.weights or arguments.model or DEFAULT_MODEL,
            texture=arguments.texture,
            backend=arguments.backend,
            precision=arguments.precision,
            scale=arguments.scale,
            size=arguments.size,
            decoder=arguments.decoder,
            encoder=arguments.encoder,
            crf=arguments.crf,
            preset=arguments.preset,
            pixel_format=arguments.pixel_format,
            region=_region(arguments),
            span=_span(arguments),
            deinterlace=arguments.deinterlace,
            threads=arguments.threads,
            tile=arguments.tile,
            changed_only=arguments.changed_only,
            changed_threshold=arguments.changed_threshold,
            start_now=arguments.start_now,
            overwrite=arguments.overwrite,
            resume=not arguments.no_resume,
            live=arguments.live,
            **pace,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _span(arguments: argparse.Namespace) -> Span | None:
    from vsr.span import Span

    if arguments.start is None and arguments.end is None:
        return None
    return Span(arguments.start or 0.0, inf if arguments.end is None else arguments.end)


def _region(arguments: argparse.Namespace) -> Crop | Zoom | None:
    from vsr.region import Crop, Zoom

    if arguments.crop is not None:
        return Crop(*arguments.crop)
    return None if arguments.zoom is None else Zoom(*arguments.zoom)
