"""The whole program: a chain of generators from file to file.

    decode ─▸ to RGB ─▸ engine ─▸ to planes ─▸ encode
    thread    thread    thread    thread       the caller's thread

Between two stages stands a queue of `QUEUE_DEPTH`, so at most `QUEUE_DEPTH` + 2 frames exist at
each hand-over, whatever the length of the clip. For an 8-bit 4:2:0 input of W x H that is 54 W*H
bytes before the engine (1.5 a pixel as planes, 12 as RGB) and, at four times the size, 16 times as
much after it, plus what the engine and the encoder hold.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from engines import Backend, Engine, create_engine, load_model
from engines.errors import MediaError, UnsupportedShape
from engines.tiles import SMALLEST_TILE, TiledEngine
from engines.weights import Model
from vsr import segments
from vsr.convert import PlaneLayout, from_rgb, oriented, resize, to_rgb
from vsr.encode import EncoderSettings, PictureEncoding, write_still
from vsr.journal import awaits_removal
from vsr.memory import automatic_tile, free_bytes, peak_bytes
from vsr.region import Crop, Zoom
from vsr.segments import SegmentedWriter
from vsr.threads import in_thread
from vsr.version import __version__
from vsr.video import ClipInfo, Reader, Timed, reason

log = logging.getLogger(__name__)

T = TypeVar("T")

QUEUE_DEPTH = 2
MOST_THREADS = 256
CHANGE_TILE = 64  # of --changed-only; smaller ones leave out more, but overlap more
DEFAULT_MODEL = "srgan-lite"
# input suffixes whose container the output keeps; any other clip becomes .mp4
_KEPT_SUFFIXES = {".mkv": ".mkv", ".webm": ".mkv", ".mov": ".mov", ".m4v": ".m4v"}


class OutputExists(MediaError):
    """The output is there already, and is not to be replaced."""


@dataclass(frozen=True, slots=True)
class UpscaleConfig:
    """Everything that shapes one job."""

    source: Path
    output: Path | None = None
    """None: beside the source, with the factor in its name; a folder: in it, of the same name"""
    model: str | Path = DEFAULT_MODEL
    """a built-in model's name, or a weights file"""
    texture: float | None = None
    """share of the model's texture end, 0 to 1; None: the model's default"""
    backend: Backend = "auto"
    scale: float | None = None
    """None: the model's own factor"""
    size: tuple[int, int] | None = None
    """(height, width) of the output, instead of `scale`"""
    encoder: str = "libx264"
    crf: float | None = None
    preset: str | None = None
    region: Crop | Zoom | None = None
    """None: the whole picture"""
    deinterlace: bool | None = None
    """None: refuse a clip of fields; False: take them for whole frames"""
    threads: int | None = None
    tile: int | None = None
    """side of the parts that a frame is computed in, in pixels of the input; None: the whole frame
    where memory allows it"""
    changed_only: bool = False
    """compute only the tiles that differ from those of the frame before"""
    overwrite: bool = False
    resume: bool = True
    """False: drop what an interrupted run left"""

    def __post_init__(self) -> None:
        if self.scale is not None and self.size is not None:
            raise ValueError("give scale or size, not both")
        if self.scale is not None and not 0 < self.scale < inf:
            raise ValueError(f"scale must be above 0 and finite, got {self.scale:g}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be at least 1x1, got {self.size[1]}x{self.size[0]}")
        if self.texture is not None and not 0 <= self.texture <= 1:
            raise ValueError(f"texture must be 0 to 1, got {self.texture:g}")
        if self.crf is not None and not 0 <= self.crf < inf:
            raise ValueError(f"crf must be 0 or more, got {self.crf:g}")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"threads must be 1 to {MOST_THREADS}, got {self.threads}")
        if self.tile is not None and self.tile < SMALLEST_TILE:
            raise ValueError(f"tile must be at least {SMALLEST_TILE}, got {self.tile}")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is."""

    frames: int
    """frames written"""
    total: int | None
    """frames in the clip, as its container says or suggests; None when it does not"""
    resumed: int = 0
    """frames among them that an interrupted run had written"""
    segment: int = 0
    """number of the segment that the last frame is in"""


@dataclass(frozen=True, slots=True)
class Result:
    """What a job did."""

    input: Path
    output: Path
    frames: int
    input_size: tuple[int, int]
    """(height, width)"""
    output_size: tuple[int, int]
    """(height, width)"""
    seconds: float
    """from the first frame to the finished file; loading the model is not in it"""
    model: str
    texture: float
    """share of invented texture that the model was asked for, 0 to 1"""
    backend: str
    peak_bytes: int
    """most memory the process ever held; 0 where the system does not tell"""
    resumed: int = 0
    """frames taken over from an interrupted run"""
    reused: int = 0
    """frames equal to the one before them, to the bit, and therefore not computed again"""

    @property
    def fps(self) -> float:
        """Frames a second, end to end; those taken over do not count."""
        return (self.frames - self.resumed) / self.seconds if self.seconds else 0.0


def upscale(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    model: str | Path = DEFAULT_MODEL,
    texture: float | None = None,
    backend: Backend = "auto",
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    encoder: str = "libx264",
    crf: float | None = None,
    preset: str | None = None,
    region: Crop | Zoom | None = None,
    deinterlace: bool | None = None,
    threads: int | None = None,
    tile: int | None = None,
    changed_only: bool = False,
    overwrite: bool = False,
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Upscale a clip or a still.

    Args:
        source: any video or picture that FFmpeg reads.
        output: its suffix names the container; None: `clip_x4.mp4` beside the source; a folder:
            that name in it.
        model: a built-in model's name (`vsr models`), or the path of a weights file.
        texture: 0 adds no detail that is not in the input (evidence, medicine), 1 adds all the
            texture that the model has learned; None: the model's default.
        backend: "auto" takes the fastest that is there; a named one is used or raises.
        scale: factor from above 0 to the model's own; below it the result is shrunk by antialiased
            bicubic interpolation.
        size: (height, width) instead of `scale`. The picture keeps its shape: where the size has
            another, a clip's sample aspect ratio changes with a warning, and a still raises.
        encoder: name of an FFmpeg video encoder.
        crf: constant quality in the encoder's scale; None: visually lossless.
        preset: the encoder's speed preset.
        region: `vsr.Crop` or `vsr.Zoom`: only that part of the upright picture is computed.
        deinterlace: make whole frames of an interlaced clip's fields; False: take it as it is;
            None: refuse it.
        threads: CPU threads for each stage that has its own; None leaves it to each.
        tile: compute a frame in parts of tile x tile pixels of the input, with the overlap that
            makes it the same; None: the whole frame at once, unless memory is short.
        changed_only: compute only the tiles that differ from those of the frame before: the same
            result, quicker where the camera stands still and slower where it moves.
        overwrite: replace an output that exists.
        resume: go on where an interrupted run of the same job stopped; False: drop what it left.
        progress: called from this thread after each frame.

    Returns:
        What was done. The output is complete under its name, or, where this raises, not there.

    Raises:
        MediaError: the input cannot be read or the output not written.
        WeightsError: the model does not exist or cannot be loaded.
        BackendUnavailable, EngineBuildError: the back end is not there or refuses the model.
        ValueError: an argument is out of its range.
    """
    config = UpscaleConfig(
        source=Path(source),
        output=None if output is None else Path(output),
        model=model,
        texture=texture,
        backend=backend,
        scale=scale,
        size=size,
        encoder=encoder,
        crf=crf,
        preset=preset,
        region=region,
        deinterlace=deinterlace,
        threads=threads,
        tile=tile,
        changed_only=changed_only,
        overwrite=overwrite,
        resume=resume,
    )
    return run(config, progress or (lambda _: None))


