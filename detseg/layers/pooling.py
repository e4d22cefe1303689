"""Max-pooling whose stride has become dilation."""

import functools

import keras
from keras import ops


@keras.saving.register_keras_serializable("detseg")
class DilatedMaxPool(keras.layers.Layer):
    """A "same" max-pool of stride 2, run at stride 1 on a map whose strides became dilation: Keras' pools have none.

    dilation:  the distance of the window's pixels. Every `dilation`-th pixel of the input, from the first, is the map
               that the strided pool would see.
    (B, H, W, C) -> same. Every 2 * dilation-th output from the first equals the strided pool's; pixels beyond the edge
    don't count. TensorFlow's "same" pads a strided map of odd size by one more in front than one of even size, so
    where the window starts depends on H and W (a window of 2 starts at its own pixel for both).
    """

    def __init__(self, pool_size, dilation, **kwargs):
        super().__init__(**kwargs)
        self.pool_size = pool_size
        self.dilation = dilation

    def call(self, images):
        height, width = ops.shape(images)[1:3]
        pads = [(0, 0), self.padding(height), self.padding(width), (0, 0)]
        maps = ops.pad(images, pads, constant_values=float("-inf"))
        return self._maximum(self._maximum(maps, axis=1), axis=2)

    def padding(self, size):
        """(leading, trailing) of a line of `size` pixels, ints or scalar tensors."""
        strided_size = -(-size // self.dilation)
        leading = (self.pool_size - 2 + strided_size % 2) // 2 * self.dilation
        return leading, (self.pool_size - 1) * self.dilation - leading

    def _maximum(self, maps, axis):
        """The maximum over windows along one axis, which loses the padding."""
        total = (self.pool_size - 1) * self.dilation
        cuts = (slice(start, start - total or None) for start in range(0, total + 1, self.dilation))
        return functools.reduce(ops.maximum, (maps[:, cut] if axis == 1 else maps[:, :, cut] for cut in cuts))

    def compute_output_shape(self, input_shape):
        return input_shape
