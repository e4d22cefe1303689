"""ResNets against keras.applications and torchvision, at every output stride, with and without unit rates."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from oracle import (
    assert_dilated_levels_equal_strided_ones,
    assert_equals_twin,
    pictures,
    randomise,
    relative_error,
)

from detseg.backbones.backbone import Preprocess
from detseg.backbones.create import create_backbone
from detseg.errors import UserError

ROUNDING = 5e-6  # of the largest value; graph and eager results of the stock ResNet152 differ by 2.4e-6

TWINS = {
    "resnet50": keras.applications.ResNet50,
    "resnet101": keras.applications.ResNet101,
    "resnet152": keras.applications.ResNet152,
    "resnet50v2": keras.applications.ResNet50V2,
    "resnet101v2": keras.applications.ResNet101V2,
    "resnet152v2": keras.applications.ResNet152V2,
}
BLOCKS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}
PARAMETERS = {
    "resnet50": 23_587_712,
    "resnet101": 42_658_176,
    "resnet152": 58_370_944,
    "resnet50v2": 23_564_800,
    "resnet101v2": 42_626_560,
    "resnet152v2": 58_331_648,
}


def twin_levels(name):
    blocks = BLOCKS[name.removeprefix("resnet").removesuffix("v2")]
    if name.endswith("v2"):
        strided = {2**i: f"conv{i}_block{blocks[i - 2]}_preact_relu" for i in (2, 3, 4)}
        return {2: "conv1_conv"} | strided | {32: "post_relu"}
    return {2: "conv1_relu"} | {2**i: f"conv{i}_block{blocks[i - 2]}_out" for i in (2, 3, 4, 5)}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet50", (2, 64, 96, 1)),
        ("resnet50", (1, 70, 90, 3)),  # odd maps from stride 2 on
        ("resnet101", (1, 70, 90, 4)),
        ("resnet152", (1, 64, 64, 3)),
        ("resnet50v2", (2, 64, 96, 4)),
        ("resnet50v2", (1, 70, 90, 3)),
        ("resnet101v2", (1, 70, 90, 1)),
        ("resnet152v2", (1, 64, 64, 3)),
    ],
)
@pytest.mark.filterwarnings("ignore:This model usually expects")
def test_layers_parameters_and_every_level_are_those_of_keras_applications(name, shape):
    channels = shape[-1]
    twin = TWINS[name](weights=None, include_top=False, input_shape=(None, None, channels))
    backbone = create_backbone(name, in_channels=channels)
    assert layer_names(backbone.model) == layer_names(twin)
    assert backbone.model.count_params() == PARAMETERS[name] + 7 * 7 * (channels - 3) * 64
    assert_equals_twin(backbone, twin, twin_levels(name), pictures(*shape), ROUNDING)


def layer_names(model):
    """In order; the twins leave the pools of V2's shortcuts without a name."""
    return ["pool" if isinstance(layer, keras.layers.MaxPooling2D) else layer.name for layer in model.layers[1:]]


@pytest.mark.parametrize(
    ("name", "variant", "parameters"),
    [("resnet18", None, 11_176_512), ("resnet34", None, 21_284_672), ("resnet50", "b", 23_508_032)],
)
def test_trainable_parameters_as_in_torchvision_without_its_classifier(name, variant, parameters):
    weights = create_backbone(name, variant=variant).model.trainable_weights
    assert sum(np.prod(weight.shape) for weight in weights) == parameters


TORCH_PYTHON = os.environ.get("DETSEG_TORCH_PYTHON") or (importlib.util.find_spec("torchvision") and sys.executable)

