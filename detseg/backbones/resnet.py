"""ResNet (He et al., CVPR 2016) and ResNetV2 (He et al., ECCV 2016), layer names of keras.applications.

Every stride takes n pixels to ceil(n / 2) and starts at the first one, so dilation is exact for maps of odd size too.
"""

import keras

from detseg.errors import UserError

# table 1: how many blocks conv2_x, conv3_x, conv4_x and conv5_x have
STAGES = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
FILTERS = (64, 128, 256, 512)  # of the 3x3 convolutions, in each stage
EXPANSION = 4  # a bottleneck's output has 4 times the filters of its 3x3


def create_resnet(name, x, layers, alpha, variant, multi_grid):
    """A ResNet without its classifier; `alpha` multiplies the filters of all layers.

    Three forms: resnet50, 101 and 152 are the paper's and keras.applications', with the stride in the first 1x1 of a
    block; their variant "b" has it in the 3x3 and is torchvision's network (no biases, its own epsilon and
    normalisation of the pixels); resnet18 and 34 are torchvision's too.
    Level 2 is the first convolution; 4 to 32 are the outputs of conv2_x to conv5_x.
    multi_grid:  unit rates of conv5_x, one for each block, multiplied into the dilation of its 3x3 convolutions
                 (DeepLabv3, section 3.2.1), at output stride 32 too. A first 3x3 that would stride there reads the map
                 of stride 16: at output strides 16 and 8 its dilation without unit rate is 1 and 2, not 2 and 4.
    Raises UserError for a unit rate on a convolution that strides.
    """
    is_basic = name in ("resnet18", "resnet34")
    is_torchvision = is_basic or variant == "b"
    if is_torchvision and layers.output_stride == 32 and multi_grid[0] > 1:
        raise UserError(
            f"model.multi_grid: {list(multi_grid)} would dilate a convolution that strides: at output_stride 32 the "
            f"first 3x3 of this {name}'s last stage has stride 2. Start with 1 or set model.output_stride to 16 or 8"
        )
    x = _first_convolution(x, layers, alpha, use_bias=not is_torchvision)
    x = layers.activate(layers.norm(x, "conv1_bn"), "conv1_relu")
    x = _first_pool(x, layers)
    levels = {2: "conv1_relu"}
    native = 4
    for stage, (repeats, filters) in enumerate(zip(STAGES[name], FILTERS, strict=True), start=2):
        for index in range(repeats):
            stride = 2 if stage > 2 and index == 0 else 1
            rate = multi_grid[index] if stage == 5 else 1
            block = f"conv{stage}_block{index + 1}"
            x = _block(x, layers, int(filters * alpha), native, stride, rate, block, is_basic, is_torchvision)
            native *= stride
        levels[native] = f"conv{stage}_block{repeats}_out"
    return x, levels


def create_resnetv2(name, x, layers, alpha, variant, multi_grid):
    """A ResNetV2 without its classifier; `alpha` and `multi_grid` as in `create_resnet`.

    Each stage but the last strides in its last block (in the 3x3) and blocks start with their norm and activation, so
    the last whole map of stride 4, 8 or 16 is the sum before the block that strides, normed and activated by that
    block, as post_bn and post_relu do at 32: levels 4, 8 and 16 are its preact_relu, as wide as a ResNet's levels.
    Level 2 is the first convolution, which has no norm and no activation here.
    """
    x = _first_pool(_first_convolution(x, layers, alpha, use_bias=True), layers)
    levels = {2: "conv1_conv"}
    native = 4
    stages = zip(STAGES[name.removesuffix("v2")], FILTERS, strict=True)
    for stage, (repeats, filters) in enumerate(stages, start=2):
        for index in range(repeats):
            block = f"conv{stage}_block{index + 1}"
            stride = 2 if stage < 5 and index == repeats - 1 else 1
            rate = multi_grid[index] if stage == 5 else 1
            if stride == 2:
                levels[native] = f"{block}_preact_relu"
            x = _preactivated_bottleneck(x, layers, int(filters * alpha), native, stride, rate, block)
            native *= stride
    x = layers.activate(layers.norm(x, "post_bn"), "post_relu")
    return x, levels | {32: "post_relu"}


