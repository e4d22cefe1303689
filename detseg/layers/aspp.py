"""Atrous spatial pyramid pooling (Chen et al.: Rethinking Atrous Convolution, 2017, section 3.3, figure 5)."""

import keras

from detseg.layers.conv import Conv2D, SeparableConv2D
from detseg.layers.norm import create_norm
from detseg.layers.resize import ResizeLike


def aspp(features, rates, channels=256, image_pooling=True, separable=False, norm="batch"):
    """Features (B, h, w, C) seen at several scales -> (B, h, w, channels).

    rates:          dilation of each 3x3 branch, in pixels of `features`: (6, 12, 18) at output stride 16.
    channels:       of each branch and of the 1x1 convolution that joins them.
    image_pooling:  bool, whether the mean over the map is one more branch (of a batch of one image, batch norm then
                    sees a single value while training: the branch gives its offset, no NaN).
    separable:      bool, 3x3 convolutions as depthwise and 1x1.
    """
    branches = [conv_norm_relu(features, channels, 1, norm=norm, name="aspp_1x1")]
    for index, rate in enumerate(rates, start=1):  # named by place: the rate changes with the output stride
        name = f"aspp_atrous{index}"
        branches.append(conv_norm_relu(features, channels, 3, rate, separable, norm, name))
    if image_pooling:
        mean = keras.layers.GlobalAveragePooling2D(keepdims=True, name="aspp_mean")(features)  # (B, 1, 1, C)
        mean = conv_norm_relu(mean, channels, 1, norm=norm, name="aspp_pooling")
        branches.append(ResizeLike(name="aspp_pooling_resize")(mean, features))
    x = keras.layers.Concatenate(name="aspp_concat")(branches) if len(branches) > 1 else branches[0]
    return conv_norm_relu(x, channels, 1, norm=norm, name="aspp_join")


def conv_norm_relu(x, channels, kernel_size, dilation=1, separable=False, norm="batch", name=None):
    """A convolution of stride 1 with its norm and relu."""
    options = {"padding": "same", "dilation_rate": dilation, "use_bias": False, "name": name}
    if separable and kernel_size > 1:
        convolution = SeparableConv2D(
            channels, kernel_size, depthwise_initializer="he_normal", pointwise_initializer="he_normal", **options
        )
    else:
        convolution = Conv2D(channels, kernel_size, kernel_initializer="he_normal", **options)
    x = create_norm(norm, channels, epsilon=1e-5, name=f"{name}_norm")(convolution(x))
    return keras.layers.ReLU(name=f"{name}_relu")(x)
