"""What is asked for and what came of it: the records of one job."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import get_args

from engines import Backend, Precision, check_precision
from engines.tiles import SMALLEST_TILE
from vsr.address import Address
from vsr.encode import check_crf
from vsr.hardware import Decoder
from vsr.region import Crop, Zoom
from vsr.span import Span

MOST_THREADS = 256
MOST_FPS = 1000
MOST_TERM = (1 << 31) - 1  # of a fraction, as FFmpeg has them
DEFAULT_MODEL = "srgan-lite"


@dataclass(frozen=True, slots=True)
class UpscaleConfig:
    """Everything that shapes one job."""

    source: Path | Address
    output: Path | None = None
    """None: beside the source, with the factor in its name; a folder: in it, of the same name; a
    pattern, such as `out/%06d.png`: a picture for each frame"""
    fps: Fraction | None = None
    """pictures a second, for numbered ones; None: 25"""
    model: str | Path = DEFAULT_MODEL
    """a built-in model's name, or a weights file"""
    texture: float | None = None
    """share of the model's texture end, 0 to 1; None: the model's default"""
    backend: Backend = "auto"
    precision: Precision = "auto"
    """what the network computes in; "auto" leaves it to the back end"""
    scale: float | None = None
    """None: the model's own factor"""
    size: tuple[int, int] | None = None
    """(height, width) of the output, instead of `scale`"""
    decoder: Decoder = "auto"
    """nvdec: on the GPU, or an error; auto: there where the engine is and NVDEC can, else cpu"""
    encoder: str = "libx264"
    crf: float | None = None
    preset: str | None = None
    pixel_format: str | None = None
    """of the encoded clip, by FFmpeg's name; None: the encoder's nearest to the input's"""
    region: Crop | Zoom | None = None
    """None: the whole picture"""
    span: Span | None = None
    """None: all of the clip"""
    deinterlace: bool | None = None
    """None: refuse a clip of fields; False: take them for whole frames"""
    threads: int | None = None
    tile: int | None = None
    """side of the parts that a frame is computed in, in pixels of the input; None: the whole frame
    where memory allows it"""
    changed_only: bool = False
    """compute only the tiles that differ from those of the frame before"""
    changed_threshold: float = 0.0
    """with `changed_only`: the largest difference of R, G or B, in levels of 255, that is none"""
    start_now: bool = False
    """begin on PyTorch while TensorRT compiles, and switch at the end of a segment"""
    overwrite: bool = False
    resume: bool = True
    """False: drop what an interrupted run left"""
    live: bool = False
    """record a stream at its own pace"""
    live_depth: int = 4
    """frames of a stream that may be waiting or at work; of more, the oldest waiting is dropped"""
    reconnect_seconds: float = 10.0
    """how long to try to get a broken connection back"""

    def __post_init__(self) -> None:
        if self.decoder not in get_args(Decoder):
            raise ValueError(
                f"unknown decoder {self.decoder!r}; known: {', '.join(get_args(Decoder))}"
            )
        if self.scale is not None and self.size is not None:
            raise ValueError("give scale or size, not both")
        if self.scale is not None and not 0 < self.scale < inf:
            raise ValueError(f"scale must be above 0 and finite, got {self.scale:g}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be at least 1x1, got {self.size[1]}x{self.size[0]}")
        if self.fps is not None and not 0 < self.fps <= MOST_FPS:
            raise ValueError(f"fps must be above 0 and at most {MOST_FPS}, got {self.fps}")
        if self.fps is not None and max(self.fps.as_integer_ratio()) > MOST_TERM:
            raise ValueError(f"fps must be a fraction of numbers up to {MOST_TERM}, got {self.fps}")
        if self.texture is not None and not 0 <= self.texture <= 1:
            raise ValueError(f"texture must be 0 to 1, got {self.texture:g}")
        check_precision(self.precision)
        if self.crf is not None:
            check_crf(self.encoder, self.crf)
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"threads must be 1 to {MOST_THREADS}, got {self.threads}")
        if self.start_now and self.backend != "tensorrt":
            raise ValueError(f"start_now needs backend tensorrt, got {self.backend}")
        if self.start_now and self.changed_only:
            raise ValueError("give start_now or changed_only, not both")
        if not 0 <= self.changed_threshold < 255:
            raise ValueError(
                f"changed threshold must be 0 to 255 levels, got {self.changed_threshold:g}"
            )
        if self.changed_threshold and not self.changed_only:
            raise ValueError("changed threshold needs changed_only")
        if self.tile is not None and self.tile < SMALLEST_TILE:
            raise ValueError(f"tile must be at least {SMALLEST_TILE}, got {self.tile}")
        if isinstance(self.source, Address) and not self.live:
            raise ValueError(
                f"{self.source} is an address: --live records it as a stream; a clip that lies "
                "there is to be downloaded first"
            )
        if self.live and not isinstance(self.source, Address):
            raise ValueError(f"live takes the address of a stream, got {self.source}")
        if self.live and self.span is not None:
            raise ValueError("start and end are for clips: a live stream is recorded from now on")
        if self.live and self.fps is not None:
            raise ValueError("fps is for numbered pictures: a live stream has its own times")
        if self.live and self.decoder == "nvdec":
            raise ValueError("a live stream is decoded on the CPU: leave out --decoder nvdec")
        if self.live_depth < 1:
            raise ValueError(f"live depth must be at least 1, got {self.live_depth}")
        if not 0 <= self.reconnect_seconds < inf:
            raise ValueError(
                f"reconnect must be 0 seconds or more, and finite, got {self.reconnect_seconds:g}"
            )

    @property
    def tolerance(self) -> float:
        """The changed threshold on the scale of [0, 1]."""
        return self.changed_threshold / 255


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
    stage_shares: dict[str, float] = field(default_factory=dict)
    """share of each of `vsr.stages.STAGES` in the time that all of them were at work, 1 in sum;
    waits do not count; empty for a still"""
    queue_depths: dict[str, int] = field(default_factory=dict)
    """frames that wait after each stage but the last; empty for a still"""
    dropped: int = 0
    """frames of a live stream that came too fast, so far"""


@dataclass(frozen=True, slots=True)
class Result:
    """What a job did."""

    input: Path | Address
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
    precision: Precision
    """what the network computed in"""
    peak_bytes: int
    """most memory the process ever held; 0 where the system does not tell"""
    resumed: int = 0
    """frames taken over from an interrupted run"""
    switched_at: int | None = None
    """number of the frame, from 0, at which `start_now` changed to the named back end: 0 if it was
    ready at once; None without `start_now`, and where the clip ended before"""
    reused: int = 0
    """frames equal to the one before them, to the bit, and therefore not computed again"""
    recomputed: int = 0
    """frames that came out not finite or black, and were computed again in float32"""
    dropped: int = 0
    """frames of a live stream that came too fast to be made"""
    reconnects: int = 0
    """how often the connection to a live stream broke and was made again"""

    @property
    def fps(self) -> float:
        """Frames a second, end to end; those taken over do not count."""
        return (self.frames - self.resumed) / self.seconds if self.seconds else 0.0
