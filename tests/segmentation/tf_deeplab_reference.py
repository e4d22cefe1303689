"""TensorFlow's DeepLab in raw operations: checkpoints of random values by the published names, and what its nets give.

Written after the papers and the behaviour of tensorflow/models' research/deeplab; nothing here comes from detseg.
"""

import numpy as np
import tensorflow as tf

# (expansion, filters, repeats, stride of the first) of MobileNetV2's bottlenecks
MOBILENETV2 = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
# (scope of the unit, filters, stride, shortcut) of Xception-65's modules
XCEPTION65 = (
    ("entry_flow/block1/unit_1", (128, 128, 128), 2, "conv"),
    ("entry_flow/block2/unit_1", (256, 256, 256), 2, "conv"),
    ("entry_flow/block3/unit_1", (728, 728, 728), 2, "conv"),
    *((f"middle_flow/block1/unit_{unit}", (728, 728, 728), 1, "sum") for unit in range(1, 17)),
    ("exit_flow/block1/unit_1", (728, 1024, 1024), 2, "conv"),
    ("exit_flow/block2/unit_1", (1536, 1536, 2048), 1, "none"),
)
LOW_LEVEL = "entry_flow/block2/unit_1/xception_module/separable_conv2_pointwise"


# ----- checkpoints ---------------------------------------------------------------------------------------------------


def save(variables, prefix):
    """Writes prefix.index and prefix.data-00000-of-00001 as a tf.train.Saver does."""
    names = list(variables)
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=list(variables.values())
    )
    return prefix


class Variables(dict):
    """{name: array} that grows by layers of random values under which every norm matters."""

    def __init__(self, seed=0):
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def conv(self, scope, size, channels, filters, norm=True):
        self._kernel(f"{scope}/weights", (size, size, channels, filters), size * size * channels)
        if norm:
            self._norm(scope, filters)
        else:
            self[f"{scope}/biases"] = self.rng.normal(0, 0.5, filters).astype("float32")
        return filters

    def depthwise(self, scope, channels):
        self._kernel(f"{scope}/depthwise_weights", (3, 3, channels, 1), 9)
        self._norm(scope, channels)

    def separable(self, scope, channels, filters):
        self.depthwise(f"{scope}_depthwise", channels)
        return self.conv(f"{scope}_pointwise", 1, channels, filters)

    def _kernel(self, name, shape, seen):
        self[name] = self.rng.normal(0, np.sqrt(1 / seen), shape).astype("float32")

    def _norm(self, scope, channels):
        uniform, normal = self.rng.uniform, self.rng.normal
        values = {"gamma": uniform(0.5, 1.5, channels), "beta": normal(0, 0.3, channels)}
        values |= {"moving_mean": normal(0, 0.3, channels), "moving_variance": uniform(0.5, 1.5, channels)}
        self.update({f"{scope}/BatchNorm/{name}": value.astype("float32") for name, value in values.items()})