def _block(x, layers, filters, native, stride, rate, name, is_basic, is_torchvision):
    """Two 3x3 convolutions (figure 5, left), or 1x1, 3x3 and 1x1 (right), each but the last with its activation.

    The paper's bottleneck strides in the first and has biases, torchvision's strides in the 3x3.
    """
    if is_basic:
        convolutions = ((filters, 3, stride), (filters, 3, 1))  # (filters, kernel size, stride)
    else:
        first_stride = 1 if is_torchvision else stride
        convolutions = ((filters, 1, first_stride), (filters, 3, stride // first_stride), (EXPANSION * filters, 1, 1))
    use_bias = not is_torchvision
    shortcut, outputs = x, convolutions[-1][0]
    if x.shape[-1] != outputs:  # a projection (section 3.3, option B)
        shortcut = _conv_norm(x, layers, outputs, 1, native, stride, name=f"{name}_0", use_bias=use_bias)
    for index, (width, size, step) in enumerate(convolutions, start=1):
        if index > 1:
            x = layers.activate(x, f"{name}_{index - 1}_relu")
        x = _conv_norm(x, layers, width, size, native, step, rate, name=f"{name}_{index}", use_bias=use_bias)
        native *= step
    return layers.activate(keras.layers.Add(name=f"{name}_add")([shortcut, x]), f"{name}_out")


def _preactivated_bottleneck(x, layers, filters, native, stride, rate, name):
    """Norm and activation before each convolution, the sum untouched (ECCV 2016, figure 4e); stride in the 3x3."""
    preact = layers.activate(layers.norm(x, f"{name}_preact_bn"), f"{name}_preact_relu")
    strides, _ = layers.place(native, stride)
    if x.shape[-1] != EXPANSION * filters:
        x = layers.conv(preact, EXPANSION * filters, 1, native, name=f"{name}_0_conv", use_bias=True)
    elif strides > 1:
        x = keras.layers.MaxPooling2D(1, strides, name=f"{name}_0_pool")(x)
    shortcut = x
    x = _conv_norm(preact, layers, filters, 1, native, name=f"{name}_1")
    x = layers.activate(x, f"{name}_1_relu")
    x = layers.pad(x, 3, native, stride, leading=1, trailing=1, rate=rate, name=f"{name}_2_pad")
    x = layers.conv(x, filters, 3, native, stride, rate=rate, padding="valid", name=f"{name}_2_conv")
    x = layers.activate(layers.norm(x, f"{name}_2_bn"), f"{name}_2_relu")
    x = layers.conv(x, EXPANSION * filters, 1, native * stride, name=f"{name}_3_conv", use_bias=True)
    return keras.layers.Add(name=f"{name}_out")([shortcut, x])


def _conv_norm(x, layers, filters, kernel_size, native, stride=1, rate=1, *, name, use_bias=False):
    """Convolution and norm; a 3x3 that strides is padded by one on all sides, where "same" would pad only the end."""
    options = {"use_bias": use_bias, "name": f"{name}_conv"}
    if kernel_size == 3 and stride == 2:
        x = layers.pad(x, 3, native, stride, leading=1, trailing=1, rate=rate, name=f"{name}_pad")
        options["padding"] = "valid"
    x = layers.conv(x, filters, kernel_size, native, stride, rate=rate, **options)
    return layers.norm(x, f"{name}_bn")


def _first_convolution(x, layers, alpha, use_bias):
    x = layers.pad(x, 7, native=1, stride=2, leading=3, trailing=3, name="conv1_pad")
    filters = int(FILTERS[0] * alpha)
    return layers.conv(x, filters, 7, native=1, stride=2, padding="valid", use_bias=use_bias, name="conv1_conv")


def _first_pool(x, layers):
    x = layers.pad(x, 3, native=2, stride=2, leading=1, trailing=1, name="pool1_pad")
    return keras.layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
