"""Fully convolutional networks (Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation).

FCN-32s, FCN-16s and FCN-8s on every backbone. `upsample` is a transposed convolution that starts as bilinear
interpolation; score layers start at zero (section 4.1), so a skip adds nothing until it has learned something.
"""

import keras

from detseg.backbones.backbone import Preprocess
from detseg.layers.conv import Conv2D
from detseg.layers.padding import CropLike, PadToMultiple
from detseg.layers.upsample import BilinearUpsample

# Name -> native strides of the scored maps, coarsest first (figure 3).
SCORED_STRIDES = {"fcn32s": (32,), "fcn16s": (32, 16), "fcn8s": (32, 16, 8)}

# The deepest native stride of every backbone: images are padded to a multiple of it.
_PADDING_MULTIPLE = 32


def create_fcn(name, backbone, class_count, upsampling="fixed", dropout=0.5, head_channels=None):
    """A model that maps raw pixels (B, H, W, C) to logits (B, H, W, class_count) float32, of any H and W.

    name:           fcn32s, fcn16s or fcn8s.
    backbone:       a `detseg.backbones.Backbone`.
    upsampling:     "fixed": bilinear throughout; "learned": the steps between skips are learned and the last one, to
                    image size, is fixed (section 4.3 of the paper).
    dropout:        rate after fc6 and fc7, or before the score layer where there are none.
    head_channels:  channels of fc6 (7x7) and fc7 (1x1), or None for neither; VGG16 of the paper has 4096.
    """
    channels = backbone.model.input_shape[-1]
    images = keras.Input((None, None, channels), dtype="uint8", name="images")
    x = Preprocess(backbone.preprocessing, channels, name="preprocess")(images)
    x = PadToMultiple(_PADDING_MULTIPLE, name="pad")(x)
    features = backbone(x)

    strides = SCORED_STRIDES[name]
    score = _score_layer(class_count, 32)(_head(features[32], backbone, head_channels, dropout))
    stride = backbone.strides[32]
    for native_stride in strides[1:]:
        key = _skip_key(backbone, native_stride)
        score = _upsample(score, stride, backbone.strides[key], upsampling == "learned", native_stride)
        stride = backbone.strides[key]
        skip = _score_layer(class_count, native_stride)(features[key])
        score = keras.layers.Add(name=f"fuse{native_stride}")([score, skip])
    logits = BilinearUpsample(stride, name="upsample_to_image", dtype="float32")(score)
    logits = CropLike(name="logits", dtype="float32")(logits, images)
    return keras.Model(images, logits, name=name)


def _head(x, backbone, head_channels, dropout):
    """fc6 and fc7 as convolutions, or only dropout."""
    if head_channels is None:
        return keras.layers.Dropout(dropout, name="dropout")(x)
    dilation = 32 // backbone.strides[32]  # keeps the receptive field of the dense weights at smaller output strides
    for name, size, rate in (("fc6", 7, dilation), ("fc7", 1, 1)):
        x = Conv2D(head_channels, size, padding="same", dilation_rate=rate, kernel_initializer="he_normal", name=name)(
            x
        )
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
        x = keras.layers.Dropout(dropout, name=f"{name}_dropout")(x)
    return x


def _skip_key(backbone, native_stride):
    """The paper's skips leave VGG after its pools; other backbones have no pools there."""
    pool = {16: "pool4", 8: "pool3"}[native_stride]
    return pool if pool in backbone.keys else native_stride


def _score_layer(class_count, native_stride):
    return Conv2D(class_count, 1, kernel_initializer="zeros", name=f"score{native_stride}")


def _upsample(score, stride, target_stride, learned, native_stride):
    """Nothing to do where dilation has kept both maps at one stride."""
    if stride == target_stride:
        return score
    return BilinearUpsample(stride // target_stride, learned, name=f"upsample_to{native_stride}")(score)


def load_dense_weights(model, dense_weights):
    """Loads VGG's dense fc1 and fc2 into the convolutions fc6 and fc7 of a model with 4096 head channels.

    dense_weights:  dict: "fc1" -> (kernel (25088, 4096), bias (4096,)), "fc2" -> (kernel (4096, 4096), bias (4096,)).
    """
    for name, source, size in (("fc6", "fc1", 7), ("fc7", "fc2", 1)):
        kernel, bias = dense_weights[source]
        # Keras flattens (7, 7, 512) in row-major order, which is the order of a convolution's kernel.
        model.get_layer(name).set_weights([kernel.reshape(size, size, -1, kernel.shape[-1]), bias])