def rounded(filters):
    """To a multiple of 8, at most 10% below."""
    nearest = max(8, int(filters + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * filters else nearest + 8


def bottlenecks():
    """(scope, expansion, filters, stride) of MobileNetV2's blocks."""
    rows = [(t, c, s if i == 0 else 1) for t, c, n, s in MOBILENETV2 for i in range(n)]
    return [(f"MobilenetV2/expanded_conv{f'_{i}' if i else ''}", *row) for i, row in enumerate(rows)]


def add_mobilenetv2(variables, alpha=1.0, top=False):
    """Channels of the last bottleneck; top: with the last convolution and the classifier of slim's ImageNet model."""
    channels = variables.conv("MobilenetV2/Conv", 3, 3, rounded(32 * alpha))
    for scope, expansion, filters, _ in bottlenecks():
        inner = channels
        if expansion > 1:
            inner = variables.conv(f"{scope}/expand", 1, channels, rounded(channels * expansion))
        variables.depthwise(f"{scope}/depthwise", inner)
        channels = variables.conv(f"{scope}/project", 1, inner, rounded(filters * alpha))
    if top:
        variables.conv("MobilenetV2/Conv_1", 1, channels, rounded(1280 * max(alpha, 1)))
        variables.conv("MobilenetV2/Logits/Conv2d_1c_1x1", 1, rounded(1280 * max(alpha, 1)), 10, norm=False)
    return channels


def add_xception65(variables, alpha=1.0, top=False):
    """Channels of the last module; top: with the classifier of the ImageNet model."""
    channels = variables.conv("xception_65/entry_flow/conv1_1", 3, 3, int(32 * alpha))
    channels = variables.conv("xception_65/entry_flow/conv1_2", 3, channels, int(64 * alpha))
    for unit, filters, _, shortcut in XCEPTION65:
        module = f"xception_65/{unit}/xception_module"
        inner = channels
        for index, width in enumerate(filters, start=1):
            inner = variables.separable(f"{module}/separable_conv{index}", inner, int(width * alpha))
        if shortcut == "conv":
            variables.conv(f"{module}/shortcut", 1, channels, inner)
        channels = inner
    if top:
        variables.conv("xception_65/logits", 1, channels, 10, norm=False)
    return channels


def add_head(variables, features, classes=21, low_level=None, channels=256):
    """low_level: channels of the features for the decoder, which goes with three atrous branches; None: neither."""
    branches = [variables.conv(scope, 1, features, channels) for scope in ("image_pooling", "aspp0")]
    if low_level is not None:
        branches += [variables.separable(f"aspp{index}", features, channels) for index in (1, 2, 3)]
    variables.conv("concat_projection", 1, sum(branches), channels)
    if low_level is not None:
        reduced = variables.conv("decoder/feature_projection0", 1, low_level, 48)
        variables.separable("decoder/decoder_conv0", channels + reduced, channels)
        variables.separable("decoder/decoder_conv1", channels, channels)
    variables.conv("logits/semantic", 1, channels, classes, norm=False)


# ----- nets ----------------------------------------------------------------------------------------------------------


class Net:
    """The layers of one checkpoint; `epsilon` is of the batch norms."""

    def __init__(self, variables, epsilon):
        self.variables, self.epsilon = variables, epsilon

    def norm(self, x, scope):
        names = ("moving_mean", "moving_variance", "beta", "gamma")
        return tf.nn.batch_normalization(
            x, *(self.variables[f"{scope}/BatchNorm/{name}"] for name in names), variance_epsilon=self.epsilon
        )

    def conv(self, x, scope, stride=1, padding="SAME"):
        return self.norm(tf.nn.conv2d(x, self.variables[f"{scope}/weights"], stride, padding), scope)

    def depthwise(self, x, scope, stride=1, rate=1, padding="SAME"):
        kernel = self.variables[f"{scope}/depthwise_weights"]
        x = tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], padding, dilations=[rate, rate])
        return self.norm(x, scope)


class Strides:
    """Strides up to an output stride, from where on they become rates for the layers that follow."""

    def __init__(self, output_stride):
        self.output_stride, self.current, self.rate = output_stride, 1, 1

    def next(self, stride):
        """(stride, rate) of the next layer."""
        if self.current < self.output_stride:
            self.current *= stride
            return stride, 1
        rate, self.rate = self.rate, self.rate * stride
        return 1, rate


def mobilenetv2(variables, x, output_stride):
    """The last bottleneck, or the last convolution if it is in the checkpoint, of images in [-1, 1]."""
    net, strides = Net(variables, 1e-3), Strides(output_stride)
    x = tf.nn.relu6(net.conv(x, "MobilenetV2/Conv", strides.next(2)[0]))
    for scope, expansion, _, native_stride in bottlenecks():
        shortcut, (stride, rate) = x, strides.next(native_stride)
        if expansion > 1:
            x = tf.nn.relu6(net.conv(x, f"{scope}/expand"))
        x = tf.nn.relu6(net.depthwise(x, f"{scope}/depthwise", stride, rate))
        x = net.conv(x, f"{scope}/project")
        if stride == 1 and x.shape[-1] == shortcut.shape[-1]:
            x = x + shortcut
    if "MobilenetV2/Conv_1/weights" in variables:
        x = tf.nn.relu6(net.conv(x, "MobilenetV2/Conv_1"))
    return x


