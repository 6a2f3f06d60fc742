"""Frames that come out spoilt are computed again, frames that do not fit in parts; none is lost."""

from __future__ import annotations

import math
from contextlib import ExitStack

import pytest
import torch
from conftest import write_clip
from devices import Simulated
from media import probe
from test_engines import tiny_model
from torch import nan

import vsr
from engines import create_engine, load_model
from engines.base import Engine
from engines.errors import OutOfMemory
from engines.pytorch import PyTorchEngine
from engines.safety import SafeEngine, is_out_of_memory, spoilt
from engines.tiles import bytes_per_pixel
from vsr import kept_engine, memory
from vsr.convert import PlaneLayout
from vsr.stages import chained
from vsr.timeline import Timed
from vsr.transfer import Host

LAYOUT = PlaneLayout("yuv", chroma_step=(2, 2))
SIZE = (40, 48)
SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    OutOfMemory("no execution context"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
]


class Fragile(Engine):
    """The network in float32, said to be in half precision; spoils the calls that it is told to."""

    backend = "fragile"
    precisions = ("fp16",)

    def __init__(self, model, *, spoils=(), kind="nan", most_pixels=math.inf, error=None) -> None:
        super().__init__(model, device=torch.device("cpu"), dtype=torch.float32, precision="fp16")
        self._inner = PyTorchEngine(model)
        self.spoils, self.kind, self.error = set(spoils), kind, error
        self.most_pixels, self.calls, self.closed = most_pixels, 0, False
        self.forgotten = 0

    def _run(self, frames):
        self.calls += 1
        if frames.shape[2] * frames.shape[3] > self.most_pixels:
            raise self.error
        result = self._inner._run(frames)
        if self.calls in self.spoils:
            if self.kind == "black":
                result.zero_()
            else:
                result[0, 1, 3, 5] = float(self.kind)
        return result

    def forget_shapes(self):
        self.forgotten += 1

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def model():
    return tiny_model("srgan-lite")


def clip(count: int) -> list[Timed[list[torch.Tensor]]]:
    return [
        Timed(
            [torch.randint(60, 200, size, dtype=torch.uint8) for size in LAYOUT.plane_sizes(*SIZE)],
            index,
            1,
        )
        for index in range(count)
    ]


def run(frames, engine, device=None, **options) -> list[list[torch.Tensor]]:
    size = (SIZE[0] * 4, SIZE[1] * 4)
    with ExitStack() as stack:
        chain = chained(iter(frames), LAYOUT, engine, LAYOUT, size, stack, device=device, **options)
        return [[plane.clone() for plane in frame.value] for frame in chain]


def assert_same(results, expected) -> None:
    assert len(results) == len(expected)
    for mine, theirs in zip(results, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):  # tiles sum in another order: 1e-6
            assert (a.int() - b.int()).abs().max() <= 1


