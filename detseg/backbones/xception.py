"""Xception (Chollet, CVPR 2017), layer names of keras.applications, and DeepLab's aligned Xception-65.

Xception's first two convolutions are not padded: of n pixels they leave n / 2 - 3, and pixel i of level 2 looks at the
image around pixel 2 * i + 3. Its "same" max-pools shift maps of even size by one more. At multiples of 32, levels 8, 16
and 32 have n / stride pixels, but level 4 has one and level 2 three fewer: resize a map to the size of the finer one,
never by a factor. Xception-65 pads symmetrically throughout: its levels are aligned, with ceil(n / stride) pixels.
"""

import keras

from detseg.backbones.backbone import stage_levels
from detseg.layers.conv import DepthwiseConv2D, SeparableConv2D

# figure 5: (stride, filters of the separable convolutions) of blocks 2 to 13
XCEPTION = (*((2, (128, 128)), (2, (256, 256)), (2, (728, 728))), *((1, (728, 728, 728)),) * 8, (2, (728, 1024)))
XCEPTION_EXIT = (1536, 2048)  # filters of block 14, which has no shortcut
XCEPTION_LEVELS = stage_levels(
    "block1_conv2_act", *(f"block{block}_sepconv2_bn" for block in (3, 4, 13)), "block14_sepconv2_act"
)

# DeepLabv3+, figure 4: (block, stride, filters of the separable convolutions) of the residual blocks
XCEPTION65 = (
    ("entry_flow_block1", 2, (128, 128, 128)),
    ("entry_flow_block2", 2, (256, 256, 256)),
    ("entry_flow_block3", 2, (728, 728, 728)),
    *((f"middle_flow_unit_{unit}", 1, (728, 728, 728)) for unit in range(1, 17)),
    ("exit_flow_block1", 2, (728, 1024, 1024)),
)
XCEPTION65_LEVELS = stage_levels(
    "entry_flow_conv1_2_relu",
    *(f"{block}_separable_conv2_pointwise_BN" for block, stride, _ in XCEPTION65[1:] if stride == 2),
    "exit_flow_block2_separable_conv3_pointwise_relu",
)
XCEPTION65_EXIT = (1536, 1536, 2048)  # filters of the last separable convolutions, without a shortcut


def create_xception(name, x, layers, alpha, variant):
    """Xception; `alpha` multiplies the filters of all layers. The shortcuts, unnamed in keras.applications, have names.

    Level 2 is the end of the unpadded stem; 4, 8 and 16 are the last separable convolution before the pool that strides
    next; 32 is the last layer.
    """
    x = layers.conv(x, int(32 * alpha), 3, native=1, stride=2, padding="valid", name="block1_conv1")
    x = layers.activate(layers.norm(x, "block1_conv1_bn"), "block1_conv1_act")
    x = layers.conv(x, int(64 * alpha), 3, native=2, padding="valid", name="block1_conv2")
    x = layers.activate(layers.norm(x, "block1_conv2_bn"), "block1_conv2_act")
    native = 2
    for block, (stride, filters) in enumerate(XCEPTION, start=2):
        x = _block(x, layers, native, stride, [int(width * alpha) for width in filters], f"block{block}")
        native *= stride
    for index, filters in enumerate(XCEPTION_EXIT, start=1):
        x = _separable_conv(x, layers, int(filters * alpha), native, f"block14_sepconv{index}")
        x = layers.activate(x, f"block14_sepconv{index}_act")
    return x, XCEPTION_LEVELS


def _block(x, layers, native, stride, filters, name):
    """Separable convolutions, each after its activation, and a max-pool where the block strides, round a shortcut."""
    shortcut = x
    if stride == 2:
        shortcut = layers.conv(x, filters[-1], 1, native, stride, name=f"{name}_shortcut")
        shortcut = layers.norm(shortcut, f"{name}_shortcut_bn")
    for index, width in enumerate(filters, start=1):
        if (name, index) != ("block2", 1):  # which the stem ends with
            x = layers.activate(x, f"{name}_sepconv{index}_act")
        x = _separable_conv(x, layers, width, native, f"{name}_sepconv{index}")
    if stride == 2:
        x = layers.max_pool(x, 3, native, padding="same", name=f"{name}_pool")
    return keras.layers.Add(name=f"{name}_add")([x, shortcut])


