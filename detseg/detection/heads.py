"""The heads of Faster R-CNN: its region proposal network (Ren et al. 2015, section 3.1), and what says of each region's
features which class it is and where its box lies (Girshick: Fast R-CNN, ICCV 2015, section 2)."""

import keras

from detseg.layers.conv import Conv2D
from detseg.layers.norm import create_norm

# Deviations of new layers (Fast R-CNN, section 2.3; Faster R-CNN, section 3.1.3).
CLASS_DEVIATION, BOX_DEVIATION = 0.01, 0.001


def create_rpn(in_channels, anchor_count, channels=256, norm=None):
    """The region proposal network's layers, shared by all levels (figure 3; FPN, section 4.1).

    anchor_count:  A, at each position.
    channels:      of the 3x3 convolution.
    norm:          None, as in the paper, or one of `detseg.layers.norm.NORMS`, after that convolution.
    Returns        keras.Model (B, H, W, in_channels) -> [logits of objectness (B, H, W, A), regression targets (B, H,
                   W, 4 * A): four for each anchor], float32.
    """
    features = keras.Input((None, None, in_channels), name="level")
    options = {"kernel_initializer": _normal(CLASS_DEVIATION)}
    x = Conv2D(channels, 3, padding="same", use_bias=norm is None, name="rpn_conv", **options)(features)
    x = _norm_and_relu(x, norm, "rpn_conv")
    objectness = Conv2D(anchor_count, 1, name="rpn_objectness", dtype="float32", **options)(x)
    moves = Conv2D(4 * anchor_count, 1, name="rpn_boxes", dtype="float32", **options)(x)
    return keras.Model(features, [objectness, moves], name="rpn")


def create_dense_head(in_channels, roi_size, class_count, box_count, channels=1024, norm=None, dropout=0.0):
    """Two fully connected layers, fc6 and fc7, on the whole of a region's features (FPN, section 4.2; VGG's own).

    box_count:  the classes that have regression targets of their own: class_count, or 1 for all together.
    channels:   of each layer.
    norm:       None or one of `detseg.layers.norm.NORMS`, after each layer.
    dropout:    rate after each layer.
    Returns     keras.Model (N, roi_size, roi_size, in_channels) -> [logits (N, class_count + 1), the last of them
                background's; regression targets (N, 4 * box_count)], float32.
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
    """A backbone's last stage on each region's features, and the mean of what comes out (He et al.: Deep Residual
    Learning, 2015, appendix A).

    stage:    keras.Model, of `split_backbone`.
    Returns   as `create_dense_head`.
    """
    regions = keras.Input((roi_size, roi_size, stage.input_shape[-1]), name="regions")
    x = keras.layers.GlobalAveragePooling2D(name="region_mean")(stage(regions))
    return keras.Model(regions, _outputs(x, class_count, box_count), name="head")


def _outputs(x, class_count, box_count):
    classes = keras.layers.Dense(
        class_count + 1, kernel_initializer=_normal(CLASS_DEVIATION), name="class_logits", dtype="float32"
    )
    boxes = keras.layers.Dense(
        4 * box_count, kernel_initializer=_normal(BOX_DEVIATION), name="class_boxes", dtype="float32"
    )
    return [classes(x), boxes(x)]


def _normal(deviation):
    return keras.initializers.RandomNormal(stddev=deviation)


def _norm_and_relu(x, norm, name):
    if norm is not None:
        x = create_norm(norm, x.shape[-1], epsilon=1e-5, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def load_dense_weights(head, dense_weights):
    """Loads VGG's dense fc1 and fc2 into fc6 and fc7 of a dense head with roi_size 7, 4096 channels and no norm.

    dense_weights:  as `detseg.backbones.dense_weights` returns them: "fc1" -> (kernel (25088, 4096), bias (4096,)),
                    "fc2" -> (kernel (4096, 4096), bias (4096,)).
    """
    for name, source in (("fc6", "fc1"), ("fc7", "fc2")):  # both flatten (7, 7, 512) row by row
        head.get_layer(name).set_weights(list(dense_weights[source]))


# ----- a backbone in two parts ---------------------------------------------------------------------------------------


def split_backbone(backbone):
    """(trunk, stage), two keras.Models that share their layers with the backbone, and none with each other.

    trunk:  (B, H, W, in_channels) -> the last map of native stride 16 from which alone the level of stride 32 follows.
            That is level 16 itself unless a shortcut goes round it: ResNetV2 and the Xceptions give the sum before it.
    stage:  that map, or a region of it -> the level of native stride 32.
    """
    images = backbone.model.input
    middle, last = (backbone.model.outputs[backbone.keys.index(key)] for key in (16, 32))
    before = set(keras.Model(images, middle).layers)
    layers = keras.Model(images, last).layers  # each after those that it depends on
    last_use = dict.fromkeys(map(id, layers), 0)
    makers = {id(layer.output): id(layer) for layer in layers}
    for index, layer in enumerate(layers):
        for tensor in keras.tree.flatten(layer.input if index else []):
            last_use[makers[id(tensor)]] = index
    cut = None
    for index, layer in enumerate(layers):
        earlier = layers[:index]
        if layer in before and all(last_use[id(other)] <= index for other in earlier):
            cut = layer.output
    return (
        keras.Model(images, cut, name=backbone.name),
        keras.Model(cut, last, name=f"{backbone.name}_stage"),
    )
