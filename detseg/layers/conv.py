"""2-D convolutions with the weights and results of stock Keras, whose dilated forms are fast on TensorFlow."""

import concurrent.futures
import functools
import math

import keras
import numpy as np
from keras import ops

_FEWEST_CHANNELS = 16  # of a strided 1x1 convolution, with which oneDNN's gradient stays inside of its memory
_WIDE_KERNEL = 2**22  # weights
_MOST_PATCHES = 2**27  # elements: 0.5 GB of float32


@keras.saving.register_keras_serializable("detseg")
class Conv2D(keras.layers.Conv2D):
    """keras.layers.Conv2D: same arguments, weights and results.

    On TensorFlow Keras runs a dilated convolution as SpaceToBatch, convolution, BatchToSpace; here it is one
    convolution. A wide one with a large kernel (fc6 of an FCN) is a matrix product on CPUs, two to four times faster.
    A 1x1 convolution of few channels that strides takes its pixels first. Everywhere else this is the stock layer.
    """

    def convolution_op(self, inputs, kernel):
        convolve = super().convolution_op
        if keras.backend.backend() != "tensorflow" or self.data_format != "channels_last":
            return convolve(inputs, kernel)
        if _strides_out_of_memory(self, kernel):
            rows, columns = self.strides
            return ops.conv(inputs[:, ::rows, ::columns], kernel, data_format="channels_last")
        if self.groups > 1:
            return convolve(inputs, kernel)
        if _is_native(self, _native_conv2d, ops.conv, (3, 3, 4, 4), inputs.dtype):
            convolve = functools.partial(_native_conv2d, padding=self.padding, dilation_rate=self.dilation_rate)
        if _is_faster_as_product(self, kernel, inputs.dtype):
            return _as_product_where_small(inputs, kernel, self.padding, self.dilation_rate, convolve)
        return convolve(inputs, kernel)


@keras.saving.register_keras_serializable("detseg")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """keras.layers.DepthwiseConv2D: same arguments, weights and results; dilation as in `Conv2D`."""

    def call(self, inputs):
        if not _is_native_depthwise(self, inputs.dtype):
            return super().call(inputs)
        outputs = _native_depthwise_conv2d(inputs, self.kernel, self.padding, self.dilation_rate)
        return _biased_and_activated(self, outputs)


@keras.saving.register_keras_serializable("detseg")
class SeparableConv2D(keras.layers.SeparableConv2D):
    """keras.layers.SeparableConv2D: same arguments, weights and results; dilation as in `DepthwiseConv2D`."""

    def call(self, inputs):
        if not _is_native_depthwise(self, inputs.dtype):
            return super().call(inputs)
        outputs = _native_depthwise_conv2d(inputs, self.depthwise_kernel, self.padding, self.dilation_rate)
        return _biased_and_activated(self, ops.conv(outputs, self.pointwise_kernel))


# ----- the TensorFlow path -------------------------------------------------------------------------------------------


def _biased_and_activated(layer, outputs):
    return layer.activation(ops.add(outputs, layer.bias) if layer.use_bias else outputs)


def _is_native(layer, native, stock, kernel_shape, dtype):
    """Whether a layer runs a `native` convolution: dilated, where it works, in a graph (eagerly it has no gradient)."""
    if keras.backend.backend() != "tensorflow" or layer.data_format != "channels_last" or max(layer.dilation_rate) == 1:
        return False
    import tensorflow as tf

    return not tf.executing_eagerly() and _works(native, stock, kernel_shape, dtype)


def _is_native_depthwise(layer, dtype):
    """The native depthwise kernel takes one dilation for both axes and no stride beside it."""
    is_simple = max(layer.strides) == 1 and len(set(layer.dilation_rate)) == 1
    return is_simple and _is_native(layer, _native_depthwise_conv2d, ops.depthwise_conv, (3, 3, 4, 1), dtype)


