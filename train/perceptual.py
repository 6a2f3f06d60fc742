"""Frozen feature networks: what the content losses, LPIPS and DISTS see a picture through.

Each takes RGB in [0, 1] and brings it into the range and the order of channels that its weights
were trained with; nothing else in the package knows those numbers.

Weights come from safetensors files with torchvision's tensor names (`features.N.weight`), or from
torchvision itself, which downloads them. A file whose metadata say `input: BGR 0..255 ...` has the
preprocessing of the original Caffe networks, any other that of torchvision.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

log = logging.getLogger(__name__)

Architecture = Literal["alexnet", "vgg16", "vgg19"]
Stage = tuple[int, int, int, int] | str

# convolutions as (channels, kernel, stride, padding); "M" is a max pool of `POOL`
_ALEXNET: list[Stage] = [
    (64, 11, 4, 2),
    "M",
    (192, 5, 1, 2),
    "M",
    (384, 3, 1, 1),
    (256, 3, 1, 1),
    (256, 3, 1, 1),
]
_VGG_WIDTHS = (64, 128, 256, 512, 512)
_VGG_DEPTHS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_POOL = {"alexnet": (3, 2), "vgg16": (2, 2), "vgg19": (2, 2)}

# index, in torchvision's `features`, of the ReLU after the convolution of that name
RELU_OF = {
    ("vgg16", "conv5_3"): 29,
    ("vgg19", "conv2_2"): 8,
    ("vgg19", "conv5_4"): 35,
}
# outputs that LPIPS compares (Zhang et al. 2018): after each ReLU, or each block's last
LPIPS_TAPS: dict[str, tuple[int, ...]] = {
    "alexnet": (1, 4, 7, 9, 11),
    "vgg16": (3, 8, 15, 22, 29),
}
DISTS_TAPS = LPIPS_TAPS["vgg16"]
_NOTHING = 1e-6  # so that two channels of zeros are alike (Ding et al. 2020, equation 5)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """x in [0, 1] becomes (x * peak - mean) / std, channel by channel, after the reordering."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    peak: float = 1.0
    bgr: bool = False

    def __call__(self, frames: Tensor) -> Tensor:
        """Map (N, 3, H, W) RGB in [0, 1] to what the network was trained on."""
        channels = frames.unbind(1)[:: -1 if self.bgr else 1]
        # by numbers: tensors of them would have to be brought to a GPU, which waits for it
        moved = (
            (channel * self.peak - mean) / std
            for channel, mean, std in zip(channels, self.mean, self.std, strict=True)
        )
        return torch.stack([*moved], dim=1)


IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CAFFE = Preprocessing(mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0), peak=255.0, bgr=True)
# LPIPS's own constants, for RGB in [-1, 1], written for [0, 1]
LPIPS_SCALING = Preprocessing(
    mean=((1 - 0.030) / 2, (1 - 0.088) / 2, (1 - 0.188) / 2),
    std=(0.458 / 2, 0.448 / 2, 0.450 / 2),
)


class FeatureNetwork(nn.Module):
    """The first layers of AlexNet, VGG16 or VGG19: frozen, and in eval mode whatever is asked.

    ``features(frames)`` takes (N, 3, H, W) RGB in [0, 1] and returns a list, one (N, C, H', W') for
    each tap. Gradients flow through to the frames, never into the weights.

    Args:
        architecture: which network.
        weights: its tensors by torchvision's names; those beyond the last tap are not looked at.
        taps: indices in torchvision's `features` whose outputs are returned, rising.
        preprocessing: of the frames.
        smooth_pooling: the means of squares that DISTS has, in place of each maximum of a VGG.

    Raises:
        ValueError: a tensor is missing or has another shape.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: dict[str, Tensor],
        *,
        taps: Iterable[int],
        preprocessing: Preprocessing,
        smooth_pooling: bool = False,
    ) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.preprocessing = preprocessing
        layers = list(_layers(architecture))[: self.taps[-1] + 1]
        if smooth_pooling:
            layers = [_L2Pool() if isinstance(x, nn.MaxPool2d) else x for x in layers]
        self.features = nn.Sequential(*layers)
        wanted = self.state_dict()
        for name, value in wanted.items():
            found = tuple(weights[name].shape) if name in weights else "nothing"
            if found != tuple(value.shape):
                raise ValueError(
                    f"{architecture}: {name} has {found}, expected {tuple(value.shape)}"
                )
        self.load_state_dict({name: weights[name].float() for name in wanted})
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Stay in eval mode: a frozen network has nothing to learn."""
        super().train(False)
        return self

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Return the features at the taps (see the class's docstring)."""
        x = self.preprocessing(frames)
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x)
        return found


