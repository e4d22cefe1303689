"""What all layers of one backbone share: the norm, the activation and how strides become dilation."""

import keras

from detseg.backbones.backbone import placement
from detseg.layers.activation import create_activation
from detseg.layers.conv import Conv2D, DepthwiseConv2D, dilated_padding
from detseg.layers.norm import create_norm


class LayerBuilder:
    """Layers of a network, applied to Keras tensors.

    norm:           "batch", "frozen" or "group".
    activation:     name of an activation of detseg.layers.activation.
    output_stride:  8, 16 or 32.
    epsilon:        of the family's batch norms.
    """

    def __init__(self, norm, activation, output_stride, epsilon=1e-3):
        self.norm_kind = norm
        self.activation_kind = activation
        self.output_stride = output_stride
        self.epsilon = epsilon

    def norm(self, x, name):
        return create_norm(self.norm_kind, x.shape[-1], epsilon=self.epsilon, name=name)(x)

    def activate(self, x, name):
        return create_activation(self.activation_kind, name)(x)

    def place(self, native, stride):
        """(stride, dilation) at which a layer runs that strides by `stride` on a map of native stride `native`."""
        actual, dilation = placement(native, self.output_stride)
        return (stride if actual < self.output_stride else 1), dilation

    def pad(self, x, kernel_size, native, stride, leading, trailing, name, rate=1):
        """Zero padding before a "valid" layer of this kernel size, whose stride may have become dilation.

        leading, trailing:  int, the undilated layer's padding at the top and left and at the bottom and right.
        rate:               int, as in `conv`.
        """
        strides, dilation = self.place(native, stride)
        ends = dilated_padding(kernel_size, leading, trailing, dilation * rate, strided=strides > 1)
        return keras.layers.ZeroPadding2D((ends, ends), name=name)(x)

    def conv(self, x, filters, kernel_size, native, stride=1, *, name, padding="same", use_bias=False, rate=1):
        """A convolution on a map of native stride `native`. A 1x1 one is not dilated, whatever the map.

        rate:  int, a unit rate of DeepLabv3's multi-grid, which multiplies the dilation.
        """
        strides, dilation = self.place(native, stride)
        return Conv2D(
            filters,
            kernel_size,
            strides=strides,
            dilation_rate=dilation * rate if kernel_size > 1 else 1,
            padding=padding,
            use_bias=use_bias,
            name=name,
        )(x)

    def depthwise(self, x, kernel_size, native, stride=1, *, name, pad_name, rate=1):
        """A depthwise convolution, padded as MobileNets are: at a stride of 2 one less at the top and left.

        rate:  int, as in `conv`; of convolutions without a stride.
        """
        padding = "same"
        if stride == 2:
            half = kernel_size // 2
            x = self.pad(x, kernel_size, native, stride, leading=half - 1, trailing=half, name=pad_name)
            padding = "valid"
        strides, dilation = self.place(native, stride)
        return DepthwiseConv2D(
            kernel_size, strides=strides, dilation_rate=dilation * rate, padding=padding, use_bias=False, name=name
        )(x)
