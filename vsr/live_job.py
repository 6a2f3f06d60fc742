"""The job of recording a live stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch

from engines import load_model
from engines.safety import SafeEngine
from vsr.address import Address
from vsr.choices import needs_float32, share_threads, tile_side
from vsr.config import Progress, Result, UpscaleConfig
from vsr.kept_engine import KeptEngine
from vsr.live import LiveStream
from vsr.memory import peak_bytes
from vsr.output import check_output, default_output, output_size
from vsr.recording import record_frames


def record(
    config: UpscaleConfig,
    address: Address,
    progress: Callable[[Progress], None],
    stop: threading.Event,
    kept: KeptEngine | None,
) -> Result:
    """Record a live stream. The model comes first: what streams in meanwhile would be lost.

    Args:
        config: of the job.
        address: of the stream.
        progress: called from this thread after each frame.
        stop: when it is set, the recording ends, as a whole file.
        kept: see `vsr.pipeline.run`.

    Raises:
        Stopped: asked to end before there was a frame.
        MediaError, WeightsError, BackendUnavailable, EngineBuildError: as `vsr.upscale`.
    """
    named = None if config.output is None or config.output.is_dir() else config.output
    if named is not None:
        check_output(address, named, overwrite=config.overwrite)
    with ExitStack() as stack:
        kept = kept or stack.enter_context(KeptEngine())
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        loaded = load_model(config.model, texture=config.texture)
        engine = kept.engine(config, loaded)
        stack.push(lambda kind, *_: kept.close() if kind else None)
        live = stack.enter_context(
            LiveStream(
                address, depth=config.live_depth, reconnect_seconds=config.reconnect_seconds,
                stop=stop, threads=config.threads, deinterlace=config.deinterlace,
            )
        )  # fmt: skip
        reader = live.open()
        deep = needs_float32(reader.info, config.backend)
        if config.precision == "auto" and engine.precision != "fp32" and deep:
            config = replace(config, precision="fp32")
            engine = kept.engine(config, loaded)
        began = time.monotonic()
        if config.region is not None:
            reader.cut(config.region)
        size = output_size(config, reader.info, loaded.scale)
        output = named or default_output(config, reader.info, loaded.scale)
        check_output(address, output, overwrite=config.overwrite)
        share_threads(engine, config.threads)
        engine.lanes = 1  # all threads on one frame: it comes out soonest
        safe = SafeEngine(engine, side=tile_side(config, engine, reader.info.size))
        stack.callback(safe.close_exact)
        frames, reused = record_frames(config, live, reader, safe, output, size, progress)
        safe.say_what_was_recomputed()
        return Result(
            input=address,
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
            switched_at=kept.switched_at,
            reused=reused,
            recomputed=safe.recomputed,
            dropped=live.latest.dropped,
            reconnects=live.reconnects,
        )
