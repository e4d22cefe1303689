"""Normalisation layers by name, and batch normalisation that is fused on TensorFlow, with its frozen form."""

import math

import keras
from keras import ops

from detseg.errors import UserError
from detseg.layers.conv import Conv2D, DepthwiseConv2D, SeparableConv2D

NORMS = ("batch", "frozen", "group")


def create_norm(norm, channels, epsilon=1e-3, name=None):
    """The normalisation layer that a config's `norm` stands for.

    norm:     "batch", over the whole batch where that is spread over several devices; "frozen": batch normalisation
              whose statistics, scale and offset never change; "group": group normalisation (Wu and He, ECCV 2018)
              with 32 groups, or the largest power-of-two part of 32 that divides `channels`.
    epsilon:  the family's, used by batch and frozen; group takes the paper's 1e-5.
    """
    if norm == "batch":
        return BatchNorm(epsilon=epsilon, synchronized=replica_count() > 1, name=name)
    if norm == "frozen":
        return FrozenBatchNorm(epsilon=epsilon, name=name)
    if norm == "group":
        return keras.layers.GroupNormalization(groups=math.gcd(32, channels), epsilon=1e-5, name=name)
    raise UserError(f"model.norm: unknown norm {norm!r}; expected one of {', '.join(NORMS)}")


def conv_norm_relu(x, channels, kernel_size, dilation=1, separable=False, norm="batch", name=None, padding="same"):
    """A convolution of stride 1 with its norm, or for norm "none" a bias, and relu; its start is He et al.'s.

    separable:  bool, or "norm": also the depthwise half has its norm (not "none") and relu.
    """
    options = {"padding": padding, "dilation_rate": dilation, "use_bias": norm == "none", "name": name}
    if separable == "norm" and kernel_size > 1:
        options |= {"name": f"{name}_depthwise", "depthwise_initializer": "he_normal"}
        x = DepthwiseConv2D(kernel_size, **options)(x)
        x = create_norm(norm, x.shape[-1], epsilon=1e-5, name=f"{name}_depthwise_norm")(x)
        x = keras.layers.ReLU(name=f"{name}_depthwise_relu")(x)
        return conv_norm_relu(x, channels, 1, norm=norm, name=name)
    if separable and kernel_size > 1:
        initial = {"depthwise_initializer": "he_normal", "pointwise_initializer": "he_normal"}
        x = SeparableConv2D(channels, kernel_size, **initial, **options)(x)
    else:
        x = Conv2D(channels, kernel_size, kernel_initializer="he_normal", **options)(x)
    if norm != "none":
        x = create_norm(norm, channels, epsilon=1e-5, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def replica_count():
    """Copies under TensorFlow's current distribution strategy. (On JAX a sharded batch is one batch to every layer.)"""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


@keras.saving.register_keras_serializable("detseg")
class BatchNorm(keras.layers.BatchNormalization):
    """keras.layers.BatchNormalization: same arguments, weights and results, fused into one kernel on TensorFlow.

    momentum is 0.9 unless given: with the 0.99 or 0.999 of keras.applications a short fine-tuning evaluates on stale
    statistics. The moving variance takes the batch's biased variance, as Keras does (TensorFlow's fused kernel
    reports the unbiased one; it is corrected back). trainable = False means inference mode.
    """

    def __init__(self, momentum=0.9, **stock_arguments):  # only the default differs from the stock layer
        super().__init__(momentum=momentum, **stock_arguments)

    def call(self, inputs, training=None, mask=None):
        if mask is not None or not self._can_be_fused(inputs):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        use_batch = bool(training and self.trainable)
        channels = inputs.shape[-1]
        gamma = ops.cast(self.gamma, "float32") if self.scale else tf.ones(channels)
        beta = ops.cast(self.beta, "float32") if self.center else tf.zeros(channels)
        moving = (ops.cast(self.moving_mean, "float32"), ops.cast(self.moving_variance, "float32"))
        mean, variance = (None, None) if use_batch else moving
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, gamma, beta, mean, variance, epsilon=self.epsilon, data_format="NHWC", is_training=use_batch
        )
        if use_batch:
            count = tf.cast(tf.size(inputs) // channels, "float32")
            # A single value has variance 0; the unbiased form that comes back for it depends on the device.
            variance = tf.where(count > 1, variance * (count - 1) / count, tf.zeros_like(variance))
            self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1 - self.momentum))
            self.moving_variance.assign(self.moving_variance * self.momentum + variance * (1 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)

    def _can_be_fused(self, inputs):
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and not self.renorm
            and not self.synchronized
            and keras.backend.standardize_dtype(inputs.dtype) in ("float32", "float16", "bfloat16")
        )


@keras.saving.register_keras_serializable("detseg")
class FrozenBatchNorm(BatchNorm):
    """Batch normalisation with fixed statistics, scale and offset: never trainable, whatever its model is set to."""

    @property
    def trainable(self):
        return False

    @trainable.setter
    def trainable(self, value):
        # A model hands its own `trainable` down to every layer; this one stays as it is, its weights too.
        keras.layers.Layer.trainable.fset(self, False)
