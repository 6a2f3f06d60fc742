"""Weights files: the deploy form of a network in safetensors, with the account of its training.

A file describes itself. Its metadata (all strings, as the format wants):

    format      "vsr-weights/1"
    network     a key of `engines.networks.NETWORKS`
    config      JSON: the network's configuration
    scale       "4"
    colour      "RGB in [0, 1], transfer as in the file, full range"
    training    JSON: commands, data, steps, commit, config, scores

Built-in weights lie in `engines/weights/`, each with a card (Markdown) beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

import safetensors.torch
from safetensors import SafetensorError

from engines.errors import WeightsError
from engines.networks import NETWORKS, Network, build_network

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


BUILT_IN: dict[str, BuiltIn] = {
    "srgan-lite": BuiltIn(
        file="srgan-lite.safetensors",
        sha256="bb5f10918dd1d8ca14ab044ba3c6216a0cfa32bf4af48a609263bf9fa18dcd8a",
        licence="MIT",
        summary="small and fast, trained for fidelity: adds no detail of its own",
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
    """of the whole file"""


def save_weights(path: Path, net: Network, *, network: str, training: dict[str, Any]) -> None:
    """Write a deploy form; a crash leaves either the old file or the new one.

    Args:
        path: the file to write.
        net: a network in deploy form (see `engines.networks.fold`).
        network: its key in `NETWORKS`.
        training: JSON-able account of how it came about.

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
        "training": json.dumps(training, sort_keys=True),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(safetensors.torch.save(tensors, metadata))
    os.replace(partial, path)


def load_model(source: str | Path) -> Model:
    """Load a built-in model by name, or a weights file by path.

    Args:
        source: a `str` that is a key of `BUILT_IN`, else the path of a .safetensors file.

    Raises:
        WeightsError: no such model or file, a pickle, a foreign or damaged file, or one whose
            tensors do not fit its network.
    """
    if isinstance(source, str) and source in BUILT_IN:
        return _load(source, _built_in_bytes(source), str(source))
    path = Path(source)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise WeightsError(
            f"{path} is a pickle, which can run code: not loaded. If you trust it, convert it with "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'x.safetensors'), or "
            "take the weights.safetensors that train.srgan writes beside its checkpoint"
        )
    try:
        return _load(path.stem, path.read_bytes(), str(path))
    except FileNotFoundError:
        hint = f"built-in models: {', '.join(BUILT_IN)}"
        raise WeightsError(f"no model or weights file {str(source)!r} ({hint})") from None
    except OSError as error:
        raise WeightsError(f"cannot read weights {path}: {error.strerror}") from error


def _built_in_bytes(name: str) -> bytes:
    try:
        data = (resources.files("engines") / "weights" / BUILT_IN[name].file).read_bytes()
    except OSError as error:
        raise WeightsError(
            f"built-in weights {name!r} are missing: reinstall vsr-pipeline"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != BUILT_IN[name].sha256:
        raise WeightsError(
            f"built-in weights {name!r} are damaged: SHA-256 {found[:12]}…, expected "
            f"{BUILT_IN[name].sha256[:12]}…; reinstall vsr-pipeline"
        )
    return data


def _load(name: str, data: bytes, where: str) -> Model:
    try:
        tensors = safetensors.torch.load(data)
        metadata = _metadata(data)
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
            f"{where} is for the network {network!r}, known are {', '.join(sorted(NETWORKS))}"
        )
    try:
        config = json.loads(metadata["config"])
        training = json.loads(metadata.get("training", "{}"))
        net = build_network(network, config, deployed=True)
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


def _metadata(data: bytes) -> dict[str, str]:
    """Read the string metadata out of the header of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return cast(dict[str, str], header.get("__metadata__", {}))
