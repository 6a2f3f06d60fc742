from __future__ import annotations

import hashlib
import json
import pickle
from importlib import resources
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from engines.errors import WeightsError
from engines.networks import build_network, fold
from engines.weights import BUILT_IN, COLOUR, FORMAT, BuiltIn, load_model, save_weights

SMALL = {"channels": 8, "blocks": 1}
TRAINING = {"command": "python -m train.srgan --steps 4", "steps": 4, "scores": {"Set5": 30.5}}


@pytest.fixture
def file(tmp_path):
    """A good weights file of the lite network."""
    path = tmp_path / "small.safetensors"
    net = build_network("srgan-lite", SMALL, deployed=True)
    save_weights(path, net, network="srgan-lite", training=TRAINING)
    return path


def rewrite(path, *, tensors=None, **metadata):
    """Write a weights file again with other tensors or metadata; None takes a key out."""
    with safe_open(path, "pt") as file:
        merged = {**file.metadata(), **metadata}
    safetensors.torch.save_file(
        safetensors.torch.load_file(path) if tensors is None else tensors,
        path,
        {name: value for name, value in merged.items() if value is not None},
    )


# --- round trip -----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["srgan", "srgan-lite"])
def test_what_is_saved_is_loaded(tmp_path, network):
    net = fold(build_network(network, SMALL))
    path = tmp_path / "mine.safetensors"
    save_weights(path, net, network=network, training=TRAINING)
    model = load_model(path)
    assert (model.name, model.network, model.scale) == ("mine", network, 4)
    assert model.training == TRAINING
    assert model.net.config == net.config
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    frames = torch.rand(1, 3, 6, 5)
    assert torch.equal(model.net(frames), net(frames))


def test_the_scale_is_kept(tmp_path):
    net = build_network("srgan-lite", {**SMALL, "scale": 2}, deployed=True)
    save_weights(tmp_path / "x2.safetensors", net, network="srgan-lite", training={})
    assert load_model(tmp_path / "x2.safetensors").scale == 2


def test_the_loaded_network_is_ready_to_run(file):
    net = load_model(file).net
    assert net.deployed
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_loading_draws_no_random_numbers(file):
    before = torch.get_rng_state()
    load_model(file)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_file_describes_itself(file):
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["format"] == FORMAT
    assert metadata["network"] == "srgan-lite"
    assert json.loads(metadata["config"]) == {**SMALL, "scale": 4}
    assert metadata["scale"] == "4"
    assert metadata["colour"] == COLOUR
    assert json.loads(metadata["training"]) == TRAINING


def test_an_ancestor_named_twice_is_told_of_once(tmp_path):
    path = tmp_path / "net.safetensors"
    ancestor = {"sha256": "a" * 64, "training": {"steps": 7, "start": None}}
    other = {"sha256": "b" * 64, "training": {"steps": 8, "start": ancestor}}
    training = {"steps": 9, "mean_of": [ancestor, other], "start": ancestor}
    net = build_network("srgan-lite", {"channels": 4, "blocks": 1}, deployed=True)
    save_weights(path, net, network="srgan-lite", training=training)
    again = {"sha256": "a" * 64}
    assert load_model(path).training == {
        "steps": 9,
        "mean_of": [
            ancestor,
            {"sha256": "b" * 64, "training": {"steps": 8, "start": again}},
        ],
        "start": again,
    }


def test_half_precision_tensors_are_loaded_as_float32(file):
    tensors = {k: v.half() for k, v in safetensors.torch.load_file(file).items()}
    rewrite(file, tensors=tensors)
    loaded = load_model(file).net.state_dict()
    assert all(v.dtype is torch.float32 for v in loaded.values())
    assert all(torch.equal(v, tensors[k].float()) for k, v in loaded.items())


def test_saving_leaves_no_partial_file(file):
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_failed_save_keeps_the_old_file(file, monkeypatch):
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("engines.files.os.fsync", fail)
    net = build_network("srgan-lite", SMALL, deployed=True)
    with pytest.raises(OSError, match="disk full"):
        save_weights(file, net, network="srgan-lite", training={})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_training_form_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"takes the deploy form: call engines\.networks\.fold"):
        save_weights(tmp_path / "x", build_network("srgan", SMALL), network="srgan", training={})
    assert not any(tmp_path.iterdir())


# --- files that are refused -----------------------------------------------------------------------


def test_a_missing_file_is_refused_with_the_names_that_exist(tmp_path):
    names = ", ".join(BUILT_IN)
    with pytest.raises(WeightsError, match=rf"no model or weights file .*built-in models: {names}"):
        load_model(str(tmp_path / "absent.safetensors"))


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="cannot read weights"):
        load_model(tmp_path)


class Intruder:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".PTH", ".ckpt", ".bin", ".pkl"])
def test_a_pickle_is_refused_unread_with_a_hint_what_to_take_instead(tmp_path, suffix):
    path, trace = tmp_path / f"model{suffix}", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Intruder(trace)))
    with pytest.raises(WeightsError, match=r"pickle.*Take the weights.safetensors that train"):
        load_model(path)
    assert not trace.exists()


def test_a_renamed_pickle_is_refused_unread(tmp_path):
    path, trace = tmp_path / "model.safetensors", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Intruder(trace)))
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        load_model(path)
    assert not trace.exists()


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.05, 0.5, 0.999])
def test_a_truncated_file_is_refused(file, kept):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        load_model(file)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=rf"format None, expected '{FORMAT}'"):
        load_model(path)


