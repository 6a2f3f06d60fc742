"""The whole program: a chain of generators from file to file.

    decode ─▸ to RGB ─▸ engine ─▸ to planes ─▸ encode
    thread    thread    thread    thread       the caller's thread

On an NVIDIA GPU the three in the middle are one thread, which launches work and does not wait, and
frames travel in the slots of `vsr.transfer`, three of them, which bound its memory.

On a CPU a queue of `QUEUE_DEPTH` stands between two stages, so at most `QUEUE_DEPTH` + 2 frames
exist at each hand-over, whatever the length of the clip. For an 8-bit 4:2:0 input of W x H that is
54 W*H bytes before the engine (1.5 a pixel as planes, 12 as RGB) and, at four times the size, 16
times as much after it, plus what the engine and the encoder hold; where the engine makes the planes
itself (see `vsr.finish`), 24 W*H after it. An engine that computes several frames at once holds a
frame and a result more for each. Where that is more than memory
has free, enlarged frames are made strip by strip (see `vsr.strips`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engines import Backend, Building, Precision, load_model
from engines.errors import MediaError
from engines.safety import SafeEngine
from vsr.address import Address, is_address
from vsr.choices import (
    choose_decoder,
    needs_float32,
    segment_frames,
    share_threads,
    tile_side,
)
from vsr.clip import warn_of_marks
from vsr.config import DEFAULT_MODEL, Progress, Result, UpscaleConfig
from vsr.encode import EncoderSettings, PictureEncoding
from vsr.frames import check_frames, is_sequence, refuse_single_picture, upscale_to_frames
from vsr.hardware import Decoder
from vsr.inputs import open_reader
from vsr.job_key import job_key
from vsr.kept_engine import KeptEngine
from vsr.live_job import record
from vsr.memory import automatic_lanes, automatic_strip, automatic_tile, peak_bytes
from vsr.output import check_output, default_output, kept_aspect_ratio, output_size
from vsr.pattern import is_pattern
from vsr.region import Crop, Zoom
from vsr.segments import SegmentedWriter
from vsr.span import Span
from vsr.stages import StageMeters, chained, device_of
from vsr.stdout import STDOUT, check_stdout, upscale_to_stdout
from vsr.still import upscale_still
from vsr.video import Reader

log = logging.getLogger(__name__)


def upscale(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    fps: Fraction | int | None = None,
    model: str | Path = DEFAULT_MODEL,
    texture: float | None = None,
    backend: Backend = "auto",
    precision: Precision = "auto",
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    decoder: Decoder = "auto",
    encoder: str = "libx264",
    crf: float | None = None,
    preset: str | None = None,
    pixel_format: str | None = None,
    region: Crop | Zoom | None = None,
    span: Span | None = None,
    deinterlace: bool | None = None,
    threads: int | None = None,
    tile: int | None = None,
    changed_only: bool = False,
    changed_threshold: float = 0.0,
    start_now: bool = False,
    overwrite: bool = False,
    resume: bool = True,
    live: bool = False,
    live_depth: int = 4,
    reconnect_seconds: float = 10.0,
    stop: threading.Event | None = None,
    progress: Callable[[Progress], None] | None = None,
    building: Callable[[Building], None] | None = None,
) -> Result:
    """Upscale a clip or a still, or record a live stream.

    Args:
        source: any video or picture that FFmpeg reads; or numbered pictures, as a pattern such as
            `frames/%06d.png`; or "-": YUV4MPEG2 from standard input; for `live` the address of
            a stream.
        output: its suffix names the container; None: `clip_x4.mp4` beside the source; a folder:
            that name in it; a pattern: a numbered picture for each frame; "-": YUV4MPEG2 to
            standard output.
        fps: pictures a second of numbered ones; None: 25.
        model: a built-in model's name (`vsr models`), or the path of a weights file.
        texture: 0 adds no detail that is not in the input (evidence, medicine), 1 adds all the
            texture that the model has learned; None: the model's default.
        backend: "auto" takes the fastest that is there; a named one is used or raises.
        precision: what the network computes in; "auto" leaves it to the back end.
        scale: factor from above 0 to the model's own; below it the result is shrunk by antialiased
            bicubic interpolation.
        size: (height, width) instead of `scale`. The picture keeps its shape: where the size has
            another, a clip's sample aspect ratio changes with a warning, and a still raises.
        decoder: "cpu"; "nvdec", which decodes on the engine's GPU or raises; "auto", which tries
            NVDEC where the engine is on a GPU.
        encoder: name of an FFmpeg video encoder; those of NVENC take the engine's result from the
            GPU.
        crf: constant quality in the encoder's scale; None: visually lossless.
        preset: the encoder's speed preset.
        pixel_format: of the encoded clip, by FFmpeg's name; None: the encoder's nearest to the
            input's.
        span: `vsr.Span`: only that part of the clip, in seconds from its beginning.
        region: `vsr.Crop` or `vsr.Zoom`: only that part of the upright picture is computed.
        deinterlace: make whole frames of an interlaced clip's fields; False: take it as it is;
            None: refuse it.
        threads: CPU threads for each stage that has its own; None leaves it to each.
        tile: compute a frame in parts of tile x tile pixels of the input, with the overlap that
            makes it the same; None: the whole frame at once, unless memory is short.
        changed_only: compute only the tiles that differ from those of the frame before: the same
            result, quicker where the camera stands still and slower where it moves.
        changed_threshold: with `changed_only`: a tile counts as unchanged while no R, G or B in it
            is more than so many levels of 255 from what it was made of. 0: the same result.
        start_now: with backend "tensorrt": begin on PyTorch where the engine has to be built first,
            and change over before the first frame of a segment. Where that is depends on the
            machine's load, so neither a second run nor a resumed one is the same to the bit.
        overwrite: replace an output that exists.
        resume: go on where an interrupted run of the same job stopped; False: drop what it left.
        live: record a stream (rtsp://, udp://, ...) at its own pace, until it ends or `stop`.
        live_depth: at most so many of its frames are waiting or at work; the oldest that waits is
            dropped for a new one.
        reconnect_seconds: how long to try to get a broken connection back.
        stop: when it is set, a recording ends, as a whole file.
        progress: called from this thread after each frame.
        building: called from any thread while TensorRT compiles, which can take minutes.

    Returns:
        What was done. The output is complete under its name, or, where this raises, not there.

    Raises:
        MediaError: the input cannot be read or the output not written.
        WeightsError: the model does not exist or cannot be loaded.
        BackendUnavailable, EngineBuildError: the back end is not there or refuses the model.
        ValueError: an argument is out of its range.
    """
    text = os.fspath(source)
    config = UpscaleConfig(
        source=Address(text) if is_address(text) else Path(text),
        output=None if output is None else Path(output),
        fps=None if fps is None else Fraction(fps),
        model=model,
        texture=texture,
        backend=backend,
        precision=precision,
        scale=scale,
        size=size,
        decoder=decoder,
        encoder=encoder,
        crf=crf,
        preset=preset,
        pixel_format=pixel_format,
        region=region,
        span=span,
        deinterlace=deinterlace,
        threads=threads,
        tile=tile,
        changed_only=changed_only,
        changed_threshold=changed_threshold,
        start_now=start_now,
        overwrite=overwrite,
        resume=resume,
        live=live,
        live_depth=live_depth,
        reconnect_seconds=reconnect_seconds,
    )
    with KeptEngine(building) as kept:
        return run(config, progress or (lambda _: None), stop, kept=kept)


def run(
    config: UpscaleConfig,
    progress: Callable[[Progress], None],
    stop: threading.Event | None = None,
    *,
    kept: KeptEngine | None = None,
) -> Result:
    """Run one job (see `upscale`).

    Args:
        config: of the job.
        progress: called from this thread after each frame.
        stop: when it is set, a recording ends, as a whole file.
        kept: makes the engine or has it from the job before, and keeps it for the next; what fails
            here leaves none in it. None: the engine ends with the job.
    """
    if isinstance(config.source, Address):
        return record(config, config.source, progress, stop or threading.Event(), kept)
    named = None if config.output is None or config.output.is_dir() else config.output
    if named is not None:
        _check(config, named, to_pictures=is_sequence(named))
    with ExitStack() as stack:
        kept = kept or stack.enter_context(KeptEngine())
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        reader = stack.enter_context(open_reader(config))
        if not reader.repeatable:
            config = replace(config, resume=False)
        if config.region is not None:
            reader.cut(config.region)
        if config.precision == "auto" and needs_float32(reader.info, config.backend):
            config = replace(config, precision="fp32")
        loaded = load_model(config.model, texture=config.texture)
        output = named or default_output(config, reader.info, loaded.scale)
        # of a clip or picture that is called `100%done`, the name beside it is no pattern
        numbered = isinstance(config.source, Path) and is_pattern(config.source)
        to_pictures = is_sequence(output) and (named is not None or numbered)
        is_encoded = not to_pictures and output != STDOUT
        size = output_size(config, reader.info, loaded.scale, is_encoded=is_encoded)
        _check(config, output, to_pictures=to_pictures)
        if config.pixel_format and (to_pictures or output == STDOUT or reader.info.is_still):
            raise MediaError(f"{output}: --pixel-format is for an encoded clip")
        if config.changed_threshold and to_pictures:
            raise MediaError(
                f"{output}: numbered pictures are each as if made alone: no --changed-threshold"
            )
        bare = kept.engine(config, loaded, reader.info.size)
        share_threads(bare, config.threads)
        stack.push(lambda kind, *_: kept.close() if kind else None)
        frame_size = reader.info.size
        side = kept.tile_side(config, frame_size, lambda: tile_side(config, bare, frame_size))
        whole_frames = (
            config.changed_only
            and config.tile is None
            and not to_pictures  # which go on at any frame, not only where all is anew
            and kept.fits_whole(frame_size, lambda: automatic_tile(bare, frame_size) is None)
        )
        bare.lanes = kept.lanes(frame_size, side, lambda: automatic_lanes(bare, frame_size, side))
        engine = SafeEngine(bare, side=side, whole_frames=whole_frames)
        stack.callback(engine.close_exact)
        began = time.monotonic()
        resumed = reused = 0
        if reader.info.is_still:
            if config.span is not None:
                raise MediaError(f"{config.source} is a picture, which has no start and end")
            frames = upscale_still(config, reader, engine, output, size)
            progress(Progress(1, 1))
        else:
            warn_of_marks(reader.info)
            choose_decoder(config, reader, engine.device)
            if config.span is not None:
                reader.trim(config.span)
            key = job_key(config, loaded, engine, size, decoder=reader.decoder)
            key |= {
                "source": reader.stamp(),
                "segment frames": segment_frames(loaded, reader.info.size),
            }
            frames, resumed, reused = _kind_of_job(output, to_pictures=to_pictures)(
                config, reader, engine, output, size, key, progress
            )
        engine.say_what_was_recomputed()
        return Result(
            input=config.source,
            output=output,
            frames=frames,
            input_size=reader.info.size,
            output_size=size,
            seconds=time.monotonic() - began,
            model=loaded.name,
            texture=loaded.texture,
            backend=engine.backend,
            precision=engine.precision,
            peak_bytes=peak_bytes(),
            resumed=resumed,
            switched_at=None if kept.switched_at is None else resumed + kept.switched_at,
            reused=reused,
            recomputed=engine.recomputed,
        )


def _kind_of_job(output: Path, *, to_pictures: bool) -> Callable[..., tuple[int, int, int]]:
    if output == STDOUT:
        return upscale_to_stdout
    return upscale_to_frames if to_pictures else _upscale_clip


def _check(config: UpscaleConfig, output: Path, *, to_pictures: bool) -> None:
    if output == STDOUT:
        check_stdout()
    elif to_pictures:
        check_frames(output, overwrite=config.overwrite)
    else:
        check_output(config.source, output, overwrite=config.overwrite)


# --------------------------------------------------------------------------------------------------
# From clip to clip
# --------------------------------------------------------------------------------------------------


def _upscale_clip(
    config: UpscaleConfig,
    reader: Reader,
    engine: SafeEngine,
    output: Path,
    size: tuple[int, int],
    key: dict[str, Any],
    progress: Callable[[Progress], None],
) -> tuple[int, int, int]:
    """Return the number of frames, of those resumed and of those reused."""
    refuse_single_picture(output)
    if reader.info.alpha:
        log.warning(
            "the alpha channel of %s is dropped: an encoded clip has none", reader.info.path
        )
    settings = EncoderSettings(
        config.encoder, config.crf, config.preset, config.threads, config.pixel_format
    )
    aspect = kept_aspect_ratio(config, reader.info, size)
    encoding = PictureEncoding(
        reader.info,
        size=size,
        sample_aspect_ratio=aspect,
        settings=settings,
        device=engine.device,
    )
    writer = SegmentedWriter(
        output, reader, encoding, key=key, segment_frames=key["segment frames"],
        resume=config.resume, overwrite=config.overwrite,
    )  # fmt: skip
    if aspect != reader.info.sample_aspect_ratio:
        log.warning(
            "%dx%d has another shape than the input: its samples are displayed %d:%d, so that "
            "the picture is not distorted",
            size[1], size[0], aspect.numerator, aspect.denominator,
        )  # fmt: skip
    with ExitStack() as stack:  # closes the stages from the last to the first, then the writer
        stack.callback(writer.abort)
        reused = 0
        if not writer.finished:
            frames = writer.remaining(reader.frames())
            meters = StageMeters()
            planes = chained(
                frames, reader.info.layout, engine, encoding.layout, size, stack,
                changed_only=config.changed_only, tolerance=config.tolerance,
                meters=meters, stop=reader.stop,
                device=device_of(engine, results_stay=encoding.on_gpu),
                strip_rows=automatic_strip(engine, reader.info.size),
                anew_every=key["segment frames"],
            )  # fmt: skip
            last: list[Tensor] | None = None
            for frame in planes:
                reused += frame.value is last
                last = frame.value
                with meters["encode"].working():
                    writer.write(frame)
                progress(
                    Progress(
                        writer.frames, reader.info.frames, writer.resumed, writer.segment,
                        meters.shares(), meters.queued(),
                    )
                )  # fmt: skip
            if writer.frames != reader.frames_read:
                raise MediaError(
                    f"{reader.frames_read} frames were decoded but {writer.frames} written"
                )
        writer.commit()
    return writer.frames, writer.resumed, reused
