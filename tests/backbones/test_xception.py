"""Xception against keras.applications, Xception-65 against its table, both at every output stride."""

import keras
import numpy as np
import pytest
from oracle import assert_dilated_levels_equal_strided_ones, assert_same_features, pictures, randomise

from detseg.backbones.create import create_backbone
from detseg.errors import UserError

TWIN_LEVELS = {
    2: "block1_conv2_act",
    4: "block3_sepconv2_bn",
    8: "block4_sepconv2_bn",
    16: "block13_sepconv2_bn",
    32: "block14_sepconv2_act",
}


@pytest.mark.filterwarnings("ignore:This model usually expects")
@pytest.mark.parametrize(
    ("weights", "shape"),
    [("imagenet", (1, 64, 96, 3)), ("twin.h5", (1, 71, 90, 1)), ("twin.weights.h5", (1, 100, 130, 4))],
)
def test_every_level_equals_keras_applications_from_every_source(weights, shape, tmp_path, monkeypatch):
    twin = keras.applications.Xception(weights=None, include_top=False, input_shape=(None, None, shape[-1]))
    randomise(twin)
    if weights == "imagenet":
        monkeypatch.setattr(keras.applications, "Xception", lambda **arguments: twin)
    else:
        weights = tmp_path / weights
        twin.save_weights(weights) if weights.name.endswith(".weights.h5") else twin.save(weights)
    backbone = create_backbone("xception", in_channels=shape[-1], weights=weights)
    assert backbone.unused_layers == ()
    assert_same_features(backbone, twin, TWIN_LEVELS, pictures(*shape))


def test_parameters_as_published():
    assert create_backbone("xception").model.count_params() == 20_861_480


def separable(channels, filters):
    """Weights of a depthwise 3x3, a pointwise convolution and the norms of four values a channel behind both."""
    return (9 + 4) * channels + (channels + 4) * filters


def shortcut(channels, filters):
    return (channels + 4) * filters


def test_parameters_of_xception65_worked_out_from_the_table():
    stem = 9 * 3 * 32 + 4 * 32 + 9 * 32 * 64 + 4 * 64
    entry = (
        *(separable(64, 128), 2 * separable(128, 128), shortcut(64, 128)),
        *(separable(128, 256), 2 * separable(256, 256), shortcut(128, 256)),
        *(separable(256, 728), 2 * separable(728, 728), shortcut(256, 728)),
    )
    middle = 16 * 3 * separable(728, 728)
    leaving = (
        *(separable(728, 728), separable(728, 1024), separable(1024, 1024), shortcut(728, 1024)),
        *(separable(1024, 1536), separable(1536, 1536), separable(1536, 2048)),
    )
    assert create_backbone("xception65").model.count_params() == stem + sum(entry) + middle + sum(leaving)


@pytest.mark.parametrize(
    ("name", "size", "multi_grid"),
    [("xception", (71, 90), None), ("xception", (100, 130), None), ("xception65", (71, 90), (1, 2, 4))],
)
def test_dilated_levels_at_phase_zero_equal_the_strided_ones_at_odd_sizes_too(name, size, multi_grid):
    images = pictures(1, *size, 3)
    assert_dilated_levels_equal_strided_ones(name, images, alpha=0.125, multi_grid=multi_grid)


def test_sizes_of_levels():
    images = pictures(1, 96, 64, 3)
    unpadded = create_backbone("xception", alpha=0.125)(images)
    assert [unpadded[key].shape[1:3] for key in (2, 4, 8, 16, 32)] == [(45, 29), (23, 15), (12, 8), (6, 4), (3, 2)]
    aligned = create_backbone("xception65", alpha=0.125, output_stride=16)
    for key, feature in aligned(pictures(1, 71, 90, 3)).items():
        stride = aligned.strides[key]
        assert feature.shape == (1, -(-71 // stride), -(-90 // stride), aligned.channels[key])
    assert aligned.channels == {2: 8, 4: 32, 8: 91, 16: 128, 32: 256}


@pytest.mark.parametrize(
    ("output_stride", "multi_grid", "dilations"),
    [(16, None, [2, 2, 2]), (32, (1, 2, 1), [1, 2, 1]), (16, [1, 2, 4], [2, 4, 8])],
)
def test_unit_rates_multiply_the_dilation_of_the_last_three_convolutions(output_stride, multi_grid, dilations):
    model = create_backbone("xception65", output_stride=output_stride, alpha=0.125, multi_grid=multi_grid).model
    layers = [model.get_layer(f"exit_flow_block2_separable_conv{index}_depthwise") for index in (1, 2, 3)]
    assert [layer.dilation_rate for layer in layers] == [(dilation, dilation) for dilation in dilations]


@pytest.mark.parametrize("name", ["xception", "xception65"])
def test_norm_and_activation_reach_every_layer(name):
    grouped = create_backbone(name, norm="group", alpha=0.125).model
    assert sum(isinstance(layer, keras.layers.GroupNormalization) for layer in grouped.layers) >= 40
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in grouped.layers)

    changed = create_backbone(name, norm="frozen", activation="elu", alpha=0.125)
    assert not any(weight.name in ("gamma", "beta") for weight in changed.model.trainable_weights)
    assert not any(isinstance(layer, keras.layers.ReLU | keras.layers.Activation) for layer in changed.model.layers)
    assert -1 <= np.min(changed(pictures(1, 32, 32, 3))[32]) < 0


@pytest.mark.parametrize("name", ["xception", "xception65"])
def test_saved_model_gives_the_same_output_to_the_bit(name, tmp_path):
    backbone = create_backbone(name, output_stride=8, alpha=0.125)
    randomise(backbone.model).save(tmp_path / "backbone.keras")
    loaded = keras.models.load_model(tmp_path / "backbone.keras")
    for ours, theirs in zip(backbone.model(pictures(1, 64, 64, 3)), loaded(pictures(1, 64, 64, 3)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "xception", "alpha": 0.01}, r"model\.alpha: 0\.01 is not a width multiplier of xception; .* 32 filt"),
        ({"name": "xception", "alpha": 0.5, "weights": "imagenet"}, r"xception has ImageNet weights at model\.alpha 1"),
        ({"name": "xception", "multi_grid": [1, 2]}, r"model\.multi_grid: xception has no unit rates"),
        ({"name": "xception65", "multi_grid": [1, 2]}, r"model\.multi_grid: \[1, 2\] .* expected 3 whole numbers"),
        ({"name": "xception65", "multi_grid": [0, 1, 2]}, r"model\.multi_grid: \[0, 1, 2\] is not possible"),
        ({"name": "xception65", "alpha": 0.125, "weights": "imagenet"}, r"no ImageNet weights of xception65; expected"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(UserError, match=message):
        create_backbone(**arguments)