# --- spoilt frames --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "lit", "expected"),
    [
        (0.5, 0.5, False),
        (nan, 0.5, True),
        (math.inf, 0.5, True),
        (-math.inf, 0.5, True),
        (3.0, 0.5, False),  # the network overshoots, and is clamped
        (None, 0.5, True),  # all black
        (None, 0.05, False),  # of a frame that was as good as black
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("index", [0, 1])
def test_a_spoilt_result_is_told_from_a_good_one(value, lit, expected, dtype, index):
    frames = torch.full((2, 3, 4, 4), lit, dtype=dtype)
    result = torch.full((2, 3, 16, 16), 0.4, dtype=dtype)
    if value is None:
        result[index] = 0.001
    else:
        result[index, 2, 7, 8] = value
    verdict = spoilt(frames, result)
    assert verdict.shape == (1,)
    assert verdict.dtype == torch.bool
    assert bool(verdict) == expected


@pytest.mark.parametrize("kind", ["nan", "inf", "-inf", "black"])
@pytest.mark.parametrize("where", ["host", "accelerator"])
def test_spoilt_frames_are_computed_again_in_float32(model, kind, where, caplog):
    frames = clip(8)
    expected = run(frames, create_engine(model, backend="pytorch"))
    device = Host(16) if where == "host" else Simulated(slots=2)
    engine = SafeEngine(Fragile(model, spoils={3, 8}, kind=kind))
    assert_same(run(frames, engine, device), expected)
    assert engine.recomputed == 2
    assert caplog.text.count("not finite or black: it is computed again in float32") == 1


def test_a_spoilt_frame_that_repeats_is_computed_again_once(model):
    first, second = clip(2)
    frames = [first, second, Timed(second.value, 5, 1), Timed(second.value, 6, 1)]
    engine = SafeEngine(Fragile(model, spoils={2}))
    expected = run(frames, create_engine(model, backend="pytorch"))
    assert_same(run(frames, engine, Simulated(slots=2)), expected)
    assert engine.recomputed == 1


def test_to_look_costs_no_wait(model):
    device = Simulated()
    run(clip(6), SafeEngine(Fragile(model)), device)
    assert device.counted["wait"] == 6
    device = Simulated()
    run(clip(6), SafeEngine(Fragile(model, spoils={2})), device)
    assert device.counted["wait"] == 6 + 1


def test_a_verdict_is_on_all_parts_of_a_frame(model):
    engine = SafeEngine(Fragile(model, spoils={2}))
    for _ in range(3):
        engine(torch.rand(1, 3, 8, 8))
    assert bool(engine.verdict())
    engine(torch.rand(1, 3, 8, 8))
    assert not bool(engine.verdict())


def test_nobody_looks_at_float32():
    engine = SafeEngine(create_engine(tiny_model("srgan-lite"), backend="pytorch"))
    assert not engine.judges
    engine(torch.rand(1, 3, 8, 8))
    assert engine.verdict() is None


@pytest.mark.parametrize("where", ["host", "accelerator"])
def test_a_spoilt_tile_is_not_taken_over_by_the_frames_after_it(model, where):
    """--changed-only copies what is unchanged: what was spoilt must not go on with it."""
    first = clip(1)[0].value
    frames = []
    for index in range(12):
        planes = [plane.clone() for plane in first]
        planes[0][30, 40 - index] ^= 127  # far from the tile that is spoilt
        frames.append(Timed(planes, index, 1))
    engine = SafeEngine(Fragile(model, spoils={1}, kind="inf"), side=16)
    device = Host(16) if where == "host" else Simulated(slots=2)
    results = run(frames, engine, device, changed_only=True)
    assert_same(results, run(frames, create_engine(model, backend="pytorch")))
    assert 1 <= engine.recomputed < 12


def test_after_a_spoilt_frame_all_is_new_once(model):
    fragile = Fragile(model, spoils={4})
    engine = SafeEngine(fragile, side=16)
    before = torch.rand(1, 3, 48, 48)
    after = before
    known = engine.update(before, None)
    assert bool(engine.verdict())
    engine.again(before)
    calls = []
    for _ in range(2):
        fragile.calls = 100
        after = after.clone()
        after[..., 1, 1] += 0.1
        known = engine.update(after, known)
        calls.append(fragile.calls - 100)
        assert not bool(engine.verdict())
    assert calls == [9, 1]  # all tiles of the frame, then the one that has changed


def test_leaving_out_tiles_needs_tiles(model):
    frames = torch.rand(1, 3, 20, 20)
    with pytest.raises(ValueError, match="only an engine with tiles"):
        SafeEngine(Fragile(model)).update(frames, None)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: str(error)[:12] or "MemoryError")
def test_out_of_memory_halves_the_tiles_and_loses_no_frame(model, error, caplog):
    frames = clip(5)
    fragile = Fragile(model, most_pixels=38 * 38, error=error)
    engine = SafeEngine(fragile)
    assert_same(run(frames, engine), run(frames, create_engine(model, backend="pytorch")))
    assert engine.side == 24  # of 48; with its overlap it sees 30
    assert fragile.forgotten == 1  # what was made for whole frames makes room
    assert caplog.text.count("out of memory on cpu: from here on computed in tiles of") == 1
    assert engine.recomputed == 0


def test_memory_that_runs_short_in_the_middle_loses_no_frame(model):
    frames, fragile = clip(9), Fragile(model, error=SHORTAGES[0])
    engine = SafeEngine(fragile)

    def decoder():
        for index, frame in enumerate(frames):
            if index == 4:
                fragile.most_pixels = 25 * 25
            yield frame

    results = run(decoder(), engine, Simulated(slots=2))
    assert_same(results, run(frames, create_engine(model, backend="pytorch")))
    assert engine.side == 16


def test_tiles_that_are_given_are_halved_too(model):
    frames = clip(3)
    engine = SafeEngine(Fragile(model, most_pixels=30 * 30, error=SHORTAGES[0]), side=32)
    results = run(frames, engine, changed_only=True)
    assert_same(results, run(frames, create_engine(model, backend="pytorch")))
    assert engine.side == 16


def test_where_nothing_fits_it_is_one_clear_line(model):
    engine = SafeEngine(Fragile(model, most_pixels=0, error=SHORTAGES[0]))
    with pytest.raises(
        OutOfMemory,
        match=r"no memory for a frame of 48x40 on cpu, not even in tiles of 16 pixels: CUDA out of",
    ):
        run(clip(2), engine)


