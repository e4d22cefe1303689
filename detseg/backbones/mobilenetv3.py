"""MobileNetV3 (Howard et al., ICCV 2019), layer names of keras.applications.

Squeeze-excite looks at the mean over the whole map. A dilated map has the strided one at its phase 0 and more besides,
so its mean is another one: at output stride 16 or 8 the dilated stages are near to the strided net, not equal to it.
The minimalistic variant, which has no squeeze-excite, is exact.

A stride-2 depthwise convolution pads one less in front, so that a map of odd size becomes floor(n / 2) pixels (as in
keras.applications for inputs of unknown size), while the first, "same" convolution gives ceil(n / 2).
"""

from typing import NamedTuple

import keras

from detseg.backbones.backbone import Backbone, check_alpha, make_divisible
from detseg.backbones.builder import LayerBuilder
from detseg.layers.squeeze_excite import squeeze_excite


class Bottleneck(NamedTuple):
    """A row of the paper's tables; `expansion` is the expanded width over the input's (rounded to 8)."""

    expansion: float
    filters: int
    kernel_size: int
    stride: int
    squeezes: bool
    activation: str


# tables 1 and 2
MOBILENETV3 = {
    "mobilenetv3_large": (
        Bottleneck(1, 16, 3, 1, False, "relu"),
        Bottleneck(4, 24, 3, 2, False, "relu"),
        Bottleneck(3, 24, 3, 1, False, "relu"),
        Bottleneck(3, 40, 5, 2, True, "relu"),
        Bottleneck(3, 40, 5, 1, True, "relu"),
        Bottleneck(3, 40, 5, 1, True, "relu"),
        Bottleneck(6, 80, 3, 2, False, "hard_swish"),
        Bottleneck(2.5, 80, 3, 1, False, "hard_swish"),
        Bottleneck(2.3, 80, 3, 1, False, "hard_swish"),
        Bottleneck(2.3, 80, 3, 1, False, "hard_swish"),
        Bottleneck(6, 112, 3, 1, True, "hard_swish"),
        Bottleneck(6, 112, 3, 1, True, "hard_swish"),
        Bottleneck(6, 160, 5, 2, True, "hard_swish"),
        Bottleneck(6, 160, 5, 1, True, "hard_swish"),
        Bottleneck(6, 160, 5, 1, True, "hard_swish"),
    ),
    "mobilenetv3_small": (
        Bottleneck(1, 16, 3, 2, True, "relu"),
        Bottleneck(72 / 16, 24, 3, 2, False, "relu"),
        Bottleneck(88 / 24, 24, 3, 1, False, "relu"),
        Bottleneck(4, 40, 5, 2, True, "hard_swish"),
        Bottleneck(6, 40, 5, 1, True, "hard_swish"),
        Bottleneck(6, 40, 5, 1, True, "hard_swish"),
        Bottleneck(3, 48, 5, 1, True, "hard_swish"),
        Bottleneck(3, 48, 5, 1, True, "hard_swish"),
        Bottleneck(6, 96, 5, 2, True, "hard_swish"),
        Bottleneck(6, 96, 5, 1, True, "hard_swish"),
        Bottleneck(6, 96, 5, 1, True, "hard_swish"),
    ),
}
LEVELS = {
    "mobilenetv3_large": {
        2: "expanded_conv_1_expand_act",
        4: "expanded_conv_3_expand_act",
        8: "expanded_conv_6_expand_act",
        16: "expanded_conv_12_expand_act",
        32: "conv_1_act",
    },
    "mobilenetv3_small": {
        2: "conv_act",
        4: "expanded_conv_1_expand_act",
        8: "expanded_conv_3_expand_act",
        16: "expanded_conv_8_expand_act",
        32: "conv_1_act",
    },
}


def create_mobilenetv3(name, output_stride, in_channels, norm, alpha, activation, variant):
    """MobileNetV3 large or small; `alpha` multiplies the bottlenecks' filters (rounded to 8), not the first layer's.

    Levels 2..16 are the expanded inputs of the bottlenecks that stride next (small's first has no expansion: level 2
    is the first convolution); 32 is the last 1x1 convolution, where the classifier's pooling would follow.
    `activation` replaces each relu and hard swish; the gate of squeeze-excite stays a hard sigmoid.
    The variant "minimalistic" has 3x3 kernels and relu everywhere and no squeeze-excite.
    """
    check_alpha(name, alpha, filters=16)
    rows = MOBILENETV3[name]
    if variant == "minimalistic":
        rows = [row._replace(kernel_size=3, squeezes=False, activation="relu") for row in rows]
    builders = {kind: LayerBuilder(norm, activation or kind, output_stride) for kind in ("relu", "hard_swish")}
    layers = builders[rows[-1].activation]  # of the first and the last convolution

    images = keras.Input((None, None, in_channels))
    x = layers.conv(images, 16, 3, native=1, stride=2, name="conv")
    x = layers.activate(layers.norm(x, "conv_bn"), "conv_act")
    native = 2
    for index, row in enumerate(rows):
        prefix = f"expanded_conv_{index}_" if index else "expanded_conv_"
        x = _bottleneck(x, builders[row.activation], native, row, alpha, activation or "relu", prefix)
        native *= row.stride
    x = layers.conv(x, make_divisible(6 * x.shape[-1]), 1, native, name="conv_1")
    x = layers.activate(layers.norm(x, "conv_1_bn"), "conv_1_act")
    levels = {native: (layer, native) for native, layer in LEVELS[name].items()}
    return Backbone(name, keras.Model(images, x), levels, output_stride, preprocessing="tf")


def _bottleneck(x, layers, native, row, alpha, squeezed_activation, prefix):
    """MobileNetV2's bottleneck with squeeze-excite (figure 4) on a map of native stride `native`."""
    shortcut, channels, filters = x, x.shape[-1], make_divisible(row.filters * alpha)
    if row.expansion > 1:
        x = layers.conv(x, make_divisible(channels * row.expansion), 1, native, name=f"{prefix}expand")
        x = layers.activate(layers.norm(x, f"{prefix}expand_bn"), f"{prefix}expand_act")
    pad_name = f"{prefix}depthwise_pad"
    x = layers.depthwise(x, row.kernel_size, native, row.stride, name=f"{prefix}depthwise", pad_name=pad_name)
    x = layers.activate(layers.norm(x, f"{prefix}depthwise_bn"), f"{prefix}depthwise_act")
    if row.squeezes:
        squeezed = make_divisible(x.shape[-1] / 4)
        x = squeeze_excite(x, squeezed, squeezed_activation, "hard_sigmoid", name=f"{prefix}squeeze_excite")
    x = layers.norm(layers.conv(x, filters, 1, native, name=f"{prefix}project"), f"{prefix}project_bn")
    is_residual = row.stride == 1 and channels == filters
    return keras.layers.Add(name=f"{prefix}add")([shortcut, x]) if is_residual else x
