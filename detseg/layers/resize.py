"""Bilinear resizing by two small matrix products: dynamic sizes, mixed precision, jit and export all work."""

import keras
import numpy as np
from keras import ops


def interpolation_matrix(size, new_size, offset=0.0, align_corners=False):
    """The (new_size, size) float32 matrix that resizes a line of `size` pixels bilinearly.

    Pixel areas are aligned (half-pixel centres, as OpenCV, PIL and tf.image.resize do) or, with `align_corners`, the
    centres of the first and of the last pixels (as TensorFlow 1's resize_bilinear does where it is told to). Then what
    is seen moves on by `offset` new pixels; beyond the outermost centres the border value holds. Sizes may be ints or
    scalar tensors.
    """
    old, new = ops.cast(size, "float32"), ops.cast(new_size, "float32")
    if align_corners:
        scale = (old - 1.0) / ops.maximum(new - 1.0, 1.0)  # a single new pixel is the first one
        centres = (ops.arange(new_size, dtype="float32") - offset) * scale  # (new_size,)
    else:
        centres = (ops.arange(new_size, dtype="float32") + (0.5 - offset)) * (old / new) - 0.5
    centres = ops.clip(centres, 0.0, old - 1.0)
    distances = ops.abs(centres[:, None] - ops.arange(size, dtype="float32")[None, :])  # (new_size, size)
    return ops.maximum(1.0 - distances, 0.0)


def resize_bilinear(maps, height, width, offset=0.0, align_corners=False):
    """Resizes (B, h, w, K) floats to (B, height, width, K), moved right and down by `offset` pixels of the result.

    align_corners:  see `interpolation_matrix`.
    No antialiasing when shrinking.
    """
    batch, old_height, old_width = ops.shape(maps)[:3]
    channels = maps.shape[3]
    rows = ops.cast(interpolation_matrix(old_height, height, offset, align_corners), maps.dtype)
    columns = ops.cast(interpolation_matrix(old_width, width, offset, align_corners), maps.dtype)
    maps = ops.matmul(rows, ops.reshape(maps, (batch, old_height, old_width * channels)))  # (B, H, w * K)
    maps = ops.matmul(columns, ops.reshape(maps, (batch * height, old_width, channels)))  # (B * H, W, K)
    return ops.reshape(maps, (batch, height, width, channels))


class SizedLike(keras.layers.Layer):
    """A layer of maps (B, h, w, K) and a `reference` (B, H, W, C) that returns maps (B, H, W, K)."""

    def compute_output_shape(self, maps_shape, reference_shape):
        return (maps_shape[0], *reference_shape[1:3], maps_shape[3])


@keras.saving.register_keras_serializable("detseg")
class ResizeLike(SizedLike):
    """`resize_bilinear` of maps to the height and width of `reference`."""

    def __init__(self, offset=0.0, align_corners=False, **kwargs):
        super().__init__(**kwargs)
        self.offset = offset
        self.align_corners = align_corners

    def call(self, maps, reference):
        return resize_bilinear(maps, *ops.shape(reference)[1:3], self.offset, self.align_corners)


@keras.saving.register_keras_serializable("detseg")
class BilinearInitializer(keras.initializers.Initializer):
    """The kernel (2 * factor, 2 * factor, K, K) with which a transposed convolution interpolates bilinearly.

    factor, its stride, is even. The kernel is 0 between different channels; its copies at distance `factor` sum to one
    everywhere, so that no checkerboard appears.
    """

    def __call__(self, shape, dtype=None):
        factor = shape[0] // 2
        taps = 1 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor  # (2f,)
        kernel = np.outer(taps, taps)[:, :, None, None] * np.eye(shape[2])  # (2f, 2f, K, K)
        return ops.convert_to_tensor(kernel.astype("float32"), dtype)


@keras.saving.register_keras_serializable("detseg")
class BilinearUpsample(keras.layers.Layer):
    """Enlarges (B, h, w, K) to (B, h * factor, w * factor, K) as FCN's transposed convolution does (section 3.3).

    Pixel areas stay aligned: input pixel i covers output pixels i * factor to (i + 1) * factor - 1, so a ramp stays the
    same ramp. The border is repeated by one pixel first: with zeros there, maps would fade towards it.

    factor:   even int >= 2.
    learned:  bool. True: a transposed convolution whose kernel starts as `BilinearInitializer`. False: it stays that,
              and the layer computes the same result by two matrix products, several times faster.
    """

    def __init__(self, factor, learned=False, **kwargs):
        super().__init__(**kwargs)
        if factor < 2 or factor % 2:
            raise ValueError(f"factor is {factor}, expected an even number >= 2: an odd one has no centred kernel")
        self.factor = factor
        self.learned = learned

    def build(self, input_shape):
        if self.learned:
            shape = (2 * self.factor, 2 * self.factor, input_shape[-1], input_shape[-1])
            self.kernel = self.add_weight(name="kernel", shape=shape, initializer=BilinearInitializer())

    def call(self, maps):
        height, width = ops.shape(maps)[1:3]
        if not self.learned:
            return resize_bilinear(maps, height * self.factor, width * self.factor)
        maps = ops.pad(maps, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="symmetric")  # (B, h + 2, w + 2, K)
        maps = ops.conv_transpose(maps, self.kernel, strides=self.factor)  # (B, (h + 3) * f, (w + 3) * f, K)
        start = self.factor + self.factor // 2
        return maps[:, start : start + height * self.factor, start : start + width * self.factor]

    def compute_output_shape(self, input_shape):
        sides = (n and n * self.factor for n in input_shape[1:3])  # None stays None
        return (input_shape[0], *sides, input_shape[3])
