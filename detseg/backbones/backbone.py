"""What every backbone is: a Keras model with named feature levels, its strides, channels and input normalisation."""

import difflib

import keras
import numpy as np
from keras import ops

from detseg.errors import UserError

OUTPUT_STRIDES = (8, 16, 32)
STAGE_STRIDES = (2, 4, 8, 16, 32)
PREPROCESSINGS = ("caffe", "tf", "torch")
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)  # mean pixel of ImageNet, subtracted by the VGG authors' Caffe models
TORCH_MEAN_RGB, TORCH_STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels / 255


class Backbone:
    """A feature extractor.

    name:           str, its name in `BACKBONES`.
    model:          keras.Model (B, H, W, in_channels) float, normalised as `preprocessing` says, -> list of features in
                    the order of `keys`.
    keys:           tuple of the feature levels: ints are native strides (the stride at output_stride 32), strings are
                    named extra levels.
    strides:        {key: int}, the actual stride of each level at this output_stride.
    channels:       {key: int}.
    preprocessing:  "caffe", "tf" or "torch"; apply `Preprocess(preprocessing, in_channels)` to the pixels first.
    unused_layers:  tuple of str, layers of the loaded weight file that the backbone has no use for (a classifier top).
    """

    def __init__(self, name, trunk, levels, output_stride, preprocessing):
        """Cuts `levels`, {key: (layer name, native stride)}, out of the keras.Model `trunk`."""
        self.name = name
        self.keys = tuple(levels)
        outputs = [trunk.get_layer(layer).output for layer, _ in levels.values()]
        self.model = keras.Model(trunk.input, outputs, name=name)
        self.strides = {key: min(native, output_stride) for key, (_, native) in levels.items()}
        self.channels = {key: output.shape[-1] for key, output in zip(self.keys, outputs, strict=True)}
        self.preprocessing = preprocessing
        self.unused_layers = ()

    def __call__(self, images, training=None):
        """{key: feature (B, H / stride, W / stride, channels)} of normalised images (B, H, W, in_channels).

        images:  KerasTensor (in a functional model) or array; H and W multiples of 32 keep all levels aligned (pixel i
                 of a level at stride s then looks at the image around pixel i * s).
        """
        return dict(zip(self.keys, self.model(images, training=training), strict=True))

    def stage_layers(self, count):
        """The layers on which the first `count` of the stages at native strides 2, 4, 8, 16, 32 depend.

        Raises UserError if count is not one of 0..5.
        """
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= len(STAGE_STRIDES):
            raise UserError(
                f"model.freeze_stages: {count!r} is not possible; expected 0 (nothing is frozen) to "
                f"{len(STAGE_STRIDES)}: stages up to the stride 2, 4, 8, 16 or 32"
            )
        if count == 0:
            return []
        feature = self.model.outputs[self.keys.index(STAGE_STRIDES[count - 1])]
        return keras.Model(self.model.inputs, feature).layers

    def freeze(self, count):
        """Sets trainable = False on `stage_layers(count)`, norms included (which then use their moving statistics)."""
        for layer in self.stage_layers(count):
            layer.trainable = False


@keras.saving.register_keras_serializable("detseg")
class Preprocess(keras.layers.Layer):
    """Pixels (B, H, W, in_channels) of 0..255, uint8 or float, to what a backbone's ImageNet weights expect.

    mode "tf":     x / 127.5 - 1.
    mode "caffe":  RGB to BGR, minus the mean pixel (103.939, 116.779, 123.68). With other than 3 channels there is no
                   order to turn round: all channels are lowered by the mean of the three.
    mode "torch":  (x / 255 - mean) / standard deviation, torchvision's of ImageNet's red, green and blue. With
                   other than 3 channels: the mean of the three for all.
    Computes in float32; returns the layer's compute dtype.
    """

    def __init__(self, mode, in_channels=3, name="preprocess", **layer_arguments):
        # autocast would round float pixels to bfloat16 before the mean is subtracted.
        super().__init__(name=name, autocast=False, **layer_arguments)
        if mode not in PREPROCESSINGS:
            raise ValueError(f"mode {mode!r}: expected one of {', '.join(PREPROCESSINGS)}")
        self.mode = mode
        self.in_channels = in_channels

    def call(self, images):
        images = ops.cast(images, "float32")
        if self.mode == "tf":
            images = images / 127.5 - 1.0
        elif self.mode == "torch":
            mean, std = np.array([TORCH_MEAN_RGB, TORCH_STD_RGB], "float32")  # (3,) each
            if self.in_channels != 3:
                mean, std = mean.mean(), std.mean()
            images = (images / 255.0 - mean) / std
        elif self.in_channels == 3:
            images = ops.flip(images, axis=-1) - ops.convert_to_tensor(CAFFE_MEAN_BGR, "float32")
        else:
            images = images - sum(CAFFE_MEAN_BGR) / 3
        return ops.cast(images, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "mode": self.mode, "in_channels": self.in_channels}


def placement(native_stride, output_stride):
    """(actual stride, dilation) of a map whose stride at output_stride 32 would be `native_stride`.

    Strides beyond output_stride turn into dilation, multiplied through all later stages (DeepLabv3, section 3.1).
    """
    actual = min(native_stride, output_stride)
    return actual, native_stride // actual


def make_divisible(value, divisor=8):
    """`value` rounded to a multiple of `divisor`, at least `divisor` at most 10% below (MobileNetV2's code)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * value else rounded + divisor


def check_choice(field, value, allowed):
    """UserError, with a suggestion, unless `value` is one of `allowed`."""
    if value in allowed:
        return
    close = difflib.get_close_matches(str(value), [str(choice) for choice in allowed], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"{field}: {value!r} is unknown; expected one of {', '.join(map(str, allowed))}{hint}")


def check_alpha(name, alpha, filters):
    """UserError unless `alpha` is a number that leaves a layer of `filters` filters at least one."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or int(filters * alpha) < 1:
        raise UserError(
            f"model.alpha: {alpha!r} is not a width multiplier of {name}; expected a number such as 0.5 or 1.0 that "
            f"leaves at least one of the narrowest layer's {filters} filters"
        )


def check_unit_rates(name, multi_grid, count):
    """The unit rates `multi_grid`, or 1s for None; UserError unless they are `count` whole numbers from 1."""
    if multi_grid is None:
        return (1,) * count
    rates = tuple(multi_grid) if isinstance(multi_grid, list | tuple) else ()
    if len(rates) != count or not all(type(rate) is int and rate >= 1 for rate in rates):
        raise UserError(
            f"model.multi_grid: {multi_grid!r} is not possible; expected {count} whole numbers from 1, one for each "
            f"unit of {name}'s last stage, such as {[2**i for i in range(count)]}, or null"
        )
    return rates
