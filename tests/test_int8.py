"""Int8: the tool that makes a form of a model, its file, its graph, and when it is used."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from engines import create_engine, int8, load_model
from engines.errors import BackendUnavailable, EngineBuildError, WeightsError
from engines.int8 import (
    FORMAT,
    INT8_FLAGS,
    LARGEST_LOSS_DB,
    LEAST_LEVELS,
    Int8Form,
    cpu_flags,
    insert_fake_quantize,
    load_int8,
    quantised_convolutions,
    read_forms,
    with_int8_weights,
    write_forms,
)
from engines.networks import build_network
from engines.ov import BF16_FLAGS, convert, import_openvino, runtime_form
from engines.weights import BUILT_IN, save_weights
from train.quantize import (
    calibrate,
    count_levels,
    equalise,
    fake_quantised,
    main,
    measure,
    ramp,
    to_form,
)

SHAPES = {"srgan-lite": {"channels": 8, "blocks": 2}, "srgan": {"channels": 8, "blocks": 1}}
GATE = {"loss_db": {"Set5": 0.05}, "ramp_levels": {"fp32": 100, "int8": 100}}
# the simulation and the int8 kernels: a sum in another order may round to the next level
SAME_ROUNDING = 5e-3
# root mean square, of networks that nobody trained, on noise
ROUGH = 0.05
# bfloat16 has 8 bits, rounded at each layer
BF16 = 0.05


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Three smooth pictures with some grain."""
    folder = tmp_path_factory.mktemp("photos") / "set"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        y, x = np.mgrid[:64, :64]
        grey = 120 + 60 * np.sin(x / (5 + index)) + 40 * np.cos(y / 7)
        picture = grey[..., None] + random.normal(0, 8, (64, 64, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def sets(photos, tmp_path):
    """A folder of one test set."""
    shutil.copytree(photos, tmp_path / "eval" / "set")
    return tmp_path / "eval"


@pytest.fixture(params=list(SHAPES))
def model(request, tmp_path):
    torch.manual_seed(5)
    net = build_network(request.param, SHAPES[request.param], deployed=True)
    path = tmp_path / "tiny.safetensors"
    save_weights(path, net, network=request.param, training={})
    return load_model(path)


def form_of(model, *, gate=GATE) -> tuple[torch.nn.Module, Int8Form]:
    """A form that is calibrated and not trained, and the network that simulates it."""
    module = runtime_form(model.net)
    frames = torch.rand(4, 3, 24, 24)
    equalise(module, frames)
    net, layers = fake_quantised(module)
    calibrate(net, layers, frames)
    return net, replace(to_form(net, layers, model), gate=gate)


needs_int8 = pytest.mark.skipif(
    not cpu_flags() & INT8_FLAGS, reason="the CPU has neither VNNI nor AMX"
)


# --- the tool -------------------------------------------------------------------------------------


@needs_int8
def test_the_tool_makes_a_form_that_the_engine_takes(model, photos, sets):
    path = model.int8_path.parent / "tiny.safetensors"
    folders = ["--data", str(photos), "--eval", str(sets)]
    options = ["--steps", "2", "--batch", "1", "--crop", "32"]
    assert main(["--model", str(path), *folders, *options]) == 0
    form = load_int8(load_model(path))
    assert form.sha256 == model.sha256
    assert form.gate["loss_db"].keys() == {"set"}
    assert form.gate["steps"] == 2
    with closing(create_engine(model, backend="openvino", precision="int8")) as engine:
        assert engine.description == "openvino int8 on cpu"
        frames = torch.rand(1, 3, 19, 23)
        error = (engine(frames) - model.net(frames).clamp(0, 1)).square().mean().sqrt()
    assert 0 < error < ROUGH


@needs_int8
def test_a_compiled_network_trains_to_the_same_form(model, photos, sets, monkeypatch):
    compiled = []

    def compile_without_kernels(module: torch.nn.Module) -> None:
        compiled.append(module)
        compile_as_usual(module, backend="aot_eager")

    compile_as_usual = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", compile_without_kernels)
    path = model.int8_path.parent / "tiny.safetensors"
    command = ["--model", str(path), "--data", str(photos), "--eval", str(sets)]
    command += ["--batch", "1", "--crop", "32", "--learning-rate", "1e-2"]
    forms = []
    for flags in (["--steps", "0"], ["--steps", "2"], ["--steps", "2", "--compile"]):
        assert main([*command, *flags]) == 0
        forms.append(load_int8(load_model(path)))
    assert len(compiled) == 2
    untrained, usual, quick = (form.state for form in forms)
    assert usual.keys() == quick.keys()
    assert any(not torch.equal(value, untrained[name]) for name, value in usual.items())
    for name, value in usual.items():
        torch.testing.assert_close(quick[name], value, atol=1e-5, rtol=0)


@needs_int8
def test_a_form_stays_until_a_better_one_is_measured(model, photos, sets, monkeypatch):
    write_forms(model.int8_path, [form_of(model)[1]])
    before = model.int8_path.read_bytes()

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.quantize.measure", stop)
    command = ["--model", str(model.int8_path.parent / "tiny.safetensors"), "--data", str(photos)]
    command += ["--eval", str(sets), "--steps", "0", "--crop", "32"]
    with pytest.raises(KeyboardInterrupt):
        main(command)
    assert model.int8_path.read_bytes() == before


@pytest.mark.parametrize("spoilt", ["small", "trained on"])
def test_a_bad_test_set_is_refused_before_the_training(model, photos, sets, caplog, spoilt):
    if spoilt == "small":
        Image.new("RGB", (12, 12)).save(sets / "set" / "z.png")
    (sets / ".hidden").mkdir()
    path = model.int8_path.parent / "tiny.safetensors"
    data = sets if spoilt == "trained on" else photos
    assert main(["--model", str(path), "--data", str(data), "--eval", str(sets)]) == 1
    (record,) = caplog.records
    message = {"small": "z.png: 12x12 is too small", "trained on": "are below --data too"}[spoilt]
    assert message in record.getMessage()
    assert not model.int8_path.exists()


def test_the_tool_says_in_one_line_what_is_wrong(model, photos, tmp_path, caplog):
    path = str(model.int8_path.parent / "tiny.safetensors")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["--model", path, "--data", str(photos), "--eval", str(empty)]) == 1
    assert "no test sets" in caplog.text
    assert main(["--model", "nobody", "--data", str(photos), "--eval", str(empty)]) == 1
    assert "no model or weights file 'nobody'" in caplog.text


def test_equal_ranges_leave_the_function_as_it_is(model):
    module, frames = runtime_form(model.net), torch.rand(2, 3, 16, 16)
    before = module(frames)
    weights = [conv.weight.clone() for conv in quantised_convolutions(module).values()]
    equalise(module, frames)
    torch.testing.assert_close(module(frames), before, atol=1e-5, rtol=0)
    changed = quantised_convolutions(module).values()
    assert any(not torch.equal(a, b.weight) for a, b in zip(weights, changed, strict=True))


def test_training_reaches_weights_slopes_and_steps(model):
    net, layers = fake_quantised(runtime_form(model.net))
    calibrate(net, layers, torch.rand(2, 3, 16, 16))
    net(4 * torch.randn(1, 3, 12, 12)).square().mean().backward()  # below zero, for the slopes
    silent = [
        name
        for name, parameter in net.named_parameters()
        if "nearest" not in name and (parameter.grad is None or not parameter.grad.any())
    ]
    assert silent == []


# --- the graph ------------------------------------------------------------------------------------


@needs_int8
def test_the_engine_computes_what_the_tool_simulated(model, monkeypatch):
    net, form = form_of(model)
    write_forms(model.int8_path, [form])
    frames = torch.rand(2, 3, 21, 18)
    with closing(create_engine(model, backend="openvino", precision="int8")) as engine:
        result = engine(frames)
    with torch.no_grad():
        difference = (result - net(frames)).abs()
    assert difference.mean() < SAME_ROUNDING / 10
    assert difference.max() < 10 * SAME_ROUNDING


def test_convolutions_run_in_int8_and_hand_on_int8(model):
    _, form = form_of(model)
    network = convert(with_int8_weights(runtime_form(model.net), form), "tiny")
    insert_fake_quantize(network, form)
    openvino = import_openvino()
    if not int8.cpu_flags() & int8.INT8_FLAGS:
        pytest.skip("the CPU has neither VNNI nor AMX")
    network.reshape([1, 3, 32, 32])
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(network, "CPU", options)
    nodes = [
        {key: value.astype(str) for key, value in node.get_rt_info().items()}
        for node in compiled.get_runtime_model().get_ordered_ops()
    ]
    convolutions = [node for node in nodes if node["layerType"] == "Convolution"]
    whole = [node for node in convolutions if node["runtimePrecision"] in ("i8", "u8")]
    assert len(whole) == len(form.weight_steps)
    if model.network == "srgan-lite":  # PReLU and rounding are part of the convolution
        *between, last = [node["outputPrecisions"] for node in whole]
        assert set(between) <= {"i8", "u8"}  # by AMX and by VNNI
        assert last == "f32"


def test_a_graph_without_the_forms_convolutions_is_refused(model):
    _, form = form_of(model)
    steps = form.weight_steps | {"missing": torch.ones(3)}
    network = convert(runtime_form(model.net), "tiny")
    broken = replace(form, weight_steps=steps, input_steps=form.input_steps | {"missing": 1.0})
    with pytest.raises(EngineBuildError, match="graph has no convolution missing"):
        insert_fake_quantize(network, broken)


# --- the file -------------------------------------------------------------------------------------


def test_forms_come_back_as_they_were_written(model):
    _, form = form_of(model)
    other = replace(form, texture=0.5, sha256="other")
    write_forms(model.int8_path, [other, form])
    again, half = read_forms(model.int8_path)
    assert (again.texture, half.texture, half.sha256) == (0.0, 0.5, "other")
    assert again.gate == GATE
    assert again.state.keys() == form.state.keys()
    for name, value in form.state.items():
        torch.testing.assert_close(again.state[name], value, atol=1e-6, rtol=1e-6)
    assert load_int8(model).sha256 == model.sha256


def test_a_form_of_other_weights_is_not_used(model):
    _, form = form_of(model)
    write_forms(model.int8_path, [replace(form, sha256="other")])
    assert load_int8(model) is None
    with pytest.raises(
        BackendUnavailable, match=r"computes in .*fp32 for 'tiny' of texture 0 here, not in int8"
    ):
        create_engine(model, backend="openvino", precision="int8")
    with closing(create_engine(model, backend="openvino")) as engine:
        assert engine.precision == ("bf16" if cpu_flags() & BF16_FLAGS else "fp32")


def test_a_damaged_file_is_named(model):
    _, form = form_of(model)
    write_forms(model.int8_path, [form])
    model.int8_path.write_bytes(model.int8_path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"tiny\.int8\.safetensors is not a file of int8"):
        create_engine(model, backend="openvino")
    for forms in ("[1]", '{"0": "none"}'):
        metadata = {"format": FORMAT, "forms": forms}
        save_file({"x": torch.zeros(1)}, model.int8_path, metadata=metadata)
        with pytest.raises(WeightsError, match=r"tiny\.int8\.safetensors is not a file of int8"):
            read_forms(model.int8_path)


def test_a_form_of_another_network_is_refused(model):
    _, form = form_of(model)
    state = {name: value for name, value in form.state.items() if "tail" not in name}
    with pytest.raises(WeightsError, match="do not fit the network"):
        with_int8_weights(runtime_form(model.net), replace(form, state=state))


# --- the gate -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        (GATE, True),
        ({}, False),
        (GATE | {"loss_db": {"Set5": 0.02, "Set14": LARGEST_LOSS_DB + 0.01}}, False),
        (GATE | {"ramp_levels": {"fp32": 100, "int8": 97}}, False),
    ],
)
def test_auto_takes_int8_only_where_the_gate_was_passed(model, gate, passed, monkeypatch):
    monkeypatch.setattr("engines.ov.cpu_flags", lambda: {"fpu", "avx_vnni"})
    _, form = form_of(model, gate=gate)
    assert form.passed is passed
    write_forms(model.int8_path, [form])
    with closing(create_engine(model, backend="openvino")) as engine:
        assert engine.precision == ("int8" if passed else "fp32")
    with closing(create_engine(model, backend="openvino", precision="int8")) as engine:
        assert engine.precision == "int8"


