"""NVDEC and NVENC: what needs no GPU is done for real, on semi-planar frames in the host's memory.

PyAV hands frames of the host and of a GPU to PyTorch by the same calls, so a stand-in for a decoder
that leaves its frames on a GPU differs from one in where its memory is.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from conftest import write_clip

import vsr
from engines import load_model
from engines.errors import MediaError
from vsr import choices, hardware, pipeline
from vsr.arguments import parser, to_config
from vsr.config import UpscaleConfig
from vsr.encode import EncoderSettings, PictureEncoding
from vsr.hardware import (
    GpuPictures,
    HardwareUnavailable,
    check_first,
    check_nvenc,
    gpu_planes,
    nvdec,
)
from vsr.job_key import job_key
from vsr.pixels import read_planes, separated, write_planes
from vsr.sequence import SequenceReader
from vsr.timeline import Timed
from vsr.video import Reader

SEMI_PLANAR = [("yuv420p", "nv12", 8), ("yuv420p10le", "p010le", 10)]
CUDA = torch.device("cuda", 0)


def random_planes(size: tuple[int, int], depth: int) -> list[torch.Tensor]:
    height, width = size
    chroma = (-(-height // 2), -(-width // 2))
    kind = np.uint8 if depth == 8 else np.uint16
    draw = np.random.default_rng(depth)
    return [
        torch.from_numpy(draw.integers(0, 1 << depth, shape).astype(kind))
        for shape in (size, chroma, chroma)
    ]


def equal(first, second) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


class GpuFrame:
    """A decoded frame as NVDEC leaves it: its format is "cuda", its planes are semi-planar."""

    def __init__(self, frame: av.VideoFrame, name: str = "nv12") -> None:
        self._frame = frame
        self._stored = frame.reformat(format=name, threads=1)
        self.format, self.sw_format = SimpleNamespace(name="cuda"), self._stored.format
        self.planes = self._stored.planes

    def __getattr__(self, name):
        return getattr(self._frame, name)


@pytest.fixture
def nvdec_stand_in(monkeypatch):
    """Containers opened for NVDEC give frames of the CPU's decoder as if they were on a GPU."""
    opened = []
    decode = Reader._decode

    def frames(reader):
        wrap = bool(opened) and reader.container is opened[-1]
        return (GpuFrame(frame) if wrap else frame for frame in decode(reader))

    def open_clip(reader, hardware=None):
        container = av.open(str(reader._path))
        if hardware is not None:
            opened.append(container)
        return container

    monkeypatch.setattr("vsr.video.nvdec", lambda device: device)
    monkeypatch.setattr(Reader, "_open", open_clip)
    monkeypatch.setattr(Reader, "_decode", frames)
    return opened


# --------------------------------------------------------------------------------------------------
# Semi-planar frames
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("twin", "name", "depth"), SEMI_PLANAR)
def test_planes_of_a_semi_planar_frame_are_those_of_its_planar_twin(twin, name, depth):
    planes = random_planes((38, 50), depth)
    assert equal(read_planes(write_planes(planes, twin).reformat(format=name, threads=1)), planes)


@pytest.mark.parametrize("size", [(38, 50), (37, 49)])
@pytest.mark.parametrize(("_", "name", "depth"), SEMI_PLANAR)
def test_what_is_written_semi_planar_reads_the_same(_, name, depth, size):
    planes = random_planes(size, depth)
    assert equal(read_planes(write_planes(planes, name)), planes)


def test_ffmpeg_reads_p010_as_it_is_written():
    planes = random_planes((48, 64), 10)  # swscale has been seen to err at the edge of odd widths
    assert equal(
        read_planes(write_planes(planes, "p010le").reformat(format="yuv420p10le", threads=1)),
        planes,
    )


@pytest.mark.parametrize(("_", "name", "depth"), SEMI_PLANAR)
def test_chroma_may_come_in_pairs_or_in_rows(_, name, depth):
    luma, chroma = random_planes((8, 8), depth)[0], random_planes((8, 16), depth)[0]
    assert equal(separated(luma, chroma, name), separated(luma, chroma.view(8, 8, 2).clone(), name))


