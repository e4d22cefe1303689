"""Padding to a multiple of the stride and cropping back, so that every image size fits every network."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("detseg")
class PadToMultiple(keras.layers.Layer):
    """Pads (B, H, W, C) with zeros at the bottom and right until H and W are multiples of `multiple`.

    Pixel (0, 0) stays where it was, so that cropping to the old size undoes it exactly (`CropLike`).
    """

    def __init__(self, multiple, name=None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.multiple = multiple

    def call(self, images):
        height, width = ops.shape(images)[1:3]
        return ops.pad(images, [(0, 0), (0, -height % self.multiple), (0, -width % self.multiple), (0, 0)])

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        height, width = (None if n is None else n + -n % self.multiple for n in (height, width))
        return batch, height, width, channels

    def get_config(self):
        return {
            "name": self.name,
            "multiple": self.multiple,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
        }


@keras.saving.register_keras_serializable("detseg")
class CropLike(keras.layers.Layer):
    """Cuts maps (B, H', W', K) at the bottom and right to the height and width of `reference` (B, H, W, C)."""

    def __init__(self, name=None, dtype=None):
        super().__init__(name=name, dtype=dtype)

    def call(self, maps, reference):
        height, width = ops.shape(reference)[1:3]
        return maps[:, :height, :width]

    def compute_output_shape(self, maps_shape, reference_shape):
        return (maps_shape[0], *reference_shape[1:3], maps_shape[3])

    def get_config(self):
        return {"name": self.name, "dtype": keras.saving.serialize_keras_object(self.dtype_policy)}
