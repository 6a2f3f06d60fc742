"""The command line: arguments to one job, errors to one line and an exit code.

Exit codes: 0 done, 1 an error as one line on stderr, 2 wrong usage, 130 Ctrl-C, which is however
how a live recording is done.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from vsr.address import Address, is_address, scrub
from vsr.arguments import UsageError, parser, to_config
from vsr.progress import BuildingBar, JsonBuilding, JsonProgress

if TYPE_CHECKING:
    from vsr.config import Progress, Result, UpscaleConfig
    from vsr.kept_engine import KeptEngine


class _BarHandler(logging.Handler):
    """Writes log lines above the progress bar instead of through it, without secrets."""

    scrub: Callable[[str], str] = staticmethod(scrub)

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(f"vsr: {level}{self.scrub(self.format(record))}", file=sys.stderr)


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
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be of any bytes
    arguments = parser().parse_args(argv)
    _set_up_logging(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt as interruption:
        said = interruption.args[0] if interruption.args else "interrupted, no output was written"
        print(f"vsr: {said}", file=sys.stderr)
        return 130
    except Exception as error:  # one line for people; -v says where
        logging.getLogger("vsr").debug("traceback", exc_info=True)
        print(f"vsr: error: {_describe(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _describe(error: Exception) -> str:
    # not imported here: the import may be what failed, and costs a second
    known = getattr(sys.modules.get("engines.errors"), "VSRError", UsageError)
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, (known, UsageError)):
        text = f"unexpected {type(error).__name__}: {text} (-v shows where)"
    return scrub(text)


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
    from vsr.jobs import make_folder, sequence_of, sources

    if any(map(is_address, arguments.inputs)):
        return _record(arguments)
    inputs = sequence_of([Path(name) for name in arguments.inputs], arguments.output)
    several = len(inputs) > 1 or inputs[0].is_dir()
    found = sources(inputs)
    output = None if arguments.output is None else Path(arguments.output)
    if output is not None and (several or arguments.output.endswith(("/", os.sep))):
        output = make_folder(arguments.output)
    configs = [to_config(arguments, source, output) for source in found]
    with _kept_engine(arguments) as kept:
        if several:
            return _upscale_all(arguments, configs, kept)
        result = _run_one(arguments, configs[0], kept)
    return _print_result(arguments, result)


@contextmanager
def _kept_engine(arguments: argparse.Namespace) -> Iterator[KeptEngine]:
    from vsr.kept_engine import KeptEngine

    json_lines = arguments.progress == "json"
    building = JsonBuilding() if json_lines else BuildingBar(quiet=arguments.quiet)
    with closing(building), KeptEngine(building) as kept:
        yield kept


def _print_result(arguments: argparse.Namespace, result: Result) -> int:
    text = "" if arguments.quiet else _to_text(result)
    if arguments.json:
        text = json.dumps(_to_json(result))
    if arguments.output == "-":  # stdout is the clip's
        print(text, end="\n" * bool(text), file=sys.stderr)
        return 0
    return _print(text)


def _upscale_all(
    arguments: argparse.Namespace, configs: list[UpscaleConfig], kept: KeptEngine
) -> int:
    from vsr.jobs import run_all, summary

    jobs = []
    try:
        for job in run_all(configs, lambda config: _run_one(arguments, config, kept)):
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


def _record(arguments: argparse.Namespace) -> int:
    from vsr.connection import Stopped

    if len(arguments.inputs) > 1:
        raise UsageError("a stream is recorded alone: give one address and no other input")
    output = None if arguments.output is None else Path(arguments.output)
    address = Address(arguments.inputs[0])
    for handler in logging.getLogger("vsr").handlers:  # the one that all loggers share
        if isinstance(handler, _BarHandler):
            handler.scrub = address.scrub
    config = to_config(arguments, address, output)
    stop = threading.Event()
    try:
        with _ended_by_signals(stop), _kept_engine(arguments) as kept:
            return _print_result(arguments, _run_one(arguments, config, kept, stop))
    except Stopped as error:
        raise KeyboardInterrupt(f"{error}, no output was written") from None


@contextmanager
def _ended_by_signals(stop: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end a recording well, and a second one break it off."""

    def end(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt("interrupted")
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_one(
    arguments: argparse.Namespace,
    config: UpscaleConfig,
    kept: KeptEngine,
    stop: threading.Event | None = None,
) -> Result:
    from vsr.pipeline import run

    if arguments.progress == "bar":
        return _run_with_bar(config, kept, stop, quiet=arguments.quiet)
    lines = JsonProgress(config.source)
    try:
        return run(config, lines, stop, kept=kept)
    finally:
        lines.last()


def _to_text(result: Result) -> str:
    (height, width), (out_height, out_width) = result.input_size, result.output_size
    texture = f" with texture {result.texture:g}" if result.texture else ""
    name = "standard output" if str(result.output) == "-" else result.output
    dropped = f", {result.dropped} dropped" if result.dropped else ""
    return (
        f"{name}: {result.frames} frame{'s' * (result.frames != 1)}{dropped}, "
        f"{width}x{height} to {out_width}x{out_height}, {result.seconds:.1f} s "
        f"({result.fps:.2f} fps), {result.model}{texture} on {result.backend} {result.precision}"
    )


def _run_with_bar(
    config: UpscaleConfig, kept: KeptEngine, stop: threading.Event | None, *, quiet: bool
) -> Result:
    from vsr.pipeline import run

    # disable=None: no bar where stderr is not a terminal
    with tqdm(unit="frame", disable=True if quiet else None) as bar:

        def show(progress: Progress) -> None:
            if progress.total is not None:
                bar.total = max(progress.total, progress.frames)
            if progress.resumed and not bar.n:  # the speed is that of the frames made now
                bar.initial = bar.n = progress.resumed
            bar.update(progress.frames - bar.n)

        result = run(config, show, stop, kept=kept)
        bar.total = result.frames
    return result


def _to_json(result: Result) -> dict[str, object]:
    """Return the documented fields: paths as text, sizes as [width, height]."""
    fields = asdict(result)
    fields |= {"input": str(result.input), "output": str(result.output)}
    fields |= {"input_size": result.input_size[::-1], "output_size": result.output_size[::-1]}
    fields |= {"seconds": round(result.seconds, 3), "fps": round(result.fps, 3)}
    return fields


def _engines(arguments: argparse.Namespace) -> int:
    from vsr.engine_commands import run

    return _print(run(arguments))


def _models(arguments: argparse.Namespace) -> int:
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
    return _print("\n".join(lines))


_COMMANDS = {"engines": _engines, "models": _models, "upscale": _upscale}
