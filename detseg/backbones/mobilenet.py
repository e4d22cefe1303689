"""MobileNet (Howard et al., 2017) and MobileNetV2 (Sandler et al., CVPR 2018), layer names of keras.applications.

A stride-2 3x3 depthwise convolution pads one row and column at the end: at odd map sizes it gives floor(n / 2) pixels
(as keras.applications does for inputs of unknown size), while the first, "same" convolution gives ceil(n / 2). At
multiples of 32, which our models pad to, all maps are even and both agree.
"""

import keras

from detseg.backbones.backbone import Backbone, make_divisible, placement
from detseg.errors import UserError
from detseg.layers.conv import Conv2D, DepthwiseConv2D, dilated_padding
from detseg.layers.norm import create_norm

# table 1: (filters, stride) of each depthwise separable convolution
MOBILENET = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)
MOBILENET_LEVELS = {
    2: "conv_pw_1_relu",
    4: "conv_pw_3_relu",
    8: "conv_pw_5_relu",
    16: "conv_pw_11_relu",
    32: "conv_pw_13_relu",
}

# table 2: (expansion, filters, repeats, stride of the first) of each row of bottlenecks
MOBILENETV2 = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
MOBILENETV2_LEVELS = {
    2: "block_1_expand_relu",
    4: "block_3_expand_relu",
    8: "block_6_expand_relu",
    16: "block_13_expand_relu",
    32: "out_relu",
}


def create_mobilenet(name, output_stride, in_channels, norm, alpha, activation):
    """MobileNet; `alpha` multiplies every layer's filters. Levels are the last block's output at each stride."""
    _check_alpha(name, alpha)
    layers = _Layers(norm, activation, output_stride)
    images = keras.Input((None, None, in_channels))
    x = Conv2D(int(32 * alpha), 3, strides=2, padding="same", use_bias=False, name="conv1")(images)
    x = layers.activation("conv1_relu")(layers.norm(x, "conv1_bn"))
    native = 2
    for block, (filters, stride) in enumerate(MOBILENET, start=1):
        x = layers.depthwise(x, native, stride, pad=f"conv_pad_{block}", name=f"conv_dw_{block}")
        x = layers.activation(f"conv_dw_{block}_relu")(layers.norm(x, f"conv_dw_{block}_bn"))
        x = Conv2D(int(filters * alpha), 1, use_bias=False, name=f"conv_pw_{block}")(x)
        x = layers.activation(f"conv_pw_{block}_relu")(layers.norm(x, f"conv_pw_{block}_bn"))
        native *= stride
    return _backbone(name, images, x, MOBILENET_LEVELS, output_stride)


def create_mobilenetv2(name, output_stride, in_channels, norm, alpha, activation):
    """MobileNetV2; `alpha` multiplies the filters (rounded to 8; the last 1x1 convolution only grows with it).

    Levels 2..16 are the expanded inputs of the bottlenecks that stride next; 32 is the last 1x1 convolution.
    """
    _check_alpha(name, alpha)
    layers = _Layers(norm, activation, output_stride)
    images = keras.Input((None, None, in_channels))
    x = Conv2D(make_divisible(32 * alpha), 3, strides=2, padding="same", use_bias=False, name="Conv1")(images)
    x = layers.activation("Conv1_relu")(layers.norm(x, "bn_Conv1"))
    native, block = 2, 0
    for expansion, filters, repeats, first_stride in MOBILENETV2:
        for index in range(repeats):
            stride = first_stride if index == 0 else 1
            prefix = f"block_{block}_" if block else "expanded_conv_"
            x = _bottleneck(x, layers, native, stride, expansion, make_divisible(int(filters * alpha)), prefix)
            native, block = native * stride, block + 1
    x = Conv2D(make_divisible(1280 * max(alpha, 1.0)), 1, use_bias=False, name="Conv_1")(x)
    x = layers.activation("out_relu")(layers.norm(x, "Conv_1_bn"))
    return _backbone(name, images, x, MOBILENETV2_LEVELS, output_stride)


def _bottleneck(x, layers, native, stride, expansion, filters, prefix):
    """Inverted residual with a linear bottleneck (MobileNetV2, figure 4d) on a map of native stride `native`."""
    shortcut, channels = x, x.shape[-1]
    if expansion > 1:
        x = Conv2D(expansion * channels, 1, use_bias=False, name=f"{prefix}expand")(x)
        x = layers.activation(f"{prefix}expand_relu")(layers.norm(x, f"{prefix}expand_BN"))
    x = layers.depthwise(x, native, stride, pad=f"{prefix}pad", name=f"{prefix}depthwise")
    x = layers.activation(f"{prefix}depthwise_relu")(layers.norm(x, f"{prefix}depthwise_BN"))
    x = Conv2D(filters, 1, use_bias=False, name=f"{prefix}project")(x)
    x = layers.norm(x, f"{prefix}project_BN")
    return keras.layers.Add(name=f"{prefix}add")([shortcut, x]) if stride == 1 and channels == filters else x


class _Layers:
    """The choices that all layers of one network share."""

    def __init__(self, norm, activation, output_stride):
        self.norm_kind = norm
        self.activation_kind = activation
        self.output_stride = output_stride

    def norm(self, x, name):
        return create_norm(self.norm_kind, x.shape[-1], epsilon=1e-3, name=name)(x)

    def activation(self, name):
        if self.activation_kind is None:
            return keras.layers.ReLU(6.0, name=name)
        return keras.layers.Activation(self.activation_kind, name=name)

    def depthwise(self, x, native, stride, pad, name):
        """3x3 depthwise convolution of a map of native stride `native`; its stride may have to become dilation."""
        actual, dilation = placement(native, self.output_stride)
        strided = stride == 2 and actual < self.output_stride
        padding = "same"
        if stride == 2:
            ends = dilated_padding(3, leading=0, trailing=1, dilation=dilation, strided=strided)
            x = keras.layers.ZeroPadding2D((ends, ends), name=pad)(x)
            padding = "valid"
        return DepthwiseConv2D(
            3, strides=2 if strided else 1, dilation_rate=dilation, padding=padding, use_bias=False, name=name
        )(x)


def _backbone(name, images, x, levels, output_stride):
    levels = {native: (layer, native) for native, layer in levels.items()}
    return Backbone(name, keras.Model(images, x), levels, output_stride, preprocessing="tf")


def _check_alpha(name, alpha):
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or int(32 * alpha) < 1:
        raise UserError(
            f"model.alpha: {alpha!r} is not a width multiplier of {name}; expected a number such as 0.25 or 1.0 that "
            "leaves at least one of the first layer's 32 filters"
        )