def test_auto_stays_with_float32_on_a_cpu_without_int8(model, monkeypatch):
    monkeypatch.setattr("engines.ov.cpu_flags", lambda: {"fpu", "avx2"})
    write_forms(model.int8_path, [form_of(model)[1]])
    with closing(create_engine(model, backend="openvino")) as engine:
        assert engine.precision == "fp32"


def test_the_flags_of_the_cpu_are_read_where_linux_lists_them(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(int8, "CPU_FLAGS", cpuinfo)
    assert cpu_flags() == set()
    cpuinfo.write_text("model name\t: A\nflags\t\t: fpu avx512_vnni\nbugs\t\t:\n")
    assert cpu_flags() & INT8_FLAGS == {"avx512_vnni"}


def test_bf16_is_for_a_cpu_that_has_instructions_for_it_and_auto_takes_it(model, monkeypatch):
    monkeypatch.setattr("engines.ov.cpu_flags", lambda: {"avx512_vnni"})
    with pytest.raises(BackendUnavailable, match=r"for 'tiny' of texture 0 here, not in bf16"):
        create_engine(model, backend="openvino", precision="bf16")
    monkeypatch.undo()
    if not cpu_flags() & BF16_FLAGS:
        pytest.skip("the CPU has neither AVX512-BF16 nor AMX")
    frames = torch.rand(1, 3, 20, 24)
    with closing(create_engine(model, backend="openvino")) as engine:
        assert engine.precision == "bf16"
        difference = engine(frames) - model.net(frames).clamp(0, 1)
    assert 0 < difference.abs().max() < BF16


def test_the_gate_measures_what_is_lost(photos):
    def exact(frame):
        return torch.nn.functional.interpolate(frame, scale_factor=4, mode="bicubic").clamp(0, 1)

    def coarse(frame):
        return (exact(frame) * 16).round() / 16

    gate = measure(exact, coarse, [photos], scale=4)
    assert gate["loss_db"]["set"] > 0.01
    assert 20 < gate["psnr_to_fp32"]["set"] < 40
    assert gate["ramp_levels"]["int8"] < 20 < gate["ramp_levels"]["fp32"]
    same = measure(exact, exact, [photos], scale=4)
    assert same["loss_db"]["set"] == 0


# --- what ships -----------------------------------------------------------------------------------

SHIPPED = [
    pytest.param(name, form.texture, id=f"{name}-{form.texture:g}")
    for name in BUILT_IN
    if load_model(name).int8_path.exists()
    for form in read_forms(load_model(name).int8_path)
]


@pytest.mark.parametrize(("name", "texture"), SHIPPED)
def test_shipped_forms_are_of_the_shipped_weights_and_passed(name, texture):
    form = load_int8(load_model(name, texture=texture))
    assert form is not None
    assert form.passed
    assert {"Set5", "Set14", "BSD100"} <= form.gate["loss_db"].keys()


@needs_int8
@pytest.mark.parametrize(("name", "texture"), SHIPPED)
def test_a_ramp_has_no_bands_in_int8(name, texture):
    model = load_model(name, texture=texture)
    levels = {}
    for precision in ("fp32", "int8"):
        with closing(create_engine(model, backend="openvino", precision=precision)) as engine:
            levels[precision] = count_levels(engine(ramp()))
    assert levels["int8"] >= LEAST_LEVELS * levels["fp32"]


def test_the_default_texture_ships_in_int8():
    model = load_model("srgan-lite")
    assert load_int8(model) is not None
