from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from train.data import crop_to_multiple, find_photos, load_rgb, to_frame
from train.perceptual import (
    CAFFE,
    DISTS,
    IMAGENET,
    LPIPS_SCALING,
    LPIPS_TAPS,
    RELU_OF,
    FeatureNetwork,
    _L2Pool,
    find_feature_files,
    load_content_features,
    load_dists,
    load_lpips,
)

SHARED = Path(__file__).parents[2] / "shared" / "data"

# a handful of float32 operations
TOLERANCE = 1e-5
# the published means have three decimals, and their enlargements were another program's
PUBLISHED_LPIPS_TOLERANCE = 0.002
# LPIPS of bicubic on Set5 by the program of the metric's authors (lpips 0.1.4 on PyPI, its own
# heads) over the same networks
AUTHORS_LPIPS = {
    "alex": {
        "baby": 0.3031090,
        "bird": 0.2359454,
        "butterfly": 0.3733707,
        "head": 0.4205059,
        "woman": 0.3655449,
    },
    "vgg": {
        "baby": 0.2686855,
        "bird": 0.1990735,
        "butterfly": 0.3159081,
        "head": 0.3851015,
        "woman": 0.2285693,
    },
}

VGG19_FIRST = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128)}


def random_weights(shapes, kernel=3):
    generator = torch.Generator().manual_seed(5)
    weights = {}
    for index, (out, into) in shapes.items():
        weight = torch.randn(out, into, kernel, kernel, generator=generator) * 0.1
        weights |= {f"features.{index}.weight": weight, f"features.{index}.bias": torch.zeros(out)}
    return weights


def random_alexnet():
    """AlexNet's convolutions as (channels, inputs, kernel), with random weights."""
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3)}
    shapes[10] = (256, 256, 3)
    weights = {}
    for index, (out, into, kernel) in shapes.items():
        weights |= random_weights({index: (out, into)}, kernel)
    return weights


@pytest.fixture
def vgg22():
    """The first layers of VGG19, with random weights."""
    return FeatureNetwork(
        "vgg19",
        random_weights(VGG19_FIRST),
        taps=[RELU_OF["vgg19", "conv2_2"]],
        preprocessing=IMAGENET,
    )


# --- preprocessing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        # (x - mean) / std of torchvision's documentation
        (IMAGENET, ((0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.6 - 0.406) / 0.225)),
        # BGR in 0..255, the mean taken off
        (CAFFE, (0.6 * 255 - 103.939, 0.4 * 255 - 116.779, 0.2 * 255 - 123.68)),
        # RGB in [-1, 1], shifted and scaled
        (
            LPIPS_SCALING,
            ((-0.6 + 0.030) / 0.458, (-0.2 + 0.088) / 0.448, (0.2 + 0.188) / 0.450),
        ),
    ],
)
def test_the_preprocessing_is_the_one_worked_out_by_hand(preprocessing, expected):
    frame = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1)
    found = preprocessing(frame).flatten().tolist()
    assert found == pytest.approx(expected, rel=1e-5)


# --- the networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "layer", "convolutions"),
    [("vgg19", "conv2_2", 4), ("vgg19", "conv5_4", 16), ("vgg16", "conv5_3", 13)],
)
def test_a_tap_is_the_relu_after_the_convolution_of_that_name(architecture, layer, convolutions):
    from train.perceptual import _layers

    layers = list(_layers(architecture))[: RELU_OF[architecture, layer] + 1]
    assert isinstance(layers[-1], nn.ReLU)
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers) == convolutions


def test_features_are_those_of_the_layers_in_a_row(vgg22):
    frames = torch.rand(2, 3, 12, 12)
    x = IMAGENET(frames)
    weights = random_weights(VGG19_FIRST)
    for index in (0, 2, "pool", 5, 7):
        if index == "pool":
            x = nn.functional.max_pool2d(x, 2)
        else:
            x = nn.functional.conv2d(x, weights[f"features.{index}.weight"], padding=1).relu()
    (found,) = vgg22(frames)
    assert found.shape == (2, 128, 6, 6)
    torch.testing.assert_close(found, x, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_feature_network_is_frozen_and_stays_in_eval_mode(vgg22):
    nn.Sequential(vgg22).train()
    assert not vgg22.training
    assert not any(module.training for module in vgg22.modules())
    assert not any(parameter.requires_grad for parameter in vgg22.parameters())


def test_gradients_reach_the_picture_through_a_frozen_network(vgg22):
    frames = torch.rand(1, 3, 8, 8, requires_grad=True)
    vgg22(frames)[0].square().mean().backward()
    assert frames.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in vgg22.parameters())


def test_a_missing_or_wrong_tensor_is_refused_by_name():
    weights = random_weights(VGG19_FIRST)
    del weights["features.7.bias"]
    options = {"taps": [8], "preprocessing": IMAGENET}
    with pytest.raises(ValueError, match=r"features\.7\.bias has nothing, expected \(128,\)"):
        FeatureNetwork("vgg19", weights, **options)
    weights["features.7.bias"] = torch.zeros(64)
    with pytest.raises(ValueError, match=r"features\.7\.bias has \(64,\), expected \(128,\)"):
        FeatureNetwork("vgg19", weights, **options)