def test_another_error_is_no_shortage(model):
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(OSError("out of memory"))  # of a disk, perhaps
    engine = SafeEngine(Fragile(model, most_pixels=0, error=RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(clip(2), engine)


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_the_planner_asks_the_device(model, monkeypatch, precision):
    """In half precision twice the pixels fit; what PyTorch holds and does not use is free."""
    engine = Fragile(model)
    engine.device, engine.dtype = torch.device("cuda"), precision
    needed = bytes_per_pixel(model.net) * precision.itemsize // 4
    enough = 5 * 192 * 1000 * 1000 + 2 * needed * 1000 * 1000
    held = {
        "mem_get_info": (enough - 700, 1 << 40),
        "memory_reserved": 900,
        "memory_allocated": 200,
    }
    for name, value in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.automatic_tile(engine, (1000, 1000)) is None
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 800)
    assert 900 < memory.automatic_tile(engine, (1000, 1000)) < 1000


# --- whole jobs -----------------------------------------------------------------------------------


def test_a_job_counts_and_says_what_was_computed_again(tiny_weights, tmp_path, monkeypatch, caplog):
    source = write_clip(tmp_path / "in.mp4", pts=tuple(range(0, 4000, 500)))
    fragile = Fragile(load_model(tiny_weights), spoils={2, 5, 6})
    monkeypatch.setattr(kept_engine, "create_engine", lambda *_, **__: fragile)
    result = vsr.upscale(source, tmp_path / "out.mp4", model=tiny_weights)
    assert (result.frames, result.recomputed, result.precision) == (8, 3, "fp16")
    assert len(probe(tmp_path / "out.mp4").pts_seconds) == 8
    assert "3 frames that came out not finite or black were computed again" in caplog.text
    assert fragile.closed


def test_a_spoilt_still_is_computed_again(tiny_weights, tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    source = tmp_path / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(source)
    pictures = []
    for spoils in ((), {1}):
        fragile = Fragile(load_model(tiny_weights), spoils=spoils, kind="black")
        monkeypatch.setattr(kept_engine, "create_engine", lambda *_, fragile=fragile, **__: fragile)
        result = vsr.upscale(source, tmp_path / f"{len(pictures)}.png", model=tiny_weights)
        assert result.recomputed == len(spoils)
        pictures.append(np.asarray(Image.open(result.output)))
    assert np.array_equal(*pictures)


# --- on a GPU -------------------------------------------------------------------------------------


def overflowing(model):
    """A model whose first layer leaves what half precision can hold, and comes back."""
    import copy

    from engines.weights import Model

    net = copy.deepcopy(model.net)
    first, second = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)][:2]
    first.weight.mul_(1e6)
    first.bias.mul_(1e6)
    second.weight.div_(1e6)
    return Model("overflowing", model.network, net, model.scale, {}, "")


@pytest.mark.gpu
def test_a_gpu_computes_again_what_half_precision_cannot_hold(model):
    wild, frames = overflowing(model), clip(4)
    engine = SafeEngine(create_engine(wild, backend="pytorch", precision="fp16"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        expected = run(frames, create_engine(wild, backend="pytorch"))
    assert_same(run(frames, engine), expected)
    assert engine.recomputed == 4


@pytest.mark.gpu
def test_a_full_gpu_leads_to_tiles(model):
    """PyTorch is given little memory; the frame is large, and comes out all the same."""
    engine = SafeEngine(create_engine(model, backend="pytorch", precision="fp32"))
    frames = torch.rand(1, 3, 600, 800, device="cuda")
    whole = engine(frames)
    assert engine.side is None
    engine.close()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    used = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((used + 2.5 * whole.nbytes) / total)
    try:
        engine = SafeEngine(create_engine(model, backend="pytorch", precision="fp32"))
        torch.testing.assert_close(engine(frames), whole, atol=1e-4, rtol=0)
        assert engine.side is not None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1), ("fp16", 2)])
@pytest.mark.parametrize("changed_only", [False, True])
def test_a_gpu_makes_the_clip_that_the_cpu_makes(
    tiny_weights, plain_clip, tmp_path, precision, most, changed_only
):
    """Lossless, so that what differs is arithmetic: one code value, in half precision two."""
    import av

    options = {"model": tiny_weights, "backend": "pytorch", "encoder": "ffv1"}
    clips = []
    for name in ("cpu", "gpu"):
        with pytest.MonkeyPatch.context() as patch:
            if name == "cpu":
                patch.setattr(torch.cuda, "is_available", lambda: False)
            result = vsr.upscale(
                plain_clip, tmp_path / f"{name}.mkv", changed_only=changed_only,
                precision=precision if name == "gpu" else "fp32", **options,
            )  # fmt: skip
        assert result.recomputed == 0
        with av.open(str(result.output)) as container:
            clips.append([frame.to_ndarray().astype(int) for frame in container.decode(video=0)])
    for mine, theirs in zip(*clips, strict=True):
        assert abs(mine - theirs).max() <= most
