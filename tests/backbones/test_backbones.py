"""Backbones against their keras.applications twins, at every output stride; what freezing and saving promise."""

import importlib.util
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from oracle import (
    assert_dilated_levels_equal_strided_ones,
    assert_equals_twin,
    copy_by_name,
    pictures,
    randomise,
    relative_error,
)

from detseg.backbones.backbone import Preprocess, make_divisible
from detseg.backbones.builder import LayerBuilder
from detseg.backbones.catalogue import CATALOGUE
from detseg.backbones.create import create_backbone
from detseg.errors import UserError

TWINS = {
    "vgg16": keras.applications.VGG16,
    "vgg19": keras.applications.VGG19,
    "mobilenet": keras.applications.MobileNet,
    "mobilenetv2": keras.applications.MobileNetV2,
}
VGG_POOLS = {32: "block5_pool", "pool3": "block3_pool", "pool4": "block4_pool"}
LEVELS = {
    "vgg16": {2**i: f"block{i + 1}_conv{last}" for i, last in enumerate((2, 2, 3, 3, 3))} | VGG_POOLS,
    "vgg19": {2**i: f"block{i + 1}_conv{last}" for i, last in enumerate((2, 2, 4, 4, 4))} | VGG_POOLS,
    "mobilenet": {2 ** (i + 1): f"conv_pw_{block}_relu" for i, block in enumerate((1, 3, 5, 11, 13))},
    "mobilenetv2": {2 ** (i + 1): f"block_{block}_expand_relu" for i, block in enumerate((1, 3, 6, 13))}
    | {32: "out_relu"},
}


@pytest.fixture(autouse=True)
def float32_policy_afterwards():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    ("name", "alpha", "shape"),
    [
        ("vgg19", 1.0, (1, 64, 64, 3)),
        ("mobilenet", 0.25, (2, 64, 96, 3)),
        ("mobilenet", 0.5, (1, 70, 90, 3)),  # odd maps from stride 2 on
        ("vgg16", 1.0, (1, 64, 64, 1)),
        ("mobilenetv2", 0.35, (1, 70, 90, 3)),
        ("mobilenetv2", 1.4, (2, 64, 96, 4)),
        ("vgg16", 1.0, (1, 70, 90, 4)),
    ],
)
def test_every_level_equals_keras_applications(name, alpha, shape):
    options = {} if alpha == 1 else {"alpha": alpha}
    twin = TWINS[name](weights=None, include_top=False, input_shape=(None, None, shape[-1]), **options)
    backbone = create_backbone(name, in_channels=shape[-1], alpha=alpha)
    assert_equals_twin(backbone, twin, LEVELS[name], pictures(*shape))


DEEPER = ("resnet101", "resnet152", "resnet101v2", "resnet152v2")  # more of resnet50's and resnet50v2's blocks


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name not in DEEPER])
def test_dilated_levels_sampled_at_phase_zero_equal_the_strided_ones(name):
    alpha = 0.5 if CATALOGUE[name].has_norms else 1.0
    # squeeze-excite sees the mean of the whole map, which dilation changes
    variant = "minimalistic" if name.startswith("mobilenetv3") else None
    assert_dilated_levels_equal_strided_ones(name, pictures(1, 64, 96, 3), alpha=alpha, variant=variant)