def test_a_raw_clip_of_semi_planar_frames_is_read_as_its_planar_twin(tmp_path):
    planar = write_clip(tmp_path / "planar.nut", codec="rawvideo", pixel_format="yuv420p")
    semi = tmp_path / "semi.nut"
    with av.open(str(planar)) as old, av.open(str(semi), "w") as new:
        stream = new.add_stream("rawvideo", rate=25, width=50, height=38)
        stream.codec_context.pix_fmt = "nv12"
        stream.codec_context.time_base = old.streams.video[0].time_base
        for frame in old.decode(video=0):
            new.mux(stream.encode(frame.reformat(format="nv12", threads=1)))
    with Reader(planar) as one, Reader(semi) as other:
        assert other._first.format.name == "nv12"
        assert one.info.layout == other.info.layout
        pairs = list(zip(one.frames(), other.frames(), strict=True))
        assert len(pairs) == 10
        assert all(equal(a.value, b.value) and a.pts == b.pts for a, b in pairs)


# --------------------------------------------------------------------------------------------------
# NVDEC
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("_", "name", "depth"), SEMI_PLANAR)
def test_planes_taken_over_from_a_decoder_are_fresh(_, name, depth):
    planes = random_planes((38, 50), depth)
    frame = write_planes(planes, name)
    taken = gpu_planes(SimpleNamespace(sw_format=frame.format, planes=frame.planes))
    for plane in frame.planes:  # the decoder uses its surface again
        np.frombuffer(plane, np.uint8)[:] = 0
    assert equal(taken, planes)
    assert all(plane.is_contiguous() for plane in taken)


def test_a_reader_goes_over_to_nvdec_and_gives_the_same_frames(nvdec_stand_in, plain_clip):
    with Reader(plain_clip) as reader:
        expected = [(f.pts, f.duration, [p.clone() for p in f.value]) for f in reader.frames()]
    with Reader(plain_clip) as reader:
        info = reader.info
        reader.decode_on(CUDA)
        assert reader.decoder == "nvdec"
        assert reader.info == info
        found = [(f.pts, f.duration, f.value) for f in reader.frames()]
        assert reader.frames_read == len(found) == len(expected)
    for (pts, duration, planes), other in zip(expected, found, strict=True):
        assert (pts, duration) == other[:2]
        assert equal(planes, other[2])


def test_a_region_is_cut_from_planes_of_nvdec(nvdec_stand_in, plain_clip):
    def cut(on_gpu):
        with Reader(plain_clip) as reader:
            reader.cut(vsr.Crop(4, 6, 20, 16))
            if on_gpu:
                reader.decode_on(CUDA)
            return [plane.clone() for plane in next(reader.frames()).value]

    assert equal(cut(False), cut(True))


def test_a_frame_of_another_size_comes_down_from_the_gpu(monkeypatch, plain_clip):
    with Reader(plain_clip) as reader:
        large = GpuFrame(av.VideoFrame(100, 76, "yuv420p"))
        small = reader._planar(large)
        assert (small.format.name, small.width, small.height) == ("yuv420p", 50, 38)
        fitting = GpuFrame(av.VideoFrame(50, 38, "yuv420p"))
        assert reader._planar(fitting) is fitting


def refused(frame, expected=None):
    with pytest.raises(HardwareUnavailable) as caught:
        check_first(frame, expected or [])
    return str(caught.value)


def test_nvdec_is_trusted_only_with_the_cpus_first_frame_to_the_bit():
    planes = random_planes((38, 50), 8)
    frame = GpuFrame(write_planes(planes, "yuv420p"))
    check_first(frame, planes)
    other = [plane.clone() for plane in planes]
    other[2][3, 5] ^= 1
    assert "to the bit" in refused(frame, other)
    assert "to the bit" in refused(frame, random_planes((37, 49), 8))


def test_what_nvdec_does_not_take_is_named():
    planar = write_planes(random_planes((38, 50), 8), "yuv420p")
    assert "decodes nothing" in refused(None)
    assert "does not take this kind" in refused(planar)
    assert "gives yuv444p planes" in refused(GpuFrame(planar, "yuv444p"))