def test_another_format_version_is_refused(file):
    rewrite(file, format="vsr-weights/2")
    with pytest.raises(WeightsError, match=rf"format 'vsr-weights/2', expected '{FORMAT}'"):
        load_model(file)


def test_an_unknown_network_is_refused(file):
    rewrite(file, network="esrgan")
    with pytest.raises(WeightsError, match="network 'esrgan', known are srgan, srgan-lite, srcnn"):
        load_model(file)


@pytest.mark.parametrize(
    "config", [None, "{", "[8, 1]", '{"depth": 3}', '{"channels": 0}', '{"channels": 8.5}']
)
def test_a_bad_configuration_is_refused(file, config):
    rewrite(file, config=config)
    with pytest.raises(WeightsError, match="has a bad configuration"):
        load_model(file)


def test_a_missing_tensor_is_refused_by_name(file):
    tensors = safetensors.torch.load_file(file)
    del tensors["tail.bias"]
    rewrite(file, tensors=tensors)
    with pytest.raises(WeightsError, match=r"tail\.bias has nothing, expected \(48,\)"):
        load_model(file)


def test_a_tensor_too_many_is_refused_by_name(file):
    rewrite(file, tensors={**safetensors.torch.load_file(file), "extra": torch.zeros(2)})
    with pytest.raises(WeightsError, match=r"extra has \(2,\), expected nothing"):
        load_model(file)


def test_a_tensor_of_the_wrong_shape_is_refused_with_both_shapes(file):
    tensors = safetensors.torch.load_file(file)
    rewrite(file, tensors={**tensors, "tail.bias": torch.zeros(12)})
    with pytest.raises(WeightsError, match=r"tail\.bias has \(12,\), expected \(48,\)"):
        load_model(file)


# --- built-in models ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_file_matches_its_checksum_and_loads(name):
    data = (resources.files("engines") / "weights" / BUILT_IN[name].file).read_bytes()
    assert hashlib.sha256(data).hexdigest() == BUILT_IN[name].sha256
    model = load_model(name, texture=0)
    assert (model.name, model.sha256) == (name, BUILT_IN[name].sha256)
    assert all(torch.isfinite(value).all() for value in model.net.state_dict().values())


def test_a_built_in_model_is_loaded_by_name(file, monkeypatch):
    # an absolute path stands for itself below the package's folder
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(BUILT_IN, "mine", BuiltIn(str(file), checksum, "MIT", "a test"))
    assert load_model("mine").name == "mine"


def test_a_tampered_built_in_model_is_refused(file, monkeypatch):
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(BUILT_IN, "mine", BuiltIn(str(file), checksum, "MIT", "a test"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # one bit of the last weight: still a good safetensors file
    file.write_bytes(data)
    load_model(file)
    with pytest.raises(WeightsError, match=rf"'mine' are damaged: .*expected {checksum[:12]}"):
        load_model("mine")


# --- two ends and what lies between ---------------------------------------------------------------


@pytest.fixture
def two_ends(tmp_path, monkeypatch):
    """A built-in model "mine" of two ends; returns their networks, fidelity first."""
    nets, sums = [], []
    for name in ("fidelity", "texture"):
        net = build_network("srgan-lite", SMALL, deployed=True)
        path = tmp_path / f"{name}.safetensors"
        save_weights(path, net, network="srgan-lite", training={"end": name})
        nets.append(net)
        sums.append((str(path), hashlib.sha256(path.read_bytes()).hexdigest()))
    (file, checksum), (texture_file, texture_sha256) = sums
    built_in = BuiltIn(
        file,
        checksum,
        "MIT",
        "a test",
        texture_file=texture_file,
        texture_sha256=texture_sha256,
        default_texture=0.25,
    )
    monkeypatch.setitem(BUILT_IN, "mine", built_in)
    return nets


@pytest.mark.parametrize("texture", [0.0, 0.25, 0.5, 1.0])
def test_texture_mixes_the_weights_of_the_two_ends(two_ends, texture):
    fidelity, end = (net.state_dict() for net in two_ends)
    model = load_model("mine", texture=texture)
    assert model.texture == texture
    for name, value in model.net.state_dict().items():
        expected = (1 - texture) * fidelity[name] + texture * end[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    assert not model.net.training
    assert not any(parameter.requires_grad for parameter in model.net.parameters())


def test_without_a_word_the_default_texture_is_taken(two_ends):
    assert load_model("mine").texture == 0.25
    assert load_model("mine").sha256 == load_model("mine", texture=0.25).sha256


def test_each_mix_has_a_checksum_of_its_own(two_ends):
    checksums = {load_model("mine", texture=t).sha256 for t in (0, 0.25, 0.26, 1)}
    assert len(checksums) == 4


def test_an_end_tells_of_its_own_training(two_ends):
    assert load_model("mine", texture=0).training == {"end": "fidelity"}
    assert load_model("mine", texture=1).training == {"end": "texture"}


@pytest.mark.parametrize("texture", [-0.1, 1.1, float("nan")])
def test_a_texture_outside_0_to_1_is_refused(texture):
    with pytest.raises(ValueError, match="texture must be 0 to 1, got"):
        load_model("srgan-lite", texture=texture)


def test_texture_of_a_model_of_one_end_is_refused(file, monkeypatch):
    with pytest.raises(WeightsError, match="is one weights file: texture needs"):
        load_model(file, texture=0.5)
    assert load_model(file, texture=0).texture == 0
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(BUILT_IN, "plain", BuiltIn(str(file), checksum, "MIT", "a test"))
    with pytest.raises(WeightsError, match="'plain' has no texture end: it adds no detail"):
        load_model("plain", texture=1)
