"""VGG16 and VGG19 (Simonyan and Zisserman, ICLR 2015, table 1, D and E), with the layer names of keras.applications."""

import keras

from detseg.backbones.backbone import Backbone, check_alpha, placement
from detseg.layers.activation import create_activation
from detseg.layers.conv import Conv2D
from detseg.layers.pooling import DilatedMaxPool

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
    check_alpha(name, alpha, FILTERS[0])
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
            else DilatedMaxPool(2, dilation, name=pool)(x)
        )
        native *= 2
    levels |= {32: ("block5_pool", 32), "pool3": ("block3_pool", 8), "pool4": ("block4_pool", 16)}
    return Backbone(name, keras.Model(images, x), levels, output_stride, preprocessing="caffe")