@pytest.mark.parametrize("fault", ["differs", "not opened", "torch"])
def test_where_nvdec_fails_the_reader_stays_with_the_cpu(
    nvdec_stand_in, monkeypatch, plain_clip, fault
):
    with Reader(plain_clip) as reader:
        expected = [[plane.clone() for plane in frame.value] for frame in reader.frames()]
    with Reader(plain_clip) as reader:
        if fault == "differs":
            monkeypatch.setattr("vsr.hardware.separated", lambda luma, *_: [luma + 1, luma, luma])
        elif fault == "torch":
            monkeypatch.setattr("vsr.hardware.from_dlpack", _no_memory)
        else:
            monkeypatch.setattr("vsr.video.nvdec", _not_opened)
        with pytest.raises(HardwareUnavailable):
            reader.decode_on(CUDA)
        assert reader.decoder == "cpu"
        assert equal_clips([frame.value for frame in reader.frames()], expected)
        assert reader.lost_packets == 0


def _no_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


def _not_opened(*_):
    raise av.error.PermissionError(1, "Operation not permitted")


def equal_clips(found, expected):
    return len(found) == len(expected) and all(map(equal, found, expected))


def test_pictures_and_fields_stay_on_the_cpu(tmp_path, plain_clip):
    still = tmp_path / "still.png"
    write_clip(still, codec="png", pixel_format="rgb24", pts=(0,))
    with Reader(still) as reader, pytest.raises(HardwareUnavailable, match="pictures and fields"):
        reader.decode_on(CUDA)
    write_clip(tmp_path / "1.png", codec="png", pixel_format="rgb24", pts=(0,))
    with SequenceReader(tmp_path / "%d.png") as reader:
        with pytest.raises(HardwareUnavailable, match="pictures and fields"):
            reader.decode_on(CUDA)
        assert len(list(reader.frames())) == 1
    with (
        Reader(plain_clip, deinterlace=True) as reader,
        pytest.raises(HardwareUnavailable, match="pictures and fields"),
    ):
        reader.decode_on(CUDA)


def test_nvdec_needs_an_engine_on_a_gpu_and_an_ffmpeg_that_has_it(monkeypatch):
    with pytest.raises(HardwareUnavailable, match="not on cpu"):
        nvdec(torch.device("cpu"))
    accelerated = nvdec(CUDA)
    assert accelerated.is_hw_owned
    assert accelerated.options == {"primary_ctx": "0", "current_ctx": "1"}
    monkeypatch.setattr(hardware, "hwdevices_available", lambda: ["vaapi"])
    with pytest.raises(HardwareUnavailable, match="built without NVDEC"):
        nvdec(CUDA)


# --------------------------------------------------------------------------------------------------
# Which decoder a job takes
# --------------------------------------------------------------------------------------------------


class RefusingReader:
    decoder = "cpu"
    asked = 0

    def decode_on(self, device):
        self.asked += 1
        raise HardwareUnavailable("no such unit")


@pytest.mark.parametrize(
    ("decoder", "device", "asked"),
    [("auto", "cpu", 0), ("auto", "cuda", 1), ("cpu", "cuda", 0)],
)
def test_auto_tries_nvdec_for_an_engine_on_a_gpu_and_falls_back_quietly(
    tmp_path, caplog, decoder, device, asked
):
    caplog.set_level(logging.INFO, "vsr")
    reader = RefusingReader()
    config = UpscaleConfig(source=tmp_path / "clip.mp4", decoder=decoder)
    choices.choose_decoder(config, reader, torch.device(device))
    assert reader.asked == asked
    assert all(record.levelno == logging.INFO for record in caplog.records)
    assert len(caplog.records) == asked


def test_a_decoder_that_is_named_is_used_or_an_error(tmp_path, plain_clip, tiny_weights):
    message = r"decoder nvdec, .*plain\.mp4: NVDEC decodes for an engine on .* use --decoder cpu"
    with pytest.raises(MediaError, match=message):
        vsr.upscale(
            plain_clip, tmp_path / "out.mp4", model=tiny_weights, backend="pytorch", decoder="nvdec"
        )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"unknown decoder 'cuvid'; known: auto, cpu, nvdec"):
        UpscaleConfig(source=plain_clip, decoder="cuvid")


def test_the_command_line_names_the_decoder(tmp_path):
    for words, decoder in ([], "auto"), (["--decoder", "nvdec"], "nvdec"):
        arguments = parser().parse_args(["upscale", "clip.mp4", *words])
        assert to_config(arguments, tmp_path / "clip.mp4", None).decoder == decoder