def run(config: UpscaleConfig, progress: Callable[[Progress], None]) -> Result:
    """Run one job (see `upscale`)."""
    named = None if config.output is None or config.output.is_dir() else config.output
    if named is not None:
        check_output(config.source, named, overwrite=config.overwrite)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        reader = stack.enter_context(
            Reader(config.source, threads=config.threads, deinterlace=config.deinterlace)
        )
        if config.region is not None:
            reader.cut(config.region)
        loaded = load_model(config.model, texture=config.texture)
        size = output_size(config, reader.info, loaded.scale)
        output = named or default_output(config, reader.info, loaded.scale)
        check_output(config.source, output, overwrite=config.overwrite)
        engine = create_engine(loaded, backend=config.backend, threads=config.threads)
        if (side := tile_side(config, loaded, reader.info.size)) is not None:
            engine = TiledEngine(engine, side)
        stack.enter_context(closing(engine))
        began = time.monotonic()
        resumed = reused = 0
        if reader.info.is_still:
            frames = _upscale_still(config, reader, engine, output, size)
            progress(Progress(1, 1))
        else:
            key = job_key(config, loaded, engine, size)
            frames, resumed, reused = _upscale_clip(
                config, reader, engine, output, size, key, progress
            )
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
            peak_bytes=peak_bytes(),
            resumed=resumed,
            reused=reused,
        )