# --- finding the files ----------------------------------------------------------------------------


def write(path, tensors, **metadata):
    safetensors.torch.save_file(tensors, path, metadata)
    return path


def test_vgg22_is_taken_from_a_file_with_its_own_preprocessing(tmp_path):
    path = write(tmp_path / "a.safetensors", random_weights(VGG19_FIRST), input="BGR 0..255 minus")
    content = load_content_features("vgg22", find_feature_files([path]))
    assert content.source == "VGG19 conv2_2"
    assert content.network.preprocessing == CAFFE


def test_a_missing_content_network_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)  # as if not installed
    path = write(tmp_path / "a.safetensors", random_weights(VGG19_FIRST))
    with pytest.raises(ValueError, match=r"vgg54 needs VGG19 as far as conv5_4: .*--features"):
        load_content_features("vgg54", find_feature_files([path]))


def test_files_that_are_none_of_the_networks_are_refused_or_in_folders_passed_over(tmp_path):
    path = write(tmp_path / "other.safetensors", {"x": torch.zeros(1)})
    assert find_feature_files([tmp_path]) == []
    with pytest.raises(ValueError, match="holds neither VGG16, VGG19, AlexNet nor LPIPS heads"):
        find_feature_files([path])
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.safetensors is not a safetensors file"):
        find_feature_files([tmp_path / "bad.safetensors"])
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        find_feature_files([tmp_path / "absent"])


@pytest.mark.parametrize("kind", ["alexnet", "the linear heads"])
def test_lpips_says_which_file_is_missing(tmp_path, kind):
    body = random_alexnet()
    heads = {f"alex.lin{i}.model.1.weight": torch.ones(1, 1, 1, 1) for i in range(5)}
    write(tmp_path / "a.safetensors", heads if kind == "alexnet" else body)
    with pytest.raises(ValueError, match=f"LPIPS-alex needs {kind}: give safetensors files"):
        load_lpips(find_feature_files([tmp_path]))


# --- with the real weights, where they are beside the checkout ------------------------------------


