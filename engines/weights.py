"""Weights files: the deploy form of a network in safetensors, with the account of its training.

A file describes itself. Its metadata (all strings, as the format wants):

    format      "vsr-weights/1"
    network     a key of `engines.networks.NETWORKS`
    config      JSON: the network's configuration
    scale       "4"
    colour      "RGB in [0, 1], transfer as in the file, full range"
    training    JSON: commands, data, steps, commit, config, scores

Built-in weights lie in `engines/weights/`, each with a card (Markdown) beside it.

A built-in model may have two ends: one trained for fidelity alone, and one trained as a GAN from
it, which adds plausible texture. `load_model(..., texture=)` mixes their weights (Wang et al. 2018,
ESRGAN, section 3.4), which costs nothing at run time.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import safetensors.torch
from safetensors import SafetensorError

from engines.errors import WeightsError
from engines.files import replaced
from engines.networks import NETWORKS, Network, build_unfilled

FORMAT = "vsr-weights/1"
COLOUR = "RGB in [0, 1], transfer as in the file, full range"
PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """One model that ships with the package."""

    file: str
    sha256: str
    licence: str
    summary: str
    texture_file: str | None = None
    """the other end; None: fidelity alone"""
    texture_sha256: str | None = None
    default_texture: float = 0.0


BUILT_IN: dict[str, BuiltIn] = {
    "srgan-lite": BuiltIn(
        file="srgan-lite.safetensors",
        sha256="8377ee97c6f065a36bb489af6091ec3d342101cd6b57ab5c7b917f5dce777bd8",
        licence="MIT",
        summary="small and fast; fidelity alone, or texture as much as you allow",
        texture_file="srgan-lite-texture.safetensors",
        texture_sha256="4e4f6a7f72f92412f7a0cd2d5bf974a4fd3bb26e91342d5d2945d5beb9b4b5ce",
        default_texture=1.0,
    ),
    "srgan": BuiltIn(
        file="srgan.safetensors",
        sha256="3865c25fea031912ff637b497f009ebef2b49f020a819d58d627efe1de184936",
        licence="MIT",
        summary="the paper's 16 blocks: better pictures, 23 times the work of srgan-lite",
        texture_file="srgan-texture.safetensors",
        texture_sha256="52da0e06b6abb445ac2db5a243b90b1b4f97a08400218f9356ff73d9037369ac",
        default_texture=1.0,
    ),
}


@dataclass(frozen=True, slots=True)
class Model:
    """A network with its trained weights."""

    name: str
    """name of a built-in model, or the file's stem"""
    network: str
    """key of `NETWORKS`"""
    net: Network
    """deploy form, eval mode, float32, on the CPU"""
    scale: int
    training: dict[str, Any]
    """commands, data, steps, commit, config and scores, as far as the file tells"""
    sha256: str
    """of the whole file; for a mix, of both files' and the share"""
    texture: float = 0.0
    """share of the texture end, 0 to 1"""
    int8_path: Path | None = None
    """where its int8 forms lie, if anybody made them (see `engines.int8`)"""


