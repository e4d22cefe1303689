"""Squeeze-and-excitation (Hu et al., CVPR 2018, section 3)."""

import keras

from detseg.layers.activation import create_activation
from detseg.layers.conv import Conv2D


def squeeze_excite(x, squeezed, activation, gate, name):
    """Scales each channel of a Keras tensor x (B, H, W, C) by a gate that has seen the mean of the whole map.

    squeezed:    int, channels of the bottleneck in between.
    activation:  name of the bottleneck's activation, of `ACTIVATIONS`.
    gate:        Keras' name of the activation of the scales: "sigmoid" (the paper), "hard_sigmoid" (MobileNetV3).
    name:        prefix of the layers' names; those of the two 1x1 convolutions are keras.applications' MobileNetV3's.
    Returns      (B, H, W, C).
    """
    scale = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_avg_pool")(x)  # (B, 1, 1, C)
    scale = Conv2D(squeezed, 1, name=f"{name}_conv")(scale)
    scale = create_activation(activation, f"{name}_act")(scale)
    scale = Conv2D(x.shape[-1], 1, name=f"{name}_conv_1")(scale)
    scale = keras.layers.Activation(gate, name=f"{name}_gate")(scale)
    return keras.layers.Multiply(name=f"{name}_mul")([x, scale])