def test_a_job_is_another_one_with_another_decoder(plain_clip, tiny_weights):
    engine = SimpleNamespace(backend="pytorch", precision="fp32", device=torch.device("cpu"))
    model = load_model(tiny_weights)

    def key(asked, used):
        config = UpscaleConfig(source=plain_clip, decoder=asked)
        return job_key(config, model, engine, (76, 100), decoder=used)

    assert key("auto", "cpu") == key("cpu", "cpu")
    assert key("auto", "nvdec") != key("auto", "cpu")


def test_a_job_whose_clip_nvdec_decodes_ends_in_the_same_output(
    nvdec_stand_in, monkeypatch, tmp_path, tiny_weights
):
    clip = write_clip(tmp_path / "in.mp4", size=(48, 64))

    def upscale(name):
        output = tmp_path / name
        vsr.upscale(clip, output, model=tiny_weights, backend="pytorch")
        return output.read_bytes()

    expected = upscale("cpu.mp4")
    assert not nvdec_stand_in
    choose = choices.choose_decoder
    monkeypatch.setattr(
        pipeline, "choose_decoder", lambda config, reader, _: choose(config, reader, CUDA)
    )
    assert upscale("nvdec.mp4") == expected
    assert len(nvdec_stand_in) == 1


# --------------------------------------------------------------------------------------------------
# NVENC
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("_", "name", "depth"), SEMI_PLANAR)
def test_a_picture_for_nvenc_holds_the_planes_in_one_piece(_, name, depth):
    planes = random_planes((38, 50), depth)
    picture = GpuPictures(CUDA).picture(planes, name)
    assert picture.format.name == name
    assert equal(read_planes(picture), planes)
    luma, chroma = picture.planes
    assert luma.line_size == chroma.line_size
    assert luma.line_size % 256 == 0
    assert chroma.buffer_ptr == luma.buffer_ptr + 38 * luma.line_size


def test_an_nvenc_that_cannot_be_used_says_so_before_the_work(
    monkeypatch, tmp_path, plain_clip, tiny_weights
):
    monkeypatch.setattr("vsr.encode.check_nvenc", _no_nvenc)
    with pytest.raises(MediaError, match="encoder 'hevc_nvenc' cannot be used here for yuv420p"):
        vsr.upscale(
            plain_clip,
            tmp_path / "o.mp4",
            model=tiny_weights,
            backend="pytorch",
            encoder="hevc_nvenc",
        )
    assert list(tmp_path.iterdir()) == []


def _no_nvenc(name, pixel_format):
    raise HardwareUnavailable(f"encoder '{name}' cannot be used here for {pixel_format}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there may be an NVENC")
def test_the_probe_finds_no_nvenc_where_there_is_no_gpu():
    with pytest.raises(HardwareUnavailable, match=r"here for nv12: .* libx264"):
        check_nvenc("h264_nvenc", "nv12")


def encoding_for(clip, encoder, device, monkeypatch, **clip_options):
    monkeypatch.setattr("vsr.encode.check_nvenc", lambda *_: None)
    with Reader(write_clip(clip, **clip_options)) as reader:
        return PictureEncoding(
            reader.info,
            size=(76, 100),
            sample_aspect_ratio=Fraction(1),
            settings=EncoderSettings(encoder),
            device=device,
        )


@pytest.mark.parametrize(
    ("encoder", "device", "pixel_format", "on_gpu"),
    [
        ("hevc_nvenc", CUDA, "yuv420p", True),
        ("hevc_nvenc", CUDA, "yuv420p10le", True),
        ("hevc_nvenc", CUDA, "yuv444p", False),
        ("hevc_nvenc", torch.device("cpu"), "yuv420p", False),
        ("hevc_nvenc", None, "yuv420p", False),
        ("libx264", CUDA, "yuv420p", False),
    ],
)
def test_nvenc_takes_from_the_gpu_what_it_has_a_format_for(
    monkeypatch, tmp_path, encoder, device, pixel_format, on_gpu
):
    encoding = encoding_for(
        tmp_path / "in.mkv", encoder, device, monkeypatch, codec="ffv1", pixel_format=pixel_format
    )
    assert encoding.on_gpu is on_gpu


