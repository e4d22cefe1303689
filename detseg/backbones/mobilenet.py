"""MobileNet (Howard et al., 2017), MobileNetV2 (Sandler et al., CVPR 2018) and MobileNetV3 (Howard et al., ICCV 2019),
layer names of keras.applications.

A stride-2 depthwise convolution pads one less in front: at odd map sizes it gives floor(n / 2) pixels (as
keras.applications does for inputs of unknown size), while the first, "same" convolution gives ceil(n / 2). At multiples
of 32, which our models pad to, all maps are even and both agree.

MobileNetV3's squeeze-excite looks at the mean over the whole map. A dilated map has the strided one at its phase 0 and
more besides, so its mean is another one: at output stride 16 or 8 the dilated stages are near to the strided net, not
equal to it. The minimalistic variant, which has no squeeze-excite, is exact.
"""

from dataclasses import replace
from typing import NamedTuple

import keras

from detseg.backbones.backbone import make_divisible, stage_levels
from detseg.layers.activation import create_activation
from detseg.layers.conv import Conv2D

# MobileNet, table 1: (filters, stride) of each depthwise separable convolution
MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
MOBILENET_LEVELS = stage_levels(*(f"conv_pw_{block}_relu" for block in (1, 3, 5, 11, 13)))


class Bottleneck(NamedTuple):
    """A row of the papers' tables; `expansion` is the expanded width over the input's (rounded to 8)."""

    expansion: float
    filters: int
    kernel_size: int
    stride: int
    squeezes: bool = False
    activation: str = "relu6"


# MobileNetV2, table 2: (expansion, filters, repeats, stride of the first) of each row of bottlenecks
MOBILENETV2 = tuple(
    Bottleneck(expansion, filters, 3, stride if index == 0 else 1)
    for expansion, filters, repeats, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    )
    for index in range(repeats)
)
MOBILENETV2_LEVELS = stage_levels(*(f"block_{block}_expand_relu" for block in (1, 3, 6, 13)), "out_relu")

# MobileNetV3, tables 1 and 2
MOBILENETV3 = {
    "mobilenetv3_large": (
        Bottleneck(1, 16, 3, 1, False, "relu"),
        Bottleneck(4, 24, 3, 2, False, "relu"),
        Bottleneck(3, 24, 3, 1, False, "relu"),
        Bottleneck(3, 40, 5, 2, True, "relu"),
        *[Bottleneck(3, 40, 5, 1, True, "relu")] * 2,
        Bottleneck(6, 80, 3, 2, False, "hard_swish"),
        Bottleneck(2.5, 80, 3, 1, False, "hard_swish"),
        *[Bottleneck(2.3, 80, 3, 1, False, "hard_swish")] * 2,
        *[Bottleneck(6, 112, 3, 1, True, "hard_swish")] * 2,
        Bottleneck(6, 160, 5, 2, True, "hard_swish"),
        *[Bottleneck(6, 160, 5, 1, True, "hard_swish")] * 2,
    ),
    "mobilenetv3_small": (
        Bottleneck(1, 16, 3, 2, True, "relu"),
        Bottleneck(72 / 16, 24, 3, 2, False, "relu"),
        Bottleneck(88 / 24, 24, 3, 1, False, "relu"),
        Bottleneck(4, 40, 5, 2, True, "hard_swish"),
        *[Bottleneck(6, 40, 5, 1, True, "hard_swish")] * 2,
        *[Bottleneck(3, 48, 5, 1, True, "hard_swish")] * 2,
        Bottleneck(6, 96, 5, 2, True, "hard_swish"),
        *[Bottleneck(6, 96, 5, 1, True, "hard_swish")] * 2,
    ),
}
MOBILENETV3_LEVELS = {
    "mobilenetv3_large": stage_levels(*(f"expanded_conv_{i}_expand_act" for i in (1, 3, 6, 12)), "conv_1_act"),
    "mobilenetv3_small": stage_levels("conv_act", *(f"expanded_conv_{i}_expand_act" for i in (1, 3, 8)), "conv_1_act"),
}