# --------------------------------------------------------------------------------------------------
# The two kinds of job
# --------------------------------------------------------------------------------------------------


def _upscale_clip(
    config: UpscaleConfig,
    reader: Reader,
    engine: Engine,
    output: Path,
    size: tuple[int, int],
    key: dict[str, Any],
    progress: Callable[[Progress], None],
) -> tuple[int, int, int]:
    """Return the number of frames, of those resumed and of those reused."""
    if reader.info.alpha:
        log.warning(
            "the alpha channel of %s is dropped: an encoded clip has none", reader.info.path
        )
    settings = EncoderSettings(config.encoder, config.crf, config.preset, config.threads)
    aspect = kept_aspect_ratio(config, reader.info, size)
    encoding = PictureEncoding(
        reader.info, size=size, sample_aspect_ratio=aspect, settings=settings
    )
    writer = SegmentedWriter(
        output, reader, encoding, key=key, resume=config.resume, overwrite=config.overwrite
    )
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
            planes = chained(
                frames, reader.info.layout, engine, encoding.layout, size, stack,
                changed_only=config.changed_only,
            )  # fmt: skip
            last: list[Tensor] | None = None
            for frame in planes:
                reused += frame.value is last
                last = frame.value
                writer.write(frame)
                progress(
                    Progress(writer.frames, reader.info.frames, writer.resumed, writer.segment)
                )
            if writer.frames != reader.frames_read:
                raise MediaError(
                    f"{reader.frames_read} frames were decoded but {writer.frames} written"
                )
        writer.commit()
    return writer.frames, writer.resumed, reused


def _upscale_still(
    config: UpscaleConfig, reader: Reader, engine: Engine, output: Path, size: tuple[int, int]
) -> int:
    info = reader.info
    if output.suffix.lower() != ".png":
        raise MediaError(f"a still is written as .png, got {output}")
    if kept_aspect_ratio(config, info, size) != info.sample_aspect_ratio:
        raise MediaError(
            f"--size {size[1]}x{size[0]} would change the shape of {info.path} "
            f"({info.size[1]}x{info.size[0]})"
        )
    planes = next(reader.frames()).value
    alpha = planes[-1] if info.alpha else None
    planes = planes[: len(info.layout.plane_sizes(1, 1))]
    depth = 8 if info.layout.depth == 8 else 16
    layout = replace(
        info.layout,
        kind="grey" if info.layout.kind == "grey" else "rgb",
        depth=depth,
        full_range=True,
        chroma_step=(1, 1),
    )
    result = from_rgb(resize(engine(to_rgb(planes, info.layout)), size), layout)
    if alpha is not None:
        grey = PlaneLayout(kind="grey", depth=info.layout.depth, full_range=True)
        levels = to_rgb([alpha], grey)
        constant = bool(levels.min() == levels.max())  # what is opaque stays wholly opaque
        enlarged = levels[..., :1, :1].expand(1, 3, *size) if constant else engine(levels)
        result += from_rgb(resize(enlarged, size), replace(grey, depth=depth))
    if info.display_matrix is not None:  # PNG has no rotation: turn the pixels themselves
        result = [oriented(plane, info.display_matrix) for plane in result]
    write_still(output, result, kind=layout.kind, alpha=alpha is not None)
    return 1


# --------------------------------------------------------------------------------------------------
# Stages
# --------------------------------------------------------------------------------------------------


