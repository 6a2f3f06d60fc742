"""A serialised TensorRT engine, loaded and ready to run, as one CUDA graph a context."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engines.cache import Shape
from engines.compiler import this_gpu
from engines.errors import BackendUnavailable, OutOfMemory
from engines.graph import GraphedRun, own_stream
from engines.trt_build import TensorRT


class Session:
    """An engine ready to run, in one or several execution contexts of its own.

    Args:
        library: see `find_tensorrt`.
        data: the serialised engine.
        shape: (N, H, W) of the frames that the engine takes.
        scale: of the network.
        dtype: of the frames.
        device: the GPU.
        contexts: how many of `shape` are run at once: a call takes contexts * N frames. Weights are
            held once, scratch memory, input and output once a context.

    Raises:
        BackendUnavailable: the library cannot load the engine, or it is for other frames.
        OutOfMemory: the GPU has no memory left for it.
    """

    def __init__(
        self,
        library: TensorRT,
        data: bytes,
        *,
        shape: Shape,
        scale: int,
        dtype: torch.dtype,
        device: torch.device,
        contexts: int = 1,
    ) -> None:
        count, height, width = shape
        self.shape = (contexts * count, height, width)
        self._count = count
        self._runtime = library.module.Runtime(library.logger)  # must outlive its engines
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            if "memory" in str(library.last_error).lower():
                raise OutOfMemory(
                    f"no GPU memory left for the engine of {shape}: {library.last_error}"
                )
            gpu, capability, _ = this_gpu()
            raise BackendUnavailable(
                f"{library.flavour} {library.version} cannot load its engine on {gpu} (compute "
                f"capability {capability}): {library.last_error}"
            )
        shapes = ((count, 3, height, width), (count, 3, height * scale, width * scale))
        names = _ends(library, self._engine, shapes, dtype)
        try:
            self._runs = [
                _graphed(library, self._engine, names, shapes, dtype, device)
                for _ in range(contexts)
            ]
            parallel = range(contexts if contexts > 1 else 0)
            self._streams = [own_stream(self, device) for _ in parallel]
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"no GPU memory left for frames of {shape}") from error

    def run(self, frames: Tensor) -> Tensor:
        """Upscale frames of the session's shape, in order with the caller's stream.

        Args:
            frames: (N, 3, H, W) RGB in [0, 1], of the session's dtype, on its GPU.

        Returns:
            (N, 3, H*scale, W*scale), the same; a fresh tensor. It may not be computed yet, but
            whatever the caller's stream does next comes after it.
        """
        if len(self._runs) == 1:
            return self._runs[0](frames)
        caller = torch.cuda.current_stream(frames.device)
        results = []
        # each on a stream of its own: in the caller's, one would come after the other
        for run, stream, part in zip(
            self._runs, self._streams, torch.split(frames, self._count), strict=True
        ):
            stream.wait_stream(caller)
            with torch.cuda.stream(stream):
                results.append(run(part))
        for stream, result in zip(self._streams, results, strict=True):
            caller.wait_stream(stream)
            result.record_stream(caller)
        return torch.cat(results)

    def close(self) -> None:
        """Wait for what is under way, which the library would not, and give all memory back."""
        for run in self._runs:
            run.wait()
        self._runs.clear()


def _graphed(
    library: TensorRT,
    engine: Any,
    names: tuple[str, str],
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device,
) -> GraphedRun:
    """Return an execution context of its own, at addresses of its own, as one graph."""
    context = engine.create_execution_context()
    if context is None:
        raise OutOfMemory(f"no execution context for {shapes[0]} on the GPU: {library.last_error}")
    frames = torch.zeros(shapes[0], dtype=dtype, device=device)
    output = torch.zeros(shapes[1], dtype=dtype, device=device)
    for name, tensor in zip(names, (frames, output), strict=True):
        if not context.set_tensor_address(name, tensor.data_ptr()):
            raise BackendUnavailable(
                f"{library.flavour} refuses {tuple(tensor.shape)} at the address of {name!r}: "
                f"{library.last_error}"
            )

    def enqueue(stream: torch.cuda.Stream) -> Tensor:
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError(f"{library.flavour} failed: {library.last_error}")
        return output

    return GraphedRun(frames, enqueue)


def _ends(
    library: TensorRT,
    engine: Any,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: torch.dtype,
) -> tuple[str, str]:
    """Return the names of an engine's input and output, which exporters choose, and check both."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    incoming = library.module.TensorIOMode.INPUT
    inputs = [name for name in names if engine.get_tensor_mode(name) == incoming]
    outputs = [name for name in names if name not in inputs]
    if (len(inputs), len(outputs)) != (1, 1):
        raise BackendUnavailable(f"the engine takes {inputs}, gives {outputs}, expected one each")
    ends = (inputs[0], outputs[0])
    found = tuple(tuple(engine.get_tensor_shape(name)) for name in ends)
    if found != shapes:
        raise BackendUnavailable(
            f"the engine takes and gives {found[0]}, {found[1]}, expected {shapes[0]}, {shapes[1]}"
        )
    kind = library.module.float16 if dtype == torch.float16 else library.module.float32
    kinds = {engine.get_tensor_dtype(name) for name in ends}
    if kinds != {kind}:
        raise BackendUnavailable(f"the engine takes and gives {kinds}, expected {kind}")
    return ends
