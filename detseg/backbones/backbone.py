"""What every backbone is: a Keras model with named feature levels, its strides, channels and input normalisation."""

import keras
import numpy as np
from keras import ops

from detseg.errors import UserError
from detseg.layers.padding import PadToMultiple

OUTPUT_STRIDES = (8, 16, 32)
STAGE_STRIDES = (2, 4, 8, 16, 32)
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)  # mean pixel of ImageNet, subtracted by the VGG authors' Caffe models
TORCH_MEAN_RGB, TORCH_STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels / 255


class Backbone:
    """A feature extractor.

    model:              keras.Model (B, H, W, in_channels) float, normalised as `preprocessing` says, -> list of
                        features in the order of `keys`.
    keys:               the feature levels: ints are native strides (the stride at output_stride 32), strings are named
                        extra levels.
    strides, channels:  {key: int}, the actual stride of each level at this output_stride, and its channels.
    preprocessing:      "caffe", "tf" or "torch"; apply `Preprocess(preprocessing, in_channels)` to the pixels first.
    torch_module:       function of a layer's name -> its module in torchvision's state_dict of the net, or None; None
                        for a net that torchvision doesn't have.
    loaded_layers:      names of the layers, also of the model around it, whose weights were loaded.
    unused_layers:      names of the layers of the loaded weight file that the backbone has no use for (a classifier).
    """

    def __init__(self, name, trunk, levels, output_stride, preprocessing):
        """Cuts the levels {native stride: layer name} and {other key: (layer name, native stride)} out of a model."""
        self.name = name
        self.keys = tuple(levels)
        levels = {key: level if isinstance(level, tuple) else (level, key) for key, level in levels.items()}
        outputs = [trunk.get_layer(layer).output for layer, _ in levels.values()]
        self.model = keras.Model(trunk.input, outputs, name=name)
        self.strides = {key: min(native, output_stride) for key, (_, native) in levels.items()}
        self.channels = {key: output.shape[-1] for key, output in zip(self.keys, outputs, strict=True)}
        self.preprocessing = preprocessing
        self.torch_module = None
        self.loaded_layers = ()
        self.unused_layers = ()

    def __call__(self, images, training=None):
        """{key: feature (B, H / stride, W / stride, channels)} of normalised images (B, H, W, in_channels).

        H and W multiples of 32 keep all levels aligned: pixel i at stride s looks at the image around pixel i * s.
        """
        return dict(zip(self.keys, self.model(images, training=training), strict=True))

    def stage_layers(self, count):
        """The layers on which the first `count` (0 to 5) of the stages at native strides 2, 4, 8, 16, 32 depend."""
        if type(count) is not int or not 0 <= count <= len(STAGE_STRIDES):
            raise UserError(
                f"model.freeze_stages: {count!r} is not possible; expected 0 (nothing is frozen) to 5: stages up to "
                "the stride 2, 4, 8, 16 or 32"
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
    mode "caffe":  RGB to BGR, minus the mean pixel (103.939, 116.779, 123.68).
    mode "torch":  (x / 255 - mean) / standard deviation, torchvision's of ImageNet's red, green and blue.
    Other than 3 channels keep their order and all have the mean of the three. Computed in float32.
    """

    def __init__(self, mode, in_channels=3, **kwargs):
        # autocast would round float pixels to bfloat16 before the mean is subtracted.
        super().__init__(autocast=False, **kwargs)
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


def features_of_pixels(backbone, multiple, remainder=0):
    """A model's input of raw pixels (B, H, W, C) uint8, the same normalised and padded, and the backbone's features.

    multiple, remainder:  of `PadToMultiple`.
    """
    channels = backbone.model.input_shape[-1]
    images = keras.Input((None, None, channels), dtype="uint8", name="images")
    padded = Preprocess(backbone.preprocessing, channels, name="preprocess")(images)
    padded = PadToMultiple(multiple, remainder, name="pad")(padded)
    return images, padded, backbone(padded)


def stage_levels(*layers):
    """The levels of native strides 2, 4, 8, 16 and 32, which end in these layers: {native stride: layer name}."""
    return dict(zip(STAGE_STRIDES, layers, strict=True))


def make_divisible(value, divisor=8):
    """`value` rounded to a multiple of `divisor`, at least `divisor` at most 10% below (MobileNetV2's code)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * value else rounded + divisor
