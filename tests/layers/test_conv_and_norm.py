"""The fast layers against stock Keras: outputs, gradients and statistics; what norms promise."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from detseg.backbones.builder import LayerBuilder
from detseg.errors import UserError
from detseg.layers import conv
from detseg.layers.conv import Conv2D, DepthwiseConv2D, SeparableConv2D
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


@every_policy
@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 2)])
@pytest.mark.parametrize("options", [{"strides": 2}, {"strides": 2, "padding": "same"}, {"strides": (3, 2)}])
def test_strided_1x1_convolutions_of_few_channels_equal_those_of_many(policy, size, options):
    """The few are slices and a convolution of stride 1; zero channels bring them to the number of the stock one."""
    images = pictures(3, *size, 16)
    images[..., 5:] = 0
    layer, wide = Conv2D(6, 1, **options), Conv2D(6, 1, **options)
    layer.build((*images.shape[:3], 5))
    wide.build(images.shape)
    kernel, bias = wide.get_weights()
    layer.set_weights([kernel[:, :, :5], bias])
    ours, theirs = outputs_and_gradients(layer, images[..., :5]), outputs_and_gradients(wide, images)
    theirs[1], theirs[2] = theirs[1][..., :5], theirs[2][:, :, :5]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert np.abs(mine - other).max() <= TOLERANCE[policy] * np.abs(other).max()


def test_strided_1x1_convolutions_of_few_channels_never_reach_tensorflows_strided_kernel():
    for options in ({}, {"padding": "same"}):
        layer = Conv2D(4, 1, strides=2, **options)
        layer(pictures(1, 8, 8, 4))
        function = tf.function(layer).get_concrete_function(tf.constant(pictures(1, 8, 8, 4)))
        strides = [op.get_attr("strides") for op in function.graph.get_operations() if op.type == "Conv2D"]
        assert strides
        assert all(stride == [1, 1, 1, 1] for stride in strides)
    first = Conv2D(4, 1, strides=2, data_format="channels_first").compute_output_spec(keras.KerasTensor((1, 4, 7, 9)))
    assert first.shape == (1, 4, 4, 5)


CRASHES = """
import numpy as np, keras
from detseg.layers.conv import Conv2D

inputs = keras.Input((None, None, 4))
model = keras.Model(inputs, Conv2D(8, 1, strides=2)(Conv2D(4, 1)(inputs)))
for options in ({}, {"run_eagerly": True}, {"jit_compile": True}):
    model.compile("sgd", "mse", **options)
    for images in (np.ones((3, 16, 16, 4)), np.ones((1, 7, 9, 4)), np.ones((2, 15, 15, 4))):
        targets = np.zeros((len(images), *(-(-side // 2) for side in images.shape[1:3]), 8))
        for _ in range(10):
            assert np.isfinite(model.train_on_batch(images, targets))
"""


def test_narrow_strided_1x1_convolutions_train_without_memory_errors():
    environment = {**os.environ, "MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "85"}
    run = subprocess.run([sys.executable, "-c", CRASHES], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def operations_of(layer, images):
    function = tf.function(layer).get_concrete_function(tf.constant(images))
    return {operation.type for operation in function.graph.get_operations()}


def test_dilated_convolutions_are_one_operation_in_a_graph_where_tensorflow_can():
    images = pictures(1, 8, 8, 4)
    for layer, works in (
        (Conv2D(4, 3, dilation_rate=2), conv._works(conv._native_conv2d, ops.conv, (3, 3, 4, 4), tf.float32)),
        (
            DepthwiseConv2D(3, dilation_rate=2),
            conv._works(conv._native_depthwise_conv2d, ops.depthwise_conv, (3, 3, 4, 1), tf.float32),
        ),
    ):
        layer(images)
        assert ("SpaceToBatchND" in operations_of(layer, images)) is not works


def test_dilated_convolutions_fall_back_where_the_native_one_has_no_gradient(monkeypatch, policy):
    def fail(*args, **kwargs):
        raise tf.errors.InvalidArgumentError(None, None, "Current CPU implementation only supports dilation rate 1")

    monkeypatch.setattr(conv, "_native_conv2d", fail)
    layer = Conv2D(5, 3, dilation_rate=2)
    assert_same_results(layer, keras.layers.Conv2D(5, 3, dilation_rate=2), pictures(1, 8, 8, 4), policy)
    assert "SpaceToBatchND" in operations_of(layer, pictures(1, 8, 8, 4))


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


@pytest.mark.parametrize(
    ("kernel_size", "ends", "native", "output_stride", "expected"),
    [
        (3, (0, 1), 2, 32, (0, 1)),  # strided
        (3, (0, 1), 16, 16, (0, 2)),  # a stride of 2 that has become 1, at dilation 1, 2 and 4
        (3, (1, 1), 16, 8, (2, 2)),
        (7, (3, 3), 32, 8, (12, 12)),
        (3, (0, 1), 32, 8, (0, 8)),
    ],
)
def test_padding_of_a_stride_that_became_dilation(kernel_size, ends, native, output_stride, expected):
    layers = LayerBuilder("batch", "relu", output_stride)
    images = np.ones((1, 16, 16, 1), "float32")
    padded = np.asarray(layers.pad(images, kernel_size, native, 2, *ends, name="pad"))[0, :, :, 0]
    np.testing.assert_array_equal(padded, np.pad(images[0, :, :, 0], [expected, expected]))


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
