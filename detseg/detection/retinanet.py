"""RetinaNet (Lin et al.: Focal Loss for Dense Object Detection, ICCV 2017) on every backbone."""

import math

import h5py
import keras
from keras import ops
from scipy import special

from detseg.backbones.backbone import Preprocess
from detseg.detection.boxes import clip_boxes, decode_boxes
from detseg.detection.detector import Detector
from detseg.detection.fpn import fpn
from detseg.detection.losses import box_losses, sigmoid_focal_losses
from detseg.detection.matching import FOREGROUND, IGNORED, match_boxes
from detseg.detection.nms import NO_SCORE, best_pairs, is_at_least, take_rows, top_rows
from detseg.detection.options import RetinaNetOptions
from detseg.layers.conv import Conv2D
from detseg.layers.norm import create_norm
from detseg.layers.padding import PadToMultiple

MIN_SIZE = 1e-2  # pixels that a box must have left of its width and height in the image


@keras.saving.register_keras_serializable("detseg")
class RetinaNet(Detector):
    """RetinaNet. Of `Detector`'s sub-models, `head` takes the levels of the feature pyramid."""

    options_class = RetinaNetOptions
    loss_names = ("class_loss", "box_loss")

    def __init__(self, options, class_count, channels=3, seed=0, backbone=None, name="retinanet"):
        super().__init__(options, class_count, channels, seed, backbone, name)
        images = keras.Input((None, None, channels), dtype="uint8", name="images")
        x = Preprocess(self.backbone.preprocessing, channels, name="preprocess")(images)
        if options.padding == "zeros":
            self.padding_multiple = 32
            x = PadToMultiple(self.padding_multiple, name="pad")(x)
        features = self.backbone(x)
        features = {key: features[key] for key in options.level_keys if key in features}
        strides = {key: self.backbone.strides[key] for key in features}
        levels, strides = fpn(features, strides, options.fpn_channels, options.top_levels, options.head_norm)
        self.anchors = self.create_anchors(strides)
        tower = (options.head_convolutions, options.head_norm)
        bias = -math.log((1 - options.prior) / options.prior)  # section 4.1, "Initialization"
        outputs = {
            "class_logits": _head(levels, *tower, self.anchors.count() * class_count, bias, "class"),
            "box_deltas": _head(levels, *tower, self.anchors.count() * 4, 0.0, "box"),
        }
        levels = list(levels.values())
        self.extractor = keras.Model(images, levels, name="extractor")
        self.head = keras.Model(levels, outputs, name="head")
        # Both in one graph, as RetinaNet used to be: called in two, gradients of shared layers add up in another order.
        # Not an attribute that is a model: Keras would save its layers a third time.
        network = keras.Model(images, outputs)
        self._call_network, self._load_weights_of_one_list = network.__call__, network.load_weights

    def call(self, images, training=None):
        """{"class_logits": of each level (B, h, w, A * K), "box_deltas": of each level (B, h, w, A * 4)}, lists of
        float32 maps from fine to coarse; A is the number of anchors of a position."""
        return self._call_network(images, training=training)

    def load_weights(self, filepath, **options):
        """keras.Model's, also of runs that were trained before there were sub-models."""
        load = super().load_weights
        if str(filepath).endswith(".h5"):
            with h5py.File(filepath) as file:
                load = self._load_weights_of_one_list if "layers" in file else load
        load(filepath, **options)

    def _detector_losses(self, images, objects, outputs, training):
        """The sums of both losses over the batch, each divided by the number of foreground anchors (section 4).

        Anchors of an IoU between background and foreground, and those in a crowd, don't count for the classes.
        """
        options = self.options
        anchors = ops.concatenate(self.level_anchors(images, outputs["class_logits"]))  # (N, 4)
        ious = (options.foreground_iou, (0.0, options.background_iou))
        truth = (objects["boxes"], objects["labels"] >= 0)
        # low_quality is torchvision's
        matched, states = match_boxes(anchors, *truth, *ious, low_quality=True, crowd=objects["is_crowd"])
        is_foreground = ops.equal(states, FOREGROUND)  # (B, N)
        foreground = ops.maximum(ops.sum(ops.cast(is_foreground, "float32")), 1.0)

        labels = ops.where(is_foreground, take_rows(ops.cast(objects["labels"], "int32"), matched), -1)
        class_loss = self._class_loss(outputs["class_logits"], labels, ops.not_equal(states, IGNORED)) / foreground
        deltas = ops.concatenate([_rows(x, 4) for x in outputs["box_deltas"]], axis=1)  # (B, N, 4)
        boxes = take_rows(objects["boxes"], matched)
        losses = box_losses(options.box_loss, deltas, anchors, boxes, options.box_deviations, options.smooth_l1_beta)
        box_loss = options.box_loss_weight * ops.sum(ops.where(is_foreground, losses, 0.0)) / foreground
        return class_loss, box_loss

    def _class_loss(self, logits, labels, counted):
        """The focal losses' sum over the anchors `counted`, bool (B, N), of labels int32 (B, N), -1 for background.

        Level by level: joined, the logits would be there twice.
        """
        total, start = 0.0, 0
        for level in logits:
            level = _rows(level, self.class_count)  # (B, n, K)
            end = start + ops.shape(level)[1]
            is_true = ops.equal(labels[:, start:end, None], ops.arange(self.class_count, dtype="int32"))
            losses = sigmoid_focal_losses(level, is_true, self.options.focal_alpha, self.options.focal_gamma)
            losses = ops.sum(losses, axis=-1)  # (B, n)
            total = total + ops.sum(ops.where(counted[:, start:end], losses, 0.0))
            start = end
        return total

    def _candidates(self, images, image_sizes, threshold, count, under_xla):
        """Boxes (B, C, 4), labels, scores and valid (B, C): of each level the best."""
        outputs = self(images, training=False)
        logits, deltas = outputs["class_logits"], outputs["box_deltas"]
        levels = zip(logits, deltas, self.level_anchors(images, logits), strict=True)
        found = [self._level_candidates(*level, image_sizes, float(special.logit(threshold))) for level in levels]
        boxes, labels, logits, valid = (ops.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        return boxes, labels, ops.where(valid, ops.sigmoid(logits), 0.0), valid

    def _level_candidates(self, logits, deltas, anchors, image_sizes, least_logit):
        """The `best_pairs` of a level's boxes and classes, which are among the anchors of the best single logit."""
        most, classes = self.options.max_candidates, self.class_count
        logits, deltas = _rows(logits, classes), _rows(deltas, 4)
        present = logits.shape[1]
        count = most if present is None else min(most, present)
        best, places = top_rows(ops.max(logits, axis=-1), count)  # (B, C)
        moved = ops.take(anchors, places, axis=0)  # (B, C, 4)
        boxes = decode_boxes(take_rows(deltas, places), moved, deviations=self.options.box_deviations)
        some = ops.logical_and(best > NO_SCORE, is_at_least(boxes, MIN_SIZE))
        logits = ops.where(some[..., None], take_rows(logits, places), NO_SCORE)  # (B, C, K)
        logits, pairs = best_pairs(logits, least_logit, min(most, count * classes))
        boxes = clip_boxes(take_rows(boxes, pairs // classes), image_sizes)
        valid = ops.logical_and(logits > NO_SCORE, is_at_least(boxes, MIN_SIZE))
        return boxes, pairs % classes, logits, valid


def _rows(maps, width):
    """Maps (B, h, w, A * width) as (B, n, width), a row for each anchor."""
    batch, height, columns = ops.shape(maps)[:3]
    return ops.reshape(maps, (batch, height * columns * (maps.shape[-1] // width), width))


def _head(levels, convolutions, norm, outputs, bias, name):
    """What a head says of each level (section 4): a list of (B, h, w, outputs) float32.

    All levels share its convolutions and group normalisation. Batch normalisation is each level's own, as in
    EfficientDet: levels differ in their statistics, and shared moving averages would be those of the last.
    """
    width = next(iter(levels.values())).shape[-1]
    steps = []  # of the tower: {level: layer}
    for index in range(1, convolutions + 1):
        prefix = f"{name}_conv{index}"
        convolution = _convolution(width, prefix, use_bias=norm is None)
        steps.append(dict.fromkeys(levels, convolution))
        if norm == "batch":
            steps.append({key: create_norm(norm, width, 1e-5, f"{prefix}_norm{key}") for key in levels})
        elif norm is not None:
            steps.append(dict.fromkeys(levels, create_norm(norm, width, name=f"{prefix}_norm")))
        steps.append(dict.fromkeys(levels, keras.layers.ReLU(name=f"{prefix}_relu")))
    last = _convolution(outputs, f"{name}_output", bias)
    said = []
    for key, x in levels.items():
        for step in steps:
            x = step[key](x)
        said.append(keras.layers.Activation("linear", dtype="float32", name=f"{name}_output{key}")(last(x)))
    return said


def _convolution(filters, name, bias=0.0, use_bias=True):
    """3x3, drawn as in section 4.1, "Initialization"."""
    kernel, bias = keras.initializers.RandomNormal(stddev=0.01), keras.initializers.Constant(bias)
    initializers = {"kernel_initializer": kernel, "bias_initializer": bias}
    return Conv2D(filters, 3, padding="same", use_bias=use_bias, name=name, **initializers)
