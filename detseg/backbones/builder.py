"""What all layers of one backbone share: the norm, the activation and how strides become dilation."""

from dataclasses import dataclass

import keras

from detseg.layers.activation import create_activation
from detseg.layers.conv import Conv2D, DepthwiseConv2D
from detseg.layers.norm import create_norm
from detseg.layers.pooling import DilatedMaxPool


@dataclass
class LayerBuilder:
    """Layers of a network, applied to Keras tensors; `epsilon` is that of the family's batch norms."""

    norm_kind: str
    activation_kind: str | None  # None: of several, which the factory chooses
    output_stride: int
    epsilon: float = 1e-3

    def norm(self, x, name):
        return create_norm(self.norm_kind, x.shape[-1], epsilon=self.epsilon, name=name)(x)

    def activate(self, x, name):
        return create_activation(self.activation_kind, name)(x)

    def place(self, native, stride):
        """(stride, dilation) at which a layer runs that strides by `stride` on a map of native stride `native`.

        Strides beyond output_stride turn into dilation, multiplied through all later stages (DeepLabv3, section 3.1).
        """
        actual = min(native, self.output_stride)
        return (stride if actual < self.output_stride else 1), native // actual

    def pad(self, x, kernel_size, native, stride, leading, trailing, name, rate=1):
        """(leading, trailing) zeros for a "valid" layer of stride 2 on an undilated map.

        If its stride has become dilation of what follows, the map keeps its size, and every second output is the
        strided layer's: that takes (kernel_size - 1) * dilation in all, the leading zeros scaled by the dilation.
        """
        strides, dilation = self.place(native, stride)
        if strides == 1:
            dilation *= rate
            leading, trailing = leading * dilation, (kernel_size - 1 - leading) * dilation
        ends = (leading, trailing)
        return keras.layers.ZeroPadding2D((ends, ends), name=name)(x)

    def max_pool(self, x, pool_size, native, *, padding, name):
        """A max-pool of stride 2; where that has become dilation, the window is padded at the edges in any case."""
        strides, dilation = self.place(native, stride=2)
        if strides == 2:
            return keras.layers.MaxPooling2D(pool_size, strides, padding=padding, name=name)(x)
        return DilatedMaxPool(pool_size, dilation, name=name)(x)

    def conv(self, x, filters, kernel_size, native, stride=1, *, rate=1, **options):
        """A convolution on a map of native stride `native`. A 1x1 one is not dilated, whatever the map.

        rate:     int, a unit rate of DeepLabv3's multi-grid, which multiplies the dilation.
        options:  of `Conv2D`; if not given, padding is "same" and there is no bias.
        """
        strides, dilation = self.place(native, stride)
        dilation = dilation * rate if kernel_size > 1 else 1
        options = {"padding": "same", "use_bias": False, **options}
        return Conv2D(filters, kernel_size, strides=strides, dilation_rate=dilation, **options)(x)

    def depthwise(self, x, kernel_size, native, stride=1, *, name, pad_name, rate=1, symmetric=False):
        """A depthwise convolution, padded as MobileNets are: at a stride of 2 one less at the top and left.

        pad_name:   of the layer that pads for a stride of 2. None: the convolution is a "same" one instead, which pads
                    maps of odd size as much in front as behind.
        symmetric:  bool, as torchvision's are: by as much in front as behind, whatever the map's size.
        """
        is_padded = stride == 2 and pad_name is not None
        if is_padded:
            half = kernel_size // 2
            leading = half if symmetric else half - 1
            x = self.pad(x, kernel_size, native, stride, leading, trailing=half, rate=rate, name=pad_name)
        strides, dilation = self.place(native, stride)
        options = {"padding": "valid" if is_padded else "same", "use_bias": False, "name": name}
        return DepthwiseConv2D(kernel_size, strides=strides, dilation_rate=dilation * rate, **options)(x)
