"""The activations that a config may name."""

import keras

# name -> function of a layer name -> Keras layer
_ACTIVATIONS = {
    "relu": lambda name: keras.layers.ReLU(name=name),
    "relu6": lambda name: keras.layers.ReLU(6.0, name=name),
    "leaky_relu": lambda name: keras.layers.LeakyReLU(0.01, name=name),
    "elu": lambda name: keras.layers.ELU(name=name),
    "prelu": lambda name: keras.layers.PReLU(keras.initializers.Constant(0.25), shared_axes=(1, 2), name=name),
    "hard_swish": lambda name: keras.layers.Activation("hard_swish", name=name),
}
ACTIVATIONS = tuple(_ACTIVATIONS)


def create_activation(activation, name=None):
    """The layer that a config's `activation` stands for.

    activation:  "relu"; "relu6" (MobileNet); "leaky_relu": slope 0.01 below 0 (Maas et al., 2013); "elu": alpha 1
                 (Clevert et al., ICLR 2016); "prelu": a learned slope per channel, 0.25 at first (He et al., ICCV
                 2015); "hard_swish": x * relu6(x + 3) / 6 (MobileNetV3).
    """
    return _ACTIVATIONS[activation](name)