TORCH_SCRIPT = """
import sys, numpy as np, torch, torchvision
name, output_stride, height, width, path = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
torch.manual_seed(0)
options = {} if output_stride == 32 else {"replace_stride_with_dilation": [False, output_stride == 8, True]}
model = getattr(torchvision.models, name)(**options).eval()
for key, value in model.state_dict().items():
    if key.endswith(("running_mean", "bias")):
        value.normal_(0, 0.1)
    elif key.endswith("running_var") or value.ndim == 1:
        value.uniform_(0.5, 1.5)
images = torch.randn(1, 3, height, width)
with torch.no_grad():
    levels = [model.relu(model.bn1(model.conv1(images)))]
    x = model.maxpool(levels[0])
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        levels.append(x := stage(x))
features = {f"level {2 ** i}": level for i, level in enumerate(levels, start=1)}
arrays = {key: np.moveaxis(x.numpy(), 1, -1) for key, x in {"images": images, **features}.items()}
np.savez(path, **arrays, **{key: value.numpy() for key, value in model.state_dict().items()})
"""


def torch_name(layer):
    """torchvision's name of one of our layers with weights: conv4_block2_1_bn is layer3.1.bn1."""
    stage, *block, kind = layer.split("_")
    if stage == "conv1":
        return f"{kind}1"
    (block, index), stage = block, int(stage.removeprefix("conv")) - 1
    part = {"conv": "downsample.0", "bn": "downsample.1"}[kind] if index == "0" else kind + index
    return f"layer{stage}.{int(block.removeprefix('block')) - 1}.{part}"


def torch_weights(state, layer):
    if isinstance(layer, keras.layers.Conv2D):
        return [state[f"{torch_name(layer.name)}.weight"].transpose(2, 3, 1, 0)]
    return [state[f"{torch_name(layer.name)}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]


@pytest.mark.skipif(TORCH_PYTHON is None, reason="no torchvision here, and DETSEG_TORCH_PYTHON names no Python with it")
@pytest.mark.parametrize(
    ("name", "variant", "output_stride", "size"),
    [
        ("resnet18", None, 32, (64, 96)),
        ("resnet34", None, 32, (70, 90)),
        ("resnet50", "b", 32, (70, 90)),
        ("resnet50", "b", 16, (70, 90)),
        ("resnet50", "b", 8, (64, 96)),
    ],
)
def test_basic_blocks_and_variant_b_equal_torchvision(name, variant, output_stride, size, tmp_path):
    # in a process of its own: torch and TensorFlow side by side crash with some builds
    command = [TORCH_PYTHON, "-c", TORCH_SCRIPT, name, str(output_stride), *map(str, size), str(tmp_path / "torch.npz")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    stored = np.load(tmp_path / "torch.npz")
    backbone = create_backbone(name, output_stride=output_stride, variant=variant)
    for layer in backbone.model.layers:
        if layer.weights:
            layer.set_weights(torch_weights(stored, layer))
    for key, feature in backbone(stored["images"]).items():
        assert relative_error(feature, stored[f"level {key}"]) < ROUNDING, key


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"multi_grid": (1, 2)}),
        ("resnet50", {"multi_grid": (1, 2, 4)}),
        ("resnet50", {"variant": "b", "multi_grid": (1, 2, 1)}),
        ("resnet50v2", {"multi_grid": (2, 2, 2)}),
    ],
)
def test_dilated_levels_at_phase_zero_equal_the_strided_ones_at_odd_sizes_too(name, arguments):
    assert_dilated_levels_equal_strided_ones(name, pictures(1, 70, 90, 3), alpha=0.25, **arguments)


def last_stage_dilations(**arguments):
    """Dilation of the 3x3 convolutions of conv5_x, in their order."""
    layers = create_backbone(alpha=0.25, **arguments).model.layers
    convolutions = [layer for layer in layers if layer.name.startswith("conv5") and "_conv" in layer.name]
    return [layer.dilation_rate[0] for layer in convolutions if layer.kernel_size == (3, 3)]