def chained(
    frames: Iterator[Timed[list[Tensor]]],
    layout: PlaneLayout,
    engine: Engine,
    output_layout: PlaneLayout,
    size: tuple[int, int],
    stack: ExitStack,
    *,
    changed_only: bool = False,
) -> Iterator[Timed[list[Tensor]]]:
    """Chain the stages from decoded planes to those of the output, each in a thread of its own.

    A frame equal to the one before it, to the bit, comes out as the very same list of planes.

    Args:
        frames: from the decoder; consumed in a thread.
        layout: of their planes.
        engine: upscales them; a `TiledEngine` for `changed_only`.
        output_layout: of the planes that come out.
        size: (height, width) of the output.
        stack: closes the stages, from the last to the first.
        changed_only: compute only the tiles that differ from those of the frame before.
    """

    def stage(items: Iterable[Timed[T]], name: str) -> Iterator[Timed[T]]:
        return stack.enter_context(closing(in_thread(items, depth=QUEUE_DEPTH, name=name)))

    decoded = stage(without_repeats(frames), "decode")
    rgb = stage(to_rgb_frames(decoded, layout, engine), "to-rgb")
    if changed_only:
        assert isinstance(engine, TiledEngine)
        large = stage(upscaled_where_changed(rgb, engine), "engine")
    else:
        large = stage(upscaled(rgb, engine), "engine")
    return stage(to_plane_frames(large, output_layout, size), "to-planes")


def without_repeats(
    frames: Iterator[Timed[list[Tensor]]],
) -> Iterator[Timed[list[Tensor] | None]]:
    """Put None for the planes of a frame that are equal to those of the one before it."""
    last: list[Tensor] | None = None
    for frame in frames:
        repeated = last is not None and all(map(torch.equal, frame.value, last))
        yield Timed(None if repeated else frame.value, frame.pts, frame.duration)
        last = frame.value


def to_rgb_frames(
    frames: Iterator[Timed[list[Tensor] | None]], layout: PlaneLayout, engine: Engine
) -> Iterator[Timed[Tensor | None]]:
    """Turn planes into what the engine takes, (1, 3, H, W) on its device; alpha is left out."""
    count = len(layout.plane_sizes(1, 1))
    for frame in frames:
        if frame.value is None:
            yield Timed(None, frame.pts, frame.duration)
            continue
        planes = [plane.to(engine.device) for plane in frame.value[:count]]
        rgb = to_rgb(planes, layout).to(engine.dtype)
        yield Timed(rgb, frame.pts, frame.duration)


def upscaled(
    frames: Iterator[Timed[Tensor | None]], engine: Engine
) -> Iterator[Timed[Tensor | None]]:
    """Run the engine."""
    for frame in frames:
        large = None if frame.value is None else engine(frame.value)
        yield Timed(large, frame.pts, frame.duration)


def upscaled_where_changed(
    frames: Iterator[Timed[Tensor | None]], engine: TiledEngine
) -> Iterator[Timed[Tensor | None]]:
    """Run the engine on what differs from the frame before."""
    last: tuple[Tensor, Tensor] | None = None
    for frame in frames:
        large = None
        if frame.value is not None:
            large = engine(frame.value) if last is None else engine.update(frame.value, *last)
            last = frame.value, large
        yield Timed(large, frame.pts, frame.duration)


def to_plane_frames(
    frames: Iterator[Timed[Tensor | None]], layout: PlaneLayout, size: tuple[int, int]
) -> Iterator[Timed[list[Tensor]]]:
    """Shrink to the output's size and turn into the planes that the encoder takes, on the CPU."""
    planes: list[Tensor] = []
    for frame in frames:
        if frame.value is not None:
            rgb = resize(frame.value.float(), size)
            planes = [plane.cpu() for plane in from_rgb(rgb, layout)]
        yield Timed(planes, frame.pts, frame.duration)


# --------------------------------------------------------------------------------------------------
# Sizes and names
# --------------------------------------------------------------------------------------------------


