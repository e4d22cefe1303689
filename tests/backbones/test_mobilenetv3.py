"""MobileNetV3 against keras.applications, at every output stride."""

import keras
import numpy as np
import pytest
from oracle import assert_dilated_levels_equal_strided_ones, assert_equals_twin, pictures, randomise

from detseg.backbones.create import create_backbone
from detseg.errors import UserError

TWINS = {"mobilenetv3_small": "MobileNetV3Small", "mobilenetv3_large": "MobileNetV3Large"}
NORMS = {  # of the layers at whose activation the levels are: the twin's activations have no names
    "mobilenetv3_small": {2: "conv_bn"} | {2**i: f"expanded_conv_{n}_expand_bn" for i, n in ((2, 1), (3, 3), (4, 8))},
    "mobilenetv3_large": {2**i: f"expanded_conv_{n}_expand_bn" for i, n in ((1, 1), (2, 3), (3, 6), (4, 12))},
}


def create_twin(name, channels=3, alpha=1.0, variant=None):
    return getattr(keras.applications, TWINS[name])(
        input_shape=(None, None, channels),
        alpha=alpha,
        minimalistic=variant == "minimalistic",
        include_top=False,
        weights=None,
        include_preprocessing=False,
    )


def twin_levels(name, twin):
    names = [layer.name for layer in twin.layers]
    return {key: names[names.index(norm) + 1] for key, norm in (NORMS[name] | {32: "conv_1_bn"}).items()}


@pytest.mark.parametrize(
    ("name", "alpha", "variant", "shape"),
    [
        ("mobilenetv3_small", 1.0, None, (2, 64, 96, 3)),
        ("mobilenetv3_large", 0.5, None, (1, 71, 90, 4)),  # odd maps, from the first on and from stride 2 on
        ("mobilenetv3_small", 0.75, "minimalistic", (1, 70, 90, 1)),
        ("mobilenetv3_large", 1.25, "minimalistic", (1, 64, 64, 3)),
    ],
)
def test_every_level_equals_keras_applications(name, alpha, variant, shape):
    twin = create_twin(name, shape[-1], alpha, variant)
    backbone = create_backbone(name, in_channels=shape[-1], alpha=alpha, variant=variant)
    assert_equals_twin(backbone, twin, twin_levels(name, twin), pictures(*shape))


@pytest.mark.parametrize(
    ("name", "variant", "parameters"),
    [
        ("mobilenetv3_small", None, 939_120),
        ("mobilenetv3_large", None, 2_996_352),
        ("mobilenetv3_small", "minimalistic", 441_000),
        ("mobilenetv3_large", "minimalistic", 1_437_608),
    ],
)
def test_parameters_without_the_top(name, variant, parameters):
    assert create_backbone(name, variant=variant).model.count_params() == parameters


def test_only_squeeze_excite_tells_a_dilated_net_from_the_strided_one():
    def with_constant_gates(model):
        randomise(model)
        for layer in model.layers:
            if layer.name.endswith("squeeze_excite_conv_1"):
                layer.kernel.assign(np.zeros(layer.kernel.shape))

    images = pictures(1, 64, 96, 3)
    assert_dilated_levels_equal_strided_ones("mobilenetv3_small", images, prepare=with_constant_gates, alpha=0.5)


def test_full_net_is_exact_up_to_its_output_stride_and_near_beyond():
    strided = create_backbone("mobilenetv3_small")
    dilated = create_backbone("mobilenetv3_small", output_stride=8)
    dilated.model.set_weights(randomise(strided.model).get_weights())
    expected, features = strided(pictures(1, 64, 96, 3)), dilated(pictures(1, 64, 96, 3))
    for key in (2, 4, 8):
        np.testing.assert_array_equal(features[key], expected[key])
    for key, step in ((16, 2), (32, 4)):
        np.testing.assert_allclose(features[key][:, ::step, ::step], expected[key], atol=1e-3 * np.max(expected[key]))


@pytest.mark.parametrize(("name", "gate_count"), [("mobilenetv3_small", 9), ("mobilenetv3_large", 8)])
def test_another_activation_replaces_all_but_the_gates_and_frozen_norms_all(name, gate_count):
    model = create_backbone(name, norm="frozen", activation="elu", alpha=0.35).model
    activations = [layer for layer in model.layers if layer.name.endswith("_act")]
    gates = [layer for layer in model.layers if layer.name.endswith("squeeze_excite_gate")]
    assert all(isinstance(layer, keras.layers.ELU) for layer in activations)
    assert len(gates) == gate_count
    assert all(layer.activation is keras.activations.hard_sigmoid for layer in gates)
    assert not any(isinstance(layer, keras.layers.ReLU) for layer in model.layers)
    assert {weight.name for weight in model.trainable_weights} == {"kernel", "bias"}


def test_group_norm_reaches_every_layer():
    model = create_backbone("mobilenetv3_small", norm="group", alpha=0.35).model
    norms = [layer for layer in model.layers if layer.name.endswith("_bn")]
    assert all(isinstance(layer, keras.layers.GroupNormalization) for layer in norms)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers)


def test_saved_model_gives_the_same_output_to_the_bit(tmp_path):
    backbone = create_backbone("mobilenetv3_small", output_stride=16, alpha=0.5)
    randomise(backbone.model).save(tmp_path / "backbone.keras")
    loaded = keras.models.load_model(tmp_path / "backbone.keras")
    for ours, theirs in zip(backbone.model(pictures(1, 64, 64, 3)), loaded(pictures(1, 64, 64, 3)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("variant", [None, "minimalistic"])
def test_imagenet_weights_are_those_of_the_variant(variant, monkeypatch):
    twin = randomise(create_twin("mobilenetv3_small", variant=variant))
    calls = []

    def downloaded(weights, include_top, input_shape, **options):
        calls.append(options)
        return twin

    monkeypatch.setattr(keras.applications, "MobileNetV3Small", downloaded)
    backbone = create_backbone("mobilenetv3_small", weights="imagenet", variant=variant)
    assert calls == [{} if variant is None else {"minimalistic": True}]
    for mine, other in zip(backbone.model.weights, twin.weights, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0.0}, r"model\.alpha: 0\.0 is not a width multiplier of mobilenetv3_small"),
        ({"alpha": "1"}, r"model\.alpha: '1' is not a width multiplier"),
        ({"variant": "b"}, r"model\.variant: mobilenetv3_small has minimalistic, torchvision; got 'b'"),
        ({"multi_grid": [1, 2, 4]}, r"model\.multi_grid: mobilenetv3_small has no unit rates"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(UserError, match=message):
        create_backbone("mobilenetv3_small", **arguments)