@pytest.mark.parametrize(
    ("name", "variant", "output_stride", "multi_grid", "dilations"),
    [
        ("resnet50", None, 16, None, [2, 2, 2]),
        ("resnet50", None, 32, (1, 2, 4), [1, 2, 4]),
        ("resnet50", None, 16, (1, 2, 4), [2, 4, 8]),  # the paper's example
        ("resnet50", None, 8, [2, 2, 2], [8, 8, 8]),
        ("resnet50v2", None, 16, (1, 2, 4), [2, 4, 8]),
        # a first 3x3 that strides at output stride 32 reads the finer map, at half the rate
        ("resnet50", "b", 16, (1, 2, 4), [1, 4, 8]),
        ("resnet50", "b", 32, (1, 2, 1), [1, 2, 1]),
        ("resnet18", None, 16, (1, 2), [1, 2, 4, 4]),
        ("resnet18", None, 8, (3, 1), [6, 12, 4, 4]),
    ],
)
def test_unit_rates_multiply_the_dilation_of_the_last_stage(name, variant, output_stride, multi_grid, dilations):
    arguments = {"name": name, "variant": variant, "output_stride": output_stride, "multi_grid": multi_grid}
    assert last_stage_dilations(**arguments) == dilations


def test_unit_rates_leave_all_stages_but_the_last_as_they_are():
    plain = create_backbone("resnet50v2", alpha=0.25)
    gridded = create_backbone("resnet50v2", alpha=0.25, multi_grid=(1, 2, 4))
    gridded.model.set_weights(randomise(plain.model).get_weights())
    images = pictures(1, 128, 128, 3)
    expected, features = plain(images), gridded(images)
    for key in (2, 4, 8, 16):
        np.testing.assert_array_equal(features[key], expected[key])
    assert features[32].shape == expected[32].shape
    assert relative_error(features[32], expected[32]) > 0.01


@pytest.mark.parametrize(
    ("name", "variant", "count", "last_frozen", "first_free"),
    [
        ("resnet50", None, 1, "conv1_bn", "conv2_block1_1_conv"),
        ("resnet50", "b", 3, "conv3_block4_3_bn", "conv4_block1_1_conv"),
        ("resnet18", None, 2, "conv2_block2_2_bn", "conv3_block1_1_conv"),
        ("resnet50v2", None, 3, "conv3_block4_preact_bn", "conv3_block4_1_conv"),
        ("resnet50v2", None, 5, "post_bn", None),
    ],
)
def test_freezing_reaches_the_stage_that_was_named_and_no_further(name, variant, count, last_frozen, first_free):
    backbone = create_backbone(name, alpha=0.25, variant=variant)
    backbone.freeze(count)
    weighted = [layer for layer in backbone.model.layers if layer.weights]
    names = [layer.name for layer in weighted]
    frozen = names.index(last_frozen) + 1
    assert not any(layer.trainable for layer in weighted[:frozen])
    assert all(layer.trainable for layer in weighted[frozen:])
    assert names[frozen : frozen + 1] == ([first_free] if first_free else [])


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet34", {2: 16, 4: 16, 8: 32, 16: 64, 32: 128}),
        ("resnet50v2", {2: 16, 4: 64, 8: 128, 16: 256, 32: 512}),
    ],
)
def test_norm_activation_and_width_reach_every_layer(name, channels):
    norms = {
        norm: create_backbone(name, norm=norm, alpha=0.25, activation="elu") for norm in ("batch", "frozen", "group")
    }
    trained = {norm: [weight.name for weight in norms[norm].model.trainable_weights] for norm in norms}
    assert {"gamma", "beta"} <= set(trained["batch"])
    assert trained["group"] == trained["batch"]
    assert trained["frozen"] == [weight for weight in trained["batch"] if weight in ("kernel", "bias")]
    assert norms["batch"].channels == channels
    assert not any(isinstance(layer, keras.layers.ReLU) for layer in norms["batch"].model.layers)
    assert -1 <= np.min(norms["batch"](pictures(1, 32, 32, 3))[32]) < 0