def save_weights(path: Path, net: Network, *, network: str, training: dict[str, Any]) -> None:
    """Write a deploy form; a crash leaves either the old file or the new one.

    Args:
        path: the file to write.
        net: a network in deploy form (see `engines.networks.fold`).
        network: its key in `NETWORKS`.
        training: JSON-able account of how it came about. The account of an ancestor that it names
            more than once is kept in the first place and told by its `sha256` alone in the others.

    Raises:
        ValueError: the network is in training form.
    """
    if not net.deployed:
        raise ValueError("save_weights takes the deploy form: call engines.networks.fold first")
    metadata = {
        "format": FORMAT,
        "network": network,
        "config": json.dumps(asdict(cast(Any, net.config)), sort_keys=True),
        "scale": str(net.config.scale),
        "colour": COLOUR,
        "training": json.dumps(_told_once(training, set()), sort_keys=True),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    with replaced(path) as partial:
        partial.write_bytes(safetensors.torch.save(tensors, metadata))


def _told_once(account: Any, told: set[str]) -> Any:
    """Return an account with each file's own (`sha256`, `training`) in one place only."""
    if isinstance(account, list):
        return [_told_once(item, told) for item in account]
    if not isinstance(account, dict):
        return account
    if {"sha256", "training"} <= account.keys():
        if account["sha256"] in told:
            return {"sha256": account["sha256"]}
        told.add(account["sha256"])
    return {key: _told_once(value, told) for key, value in account.items()}


def load_model(source: str | Path, *, texture: float | None = None) -> Model:
    """Load a built-in model by name, or a weights file by path.

    Args:
        source: a `str` that is a key of `BUILT_IN`, else the path of a .safetensors file.
        texture: share of the texture end of a built-in model: 0 adds no detail, 1 is the full GAN;
            None is the model's own default. A weights file has one end.

    Raises:
        WeightsError: no such model or file, a pickle, a foreign or damaged file, one whose tensors
            do not fit its network, or texture of a model that has none.
        ValueError: `texture` is outside 0 to 1.
    """
    if texture is not None and not 0 <= texture <= 1:
        raise ValueError(f"texture must be 0 to 1, got {texture:g}")
    if isinstance(source, str) and source in BUILT_IN:
        return _load_built_in(source, texture)
    if texture:
        raise WeightsError(f"{source} is one weights file: texture needs a built-in model's two")
    path = Path(source)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise WeightsError(
            f"{path} is a pickle, which can run code: not loaded. Take the weights.safetensors "
            "that train.srgan writes beside its checkpoint"
        )
    try:
        model = _load(path.stem, path.read_bytes(), str(path))
        return replace(model, int8_path=path.with_suffix(".int8.safetensors"))
    except FileNotFoundError:
        hint = f"built-in models: {', '.join(BUILT_IN)}"
        raise WeightsError(f"no model or weights file {str(source)!r} ({hint})") from None
    except OSError as error:
        raise WeightsError(f"cannot read weights {path}: {error.strerror}") from error


def _load_built_in(name: str, texture: float | None) -> Model:
    built_in = BUILT_IN[name]
    share = built_in.default_texture if texture is None else texture
    fidelity = _load(name, _built_in_bytes(name, built_in.file, built_in.sha256), name)
    int8 = Path(str(resources.files("engines"))) / "weights" / f"{name}.int8.safetensors"
    fidelity = replace(fidelity, int8_path=int8)
    if not share:
        return fidelity
    if built_in.texture_file is None or built_in.texture_sha256 is None:
        raise WeightsError(f"model {name!r} has no texture end: it adds no detail (--texture 0)")
    data = _built_in_bytes(name, built_in.texture_file, built_in.texture_sha256)
    end = _load(name, data, f"{name} (texture end)")
    if share < 1:
        mixed = fidelity.net.state_dict()
        for key, value in end.net.state_dict().items():
            mixed[key] = mixed[key].lerp(value, share)
        end.net.load_state_dict(mixed)
        both = f"{fidelity.sha256} {end.sha256} {share!r}"
        end = replace(end, sha256=hashlib.sha256(both.encode()).hexdigest())
    return replace(end, texture=share, int8_path=int8)


def _built_in_bytes(name: str, file: str, sha256: str) -> bytes:
    try:
        data = (resources.files("engines") / "weights" / file).read_bytes()
    except OSError as error:
        raise WeightsError(
            f"built-in weights {name!r} are missing: reinstall vsr-pipeline"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise WeightsError(
            f"built-in weights {name!r} are damaged: SHA-256 {found[:12]}…, expected "
            f"{sha256[:12]}…; reinstall vsr-pipeline"
        )
    return data


def _load(name: str, data: bytes, where: str) -> Model:
    try:
        tensors = safetensors.torch.load(data)
        metadata = read_metadata(data)
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{where} is not a safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise WeightsError(
            f"{where} is not one of our weights files: format {metadata.get('format')!r}, "
            f"expected {FORMAT!r}"
        )
    network = metadata.get("network", "")
    if network not in NETWORKS:
        raise WeightsError(
            f"{where} is for the network {network!r}, known are {', '.join(NETWORKS)}"
        )
    try:
        config = json.loads(metadata["config"])
        training = json.loads(metadata.get("training", "{}"))
        net = build_unfilled(network, config)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{where} has a bad configuration: {error}") from error
    expected = net.state_dict()
    for key in sorted(expected.keys() | tensors.keys()):
        found_shape = tuple(tensors[key].shape) if key in tensors else "nothing"
        wanted_shape = tuple(expected[key].shape) if key in expected else "nothing"
        if found_shape != wanted_shape:
            raise WeightsError(
                f"{where} does not fit network {network!r}: {key} has {found_shape}, "
                f"expected {wanted_shape}"
            )
    net.load_state_dict(tensors)
    return Model(
        name=name,
        network=network,
        net=net.eval().requires_grad_(False),
        scale=net.config.scale,
        training=training,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def read_metadata(data: bytes) -> dict[str, str]:
    """Read the string metadata out of the header of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return cast(dict[str, str], header.get("__metadata__", {}))
