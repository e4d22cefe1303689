"""What the tests of all backbone families share: comparisons with a twin and between output strides."""

import keras
import numpy as np
import tensorflow as tf

from detseg.backbones.create import create_backbone

NATIVE = {"pool3": 8, "pool4": 16}  # native strides of the named levels
TOLERANCE = 2e-6  # of the largest value


def randomise(model, seed=0):
    """Weights under which every norm matters: random scales, offsets, biases and moving statistics."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "bias", "moving_mean"):
            weight.assign(rng.normal(0, 0.1, weight.shape))
    return model


def copy_by_name(source, target):
    for layer in target.layers:
        if layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


def relative_error(ours, theirs):
    return np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(np.asarray(theirs)).max()


def assert_equals_twin(backbone, twin, levels, images, tolerance=TOLERANCE):
    """Every level of `backbone` equals that of a keras.applications model with the same, random weights.

    levels:  {key of the backbone: layer name of the twin}.
    """
    randomise(twin)
    copy_by_name(twin, backbone.model)
    assert_same_features(backbone, twin, levels, images, tolerance)


def assert_same_features(backbone, twin, levels, images, tolerance=TOLERANCE):
    """As `assert_equals_twin`, with the weights that both have."""
    assert backbone.model.count_params() == twin.count_params()
    features = backbone(images)
    expected = keras.Model(twin.input, [twin.get_layer(layer).output for layer in levels.values()])(images)
    assert set(levels) == set(backbone.keys)
    for key, theirs in zip(levels, expected, strict=True):
        assert features[key].shape == theirs.shape
        assert relative_error(features[key], theirs) < tolerance, key


def assert_dilated_levels_equal_strided_ones(name, images, tolerance=TOLERANCE, prepare=randomise, **arguments):
    """At output stride 16 and 8, every second or fourth output from the first equals the level at 32.

    prepare:  function that sets the weights of a keras.Model.
    """
    strided = create_backbone(name, **arguments)
    prepare(strided.model)
    expected = strided(images)
    for output_stride in (16, 8):
        dilated = create_backbone(name, output_stride=output_stride, **arguments)
        dilated.model.set_weights(strided.model.get_weights())
        # a graph: that is where dilated convolutions take their fast path
        features = dict(zip(dilated.keys, tf.function(dilated.model)(images), strict=True))
        for key in strided.keys:
            native = NATIVE.get(key, key)
            stride = min(native, output_stride)
            assert dilated.strides[key] == stride
            assert features[key].shape == (*expected[stride].shape[:3], dilated.channels[key])
            step = native // stride
            assert relative_error(features[key][:, ::step, ::step], expected[key]) < tolerance, key
