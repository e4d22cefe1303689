"""The heads of Faster R-CNN: its region proposal network (Ren et al. 2015, section 3.1) and those of each region
(Girshick: Fast R-CNN, ICCV 2015, section 2)."""

import keras
from keras.initializers import RandomNormal

from detseg.layers.conv import Conv2D
from detseg.layers.norm import create_norm

# Deviations of new layers (Fast R-CNN, section 2.3; Faster R-CNN, section 3.1.3).
CLASS_DEVIATION, BOX_DEVIATION = 0.01, 0.001


def create_rpn(in_channels, anchor_count, channels=256, norm=None):
    """The region proposal network's layers, shared by all levels (figure 3; FPN, section 4.1).

    channels, norm:  of the 3x3 convolution; norm None, as in the paper, or one of `detseg.layers.norm.NORMS`.
    Returns          keras.Model (B, H, W, in_channels) -> [logits of objectness (B, H, W, anchor_count), deltas
                     (B, H, W, 4 * anchor_count): four for each anchor], float32.
    """
    features = keras.Input((None, None, in_channels), name="level")
    options = {"kernel_initializer": RandomNormal(stddev=CLASS_DEVIATION)}
    x = Conv2D(channels, 3, padding="same", use_bias=norm is None, name="rpn_conv", **options)(features)
    x = _norm_and_relu(x, norm, "rpn_conv")
    objectness = Conv2D(anchor_count, 1, name="rpn_objectness", dtype="float32", **options)(x)
    deltas = Conv2D(4 * anchor_count, 1, name="rpn_boxes", dtype="float32", **options)(x)
    return keras.Model(features, [objectness, deltas], name="rpn")


def create_dense_head(in_channels, roi_size, class_count, box_count, channels=1024, norm=None, dropout=0.0):
    """Two fully connected layers, fc6 and fc7, on the whole of a region's features (FPN, section 4.2; VGG's own).

    box_count:                the classes that have deltas of their own: class_count, or 1 for all together.
    channels, norm, dropout:  of each layer; norm as in `create_rpn`.
    Returns                   keras.Model (N, roi_size, roi_size, in_channels) -> [logits (N, class_count + 1), the
                              last of them background's; deltas (N, 4 * box_count)], float32.
    """
    regions = keras.Input((roi_size, roi_size, in_channels), name="regions")
    x = keras.layers.Flatten(name="flatten")(regions)
    for name in ("fc6", "fc7"):
        x = keras.layers.Dense(channels, use_bias=norm is None, kernel_initializer="lecun_uniform", name=name)(x)
        x = _norm_and_relu(x, norm, name)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"{name}_dropout")(x)
    return keras.Model(regions, _outputs(x, class_count, box_count), name="head")


def create_stage_head(stage, roi_size, class_count, box_count):
    """`split_backbone`'s stage on each region's features, and their mean (He et al.: Deep Residual Learning, 2015,
    appendix A): as `create_dense_head`."""
    regions = keras.Input((roi_size, roi_size, stage.input_shape[-1]), name="regions")
    x = keras.layers.GlobalAveragePooling2D(name="region_mean")(stage(regions))
    return keras.Model(regions, _outputs(x, class_count, box_count), name="head")


def _outputs(x, class_count, box_count):
    layers = (("class_logits", class_count + 1, CLASS_DEVIATION), ("class_boxes", 4 * box_count, BOX_DEVIATION))
    return [
        keras.layers.Dense(units, kernel_initializer=RandomNormal(stddev=deviation), name=name, dtype="float32")(x)
        for name, units, deviation in layers
    ]


def _norm_and_relu(x, norm, name):
    if norm is not None:
        x = create_norm(norm, x.shape[-1], epsilon=1e-5, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def load_dense_weights(head, dense_weights):
    """Loads VGG's `dense_weights` into fc6 and fc7 of a dense head with roi_size 7, 4096 channels and no norm."""
    for name, source in (("fc6", "fc1"), ("fc7", "fc2")):  # both flatten (7, 7, 512) row by row
        head.get_layer(name).set_weights(list(dense_weights[source]))


def split_backbone(backbone):
    """(trunk, stage), two keras.Models that share their layers with the backbone, and none with each other.

    trunk:  (B, H, W, in_channels) -> the last map of native stride 16 from which alone the level of stride 32 follows.
            That is level 16 itself unless a shortcut goes round it: ResNetV2 and the Xceptions give the sum before it.
    stage:  that map, or a region of it -> the level of native stride 32.
    """
    images = backbone.model.input
    middle, last = (backbone.model.outputs[backbone.keys.index(key)] for key in (16, 32))
    before = set(keras.Model(images, middle).layers)
    layers = keras.Model(images, last).layers[1:]  # each after those that it depends on
    last_use = {id(tensor): i for i, layer in enumerate(layers) for tensor in keras.tree.flatten(layer.input)}
    outputs = [images, *(layer.output for layer in layers)]
    *_, cut = (
        layer.output
        for i, layer in enumerate(layers)
        if layer in before and all(last_use.get(id(earlier), 0) <= i for earlier in outputs[: i + 1])
    )
    return keras.Model(images, cut, name=backbone.name), keras.Model(cut, last, name=f"{backbone.name}_stage")
