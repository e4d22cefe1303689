"""Fully convolutional networks (Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation).

FCN-32s, FCN-16s and FCN-8s on every backbone. `upsample` is a transposed convolution that starts as bilinear
interpolation; score layers start at zero (section 4.1), so a skip adds nothing until it has learned something.
"""

import keras

from detseg.backbones.backbone import features_of_pixels
from detseg.backbones.catalogue import CATALOGUE
from detseg.layers.conv import Conv2D
from detseg.layers.padding import CropLike
from detseg.layers.resize import BilinearUpsample

# Name -> native strides of the scored maps, coarsest first (figure 3).
SCORED_STRIDES = {"fcn32s": (32,), "fcn16s": (32, 16), "fcn8s": (32, 16, 8)}


def create_fcn(options, backbone, class_count):
    """A model that maps raw pixels (B, H, W, C) to logits (B, H, W, class_count) float32, of any H and W.

    options:   FCNOptions. Of learned upsampling the last step, to image size, is fixed (section 4.3 of the paper).
               Without fc6 and fc7, dropout is before the score layer.
    backbone:  a `Backbone`.
    """
    images, _, features = features_of_pixels(backbone, 32)  # the deepest native stride of every backbone

    head_channels = options.head_channels or CATALOGUE[options.backbone].dense_channels
    score = _score_layer(class_count, 32)(_head(features[32], backbone, head_channels, options.dropout))
    stride = backbone.strides[32]
    for native_stride in SCORED_STRIDES[options.name][1:]:
        pool = {16: "pool4", 8: "pool3"}[native_stride]  # the paper's skips leave VGG after its pools
        key = pool if pool in features else native_stride
        factor = stride // backbone.strides[key]
        if factor > 1:  # else dilation has kept both maps at one stride
            name = f"upsample_to{native_stride}"
            score = BilinearUpsample(factor, options.upsampling == "learned", name=name)(score)
        stride = backbone.strides[key]
        skip = _score_layer(class_count, native_stride)(features[key])
        score = keras.layers.Add(name=f"fuse{native_stride}")([score, skip])
    logits = BilinearUpsample(stride, name="upsample_to_image", dtype="float32")(score)
    logits = CropLike(name="logits", dtype="float32")(logits, images)
    return keras.Model(images, logits, name=options.name)


def _head(x, backbone, head_channels, dropout):
    """fc6 and fc7 as convolutions, or only dropout."""
    if head_channels is None:
        return keras.layers.Dropout(dropout, name="dropout")(x)
    dilation = 32 // backbone.strides[32]  # keeps the receptive field of the dense weights at smaller output strides
    options = {"padding": "same", "kernel_initializer": "he_normal"}
    for name, size, rate in (("fc6", 7, dilation), ("fc7", 1, 1)):
        x = Conv2D(head_channels, size, dilation_rate=rate, name=name, **options)(x)
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
        x = keras.layers.Dropout(dropout, name=f"{name}_dropout")(x)
    return x


def _score_layer(class_count, native_stride):
    return Conv2D(class_count, 1, kernel_initializer="zeros", name=f"score{native_stride}")


def load_dense_weights(model, dense_weights):
    """Loads VGG's dense fc1 and fc2 into the convolutions fc6 and fc7 of a model with 4096 head channels.

    dense_weights:  dict: "fc1" -> (kernel (25088, 4096), bias (4096,)), "fc2" -> (kernel (4096, 4096), bias (4096,)).
    """
    for name, source, size in (("fc6", "fc1", 7), ("fc7", "fc2", 1)):
        kernel, bias = dense_weights[source]
        # Keras flattens (7, 7, 512) in row-major order, which is the order of a convolution's kernel.
        model.get_layer(name).set_weights([kernel.reshape(size, size, -1, kernel.shape[-1]), bias])