def _layers(architecture: Architecture) -> nn.Sequential:
    plan = list(_ALEXNET)
    if architecture != "alexnet":
        plan = []
        for width, depth in zip(_VGG_WIDTHS, _VGG_DEPTHS[architecture], strict=True):
            plan += [(width, 3, 1, 1)] * depth
            plan.append("M")
    layers: list[nn.Module] = []
    channels = 3
    for item in plan:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(*_POOL[architecture]))
            continue
        width, kernel, stride, padding = item
        layers += [nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)


class LPIPS(nn.Module):
    """Learned perceptual distance of Zhang et al. 2018, version 0.1: 0 for equal pictures.

    ``lpips(a, b)`` takes two (N, 3, H, W) batches of RGB in [0, 1] and returns (N,), the spatial
    mean.

    Args:
        features: AlexNet or VGG16 with the taps `LPIPS_TAPS` and the preprocessing `LPIPS_SCALING`.
        heads: one (1, C, 1, 1) weight a tap.
    """

    def __init__(self, features: FeatureNetwork, heads: list[Tensor]) -> None:
        super().__init__()
        self.features = features
        for index, head in enumerate(heads):
            self.register_buffer(f"head{index}", head.float())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of each pair (see the class's docstring)."""
        total = a.new_zeros(a.shape[0])
        pairs = zip(self.features(a), self.features(b), strict=True)
        for index, (x, y) in enumerate(pairs):
            difference = (_unit(x) - _unit(y)) ** 2
            head = cast(Tensor, getattr(self, f"head{index}"))
            total = total + F.conv2d(difference, head).mean(dim=(1, 2, 3))
        return total


class MeanDistance(nn.Module):
    """The mean of several distances: ``mean(a, b)`` takes and returns what each of them does.

    What one network is blind to, another sees: LPIPS over AlexNet passes a weave on skin that LPIPS
    over VGG16 punishes.
    """

    def __init__(self, distances: list[LPIPS]) -> None:
        super().__init__()
        self.distances = nn.ModuleList(distances)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the mean distance of each pair."""
        return torch.stack([distance(a, b) for distance in self.distances]).mean(dim=0)


class DISTS(nn.Module):
    """Structure and texture distance of Ding et al. 2020: 0 for equal pictures.

    Of each channel of VGG16 it compares the means over the whole picture, its texture, and how the
    two correlate, its structure; what texture stands where counts less than for LPIPS.

    ``dists(a, b)`` takes two (N, 3, H, W) batches of RGB in [0, 1] and returns (N,).

    Args:
        features: VGG16 with the taps `DISTS_TAPS`, the preprocessing `IMAGENET` and smooth pooling.
        alpha: (1475,) what the means of each channel count, those of R, G and B first.
        beta: (1475,) the same of the correlations.
    """

    def __init__(self, features: FeatureNetwork, alpha: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.features = features
        total = alpha.sum() + beta.sum()
        self.register_buffer("alpha", alpha / total)
        self.register_buffer("beta", beta / total)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of each pair (see the class's docstring)."""
        pairs = list(zip([a, *self.features(a)], [b, *self.features(b)], strict=True))
        widths = [x.shape[1] for x, _ in pairs]
        alphas, betas = (torch.split(cast(Tensor, w), widths) for w in (self.alpha, self.beta))
        alike = a.new_zeros(a.shape[0], dtype=torch.float64)
        for pair, alpha, beta in zip(pairs, alphas, betas, strict=True):
            x, y = (part.flatten(2).double() for part in pair)  # (N, C, pixels)
            means = x.mean(2), y.mean(2)
            variances = x.var(2, correction=0), y.var(2, correction=0)
            covariance = (x * y).mean(2) - means[0] * means[1]
            texture = _alike(means[0] * means[1], means[0] ** 2 + means[1] ** 2)
            structure = _alike(covariance, variances[0] + variances[1])
            alike = alike + texture @ alpha.double() + structure @ beta.double()
        return (1 - alike).to(a.dtype)


def _alike(product: Tensor, squares: Tensor) -> Tensor:
    """Return 2ab / (a^2 + b^2), 1 where both are nothing."""
    return (2 * product + _NOTHING) / (squares + _NOTHING)


class _L2Pool(nn.Module):
    """The root of the mean square under a 3x3 Hann window, every second pixel."""

    def forward(self, x: Tensor) -> Tensor:
        line = x.new_tensor([0.25, 0.5, 0.25])
        window = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
        squares = F.conv2d(x * x, window, stride=2, padding=1, groups=x.shape[1])
        return (squares + 1e-12).sqrt()


def _unit(x: Tensor) -> Tensor:
    """Scale each pixel's feature vector to length 1."""
    # the root's argument is kept above 0: its gradient there is infinite
    length = (x.pow(2).sum(1, keepdim=True) + 1e-20).sqrt()
    return x / (length + 1e-10)


# --------------------------------------------------------------------------------------------------
# Finding the weights
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """A safetensors file and what is in it."""

    path: Path
    kind: Literal["alexnet", "vgg16", "vgg19", "heads"]
    convolutions: int
    preprocessing: Preprocessing

    def tensors(self) -> dict[str, Tensor]:
        """Read all tensors."""
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def find_feature_files(paths: Iterable[Path]) -> list[FeatureFile]:
    """Look into safetensors files, and all those of folders, for feature networks.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a named file is not safetensors or holds none of the known networks.
    """
    found = []
    for path in paths:
        if path.is_dir():
            known = (_look_into(file) for file in sorted(path.glob("*.safetensors")))
            found += [file for file in known if file is not None]
            continue
        if not path.is_file():
            raise FileNotFoundError(f"feature network {path} does not exist")
        file = _look_into(path)
        if file is None:
            raise ValueError(f"{path} holds neither VGG16, VGG19, AlexNet nor LPIPS heads")
        found.append(file)
    return found


def _look_into(path: Path) -> FeatureFile | None:
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            metadata = file.metadata() or {}
            first = (
                file.get_slice("features.0.weight").get_shape()
                if "features.0.weight" in names
                else None
            )
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    kind: Literal["alexnet", "vgg16", "vgg19", "heads"]
    if "alex.lin0.model.1.weight" in names:
        kind = "heads"
    elif first == [64, 3, 11, 11]:
        kind = "alexnet"
    elif first == [64, 3, 3, 3]:
        # the third block of VGG19 has a fourth convolution at 16; VGG16 has a pool there
        kind = "vgg16" if "features.17.weight" in names else "vgg19"
    else:
        return None
    caffe = metadata.get("input", "").startswith("BGR 0..255")
    convolutions = sum(name.endswith(".weight") for name in names)
    return FeatureFile(path, kind, convolutions, CAFFE if caffe else IMAGENET)


@dataclass(frozen=True, slots=True)
class ContentFeatures:
    """The features of a content loss, and where they come from."""

    network: FeatureNetwork
    source: str
    """for tables: "VGG19 conv2_2", or what stands in for it"""


def load_content_features(
    content: Literal["vgg22", "vgg54"], files: list[FeatureFile]
) -> ContentFeatures:
    """Load phi_2,2 or phi_5,4 of Ledig et al. 2017, section 2.2.1, after the ReLU.

    The first of these that is there: VGG19 in a file; for VGG54, conv5_3 of VGG16 in a file, which
    is not the paper's and is named so; torchvision's VGG19.

    Raises:
        ValueError: none of them is there.
    """
    layer = {"vgg22": "conv2_2", "vgg54": "conv5_4"}[content]
    needed = {"vgg22": 4, "vgg54": 16}[content]
    for file in files:
        if file.kind == "vgg19" and file.convolutions >= needed:
            return _content("vgg19", layer, file, f"VGG19 {layer}")
    for file in files:
        if content == "vgg54" and file.kind == "vgg16" and file.convolutions >= 13:
            log.warning("no VGG19 as far as conv5_4: conv5_3 of VGG16 stands in for it")
            source = "VGG16 conv5_3, standing in for VGG19 conv5_4"
            return _content("vgg16", "conv5_3", file, source)
    try:
        from torchvision.models import VGG19_Weights, vgg19

        weights = vgg19(weights=VGG19_Weights.IMAGENET1K_V1).state_dict()
    except Exception as error:  # torchvision missing or broken, no network, a bad download
        raise ValueError(
            f"content loss {content} needs VGG19 as far as {layer}: give a safetensors file with "
            f"--features, or install torchvision ({type(error).__name__}: {error})"
        ) from error
    taps = [RELU_OF["vgg19", layer]]
    network = FeatureNetwork("vgg19", weights, taps=taps, preprocessing=IMAGENET)
    return ContentFeatures(network, f"VGG19 {layer}")


def _content(
    architecture: Architecture, layer: str, file: FeatureFile, source: str
) -> ContentFeatures:
    taps = [RELU_OF[architecture, layer]]
    network = FeatureNetwork(
        architecture, file.tensors(), taps=taps, preprocessing=file.preprocessing
    )
    return ContentFeatures(network, source)


def _whole(architecture: Architecture, files: list[FeatureFile]) -> list[FeatureFile]:
    """Return the files of a network with all its convolutions, as torchvision trained it.

    LPIPS and DISTS are of those weights, and of no others.
    """
    convolutions = {"alexnet": 5, "vgg16": 13, "vgg19": 16}[architecture]
    return [
        file
        for file in files
        if file.kind == architecture
        and file.convolutions >= convolutions
        and file.preprocessing is IMAGENET
    ]


def load_lpips(files: list[FeatureFile], *, network: Literal["alex", "vgg"] = "alex") -> LPIPS:
    """Load LPIPS 0.1 over AlexNet or VGG16.

    Raises:
        ValueError: the network or the linear heads are not among the files.
    """
    architecture: Architecture = "alexnet" if network == "alex" else "vgg16"
    taps = LPIPS_TAPS[architecture]
    body = _whole(architecture, files)
    wanted = [f"{network}.lin{i}.model.1.weight" for i in range(len(taps))]
    heads = [file.tensors() for file in files if file.kind == "heads"]
    heads = [tensors for tensors in heads if tensors.keys() >= set(wanted)]
    if not body or not heads:
        missing = architecture if not body else "the linear heads"
        raise ValueError(
            f"LPIPS-{network} needs {missing}: give safetensors files of AlexNet or VGG16, and of "
            "the LPIPS 0.1 heads, with --features"
        )
    features = FeatureNetwork(
        architecture, body[0].tensors(), taps=taps, preprocessing=LPIPS_SCALING
    )
    return LPIPS(features, [heads[0][name] for name in wanted])


def find_lpips(files: list[FeatureFile], device: torch.device) -> LPIPS | None:
    """Load LPIPS over AlexNet, for scores, if its files are there."""
    kinds = {file.kind for file in files}
    return load_lpips(files).to(device) if {"alexnet", "heads"} <= kinds else None


def load_dists(files: list[FeatureFile]) -> DISTS:
    """Load DISTS, whose own weights lie beside this module.

    Raises:
        ValueError: VGG16 is not among the files.
    """
    body = _whole("vgg16", files)
    if not body:
        raise ValueError("DISTS needs vgg16: give a safetensors file of it with --features")
    features = FeatureNetwork(
        "vgg16",
        body[0].tensors(),
        taps=DISTS_TAPS,
        preprocessing=IMAGENET,
        smooth_pooling=True,
    )
    return DISTS(features, **load_file(Path(__file__).with_name("dists.safetensors")))