FORMS = [(name, variant) for name, net in CATALOGUE.items() if name not in DEEPER for variant in (None, *net.variants)]
ALIGNED = [form for form in FORMS if CATALOGUE[form[0]].variants.get(form[1], CATALOGUE[form[0]]).aligns_corners]
QUICK = (("resnet18", None), ("resnet50", "b"), ("resnet50v2", None), ("mobilenetv2", "deeplab"))


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        form if form in QUICK else pytest.param(*form, marks=pytest.mark.slow)
        for form in ALIGNED
        if form[0] not in DEEPER
    ],
)
def test_levels_of_nets_that_align_corners_line_up_on_images_of_32_n_and_1_pixels(name, variant):
    """Strided and dilated, a level's pixels lie at multiples of its stride, from one corner to the other."""
    images = pictures(1, 65, 97, 3)
    assert_dilated_levels_equal_strided_ones(name, images, alpha=0.25, variant=variant)
    # Mirrored images have mirrored features if the kernels are their own mirror images, and only if padding is even.
    backbone = create_backbone(name, output_stride=16, alpha=0.25, variant=variant)
    for weight in randomise(backbone.model).weights:
        if len(weight.shape) == 4:
            weight.assign((weight + np.flip(weight, 1)) / 2)
    features, mirrored = backbone(images), backbone(images[:, :, ::-1])
    for key, feature in features.items():
        stride = backbone.strides[key]
        assert feature.shape == (1, 64 // stride + 1, 96 // stride + 1, backbone.channels[key])
        assert relative_error(mirrored[key][:, :, ::-1], feature) < 1e-5, key


def test_mobilenetv2_of_deeplab_is_mobilenetv2_without_its_last_convolution():
    images, whole = pictures(2, 64, 96, 3), create_backbone("mobilenetv2", alpha=0.5)
    cut = create_backbone("mobilenetv2", alpha=0.5, variant="deeplab")
    copy_by_name(randomise(whole.model), cut.model)
    assert set(whole.channels.items()) - set(cut.channels.items()) == {(32, 1280)}
    assert cut.channels[32] == 160
    names = {layer.name for layer in whole.model.layers if layer.weights}
    assert names - {layer.name for layer in cut.model.layers} == {"Conv_1", "Conv_1_bn"}
    expected = keras.Model(whole.model.input, whole.model.get_layer("block_16_project_BN").output)(images)
    assert relative_error(cut(images)[32], expected) < 1e-6


def test_levels_of_a_functional_model_have_the_strides_and_channels_they_claim():
    for name in ("vgg16", "mobilenet"):
        backbone = create_backbone(name, output_stride=16)
        assert backbone.keys == tuple(LEVELS[name])
        for key, feature in backbone(keras.Input((64, 96, 3))).items():
            stride = backbone.strides[key]
            assert feature.shape == (None, 64 // stride, 96 // stride, backbone.channels[key])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vgg16", 14_714_688), ("vgg19", 20_024_384), ("mobilenet", 3_228_864), ("mobilenetv2", 2_257_984)],
)
def test_layers_are_those_of_the_twin_and_parameters_as_published(name, parameters):
    twin = TWINS[name](weights=None, include_top=False, input_shape=(None, None, 3))
    ours = create_backbone(name).model
    assert ours.count_params() == parameters
    assert [layer.name for layer in ours.layers[1:]] == [layer.name for layer in twin.layers[1:]]
    assert ours.name == name


def test_placement_keeps_stride_times_dilation():
    at_16, at_8 = (LayerBuilder("batch", "relu", output_stride) for output_stride in (16, 8))
    assert [at_16.place(native, 2) for native in (2, 8, 16, 32)] == [(2, 1), (2, 1), (1, 1), (1, 2)]
    assert [at_8.place(native, 2) for native in (8, 16, 32)] == [(1, 1), (1, 2), (1, 4)]


def test_rounding_of_widths_by_hand():
    assert [make_divisible(value) for value in (32, 11.2, 44.8, 4, 12)] == [32, 16, 48, 8, 16]


@pytest.mark.parametrize(
    ("name", "count", "last_frozen", "first_free"),
    [
        ("mobilenet", 1, "conv_pw_1", "conv_dw_2"),
        ("mobilenet", 4, "conv_pw_11_bn", "conv_dw_12"),
        ("mobilenetv2", 2, "block_3_expand_BN", "block_3_depthwise"),
        ("vgg16", 3, "block4_conv3", "block5_conv1"),
    ],
)
def test_freezing_reaches_the_stage_that_was_named_and_no_further(name, count, last_frozen, first_free):
    backbone = create_backbone(name, alpha=1.0)
    backbone.freeze(count)
    weighted = [layer for layer in backbone.model.layers if layer.weights]
    names = [layer.name for layer in weighted]
    assert not any(layer.trainable for layer in weighted[: names.index(last_frozen) + 1])
    assert all(layer.trainable for layer in weighted[names.index(first_free) :])


def test_frozen_stages_keep_weights_and_statistics_in_training():
    backbone = create_backbone("mobilenet", alpha=0.25)
    backbone.freeze(2)
    frozen = {layer.name: layer.get_weights() for layer in backbone.stage_layers(2)}
    last_norm = backbone.model.get_layer("conv_pw_13_bn")
    before = last_norm.get_weights()
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.Model(backbone.model.inputs, backbone.model.outputs[-1])])
    model.compile(optimizer="sgd", loss="mse")
    model.fit(pictures(2, 32, 32, 3), np.zeros((2, 1, 1, 256), "float32"), epochs=1, verbose=0)
    for layer, weights in frozen.items():
        for old, new in zip(weights, backbone.model.get_layer(layer).get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
    assert any((old != new).any() for old, new in zip(before, last_norm.get_weights(), strict=True))


def test_freezing_nothing_and_everything():
    backbone = create_backbone("mobilenet", alpha=0.25)
    backbone.freeze(0)
    assert len(backbone.model.trainable_weights) == len(
        create_backbone("mobilenet", alpha=0.25).model.trainable_weights
    )
    backbone.freeze(5)
    assert backbone.model.trainable_weights == []


@pytest.mark.parametrize("count", [-1, 6, 2.0, True])
def test_impossible_freezing_is_refused(count):
    with pytest.raises(UserError, match=r"model\.freeze_stages: .* expected 0 \(nothing is frozen\) to 5"):
        create_backbone("mobilenet", alpha=0.25).freeze(count)


@pytest.mark.parametrize(("name", "output_stride"), [("mobilenet", 16), ("vgg16", 8)])
def test_saved_model_gives_the_same_output_to_the_bit(name, output_stride, tmp_path):
    backbone = create_backbone(name, output_stride=output_stride, alpha=0.25 if name == "mobilenet" else 1.0)
    randomise(backbone.model)
    backbone.model.save(tmp_path / "backbone.keras")
    loaded = keras.models.load_model(tmp_path / "backbone.keras")
    for ours, theirs in zip(backbone.model(pictures(1, 32, 32, 3)), loaded(pictures(1, 32, 32, 3)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["vgg16", "mobilenetv2"])
def test_mixed_bfloat16_gives_finite_features_near_those_of_float32(name):
    alpha = 1.0 if name == "vgg16" else 0.5
    full = create_backbone(name, output_stride=16, alpha=alpha)
    keras.config.set_dtype_policy("mixed_bfloat16")
    half = create_backbone(name, output_stride=16, alpha=alpha)
    half.model.set_weights(full.model.get_weights())
    expected = full(pictures(1, 32, 32, 3))
    for key, feature in half(pictures(1, 32, 32, 3)).items():
        assert keras.backend.standardize_dtype(feature.dtype) == "bfloat16"
        assert relative_error(keras.ops.cast(feature, "float32"), expected[key]) < 0.1


def test_group_norm_trains_and_frozen_norm_does_not():
    norms = {norm: create_backbone("mobilenet", norm=norm, alpha=0.25) for norm in ("batch", "frozen", "group")}
    kernels = [weight for weight in norms["batch"].model.trainable_weights if weight.name == "kernel"]
    assert len(norms["frozen"].model.trainable_weights) == len(kernels)
    assert len(norms["group"].model.trainable_weights) == len(norms["batch"].model.trainable_weights)
    assert all(np.isfinite(feature).all() for feature in norms["group"](pictures(1, 32, 32, 3)).values())
    norms["frozen"].model.set_weights(randomise(norms["batch"].model).get_weights())
    expected = norms["batch"](pictures(1, 32, 32, 3), training=False)[32]
    np.testing.assert_allclose(norms["frozen"](pictures(1, 32, 32, 3), training=True)[32], expected, rtol=1e-6)


def test_another_activation_replaces_every_relu():
    for name in ("vgg16", "mobilenet"):
        features = create_backbone(name, activation="elu")(pictures(1, 32, 32, 3))
        assert -1 <= min(np.min(feature) for feature in features.values()) < 0


def test_preprocessing_equals_that_of_keras_applications():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), "uint8")
    for name, module in (("vgg16", keras.applications.vgg16), ("mobilenetv2", keras.applications.mobilenet_v2)):
        layer = Preprocess(create_backbone(name).preprocessing)
        expected = module.preprocess_input(images.astype("float32"))
        np.testing.assert_allclose(layer(images), expected, atol=1e-4)
        np.testing.assert_allclose(layer(images.astype("float32")), expected, atol=1e-4)
        inputs = keras.Input((None, None, 3), dtype="uint8")
        np.testing.assert_allclose(keras.Model(inputs, layer(inputs))(images), expected, atol=1e-4)