def fixed_padding(x):
    return tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])


def xception65(variables, x, output_stride):
    """(last features, low-level features of stride 4) of images in [-1, 1]."""
    net, strides = Net(variables, 1e-3), Strides(output_stride)
    stride, _ = strides.next(2)
    x = tf.nn.relu(net.conv(fixed_padding(x), "xception_65/entry_flow/conv1_1", stride, "VALID"))
    x = tf.nn.relu(net.conv(x, "xception_65/entry_flow/conv1_2"))
    for unit, _, native_stride, kind in XCEPTION65:
        module = f"xception_65/{unit}/xception_module"
        shortcut, (stride, rate) = x, strides.next(native_stride)
        for index in (1, 2, 3):
            scope = f"{module}/separable_conv{index}"
            x = x if kind == "none" else tf.nn.relu(x)
            if index == 3 and stride == 2:
                x = net.depthwise(fixed_padding(x), f"{scope}_depthwise", 2, 1, "VALID")
            else:
                x = net.depthwise(x, f"{scope}_depthwise", 1, rate)
            x = tf.nn.relu(x) if kind == "none" else x
            x = net.conv(x, f"{scope}_pointwise")
            x = tf.nn.relu(x) if kind == "none" else x
            if f"xception_65/{LOW_LEVEL}" == f"{scope}_pointwise":
                low_level = x
        if kind == "conv":
            x = x + net.conv(shortcut, f"{module}/shortcut", stride)
        elif kind == "sum":
            x = x + shortcut
    return x, low_level


def resize(x, size):
    return tf.compat.v1.image.resize_bilinear(x, size, align_corners=True)


def deeplab(variables, images, output_stride=16):
    """Logits (B, H, W, K) of images (B, H, W, 3) uint8, H and W 16 n + 1, the crop size."""
    x = 2 / 255 * tf.cast(images, "float32") - 1
    if "MobilenetV2/Conv/weights" in variables:
        x, low_level = mobilenetv2(variables, x, output_stride), None
    else:
        x, low_level = xception65(variables, x, output_stride)
    net, size = Net(variables, 1e-5), x.shape[1:3]
    pooled = tf.nn.relu(net.conv(tf.reduce_mean(x, (1, 2), keepdims=True), "image_pooling"))
    branches = [resize(pooled, size), tf.nn.relu(net.conv(x, "aspp0"))]
    for index, rate in enumerate((6, 12, 18) if low_level is not None else (), start=1):
        branch = tf.nn.relu(net.depthwise(x, f"aspp{index}_depthwise", rate=rate * 16 // output_stride))
        branches.append(tf.nn.relu(net.conv(branch, f"aspp{index}_pointwise")))
    x = tf.nn.relu(net.conv(tf.concat(branches, 3), "concat_projection"))
    if low_level is not None:
        size = [(side - 1) // 4 + 1 for side in images.shape[1:3]]
        low_level = tf.nn.relu(net.conv(low_level, "decoder/feature_projection0"))
        x = tf.concat([resize(x, size), resize(low_level, size)], 3)
        for index in (0, 1):
            x = tf.nn.relu(net.depthwise(x, f"decoder/decoder_conv{index}_depthwise"))
            x = tf.nn.relu(net.conv(x, f"decoder/decoder_conv{index}_pointwise"))
    x = tf.nn.conv2d(x, variables["logits/semantic/weights"], 1, "SAME") + variables["logits/semantic/biases"]
    return resize(x, images.shape[1:3])
