"""The command line: arguments to one job, errors to one line and an exit code.

Exit codes: 0 done, 1 an error as one line on stderr, 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from vsr.progress import JsonProgress
from vsr.version import __version__

if TYPE_CHECKING:
    from vsr.pipeline import Progress, Result, UpscaleConfig
    from vsr.region import Crop, Zoom

_EXAMPLES = """\
examples:
  vsr upscale clip.mp4                         clip_x4.mp4, four times as large each way
  vsr upscale old.avi -o new.mkv --scale 2     twice as large, in Matroska
  vsr upscale dvd.mkv --size 1440x1080 --crf 20 --preset slow
  vsr upscale photo.jpg                        photo_x4.png, lossless
  vsr upscale clip.mp4 --encoder libx265 --json -q
  vsr upscale clip.mp4 --crop 100,50,64,48     only that part, 256x192
  vsr upscale holiday/ -o large/               each clip and picture in the folder
"""


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    p = argparse.ArgumentParser(
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
        type=Path,
        nargs="+",
        metavar="INPUT",
        help="video, picture, or folder of them; of several, a bad one does not stop the others, "
        "and those whose output exists are skipped",
    )
    up.add_argument(
        "-o",
        "--output",
        help="output file; its suffix names the container (default: INPUT_x4.mp4, .mkv for "
        "Matroska, .png for a picture); or a folder for outputs of these names, a new one with a "
        "slash at its end",
    )
    weights = up.add_mutually_exclusive_group()
    weights.add_argument("--model", metavar="NAME", help="built-in model, see `vsr models`")
    weights.add_argument("--weights", type=Path, metavar="FILE", help="own .safetensors weights")
    up.add_argument(
        "--texture",
        type=float,
        metavar="T",
        help="0: fidelity, nothing is added that the input does not hold: the choice for "
        "evidence, medicine and measuring; 1: all the texture that the model has learned to "
        "invent; between: a mix (default: the model's own, see `vsr models`)",
    )
    up.add_argument(
        "--backend",
        choices=("auto", "pytorch", "openvino", "tensorrt"),
        default="auto",
        help="what runs the network; auto takes the fastest that is there (default)",
    )
    target = up.add_mutually_exclusive_group()
    target.add_argument(
        "--scale", type=float, metavar="S", help="factor up to the model's own, e.g. 2 or 1.5"
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
        "--encoder", default="libx264", metavar="NAME", help="FFmpeg encoder (default: libx264)"
    )
    up.add_argument(
        "--crf", type=float, metavar="N", help="quality, lower is better (default: 16 for libx264)"
    )
    up.add_argument("--preset", metavar="P", help="encoder preset (default: fast for libx264)")
    up.add_argument(
        "--deinterlace",
        action=argparse.BooleanOptionalAction,
        help="make whole frames of interlaced ones, or take them as they are; without either, an "
        "interlaced clip is an error",
    )
    up.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
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
        help="compute only the tiles that differ from the frame before, with the same result: "
        "quicker for a still camera with a clean picture, slower with movement or noise",
    )
    up.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    up.add_argument(
        "--no-resume",
        action="store_true",
        help="start anew where an interrupted run could go on, and drop what it left",
    )
    up.add_argument(
        "--progress",
        choices=("bar", "json"),
        default="bar",
        help="json: progress as one JSON object a line on stderr, instead of the bar",
    )
    up.add_argument("--json", action="store_true", help="end with one line of JSON on stdout")
    _add_verbosity(up)

    models = commands.add_parser("models", help="list the built-in models")
    _add_verbosity(models)
    return p


def _add_verbosity(p: argparse.ArgumentParser) -> None:
    how = p.add_mutually_exclusive_group()
    how.add_argument("-q", "--quiet", action="store_true", help="errors only, no progress bar")
    how.add_argument("-v", "--verbose", action="store_true", help="say more; tracebacks on errors")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT, for example 1280x720, got {text}")
    return int(match[2]), int(match[1])


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


class _BarHandler(logging.Handler):
    """Writes log lines above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(f"vsr: {level}{self.format(record)}", file=sys.stderr)