def _strides_out_of_memory(layer, kernel):
    """A 1x1 convolution of few channels that strides: its gradient on CPUs aborts or is wrong in TensorFlow 2.21.

    oneDNN writes beyond its buffers. Without a stride it does not, and every stride-th output is the same.
    """
    is_strided_1x1 = math.prod(layer.kernel_size) == 1 and max(layer.strides) > 1
    return is_strided_1x1 and kernel.shape[2] * layer.groups < _FEWEST_CHANNELS


def _native_conv2d(inputs, kernel, padding, dilation_rate):
    import tensorflow as tf

    return tf.nn.conv2d(inputs, tf.convert_to_tensor(kernel), 1, padding.upper(), dilations=list(dilation_rate))


def _is_faster_as_product(layer, kernel, dtype):
    """Many float32 weights of a large kernel: oneDNN's direct convolution is slow there, GPUs are not."""
    import tensorflow as tf

    is_large = min(layer.kernel_size) >= 5 and math.prod(kernel.shape) >= _WIDE_KERNEL
    is_plain = max(layer.strides) == 1 and keras.backend.standardize_dtype(dtype) == "float32"
    return is_large and is_plain and not tf.config.list_physical_devices("GPU")


def _as_product_where_small(inputs, kernel, padding, dilation_rate, convolve):
    """Patches (B, H, W, k * k * C) times the kernel as a matrix; `convolve` where these would be too many."""
    import tensorflow as tf

    height, width, channels, filters = kernel.shape
    patch_size = height * width * channels

    def multiply():
        sizes = [1, height, width, 1]
        patches = tf.image.extract_patches(inputs, sizes, [1] * 4, [1, *dilation_rate, 1], padding.upper())
        # As matrices of two axes: with more, the kernel's gradient would be made for each row of each image.
        outputs = tf.matmul(tf.reshape(patches, (-1, patch_size)), tf.reshape(kernel, (patch_size, filters)))
        return tf.reshape(outputs, (*tf.unstack(tf.shape(patches)[:3]), filters))

    patch_elements = tf.size(inputs, out_type="int64") * height * width
    return tf.cond(patch_elements <= _MOST_PATCHES, multiply, lambda: convolve(inputs, kernel))


def _native_depthwise_conv2d(inputs, kernel, padding, dilation_rate):
    """Native forward pass, SpaceToBatch backward: TensorFlow's CPU gradient of the native op ignores the dilation."""
    import tensorflow as tf

    @tf.custom_gradient
    def convolve(inputs, kernel):
        def gradient(upstream):
            with tf.GradientTape() as tape:
                tape.watch([inputs, kernel])
                outputs = ops.depthwise_conv(inputs, kernel, padding=padding, dilation_rate=dilation_rate)
            return tape.gradient(outputs, [inputs, kernel], output_gradients=upstream)

        outputs = tf.raw_ops.DepthwiseConv2dNative(
            input=inputs, filter=kernel, strides=[1] * 4, padding=padding.upper(), dilations=[1, *dilation_rate, 1]
        )
        return outputs, gradient

    return convolve(inputs, tf.convert_to_tensor(kernel))


@functools.cache
def _works(native, stock, kernel_shape, dtype):
    """Whether a native dilated convolution and its gradient equal the stock form here (with oneDNN off: not)."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(1, 8, 8, 4)), rng.normal(size=kernel_shape)

    def run(convolution):
        @tf.function
        def outputs_and_gradients(inputs, weights):
            with tf.GradientTape() as tape:
                tape.watch([inputs, weights])
                outputs = convolution(inputs, weights, padding="same", dilation_rate=(2, 2))
            return outputs, *tape.gradient(outputs, [inputs, weights])

        results = outputs_and_gradients(tf.constant(images, dtype), tf.constant(kernel, dtype))
        return [np.asarray(x, "float64") for x in results]

    try:
        # In a thread of its own: the caller may be tracing a graph, and tf.init_scope would switch gradient tapes off.
        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
            native_results, stock_results = thread.submit(lambda: (run(native), run(stock))).result()
    except tf.errors.OpError:
        return False
    tolerance = 1e-4 if dtype == "float32" else 5e-2
    pairs = zip(native_results, stock_results, strict=True)
    return all(np.abs(found - true).max() <= tolerance * np.abs(true).max() for found, true in pairs)