def _separable_conv(x, layers, filters, native, name):
    _, dilation = layers.place(native, stride=1)
    x = SeparableConv2D(filters, 3, padding="same", dilation_rate=dilation, use_bias=False, name=name)(x)
    return layers.norm(x, f"{name}_bn")


def create_xception65(name, x, layers, alpha, variant, multi_grid):
    """The aligned Xception of DeepLabv3+ (Chen et al., ECCV 2018, figure 4); `alpha` multiplies all filters.

    Separable convolutions stride in place of max-pools, with a batch norm after each depthwise convolution too, and a
    middle flow of 16 blocks, all as in Google's DeepLab release. keras.applications has no such net; the layer names
    are those of the Keras conversion of that release (bonlime/keras-deeplab-v3-plus).
    Level 2 is the end of the stem; 4, 8 and 16 are the last separable convolution before the one that strides next (4
    is DeepLabv3+'s low-level feature); 32 is the last layer.
    multi_grid:  unit rates of the last three convolutions (exit flow), multiplied into their dilation.
    """
    x = layers.pad(x, 3, native=1, stride=2, leading=1, trailing=1, name="entry_flow_conv1_1_pad")
    x = layers.conv(x, int(32 * alpha), 3, native=1, stride=2, padding="valid", name="entry_flow_conv1_1")
    x = layers.activate(layers.norm(x, "entry_flow_conv1_1_BN"), "entry_flow_conv1_1_relu")
    x = layers.conv(x, int(64 * alpha), 3, native=2, name="entry_flow_conv1_2")
    x = layers.activate(layers.norm(x, "entry_flow_conv1_2_BN"), "entry_flow_conv1_2_relu")
    native = 2
    for block, stride, filters in XCEPTION65:
        x = _aligned_block(x, layers, native, stride, [int(width * alpha) for width in filters], block)
        native *= stride
    for index, (filters, rate) in enumerate(zip(XCEPTION65_EXIT, multi_grid, strict=True), start=1):
        prefix = f"exit_flow_block2_separable_conv{index}"
        x = _depthwise(x, layers, native, rate=rate, prefix=prefix)
        x = layers.activate(x, f"{prefix}_depthwise_relu")
        x = _pointwise(x, layers, int(filters * alpha), native, prefix)
        x = layers.activate(x, f"{prefix}_pointwise_relu")
    return x, XCEPTION65_LEVELS


def _aligned_block(x, layers, native, stride, filters, name):
    """Separable convolutions, each after its activation, the last striding, round a shortcut."""
    shortcut = x
    if stride == 2:
        shortcut = layers.conv(x, filters[-1], 1, native, stride, name=f"{name}_shortcut")
        shortcut = layers.norm(shortcut, f"{name}_shortcut_BN")
    for index, width in enumerate(filters, start=1):
        prefix = f"{name}_separable_conv{index}"
        x = layers.activate(x, f"{prefix}_relu")
        x = _depthwise(x, layers, native, stride if index == len(filters) else 1, prefix=prefix)
        x = _pointwise(x, layers, width, native, prefix)
    return keras.layers.Add(name=f"{name}_add")([x, shortcut])


def _depthwise(x, layers, native, stride=1, rate=1, *, prefix):
    """3x3, padded by as much in front as behind whatever the map's size."""
    strides, dilation = layers.place(native, stride)
    options = {"strides": strides, "dilation_rate": dilation * rate, "use_bias": False, "padding": "same"}
    if strides == 2:
        x = keras.layers.ZeroPadding2D(1, name=f"{prefix}_pad")(x)
        options["padding"] = "valid"
    x = DepthwiseConv2D(3, **options, name=f"{prefix}_depthwise")(x)
    return layers.norm(x, f"{prefix}_depthwise_BN")


def _pointwise(x, layers, filters, native, prefix):
    x = layers.conv(x, filters, 1, native, name=f"{prefix}_pointwise")
    return layers.norm(x, f"{prefix}_pointwise_BN")
