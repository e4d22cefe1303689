"""VGG16 and VGG19 (Simonyan and Zisserman, ICLR 2015, table 1, D and E), with the layer names of keras.applications."""

import keras
from keras import ops

from detseg.backbones.backbone import Backbone, placement
from detseg.errors import UserError
from detseg.layers.activation import create_activation
from detseg.layers.conv import Conv2D

CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}  # of 3x3, in each block
FILTERS = (64, 128, 256, 512, 512)


def create_vgg(name, output_stride, in_channels, norm, alpha, activation, variant):
    """A VGG without its dense layers.

    Levels 1..16 are the last convolution of each block, after its relu; 32 is the last pool; "pool3" and "pool4" are
    the skips of FCN. There are no norms, so `norm` changes nothing. Maps of odd size lose their last row or column in
    a pool, as in keras.applications; a pool that became dilation keeps all rows.
    `alpha` multiplies the number of filters in all layers, as in a MobileNet.
    Raises UserError for an alpha that leaves the first block no filter.
    """
    if int(FILTERS[0] * alpha) < 1:
        raise UserError(f"model.alpha: {alpha} leaves {name}'s first block none of its {FILTERS[0]} filters; raise it")
    activation = activation or "relu"
    fused = activation == "relu"  # inside the convolution, as in keras.applications
    images = x = keras.Input((None, None, in_channels))
    levels = {}
    native = 1
    for block, (convolutions, filters) in enumerate(zip(CONVOLUTIONS[name], FILTERS, strict=True), start=1):
        stride, dilation = placement(native, output_stride)
        for index in range(1, convolutions + 1):
            layer = f"block{block}_conv{index}"
            x = Conv2D(
                int(filters * alpha),
                3,
                padding="same",
                dilation_rate=dilation,
                activation="relu" if fused else None,
                kernel_initializer="he_normal",  # without norms, Keras' default fades through so many relus
                name=layer,
            )(x)
            if not fused:
                layer = f"block{block}_act{index}"
                x = create_activation(activation, layer)(x)
        levels[native] = (layer, native)
        pool = f"block{block}_pool"
        x = (
            keras.layers.MaxPooling2D(name=pool)(x)
            if stride < output_stride
            else DilatedMaxPool(dilation, name=pool)(x)
        )
        native *= 2
    levels |= {32: ("block5_pool", 32), "pool3": ("block3_pool", 8), "pool4": ("block4_pool", 16)}
    return Backbone(name, keras.Model(images, x), levels, output_stride, preprocessing="caffe")


@keras.saving.register_keras_serializable("detseg")
class DilatedMaxPool(keras.layers.Layer):
    """2x2 maximum over pixels `dilation` apart, at stride 1 (B, H, W, C) -> same: Keras' pools have no dilation.

    Output (i, j) looks at (i, j), (i + d, j), (i, j + d), (i + d, j + d); pixels beyond the edge don't count.
    """

    def __init__(self, dilation, name=None, **layer_arguments):
        super().__init__(name=name, **layer_arguments)
        self.dilation = dilation

    def call(self, images):
        d = self.dilation
        padded = ops.pad(images, [[0, 0], [0, d], [0, d], [0, 0]], constant_values=float("-inf"))
        rows = ops.maximum(padded[:, :-d], padded[:, d:])
        return ops.maximum(rows[:, :, :-d], rows[:, :, d:])

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "dilation": self.dilation}
