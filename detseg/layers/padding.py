"""Padding to sizes that a network can take and cropping back, so that every image size fits every network."""

import keras
from keras import ops

from detseg.layers.resize import SizedLike


@keras.saving.register_keras_serializable("detseg")
class PadToMultiple(keras.layers.Layer):
    """Pads (B, H, W, C) with zeros at the bottom and right until H and W are n * `multiple` + `remainder`.

    Pixel (0, 0) stays where it was, so that cropping to the old size undoes it exactly (`CropLike`).
    """

    # Keras makes get_config of the arguments, if these are called kwargs.
    def __init__(self, multiple, remainder=0, **kwargs):
        super().__init__(**kwargs)
        self.multiple = multiple
        self.remainder = remainder

    def call(self, images):
        height, width = ops.shape(images)[1:3]
        return ops.pad(images, [(0, 0), (0, self.missing(height)), (0, self.missing(width)), (0, 0)])

    def missing(self, size):
        """The pixels that a side of `size` (int or scalar tensor) gets."""
        return (self.remainder - size) % self.multiple

    def compute_output_shape(self, input_shape):
        sides = (n and n + self.missing(n) for n in input_shape[1:3])  # None stays None
        return (input_shape[0], *sides, input_shape[3])


@keras.saving.register_keras_serializable("detseg")
class CropLike(SizedLike):
    """Cuts maps at the bottom and right to the height and width of `reference`."""

    def call(self, maps, reference):
        height, width = ops.shape(reference)[1:3]
        return maps[:, :height, :width]


@keras.saving.register_keras_serializable("detseg")
class MirrorPad(keras.layers.Layer):
    """Mirrors images (B, H, W, C) at their border by what an unpadded network eats up (U-Net, section 2).

    H and W grow to the next size that is `remainder` modulo `multiple` (at the bottom and right), then by `margin`
    pixels on every side. The border pixel is the mirror and isn't repeated; images smaller than the margin are
    mirrored again and again.
    """

    def __init__(self, margin, multiple, remainder, **kwargs):
        super().__init__(**kwargs)
        self.margin = margin
        self.multiple = multiple
        self.remainder = remainder

    def call(self, images):
        for axis in (1, 2):
            images = ops.take(images, self._sources(ops.shape(images)[axis]), axis=axis)
        return images

    def _sources(self, size):
        """The index, along an image's axis, of each pixel of the mirrored image."""
        period = ops.maximum(2 * (size - 1), 1)  # there and back
        places = ops.arange(-self.margin, self._fitting(size) + self.margin)
        places = ops.mod(places, period)
        return ops.minimum(places, period - places)

    def _fitting(self, size):
        return size + (self.remainder - size) % self.multiple

    def compute_output_shape(self, input_shape):
        sides = (n and self._fitting(n) + 2 * self.margin for n in input_shape[1:3])  # None stays None
        return (input_shape[0], *sides, input_shape[3])


@keras.saving.register_keras_serializable("detseg")
class CentreCropLike(SizedLike):
    """Cuts the middle of maps, of the height and width of `reference`."""

    def call(self, maps, reference):
        height, width = ops.shape(reference)[1:3]
        top, left = (ops.shape(maps)[1] - height) // 2, (ops.shape(maps)[2] - width) // 2
        return maps[:, top : top + height, left : left + width]