def test_heads_of_the_other_network_are_as_good_as_missing(tmp_path):
    heads = {f"alex.lin{i}.model.1.weight": torch.ones(1, 1, 1, 1) for i in range(5)}
    write(tmp_path / "heads.safetensors", heads)
    shapes = dict.fromkeys((2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (1, 1))
    write(tmp_path / "vgg16.safetensors", random_weights({0: (64, 3), **shapes}))
    files = find_feature_files([tmp_path])
    with pytest.raises(ValueError, match="LPIPS-vgg needs the linear heads"):
        load_lpips(files, network="vgg")


@pytest.mark.parametrize("load", [load_dists, lambda files: load_lpips(files, network="vgg")])
def test_measures_take_vgg16_whole_and_as_torchvision_has_it(tmp_path, load):
    """Weights of Caffe's range, or the first five layers, would give figures that mean nothing."""
    shapes = dict.fromkeys((2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (1, 1))
    whole = random_weights({0: (64, 3), **shapes})
    heads = {f"vgg.lin{i}.model.1.weight": torch.ones(1, 1, 1, 1) for i in range(5)}
    heads["alex.lin0.model.1.weight"] = torch.ones(1, 1, 1, 1)
    write(tmp_path / "caffe.safetensors", whole, input="BGR 0..255 minus")
    cut = {name: value for name, value in whole.items() if int(name.split(".")[1]) < 26}
    write(tmp_path / "cut.safetensors", cut)
    write(tmp_path / "heads.safetensors", heads)
    with pytest.raises(ValueError, match="needs vgg16"):
        load(find_feature_files([tmp_path]))


def bicubic_of(original):
    """What bicubic makes of a picture (H, W, 3) shrunk by 4."""
    height, width = original.shape[:2]
    small = Image.fromarray(original).resize((width // 4, height // 4), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def files():
    if not (SHARED / "perceptual").is_dir():
        pytest.skip("the feature networks are not beside the checkout")
    return find_feature_files([SHARED / "perceptual"])


def test_the_files_beside_the_checkout_are_told_apart(files):
    assert sorted((file.kind, file.convolutions) for file in files) == [
        ("alexnet", 5),
        ("heads", 17),
        ("vgg16", 13),
        ("vgg19", 8),
    ]


def test_vgg16_stands_in_for_vgg54_and_says_so(files, caplog):
    content = load_content_features("vgg54", files)
    assert content.source == "VGG16 conv5_3, standing in for VGG19 conv5_4"
    assert "stands in" in caplog.text
    assert content.network(torch.rand(1, 3, 32, 32))[0].shape == (1, 512, 2, 2)


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_is_zero_for_equal_pictures_and_grows_with_the_damage(files, network):
    lpips = load_lpips(files, network=network)
    a = torch.rand(1, 3, 64, 64)
    noise = torch.randn(1, 3, 64, 64)
    same, little, much = (lpips(a, (a + noise * s).clamp(0, 1)).item() for s in (0, 0.02, 0.2))
    assert same == 0
    assert 0 < little < much
    assert lpips(a, a.flip(2)).shape == (1,)


def test_the_gradient_of_lpips_is_finite_at_equal_pictures(files):
    lpips = load_lpips(files)
    a = torch.rand(1, 3, 64, 64)
    b = a.clone().requires_grad_()
    lpips(b, a).sum().backward()
    assert torch.isfinite(b.grad).all()


@pytest.fixture(scope="module")
def enlargements():
    """The pictures of Set5, each enlarged by bicubic and as it was, by name."""
    if not (SHARED / "eval" / "Set5").is_dir():
        pytest.skip("the test set Set5 is not beside the checkout")
    originals = {
        path.stem: crop_to_multiple(load_rgb(path), 4)
        for path in find_photos(SHARED / "eval" / "Set5")
    }
    return {
        name: (to_frame(bicubic_of(original)), to_frame(original))
        for name, original in originals.items()
    }


@pytest.mark.parametrize("network", AUTHORS_LPIPS)
def test_lpips_is_what_its_authors_program_gives(files, enlargements, network):
    lpips = load_lpips(files, network=network)
    with torch.inference_mode():
        found = {name: lpips(*pair).item() for name, pair in enlargements.items()}
    assert found == pytest.approx(AUTHORS_LPIPS[network], abs=TOLERANCE)


def test_lpips_of_bicubic_on_set5_is_the_published_figure(files, enlargements):
    lpips = load_lpips(files)
    with torch.inference_mode():
        found = [lpips(*pair).item() for pair in enlargements.values()]
    assert sum(found) / 5 == pytest.approx(0.341, abs=PUBLISHED_LPIPS_TOLERANCE)


def test_lpips_taps_are_relus(files):
    for network, architecture in (("alex", "alexnet"), ("vgg", "vgg16")):
        features = load_lpips(files, network=network).features
        assert all(isinstance(features.features[tap], nn.ReLU) for tap in LPIPS_TAPS[architecture])


# --- DISTS ----------------------------------------------------------------------------------------


class NoFeatures(nn.Module):
    def forward(self, frames):
        return []


@pytest.mark.parametrize(("textures", "expected"), [(1.0, 1 - 0.48 / 0.52), (0.0, 0.0)])
def test_dists_of_flat_pictures_is_the_value_worked_out_by_hand(textures, expected):
    """Their means count, 2 * 0.4 * 0.6 / (0.4 ** 2 + 0.6 ** 2); no structure is as good as none."""
    dists = DISTS(NoFeatures(), torch.full((3,), textures), torch.full((3,), 1 - textures))
    a, b = (torch.full((2, 3, 5, 7), value) for value in (0.4, 0.6))
    assert torch.allclose(dists(a, b), torch.full((2,), expected), atol=1e-5)


def test_dists_tells_structure_from_what_is_turned_over():
    dists = DISTS(NoFeatures(), torch.zeros(3), torch.ones(3))
    a = torch.rand(1, 3, 16, 16)
    assert dists(a, a).item() == pytest.approx(0, abs=1e-6)
    assert dists(a, 1 - a).item() == pytest.approx(2, abs=1e-3)


def test_smooth_pooling_is_the_root_of_the_mean_square_under_a_hann_window():
    x = torch.zeros(1, 2, 7, 7)
    x[0, 0, 2, 2], x[0, 1, 3, 3] = 4.0, 4.0
    pooled = _L2Pool()(x)
    assert pooled.shape == (1, 2, 4, 4)
    assert pooled[0, 0, 1, 1].item() == pytest.approx(4 * 0.5)  # in the middle of a window: 1/4
    assert pooled[0, 1, 1:3, 1:3].flatten().tolist() == pytest.approx([4 * 0.25] * 4)  # 1/16 each
    assert pooled[0, 0, 0, 0].item() == pytest.approx(0, abs=1e-5)


def test_dists_without_vgg16_says_so():
    with pytest.raises(ValueError, match="DISTS needs vgg16"):
        load_dists([])


def test_dists_of_bicubic_on_set5_is_what_its_authors_code_gives(files):
    """DISTS_pytorch 0.1, given the same VGG16, gave 0.1886, 0.2035, 0.2387, 0.2416 and 0.1880."""
    if not (SHARED / "eval" / "Set5").is_dir():
        pytest.skip("the test set Set5 is not beside the checkout")
    dists = load_dists(files)
    for path, expected in zip(
        find_photos(SHARED / "eval" / "Set5"), (0.1886, 0.2035, 0.2387, 0.2416, 0.1880), strict=True
    ):
        original = crop_to_multiple(load_rgb(path), 4)
        with torch.inference_mode():
            found = dists(to_frame(bicubic_of(original)), to_frame(original)).item()
        assert found == pytest.approx(expected, abs=6e-5)