def _set_up_logging(arguments: argparse.Namespace) -> None:
    level = logging.WARNING
    if arguments.quiet:
        level = logging.ERROR
    if arguments.verbose:
        level = logging.DEBUG
    handler = _BarHandler()
    for name in ("vsr", "engines"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [handler]
        logger.propagate = False
    # what the codec libraries print themselves; their last word is in our one line of error
    libraries = logging.getLogger("libav")
    libraries.handlers, libraries.propagate = [handler], False
    libraries.setLevel(logging.INFO if arguments.verbose else logging.CRITICAL)
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 knows no other way: errors only


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = parser().parse_args(argv)
    _set_up_logging(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _print(_models()) if arguments.command == "models" else _upscale(arguments)
    except KeyboardInterrupt as interruption:
        said = interruption.args[0] if interruption.args else "interrupted, no output was written"
        print(f"vsr: {said}", file=sys.stderr)
        return 130
    except Exception as error:  # one line for people; -v says where
        logging.getLogger("vsr").debug("traceback", exc_info=True)
        print(f"vsr: error: {_describe(error)}", file=sys.stderr)
        return 2 if isinstance(error, _UsageError) else 1


def _describe(error: Exception) -> str:
    # not imported here: the import may be what failed, and costs a second
    known = getattr(sys.modules.get("engines.errors"), "VSRError", _UsageError)
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, (known, _UsageError)):
        text = f"unexpected {type(error).__name__}: {text} (-v shows where)"
    return text


class _UsageError(Exception):
    """An argument that only the job's own checks could refuse."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _print(text: str) -> int:
    """Print results; a reader that has gone away is none of our business."""
    try:
        if text:
            print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the flush at exit
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
        print(f"vsr: error: cannot write to stdout: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _upscale(arguments: argparse.Namespace) -> int:
    from vsr.jobs import make_folder, sources

    several = len(arguments.inputs) > 1 or arguments.inputs[0].is_dir()
    found = sources(arguments.inputs)
    output = None if arguments.output is None else Path(arguments.output)
    if output is not None and (several or arguments.output.endswith(("/", os.sep))):
        output = make_folder(arguments.output)
    configs = [_config(arguments, source, output) for source in found]
    if several:
        return _upscale_all(arguments, configs)
    result = _run_one(arguments, configs[0])
    if arguments.json:
        return _print(json.dumps(_to_json(result)))
    return _print("" if arguments.quiet else _to_text(result))


def _upscale_all(arguments: argparse.Namespace, configs: list[UpscaleConfig]) -> int:
    from vsr.jobs import run_all, summary

    jobs = []
    try:
        for job in run_all(configs, lambda config: _run_one(arguments, config)):
            jobs.append(job)
            if not isinstance(job.outcome, Exception):
                _print("" if arguments.json or arguments.quiet else _to_text(job.outcome))
            elif job.status == "failed":
                logging.getLogger("vsr").debug("traceback", exc_info=job.outcome)
                print(f"vsr: error: {_describe(job.outcome)}", file=sys.stderr)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted after {len(jobs)} of {len(configs)} inputs: the same command goes on"
        ) from None
    if arguments.json:
        fields = [
            {"input": str(job.source), "status": job.status}
            | (
                {"reason": _describe(job.outcome)}
                if isinstance(job.outcome, Exception)
                else _to_json(job.outcome)
            )
            for job in jobs
        ]
        written = _print(json.dumps({"jobs": fields}))
    else:
        written = _print("" if arguments.quiet else summary(jobs, _describe))
    return max(written, any(job.status == "failed" for job in jobs))


def _config(arguments: argparse.Namespace, source: Path, output: Path | None) -> UpscaleConfig:
    from vsr.pipeline import DEFAULT_MODEL, UpscaleConfig

    try:
        return UpscaleConfig(
            source=source,
            output=output,
            model=arguments.weights or arguments.model or DEFAULT_MODEL,
            texture=arguments.texture,
            backend=arguments.backend,
            scale=arguments.scale,
            size=arguments.size,
            encoder=arguments.encoder,
            crf=arguments.crf,
            preset=arguments.preset,
            region=_region(arguments),
            deinterlace=arguments.deinterlace,
            threads=arguments.threads,
            tile=arguments.tile,
            changed_only=arguments.changed_only,
            overwrite=arguments.overwrite,
            resume=not arguments.no_resume,
        )
    except ValueError as error:
        raise _UsageError(str(error)) from error


def _region(arguments: argparse.Namespace) -> Crop | Zoom | None:
    from vsr.region import Crop, Zoom

    if arguments.crop is not None:
        return Crop(*arguments.crop)
    return None if arguments.zoom is None else Zoom(*arguments.zoom)


def _run_one(arguments: argparse.Namespace, config: UpscaleConfig) -> Result:
    from vsr.pipeline import run

    if arguments.progress == "bar":
        return _run_with_bar(config, quiet=arguments.quiet)
    lines = JsonProgress(config.source)
    try:
        return run(config, lines)
    finally:
        lines.last()


def _to_text(result: Result) -> str:
    (height, width), (out_height, out_width) = result.input_size, result.output_size
    texture = f" with texture {result.texture:g}" if result.texture else ""
    return (
        f"{result.output}: {result.frames} frame{'s' * (result.frames != 1)}, "
        f"{width}x{height} to {out_width}x{out_height}, {result.seconds:.1f} s "
        f"({result.fps:.2f} fps), {result.model}{texture} on {result.backend}"
    )


def _run_with_bar(config: UpscaleConfig, *, quiet: bool) -> Result:
    from vsr.pipeline import run

    # disable=None: no bar where stderr is not a terminal
    with tqdm(unit="frame", disable=True if quiet else None) as bar:

        def show(progress: Progress) -> None:
            if progress.total is not None:
                bar.total = max(progress.total, progress.frames)
            if progress.resumed and not bar.n:  # the speed is that of the frames made now
                bar.initial = bar.n = progress.resumed
            bar.update(progress.frames - bar.n)

        result = run(config, show)
        bar.total = result.frames
    return result


def _to_json(result: Result) -> dict[str, object]:
    """Return the documented fields: paths as text, sizes as [width, height]."""
    fields = asdict(result)
    fields |= {"input": str(result.input), "output": str(result.output)}
    fields |= {"input_size": result.input_size[::-1], "output_size": result.output_size[::-1]}
    fields |= {"seconds": round(result.seconds, 3), "fps": round(result.fps, 3)}
    return fields


def _models() -> str:
    from engines.networks import count_parameters
    from engines.weights import BUILT_IN, load_model

    lines = []
    for name, built_in in BUILT_IN.items():
        ends = [load_model(name, texture=0)]
        if built_in.texture_file is not None:
            ends.append(load_model(name, texture=1))
        size = f"{count_parameters(ends[0].net):,} parameters"
        default = f"default texture {built_in.default_texture:g}"
        about = f"x{ends[0].scale}, {size}, {built_in.licence}, {default}"
        lines += [f"{name}: {built_in.summary}", f"  {about}"]
        for model in ends:
            for test_set, score in sorted(model.training.get("scores", {}).items()):
                result = f"PSNR-Y {score['psnr_y']:.2f} dB, SSIM {score['ssim_y']:.4f}"
                if score.get("lpips") is not None:
                    result += f", LPIPS {score['lpips']:.3f}"
                lines.append(f"  texture {model.texture:g}, {test_set}: {result}")
    return "\n".join(lines)