def create_mobilenet(name, x, layers, alpha, variant):
    """MobileNet; `alpha` multiplies every layer's filters. Levels are the last block's output at each stride."""
    x = layers.conv(x, int(32 * alpha), 3, native=1, stride=2, name="conv1")
    x = layers.activate(layers.norm(x, "conv1_bn"), "conv1_relu")
    native = 2
    for block, (filters, stride) in enumerate(MOBILENET, start=1):
        x = layers.depthwise(x, 3, native, stride, name=f"conv_dw_{block}", pad_name=f"conv_pad_{block}")
        x = layers.activate(layers.norm(x, f"conv_dw_{block}_bn"), f"conv_dw_{block}_relu")
        x = layers.conv(x, int(filters * alpha), 1, native, name=f"conv_pw_{block}")
        x = layers.activate(layers.norm(x, f"conv_pw_{block}_bn"), f"conv_pw_{block}_relu")
        native *= stride
    return x, MOBILENET_LEVELS


def create_mobilenetv2(name, x, layers, alpha, variant, multi_grid):
    """MobileNetV2; `alpha` multiplies the filters (rounded to 8; the last 1x1 convolution only grows with it).

    Levels 2..16 are the expanded inputs of the bottlenecks that stride next; 32 is the last 1x1 convolution. The unit
    rates are for the three depthwise convolutions at native stride 32, blocks 14 to 16.
    The variant "deeplab" is the net in TensorFlow's DeepLab: it ends with the last bottleneck, and all its convolutions
    are "same" ones. On maps of odd size it pads evenly, strided and dilated, so that its levels line up on images of
    32 n + 1 pixels; strided and not dilated, on even ones it is MobileNetV2 without its last convolution.
    """
    is_deeplab = variant == "deeplab"
    names = (None if is_deeplab else "pad", "BN", "relu")
    unit_rates = dict(zip((14, 15, 16), multi_grid, strict=True))
    of_torchvision = variant == "torchvision"
    x = _first_conv(x, layers, make_divisible(32 * alpha), of_torchvision, name="Conv1")
    x = layers.activate(layers.norm(x, "bn_Conv1"), "Conv1_relu")
    native = 2
    for block, row in enumerate(MOBILENETV2):
        prefix = f"block_{block}_" if block else "expanded_conv_"
        filters, rate = make_divisible(int(row.filters * alpha)), unit_rates.get(block, 1)
        x = _bottleneck(x, layers, native, row, filters, prefix, names, rate=rate, symmetric=of_torchvision)
        native *= row.stride
    if is_deeplab:
        return x, {**MOBILENETV2_LEVELS, 32: f"block_{block}_project_BN"}
    x = layers.conv(x, make_divisible(1280 * max(alpha, 1.0)), 1, native, name="Conv_1")
    x = layers.activate(layers.norm(x, "Conv_1_bn"), "out_relu")
    return x, MOBILENETV2_LEVELS


def create_mobilenetv3(name, x, layers, alpha, variant):
    """MobileNetV3 large or small; `alpha` multiplies the bottlenecks' filters (rounded to 8), not the first layer's.

    Levels 2..16 are the expanded inputs of the bottlenecks that stride next (small's first has no expansion: level 2
    is the first convolution); 32 is the last 1x1 convolution, where the classifier's pooling would follow.
    `activation` replaces each relu and hard swish; the gate of squeeze-excite stays a hard sigmoid.
    The variant "minimalistic" has 3x3 kernels and relu everywhere and no squeeze-excite. The variant "torchvision" is
    torchvision's: padded symmetrically, its own normalisation of the pixels, and a dilated stage is dilated from its
    first convolution on. Its large net has the level "bneck13" too: the first bottleneck of stride 32.
    """
    of_torchvision = variant == "torchvision"
    rows = MOBILENETV3[name]
    if variant == "minimalistic":
        rows = [row._replace(kernel_size=3, squeezes=False, activation="relu") for row in rows]
    given = layers.activation_kind
    builders = {kind: replace(layers, activation_kind=given or kind) for kind in ("relu", "hard_swish")}
    layers = builders[rows[-1].activation]  # of the first and the last convolution
    x = _first_conv(x, layers, 16, of_torchvision, name="conv")
    x = layers.activate(layers.norm(x, "conv_bn"), "conv_act")
    native = 2
    for block, row in enumerate(rows):
        prefix = f"expanded_conv_{block}_" if block else "expanded_conv_"
        filters, names = make_divisible(row.filters * alpha), ("depthwise_pad", "bn", "act")
        is_dilated = row.stride > 1 and layers.place(native, row.stride)[0] == 1
        rate = row.stride if is_dilated and of_torchvision else 1
        how = {"rate": rate, "symmetric": of_torchvision}
        x = _bottleneck(x, builders[row.activation], native, row, filters, prefix, names, given or "relu", **how)
        native *= row.stride
    x = layers.conv(x, make_divisible(6 * x.shape[-1]), 1, native, name="conv_1")
    x = layers.activate(layers.norm(x, "conv_1_bn"), "conv_1_act")
    more = {"bneck13": ("expanded_conv_12_project_bn", 32)}
    return x, MOBILENETV3_LEVELS[name] | (more if of_torchvision and name == "mobilenetv3_large" else {})


