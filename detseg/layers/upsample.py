"""Bilinear upsampling by a transposed convolution, fixed or learned (FCN, section 3.3)."""

import keras
import numpy as np
from keras import ops

from detseg.layers.resize import resize_bilinear


def bilinear_kernel(factor, channels):
    """The kernel with which a transposed convolution of stride `factor` interpolates bilinearly.

    factor:    even int, the stride.
    channels:  int, each interpolated for itself.
    Returns    float32 (2 * factor, 2 * factor, channels, channels), zero between different channels. Its copies at
               distance `factor` sum to one everywhere, so that no checkerboard appears.
    """
    taps = 1 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor  # (2f,)
    kernel = np.outer(taps, taps)[:, :, None, None] * np.eye(channels)  # (2f, 2f, K, K)
    return kernel.astype("float32")


@keras.saving.register_keras_serializable("detseg")
class BilinearInitializer(keras.initializers.Initializer):
    """`bilinear_kernel` as an initializer of a (2 * factor, 2 * factor, K, K) kernel."""

    def __call__(self, shape, dtype=None):
        return ops.convert_to_tensor(bilinear_kernel(shape[0] // 2, shape[2]), dtype)


@keras.saving.register_keras_serializable("detseg")
class BilinearUpsample(keras.layers.Layer):
    """Enlarges (B, h, w, K) to (B, h * factor, w * factor, K) as a transposed convolution of kernel 2 * factor does.

    Pixel areas stay aligned: input pixel i covers output pixels i * factor to (i + 1) * factor - 1, so a ramp stays the
    same ramp. The border is repeated by one pixel first: with zeros there, maps would fade towards it.

    factor:   even int >= 2.
    learned:  bool. True: a transposed convolution whose kernel starts as `bilinear_kernel`. False: the kernel stays
              that, and the layer computes the same result by two matrix products, several times faster.
    """

    def __init__(self, factor, learned=False, name=None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        if factor < 2 or factor % 2:
            raise ValueError(f"factor is {factor}, expected an even number >= 2: an odd one has no centred kernel")
        self.factor = factor
        self.learned = learned

    def build(self, input_shape):
        channels = input_shape[-1]
        if self.learned:
            shape = (2 * self.factor, 2 * self.factor, channels, channels)
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
        batch, height, width, channels = input_shape
        height, width = (None if n is None else n * self.factor for n in (height, width))
        return batch, height, width, channels

    def get_config(self):
        return {
            "name": self.name,
            "factor": self.factor,
            "learned": self.learned,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
        }
