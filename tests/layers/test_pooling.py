"""Dilated max-pools against the strided ones that they stand for."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from detseg.layers.pooling import DilatedMaxPool


def test_dilated_pool_by_hand():
    images = np.array([[1.0, 5.0, 2.0], [7.0, 0.0, 3.0], [-4.0, -6.0, -9.0]], "float32")[None, :, :, None]
    pooled = np.asarray(DilatedMaxPool(2, dilation=2)(images))[0, :, :, 0]
    # corners two apart: 1 2 -4 -9; what lies outside does not count, so negative values stay
    np.testing.assert_array_equal(pooled, [[2.0, 5.0, 2.0], [7.0, 0.0, 3.0], [-4.0, -6.0, -9.0]])


def test_a_window_of_three_starts_one_earlier_on_odd_maps():
    line = np.array([5.0, 1.0, 4.0, 2.0, 3.0], "float32")
    odd = np.asarray(DilatedMaxPool(3, dilation=1)(line[None, None, :, None]))[0, 0, :, 0]
    np.testing.assert_array_equal(odd, [5.0, 5.0, 4.0, 4.0, 3.0])
    even = np.asarray(DilatedMaxPool(3, dilation=1)(line[None, None, :4, None]))[0, 0, :, 0]
    np.testing.assert_array_equal(even, [5.0, 4.0, 4.0, 2.0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pool_size", [2, 3])
def test_phase_zero_equals_the_strided_same_pool_at_every_size(pool_size, dtype):
    rng = np.random.default_rng(0)
    strided = keras.layers.MaxPooling2D(pool_size, 2, padding="same", dtype=dtype)
    for dilation in (1, 2, 4):
        layer = DilatedMaxPool(pool_size, dilation, dtype=dtype)
        dynamic = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 2), dtype)])
        for height, width in ((1, 2), (5, 6), (8, 7), (9, 12), (10, 13), (11, 16)):
            images = tf.constant(rng.normal(size=(1, height, width, 2)), dtype)
            expected = strided(images[:, ::dilation, ::dilation])
            for pool in (layer, dynamic):
                pooled = pool(images)
                assert pooled.shape == images.shape
                np.testing.assert_array_equal(pooled[:, :: 2 * dilation, :: 2 * dilation], expected)


def test_gradient_reaches_the_maximum():
    images = tf.constant([[[[1.0], [3.0], [2.0], [0.0]]]])
    layer = DilatedMaxPool(3, dilation=1)
    with tf.GradientTape() as tape:
        tape.watch(images)
        pooled = layer(images)  # 3 3 2 0
    np.testing.assert_array_equal(tape.gradient(pooled, images)[0, 0, :, 0], [0.0, 2.0, 1.0, 1.0])
