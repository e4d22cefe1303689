"""MobileNet (Howard et al., 2017) and MobileNetV2 (Sandler et al., CVPR 2018), layer names of keras.applications.

A stride-2 3x3 depthwise convolution pads one row and column at the end: at odd map sizes it gives floor(n / 2) pixels
(as keras.applications does for inputs of unknown size), while the first, "same" convolution gives ceil(n / 2). At
multiples of 32, which our models pad to, all maps are even and both agree.
"""

import keras

from detseg.backbones.backbone import Backbone, check_alpha, check_unit_rates, make_divisible
from detseg.backbones.builder import LayerBuilder

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


def create_mobilenet(name, output_stride, in_channels, norm, alpha, activation, variant):
    """MobileNet; `alpha` multiplies every layer's filters. Levels are the last block's output at each stride."""
    check_alpha(name, alpha, filters=32)
    layers = LayerBuilder(norm, activation or "relu6", output_stride)
    images = keras.Input((None, None, in_channels))
    x = layers.conv(images, int(32 * alpha), 3, native=1, stride=2, name="conv1")
    x = layers.activate(layers.norm(x, "conv1_bn"), "conv1_relu")
    native = 2
    for block, (filters, stride) in enumerate(MOBILENET, start=1):
        x = layers.depthwise(x, 3, native, stride, name=f"conv_dw_{block}", pad_name=f"conv_pad_{block}")
        x = layers.activate(layers.norm(x, f"conv_dw_{block}_bn"), f"conv_dw_{block}_relu")
        x = layers.conv(x, int(filters * alpha), 1, native, name=f"conv_pw_{block}")
        x = layers.activate(layers.norm(x, f"conv_pw_{block}_bn"), f"conv_pw_{block}_relu")
        native *= stride
    return _backbone(name, images, x, MOBILENET_LEVELS, output_stride)


def create_mobilenetv2(name, output_stride, in_channels, norm, alpha, activation, variant, multi_grid=None):
    """MobileNetV2; `alpha` multiplies the filters (rounded to 8; the last 1x1 convolution only grows with it).

    Levels 2..16 are the expanded inputs of the bottlenecks that stride next; 32 is the last 1x1 convolution.
    multi_grid:  unit rates of the three depthwise convolutions at native stride 32, blocks 14 to 16 (DeepLabv3, 3.2.1).
    Raises UserError for an alpha that leaves no filter and for other than three unit rates.
    """
    check_alpha(name, alpha, filters=32)
    unit_rates = dict(zip((14, 15, 16), check_unit_rates(name, multi_grid, count=3), strict=True))
    layers = LayerBuilder(norm, activation or "relu6", output_stride)
    images = keras.Input((None, None, in_channels))
    x = layers.conv(images, make_divisible(32 * alpha), 3, native=1, stride=2, name="Conv1")
    x = layers.activate(layers.norm(x, "bn_Conv1"), "Conv1_relu")
    native, block = 2, 0
    for expansion, filters, repeats, first_stride in MOBILENETV2:
        for index in range(repeats):
            stride = first_stride if index == 0 else 1
            prefix = f"block_{block}_" if block else "expanded_conv_"
            width, rate = make_divisible(int(filters * alpha)), unit_rates.get(block, 1)
            x = _bottleneck(x, layers, native, stride, expansion, width, rate, prefix)
            native, block = native * stride, block + 1
    x = layers.conv(x, make_divisible(1280 * max(alpha, 1.0)), 1, native, name="Conv_1")
    x = layers.activate(layers.norm(x, "Conv_1_bn"), "out_relu")
    return _backbone(name, images, x, MOBILENETV2_LEVELS, output_stride)


def _bottleneck(x, layers, native, stride, expansion, filters, rate, prefix):
    """Inverted residual with a linear bottleneck (MobileNetV2, figure 4d) on a map of native stride `native`."""
    shortcut, channels = x, x.shape[-1]
    if expansion > 1:
        x = layers.conv(x, expansion * channels, 1, native, name=f"{prefix}expand")
        x = layers.activate(layers.norm(x, f"{prefix}expand_BN"), f"{prefix}expand_relu")
    x = layers.depthwise(x, 3, native, stride, rate=rate, name=f"{prefix}depthwise", pad_name=f"{prefix}pad")
    x = layers.activate(layers.norm(x, f"{prefix}depthwise_BN"), f"{prefix}depthwise_relu")
    x = layers.conv(x, filters, 1, native, name=f"{prefix}project")
    x = layers.norm(x, f"{prefix}project_BN")
    return keras.layers.Add(name=f"{prefix}add")([shortcut, x]) if stride == 1 and channels == filters else x


def _backbone(name, images, x, levels, output_stride):
    levels = {native: (layer, native) for native, layer in levels.items()}
    return Backbone(name, keras.Model(images, x), levels, output_stride, preprocessing="tf")