def test_ten_bits_stay_ten_bits_for_nvenc_from_the_host_too(monkeypatch, tmp_path):
    options = {"codec": "ffv1", "pixel_format": "yuv420p10le"}
    encoding = encoding_for(tmp_path / "in.mkv", "hevc_nvenc", None, monkeypatch, **options)
    assert (encoding.layout.depth, encoding.layout.chroma_step) == (10, (2, 2))
    planes = random_planes((76, 100), 10)
    picture = encoding.picture(Timed(planes, 500, 20))
    assert picture.format.name == "p010le"
    assert equal(read_planes(picture), planes)


def test_a_picture_from_the_gpu_carries_time_and_tags(monkeypatch, tmp_path):
    encoding = encoding_for(
        tmp_path / "in.mp4", "h264_nvenc", CUDA, monkeypatch, tags=(9, 16, 9, 1)
    )
    planes = random_planes((76, 100), 8)
    picture = encoding.picture(Timed(planes, 500, 20))
    assert (picture.pts, picture.duration) == (500, 20)
    assert (picture.color_primaries, picture.color_trc, picture.colorspace) == (9, 16, 9)
    assert equal(read_planes(picture), planes)


def test_an_encoder_for_the_gpu_opens_with_its_first_picture(monkeypatch, tmp_path):
    encoding = encoding_for(tmp_path / "in.mp4", "h264_nvenc", CUDA, monkeypatch)
    context = encoding.open(global_header=True)
    assert not context.is_open
    assert context.pix_fmt == "cuda"


# --------------------------------------------------------------------------------------------------
# On a GPU
# --------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("codec", "pixel_format"), [("libx264", "yuv420p"), ("libx265", "yuv420p10le")]
)
def test_nvdec_decodes_to_the_bit_what_the_cpu_does(tmp_path, codec, pixel_format):
    path = write_clip(tmp_path / "in.mkv", codec=codec, pixel_format=pixel_format, size=(144, 256))
    with Reader(path) as reader:
        expected = [[plane.clone() for plane in frame.value] for frame in reader.frames()]
    with Reader(path) as reader:
        reader.decode_on(CUDA)
        found = [frame.value for frame in reader.frames()]
    assert all(plane.is_cuda for planes in found for plane in planes)
    assert equal_clips([[plane.cpu() for plane in planes] for planes in found], expected)


@pytest.mark.gpu
def test_a_clip_decoded_by_nvdec_is_upscaled_as_one_decoded_by_the_cpu(tmp_path, tiny_weights):
    clip = write_clip(tmp_path / "in.mp4", size=(144, 256))
    outputs = {}
    for decoder in ("cpu", "nvdec"):
        outputs[decoder] = tmp_path / f"{decoder}.mp4"
        vsr.upscale(clip, outputs[decoder], model=tiny_weights, backend="pytorch", decoder=decoder)
    assert outputs["cpu"].read_bytes() == outputs["nvdec"].read_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize("encoder", sorted(hardware.NVENC))
@pytest.mark.parametrize(("twin", "name", "depth"), SEMI_PLANAR)
def test_nvenc_encodes_the_same_from_the_gpu_as_from_the_host(
    tmp_path, tiny_weights, encoder, twin, name, depth
):
    try:
        check_nvenc(encoder, name)
    except HardwareUnavailable as error:
        pytest.skip(str(error))  # data-centre GPUs have none, others not each kind
    codec = "libx264" if depth == 8 else "libx265"
    clip = write_clip(tmp_path / "in.mkv", codec=codec, pixel_format=twin, size=(144, 256))
    output = tmp_path / "gpu.mkv"
    vsr.upscale(clip, output, model=tiny_weights, backend="pytorch", encoder=encoder)
    with Reader(output) as reader:
        found = [[plane.clone() for plane in frame.value] for frame in reader.frames()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vsr.encode.GpuPictures", lambda device: None)
        vsr.upscale(
            clip, tmp_path / "host.mkv", model=tiny_weights, backend="pytorch", encoder=encoder
        )
    with Reader(tmp_path / "host.mkv") as reader:
        expected = [[plane.clone() for plane in frame.value] for frame in reader.frames()]
    assert equal_clips(found, expected)