def test_preprocessing_of_other_channel_counts_has_one_mean():
    mean = (103.939 + 116.779 + 123.68) / 3
    for channels in (1, 4):
        images = np.full((1, 2, 2, channels), 200, "uint8")
        np.testing.assert_allclose(Preprocess("caffe", channels)(images), images - np.float32(mean), rtol=1e-6)
        np.testing.assert_allclose(Preprocess("tf", channels)(images), images / 127.5 - 1, rtol=1e-5)


def test_preprocessing_subtracts_in_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    outputs = Preprocess("caffe")(np.full((1, 1, 1, 3), 104.5, "float32"))
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    assert np.asarray(keras.ops.cast(outputs, "float32"))[0, 0, 0, 0] == pytest.approx(104.5 - 103.939, rel=4e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mobilnetv2"}, r"model\.backbone: 'mobilnetv2' is unknown; .*vgg16.* did you mean mobilenetv2\?"),
        ({"name": "vgg16", "output_stride": 4}, r"model\.output_stride: 4 is unknown; expected one of 8, 16, 32"),
        ({"name": "vgg16", "norm": "layer"}, r"model\.norm: 'layer' is unknown; expected one of batch, frozen, group"),
        ({"name": "vgg16", "alpha": 0.01}, r"model\.alpha: 0\.01 is not a width multiplier of vgg16; .* 64 filters"),
        ({"name": "vgg16", "alpha": 0.5, "weights": "imagenet"}, r"vgg16 has ImageNet weights at model\.alpha 1 only"),
        ({"name": "mobilenet", "alpha": 0}, r"model\.alpha: 0 is not a width multiplier of mobilenet"),
        ({"name": "mobilenet", "in_channels": 0}, r"data\.channels: 0 is not a number of channels"),
        ({"name": "mobilenet", "variant": "x"}, r"model\.variant: mobilenet has no variants; got 'x'"),
        (
            {"name": "mobilenet", "activation": "rellu"},
            r"model\.activation: 'rellu' is unknown; .* did you mean relu\?",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(UserError, match=message):
        create_backbone(**arguments)


JAX_ALPHAS = {"mobilenetv2": 0.35, "vgg16": 0.25, "mobilenetv3_small": 0.5, "xception": 0.125, "resnet50": 0.25}
JAX_SCRIPT = """
import json, sys, jax, numpy as np
from detseg.backbones.create import create_backbone
stored = np.load(sys.argv[1])
for name, alpha in json.loads(sys.argv[3]).items():
    backbone = create_backbone(name, output_stride=8, alpha=alpha)
    backbone.model.load_weights(sys.argv[2] + "/" + name + ".weights.h5")
    features = jax.jit(backbone.model)(stored["images"])  # one compilation rather than one for each operation
    for key, feature in zip(backbone.keys, features):
        expected = stored[f"{name} {key}"]
        error = np.abs(np.asarray(feature) - expected).max() / np.abs(expected).max()
        assert error < 1e-4, (name, key, error)
"""


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_features_on_jax_equal_those_on_tensorflow(tmp_path):
    stored = {"images": pictures(1, 32, 72, 3)}  # maps of even height and odd width, which Xception's pools tell apart
    for name, alpha in JAX_ALPHAS.items():
        backbone = create_backbone(name, output_stride=8, alpha=alpha)
        randomise(backbone.model).save_weights(tmp_path / f"{name}.weights.h5")
        stored |= {f"{name} {key}": np.asarray(feature) for key, feature in backbone(stored["images"]).items()}
    np.savez(tmp_path / "features.npz", **stored)
    # without its optimizations XLA compiles the initializers of all shapes in a third of the time
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    arguments = [str(tmp_path / "features.npz"), str(tmp_path), json.dumps(JAX_ALPHAS)]
    command = [sys.executable, "-c", JAX_SCRIPT, *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr


def test_unit_rates_multiply_the_dilation_of_mobilenetv2s_last_blocks():
    for output_stride, rate in ((32, 1), (16, 2), (8, 4)):
        model = create_backbone("mobilenetv2", output_stride, alpha=0.35, multi_grid=[1, 2, 4]).model
        rates = [model.get_layer(f"block_{block}_depthwise").dilation_rate for block in (12, 14, 15, 16)]
        assert rates == [(max(1, rate // 2),) * 2, (rate,) * 2, (2 * rate,) * 2, (4 * rate,) * 2]
