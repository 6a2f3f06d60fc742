"""NVIDIA's video units: NVDEC decodes into the memory of a GPU, NVENC encodes what lies there.

    file ─▸ NVDEC ─▸ planes on the GPU ─▸ engine ─▸ planes on the GPU ─▸ NVENC ─▸ file

so that a frame never crosses the bus. Frames go to PyTorch and back by DLPack, in the CUDA context
that PyTorch has (the primary one). Not every GPU has both units: those for data centres decode but
do not encode. So neither is believed to be there before it has worked once.

Nobody has seen this on a GPU yet: what does not need one is tested, and for the rest the tests
marked `gpu` are ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from typing import Any, Literal, cast

import av
import torch
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.error import FFmpegError
from av.video.frame import CudaContext
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from engines.errors import MediaError
from vsr.ffmpeg import reason
from vsr.pixels import SEMI_PLANAR, interleave, separated

Decoder = Literal["auto", "cpu", "nvdec"]

NVENC = frozenset({"h264_nvenc", "hevc_nvenc", "av1_nvenc"})
# FFmpeg takes the CUDA context that is current in the thread, PyTorch's. By itself it would open
# the device's primary one, with other flags than PyTorch has given that, and refuse it
_SHARED_CONTEXT = {"primary_ctx": False, "current_ctx": True}
_PROBE_SIDE = 256  # no NVENC wants larger pictures
_PITCH_BYTES = 256  # what a row begins at a multiple of; NVENC asks for 4


class HardwareUnavailable(MediaError):
    """The video unit is not there, or cannot do this."""


def nvdec(device: torch.device) -> HWAccel:
    """Return what makes a container that is opened within `context_of` it decode on a GPU.

    Its frames stay there. What NVDEC does not know, FFmpeg decodes on the CPU: such frames are not
    `on_gpu`.

    Raises:
        HardwareUnavailable: not an NVIDIA GPU, or FFmpeg was built without.
    """
    if device.type != "cuda":
        raise HardwareUnavailable(f"NVDEC decodes for an engine on an NVIDIA GPU, not on {device}")
    if "cuda" not in hwdevices_available():
        raise HardwareUnavailable("this FFmpeg was built without NVDEC")
    if torch.cuda.is_available():
        torch.cuda.synchronize(device)  # makes PyTorch's context that of this thread
    return HWAccel(
        "cuda",
        device=_ordinal(device),
        allow_software_fallback=True,
        is_hw_owned=True,
        options={name: str(int(value)) for name, value in _SHARED_CONTEXT.items()},
    )


def context_of(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one of this thread; what is no GPU changes nothing."""
    is_gpu = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.device(device) if is_gpu else nullcontext()


def on_gpu(frame: av.VideoFrame) -> bool:
    """Tell whether a decoded frame lies in the memory of a GPU."""
    return bool(frame.format.name == "cuda")


def stored_format(frame: av.VideoFrame) -> str:
    """Name the planar format that `read_planes` and `gpu_planes` make of a frame, if they can."""
    name: str = (frame.sw_format or frame.format).name
    return SEMI_PLANAR.get(name, name)


def gpu_planes(frame: av.VideoFrame) -> list[Tensor]:
    """Return the planes of a frame that NVDEC has made.

    Args:
        frame: nv12 or p010le of even size, in the memory of a GPU (or of the host).

    Returns:
        Y (H, W), U and V (H/2, W/2), uint8 or uint16, as of the planar twin: fresh contiguous
        tensors where the frame is, complete, so that any stream may read them. They were allocated
        on the GPU's default stream: who reads them on another keeps them until that has read them.
    """
    name = cast(Any, frame.sw_format).name
    # PyTorch would pass its stream, which PyAV refuses: hence the capsules
    luma, chroma = (from_dlpack(cast(Any, plane).__dlpack__()) for plane in frame.planes)
    if luma.device.type != "cuda":
        return _fresh(separated(luma, chroma, name))
    stream = torch.cuda.default_stream(luma.device)  # FFmpeg writes on it too
    with torch.cuda.stream(stream):
        planes = _fresh(separated(luma, chroma, name))
        written = stream.record_event()
    written.synchronize()  # before NVDEC may use the surface again
    return planes