def _first_conv(x, layers, filters, symmetric, name):
    """The first convolution, 3x3 of stride 2; symmetric: padded by one on all sides, as torchvision's."""
    if symmetric:
        x = layers.pad(x, 3, native=1, stride=2, leading=1, trailing=1, name=f"{name}_pad")
    padding = "valid" if symmetric else "same"
    return layers.conv(x, filters, 3, native=1, stride=2, padding=padding, name=name)


def _bottleneck(x, layers, native, row, filters, prefix, names, squeezed_activation=None, *, rate=1, symmetric=False):
    """Inverted residual with a linear bottleneck (MobileNetV2, figure 4d), with squeeze-excite MobileNetV3's figure 4.

    names:            what the padding (None: see `LayerBuilder.depthwise`), the norms and the activations are called.
    rate, symmetric:  of the depthwise convolution.
    """
    shortcut, channels, (pad, norm, activation) = x, x.shape[-1], names
    if row.expansion > 1:
        x = layers.conv(x, make_divisible(channels * row.expansion), 1, native, name=f"{prefix}expand")
        x = layers.activate(layers.norm(x, f"{prefix}expand_{norm}"), f"{prefix}expand_{activation}")
    depthwise, pad_name = f"{prefix}depthwise", pad and f"{prefix}{pad}"
    how = {"rate": rate, "symmetric": symmetric, "name": depthwise, "pad_name": pad_name}
    x = layers.depthwise(x, row.kernel_size, native, row.stride, **how)
    x = layers.activate(layers.norm(x, f"{depthwise}_{norm}"), f"{depthwise}_{activation}")
    if row.squeezes:
        squeezed = make_divisible(x.shape[-1] / 4)
        x = squeeze_excite(x, squeezed, squeezed_activation, "hard_sigmoid", name=f"{prefix}squeeze_excite")
    x = layers.norm(layers.conv(x, filters, 1, native, name=f"{prefix}project"), f"{prefix}project_{norm}")
    is_residual = row.stride == 1 and channels == filters
    return keras.layers.Add(name=f"{prefix}add")([shortcut, x]) if is_residual else x


def squeeze_excite(x, squeezed, activation, gate, name):
    """Scales each channel of x (B, H, W, C) by a gate that has seen the mean of the whole map (Hu et al., CVPR 2018).

    squeezed, activation:  channels of the bottleneck in between and name of its activation.
    gate:                  Keras' name of the activation of the scales: "sigmoid" (the paper), "hard_sigmoid".
    """
    scale = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_avg_pool")(x)  # (B, 1, 1, C)
    scale = Conv2D(squeezed, 1, name=f"{name}_conv")(scale)
    scale = create_activation(activation, f"{name}_act")(scale)
    scale = Conv2D(x.shape[-1], 1, name=f"{name}_conv_1")(scale)
    scale = keras.layers.Activation(gate, name=f"{name}_gate")(scale)
    return keras.layers.Multiply(name=f"{name}_mul")([x, scale])