def output_size(config: UpscaleConfig, info: ClipInfo, scale: int) -> tuple[int, int]:
    """Work out (height, width) of the output.

    Raises:
        UnsupportedShape: larger than the model's factor reaches.
    """
    height, width = info.size
    if config.size is not None:
        size = config.size
    else:
        factor = config.scale or scale
        even = 1 if info.is_still or factor == scale else 2  # encoders take 4:2:0 in even sizes
        size = (
            max(1, round(height * factor / even)) * even,
            max(1, round(width * factor / even)) * even,
        )
    if size[0] > height * scale or size[1] > width * scale:
        raise UnsupportedShape(
            f"{size[1]}x{size[0]} is more than {scale} times {width}x{height}, "
            "which is as far as the model goes"
        )
    return size


def kept_aspect_ratio(config: UpscaleConfig, info: ClipInfo, size: tuple[int, int]) -> Fraction:
    """Return the sample aspect ratio with which the output is displayed in the input's shape.

    It is the input's own for a `scale`, and for a `size` that is the input's shape rounded to the
    nearest even number.
    """
    if config.size is None:
        return info.sample_aspect_ratio
    height, width = info.size
    even = 1 if info.is_still else 2
    if (
        size[0] == round(Fraction(height * size[1], width * even)) * even
        or size[1] == round(Fraction(width * size[0], height * even)) * even
    ):
        return info.sample_aspect_ratio
    ratio = info.sample_aspect_ratio * Fraction(width * size[0], height * size[1])
    return ratio.limit_denominator(1 << 15)


def default_output(config: UpscaleConfig, info: ClipInfo, scale: int) -> Path:
    """Name the output: `clip_x4.mp4`, beside the source or in the folder that is asked for."""
    source = config.source
    folder = config.output or source.parent
    if config.size is not None:
        mark = f"{config.size[1]}x{config.size[0]}"
    else:
        mark = f"x{config.scale or scale:g}"
    if config.region is not None:
        mark = f"{type(config.region).__name__.lower()}{config.region}_{mark}"
    suffix = ".png" if info.is_still else default_suffix(source)
    return folder / f"{source.stem}_{mark}{suffix}"


def default_suffix(source: Path) -> str:
    """Choose the container of a clip's output."""
    return _KEPT_SUFFIXES.get(source.suffix.lower(), ".mp4")


def tile_side(config: UpscaleConfig, model: Model, size: tuple[int, int]) -> int | None:
    """Return the side of the tiles to compute frames of (height, width) in; None: no tiles."""
    if config.tile is not None:
        return config.tile
    free = free_bytes()
    side = None if free is None else automatic_tile(model, size, free)
    if side is not None:
        log.warning(
            "%dx%d is much for the memory that is free: computed in tiles of %d pixels",
            size[1], size[0], side,
        )  # fmt: skip
    if config.changed_only:
        return min(CHANGE_TILE, side or CHANGE_TILE)
    return side


def job_key(
    config: UpscaleConfig, model: Model, engine: Engine, size: tuple[int, int]
) -> dict[str, Any]:
    """Name everything that shapes the output's frames: a job goes on only if none of it changes."""
    key = asdict(config)
    for name in ("output", "overwrite", "resume"):
        del key[name]
    found = config.source.stat()
    key |= {
        "source": {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns},
        "model": model.sha256,
        "backend": engine.backend,
        "output size": size,
        "versions": {
            "vsr": __version__, "torch": torch.__version__, "av": version("av"),
        },
        "segment frames": segments.SEGMENT_FRAMES,
    }  # fmt: skip
    return key


def check_output(source: Path, output: Path, *, overwrite: bool) -> None:
    """Find out before the work whether the output can have its name.

    Raises:
        OutputExists: it may not be replaced.
        MediaError: its folder is missing, or it is a folder or the source.
    """
    try:
        if output.is_dir():
            raise MediaError(f"{output} is a folder, expected the name of a file")
        if not output.parent.is_dir():
            raise MediaError(f"the folder of the output, {output.parent}, does not exist")
        if output.exists():
            if source.exists() and output.samefile(source):
                raise MediaError(f"{output} is the input itself")
            if not overwrite and not awaits_removal(output):
                raise OutputExists(f"{output} exists: --overwrite replaces it")
    except OSError as error:
        raise MediaError(f"cannot write {output}: {reason(error)}") from error