@pytest.mark.parametrize(
    ("name", "variant", "preprocess_input"),
    [
        ("resnet50", None, keras.applications.resnet.preprocess_input),
        ("resnet50v2", None, keras.applications.resnet_v2.preprocess_input),
        ("resnet50", "b", lambda x: keras.applications.imagenet_utils.preprocess_input(x, mode="torch")),
        ("resnet18", None, lambda x: keras.applications.imagenet_utils.preprocess_input(x, mode="torch")),
    ],
)
def test_preprocessing_is_that_of_the_weights_source(name, variant, preprocess_input):
    preprocess = Preprocess(create_backbone(name, alpha=0.25, variant=variant).preprocessing)
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), "uint8")
    np.testing.assert_allclose(preprocess(images), preprocess_input(images.astype("float32")), atol=1e-4)
    inputs = keras.Input((None, None, 3), dtype="uint8")
    np.testing.assert_allclose(keras.Model(inputs, preprocess(inputs))(images), preprocess(images), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_torch_preprocessing_of_other_channel_counts_has_one_mean_and_deviation(channels):
    images = np.full((1, 2, 2, channels), 51, "uint8")
    np.testing.assert_allclose(Preprocess("torch", channels)(images), (0.2 - 0.449) / 0.226, rtol=1e-5)


def test_preprocess_by_torch_is_saved_with_its_model(tmp_path):
    inputs = keras.Input((None, None, 3), dtype="uint8")
    model = keras.Model(inputs, Preprocess("torch")(inputs))
    model.save(tmp_path / "preprocess.keras")
    images = np.full((1, 2, 2, 3), 100, "uint8")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "preprocess.keras")(images), model(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet18", "variant": "b"}, r"model\.variant: resnet18 has no variants; got 'b'"),
        ({"name": "resnet50", "variant": "d"}, r"model\.variant: resnet50 has b; got 'd'"),
        ({"name": "resnet50", "alpha": 0.01}, r"model\.alpha: 0\.01 is not a width multiplier of resnet50"),
        (
            {"name": "resnet18", "alpha": 0.5, "weights": "imagenet"},
            r"resnet18 has ImageNet weights at model\.alpha 1 only, not 0\.5",
        ),
        (
            {"name": "resnet50v2", "alpha": 0.5, "weights": "imagenet"},
            r"resnet50v2 has ImageNet weights at model\.alpha 1 only, not 0\.5",
        ),
        ({"name": "vgg16", "multi_grid": [1, 2, 4]}, r"model\.multi_grid: vgg16 has no unit rates; got \[1, 2, 4\]"),
        ({"name": "resnet50", "multi_grid": [1, 2]}, r"model\.multi_grid: \[1, 2\] .* expected 3 whole numbers from 1"),
        ({"name": "resnet18", "multi_grid": [1, 2, 4]}, r"expected 2 whole numbers .* resnet18's last stage.*\[1, 2\]"),
        ({"name": "resnet50", "multi_grid": [1, 0, 2]}, r"model\.multi_grid: \[1, 0, 2\] is not possible"),
        ({"name": "resnet50v2", "multi_grid": 2}, r"model\.multi_grid: 2 is not possible"),
        (
            {"name": "resnet50", "variant": "b", "multi_grid": [2, 2, 2]},
            r"model\.multi_grid: .* stride 2\. Start with 1 or set model\.output_stride to 16 or 8",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(UserError, match=message):
        create_backbone(**arguments)


def test_weights_of_the_papers_form_do_not_fit_variant_b(tmp_path):
    create_backbone("resnet50", alpha=0.25).model.save_weights(tmp_path / "paper.weights.h5")
    with pytest.raises(UserError, match=r"model\.variant[\s\S]*conv1_conv: file \(7, 7, 3, 16\) \(16,\), model \(7, 7"):
        create_backbone("resnet50", alpha=0.25, variant="b", weights=tmp_path / "paper.weights.h5")