def _fresh(planes: list[Tensor]) -> list[Tensor]:
    """Copy the one plane that `separated` may leave where it is."""
    return [planes[0].clone(memory_format=torch.contiguous_format), *planes[1:]]


def check_first(frame: av.VideoFrame | None, expected: list[Tensor]) -> list[Tensor]:
    """Find out by its first frame whether NVDEC can be trusted with a clip; return its planes.

    Args:
        frame: the first one that came out.
        expected: the planes that the CPU's decoder gave, on the CPU.

    Raises:
        HardwareUnavailable: there is none, it is not on the GPU, or it differs.
    """
    if frame is None:
        raise HardwareUnavailable("NVDEC decodes nothing of it")
    if not on_gpu(frame):
        raise HardwareUnavailable("NVDEC does not take this kind of stream")
    if cast(Any, frame.sw_format).name not in SEMI_PLANAR:
        raise HardwareUnavailable(f"NVDEC gives {cast(Any, frame.sw_format).name} planes of it")
    try:
        planes = gpu_planes(frame)
        same = len(planes) == len(expected) and all(
            torch.equal(plane.cpu(), other) for plane, other in zip(planes, expected, strict=True)
        )
    except (RuntimeError, TypeError) as error:
        raise HardwareUnavailable(f"its frames cannot be taken over: {reason(error)}") from error
    if not same:
        raise HardwareUnavailable("its first frame is not, to the bit, that of the CPU's decoder")
    return planes


def check_nvenc(name: str, pixel_format: str) -> None:
    """Find out whether an NVENC encoder can be used, by opening a small one.

    Args:
        name: one of `NVENC`.
        pixel_format: that its pictures are to have.

    Raises:
        HardwareUnavailable: it does not open.
    """
    context = cast(Any, av.CodecContext.create(name, "w"))
    context.width = context.height = _PROBE_SIDE
    context.pix_fmt = pixel_format
    context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
    try:
        context.open()
    except (FFmpegError, OSError, ValueError) as error:
        raise HardwareUnavailable(
            f"encoder {name!r} cannot be used here for {pixel_format}: {reason(error)}. It needs "
            "an NVIDIA GPU with an NVENC unit for it, which data-centre GPUs do not have; libx264, "
            "libx265 and libsvtav1 need none"
        ) from error


class GpuPictures:
    """Makes of planes on a GPU the pictures that NVENC takes from its memory.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._context = CudaContext(device_id=_ordinal(device), **_SHARED_CONTEXT)

    def picture(self, planes: Sequence[Tensor], name: str) -> av.VideoFrame:
        """Copy planes into a picture of its own memory, which it keeps while it is encoded.

        Args:
            planes: Y (H, W), U and V (H/2, W/2), on the GPU, complete or in order with the
                caller's stream.
            name: "nv12" (uint8) or "p010le" (uint16).
        """
        height, width = planes[0].shape
        step = _PITCH_BYTES // planes[0].element_size()
        pitch = -(-width // step) * step
        # NVENC takes one address and finds U and V below Y: both are parts of one tensor
        whole = planes[0].new_empty((height + height // 2, pitch))
        luma, chroma = whole[:height, :width], whole[height:, :width]
        with context_of(whole.device):
            interleave(planes, luma, chroma, name)
            if whole.is_cuda:  # NVENC does not wait for the caller's stream
                torch.cuda.current_stream(whole.device).record_event().synchronize()
            return av.VideoFrame.from_dlpack(
                (luma, chroma), format=name, cuda_context=self._context
            )


def _ordinal(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
