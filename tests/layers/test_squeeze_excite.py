"""Squeeze-and-excitation on a hand-worked map."""

import keras
import numpy as np
import pytest

from detseg.backbones.mobilenet import squeeze_excite


def test_scales_of_two_channels_by_hand():
    inputs = keras.Input((None, None, 2))
    model = keras.Model(inputs, squeeze_excite(inputs, 2, "relu", "hard_sigmoid", name="block"))
    for name in ("block_conv", "block_conv_1"):
        model.get_layer(name).set_weights([np.eye(2, dtype="float32")[None, None], np.array([0.0, 1.0], "float32")])
    images = np.array([[[1.0, -4.0], [2.0, -2.0]]], "float32")[None]  # means 1.5 and -3
    # squeezed: relu(1.5 + 0), relu(-3 + 1); excited: 1.5 + 0, 0 + 1; gate x / 6 + 1 / 2
    expected = images * np.array([1.5 / 6 + 0.5, 1 / 6 + 0.5], "float32")
    np.testing.assert_allclose(model(images), expected, rtol=1e-6)


def test_gate_of_the_paper_is_a_sigmoid():
    inputs = keras.Input((3, 3, 4))
    outputs = squeeze_excite(inputs, 1, "relu", "sigmoid", name="block")
    model = keras.Model(inputs, outputs)
    assert outputs.shape == (None, 3, 3, 4)
    assert model.count_params() == 4 * 1 + 1 + 1 * 4 + 4
    model.get_layer("block_conv_1").set_weights([np.zeros((1, 1, 1, 4)), np.full(4, np.log(3.0))])
    images = np.ones((1, 3, 3, 4), "float32")
    assert np.asarray(model(images)) == pytest.approx(0.75)
