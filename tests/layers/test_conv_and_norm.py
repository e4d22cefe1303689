"""The fast layers against stock Keras: outputs, gradients and statistics; what norms promise."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from detseg.errors import UserError
from detseg.layers import conv
from detseg.layers.conv import Conv2D, DepthwiseConv2D, SeparableConv2D, dilated_padding
from detseg.layers.norm import BatchNorm, FrozenBatchNorm, create_norm

TOLERANCE = {"float32": 1e-5, "mixed_bfloat16": 2e-2, "mixed_float16": 3e-3}  # of the largest value


@pytest.fixture(autouse=True, params=["float32"])
def policy(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


every_policy = pytest.mark.parametrize("policy", list(TOLERANCE), indirect=True)


def outputs_and_gradients(layer, images, **arguments):
    """Output, gradients by the input and by the trainable weights, in a graph of dynamic batch, height and width."""

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, images.shape[-1]), "float32")])
    def run(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, **arguments)
            outputs32 = ops.cast(outputs, "float32")
            # A weighted sum: the plain sum of a normalised batch has no gradient.
            ramp = ops.reshape(ops.cast(ops.arange(ops.size(outputs32)) % 7, "float32"), ops.shape(outputs32))
            loss = ops.sum(outputs32 * ramp)
        return outputs, *tape.gradient(loss, [inputs] + [weight.value for weight in layer.trainable_weights])

    return [np.asarray(x, "float64") for x in run(tf.constant(images))]


def assert_same_results(layer, stock, images, policy, **arguments):
    rng = np.random.default_rng(1)
    layer.build(images.shape)
    stock.build(images.shape)
    stock.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in stock.weights])
    layer.set_weights(stock.get_weights())
    ours = outputs_and_gradients(layer, images, **arguments) + layer.get_weights()
    theirs = outputs_and_gradients(stock, images, **arguments) + stock.get_weights()
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert np.abs(mine - other).max() <= TOLERANCE[policy] * max(np.abs(other).max(), 1e-2)


def pictures(*shape):
    return np.random.default_rng(0).normal(1.0, 2.0, shape).astype("float32")


@every_policy
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_convolutions_equal_stock_ones(policy, padding, dilation):
    images = pictures(2, 9, 11, 4)
    options = {"dilation_rate": dilation, "padding": padding}
    assert_same_results(Conv2D(5, 3, **options), keras.layers.Conv2D(5, 3, **options), images, policy)
    assert_same_results(DepthwiseConv2D(3, **options), keras.layers.DepthwiseConv2D(3, **options), images, policy)
    assert_same_results(SeparableConv2D(5, 3, **options), keras.layers.SeparableConv2D(5, 3, **options), images, policy)


@pytest.mark.parametrize(
    ("ours", "stock", "options"),
    [
        (Conv2D, keras.layers.Conv2D, {"filters": 6, "strides": 2, "padding": "same"}),
        (Conv2D, keras.layers.Conv2D, {"filters": 6, "dilation_rate": (1, 2), "use_bias": False}),
        (Conv2D, keras.layers.Conv2D, {"filters": 6, "dilation_rate": 9, "padding": "same", "activation": "relu"}),
        (SeparableConv2D, keras.layers.SeparableConv2D, {"filters": 6, "strides": 2, "use_bias": False}),
        (SeparableConv2D, keras.layers.SeparableConv2D, {"filters": 6, "dilation_rate": 9, "padding": "same"}),
        (DepthwiseConv2D, keras.layers.DepthwiseConv2D, {"strides": 2}),
        (DepthwiseConv2D, keras.layers.DepthwiseConv2D, {"dilation_rate": (1, 2), "depth_multiplier": 2}),
        (DepthwiseConv2D, keras.layers.DepthwiseConv2D, {"dilation_rate": 9, "padding": "same", "activation": "relu"}),
    ],
)
def test_unusual_convolutions_equal_stock_ones_at_batch_size_one(ours, stock, options, policy):
    layer, twin = ours(kernel_size=3, **options), stock(kernel_size=3, **options)
    assert_same_results(layer, twin, pictures(1, 7, 8, 4), policy)


def operations_of(layer, images):
    function = tf.function(layer).get_concrete_function(tf.constant(images))
    return {operation.type for operation in function.graph.get_operations()}


def test_dilated_convolutions_are_one_operation_in_a_graph_where_tensorflow_can():
    images = pictures(1, 8, 8, 4)
    for layer, works in (
        (Conv2D(4, 3, dilation_rate=2), conv._native_dilation_works(tf.float32)),
        (DepthwiseConv2D(3, dilation_rate=2), conv._native_depthwise_dilation_works(tf.float32)),
    ):
        layer(images)
        assert ("SpaceToBatchND" in operations_of(layer, images)) is not works


def test_dilated_convolutions_fall_back_where_the_native_one_has_no_gradient(monkeypatch, policy):
    def fail(*args, **kwargs):
        raise tf.errors.InvalidArgumentError(None, None, "Current CPU implementation only supports dilation rate 1")

    monkeypatch.setattr(conv, "_native_conv2d", fail)
    conv._native_dilation_works.cache_clear()
    try:
        layer = Conv2D(5, 3, dilation_rate=2)
        assert_same_results(layer, keras.layers.Conv2D(5, 3, dilation_rate=2), pictures(1, 8, 8, 4), policy)
        assert "SpaceToBatchND" in operations_of(layer, pictures(1, 8, 8, 4))
    finally:
        conv._native_dilation_works.cache_clear()


def test_dilated_convolutions_have_gradients_in_eager_mode():
    images = tf.constant(pictures(1, 8, 8, 4))
    for layer in (Conv2D(4, 3, dilation_rate=2), DepthwiseConv2D(3, dilation_rate=2)):
        with tf.GradientTape() as tape:
            outputs = ops.sum(layer(images) ** 2)
        eager = np.asarray(tape.gradient(outputs, layer.kernel.value))

        @tf.function
        def graph(layer=layer):
            with tf.GradientTape() as tape:
                outputs = ops.sum(layer(images) ** 2)
            return tape.gradient(outputs, layer.kernel.value)

        np.testing.assert_allclose(eager, np.asarray(graph()), rtol=1e-4, atol=1e-3)


def test_padding_of_a_stride_that_became_dilation():
    assert dilated_padding(3, leading=0, trailing=1, dilation=1, strided=True) == (0, 1)
    assert dilated_padding(3, leading=0, trailing=1, dilation=1, strided=False) == (0, 2)
    assert dilated_padding(3, leading=1, trailing=1, dilation=2, strided=False) == (2, 2)
    assert dilated_padding(7, leading=3, trailing=3, dilation=4, strided=False) == (12, 12)
    assert dilated_padding(3, leading=0, trailing=1, dilation=4, strided=False) == (0, 8)


@every_policy
@pytest.mark.parametrize("shape", [(4, 9, 7, 8), (1, 6, 6, 8)])
@pytest.mark.parametrize(("training", "trainable"), [(True, True), (False, True), (True, False)])
def test_batch_norm_equals_the_stock_one(policy, shape, training, trainable):
    ours, stock = BatchNorm(), keras.layers.BatchNormalization(momentum=0.9)
    ours.trainable = stock.trainable = trainable
    assert_same_results(ours, stock, pictures(*shape), policy, training=training)


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"epsilon": 1.001e-5, "momentum": 0.99}])
def test_batch_norm_options_equal_the_stock_ones(options, policy):
    stock = keras.layers.BatchNormalization(**{"momentum": 0.9, **options})
    assert_same_results(BatchNorm(**options), stock, pictures(2, 5, 6, 8), policy, training=True)


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (6, 8), (2, 5, 8)])
def test_batch_norm_of_one_pixel_and_of_other_ranks_equals_the_stock_one(shape):
    ours, stock = BatchNorm(), keras.layers.BatchNormalization(momentum=0.9)
    images = pictures(*shape)
    np.testing.assert_allclose(ours(images, training=True), stock(images, training=True), rtol=1e-5, atol=1e-4)
    for mine, other in zip(ours.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-7)


def test_moving_statistics_after_several_steps_equal_the_stock_ones():
    ours, stock = BatchNorm(), keras.layers.BatchNormalization(momentum=0.9)
    rng = np.random.default_rng(3)
    for step in range(5):
        # few values per channel: the unbiased variance would be 1/7 larger
        images = rng.normal(step, 1 + step, (2, 2, 2, 3)).astype("float32")
        ours(images, training=True)
        stock(images, training=True)
    np.testing.assert_allclose(ours.moving_mean, stock.moving_mean, rtol=1e-6)
    np.testing.assert_allclose(ours.moving_variance, stock.moving_variance, rtol=1e-6)


def test_frozen_norm_stays_fixed_when_its_model_is_made_trainable():
    inputs = keras.Input((None, None, 4))
    model = keras.Model(inputs, FrozenBatchNorm()(inputs))
    model.trainable = True
    assert model.trainable_weights == []
    before = model.get_weights()
    outputs = model(pictures(2, 5, 5, 4), training=True)
    np.testing.assert_allclose(outputs, model(pictures(2, 5, 5, 4), training=False))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_norms_by_name():
    assert type(create_norm("batch", 8)) is BatchNorm
    assert create_norm("batch", 8).momentum == 0.9
    assert type(create_norm("frozen", 8)) is FrozenBatchNorm
    assert [create_norm("group", channels).groups for channels in (64, 24, 6)] == [32, 8, 2]
    with pytest.raises(UserError, match=r"model\.norm: unknown norm 'layer'; expected one of batch, frozen, group"):
        create_norm("layer", 8)


@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"padding": "valid"}, {"padding": "same", "dilation_rate": 2}]
)
def test_wide_convolutions_of_large_kernels_equal_stock_ones(policy, options, monkeypatch):
    monkeypatch.setattr(conv, "_WIDE_KERNEL", 7 * 7 * 4 * 5)
    images = pictures(2, 9, 11, 4)
    layer, stock = Conv2D(5, 7, **options), keras.layers.Conv2D(5, 7, **options)
    assert_same_results(layer, stock, images, policy)
    assert operations_of(layer, images) & {"If", "StatelessIf"}, "product or convolution, by the number of patches"
    monkeypatch.setattr(conv, "_MOST_PATCHES", 1)
    assert_same_results(Conv2D(5, 7, **options), keras.layers.Conv2D(5, 7, **options), images, policy)


@pytest.mark.slow
def test_results_are_the_stock_ones_with_onednn_switched_off():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "equal_stock or equals_the_stock",
    ]
    run = subprocess.run(command, env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_layers_come_back_from_their_configs():
    for layer in (Conv2D(4, 3, dilation_rate=2), DepthwiseConv2D(3), BatchNorm(epsilon=1e-5), FrozenBatchNorm()):
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
        assert type(copy) is type(layer)
        assert copy.get_config() == layer.get_config()
