"""RetinaNet (Lin et al.: Focal Loss for Dense Object Detection, ICCV 2017) on every backbone."""

import math

import keras
from keras import ops

from detseg.backbones.backbone import Preprocess
from detseg.detection.anchors import LevelAnchors
from detseg.detection.boxes import clip_boxes, decode_boxes
from detseg.detection.fpn import fpn
from detseg.detection.losses import box_losses, sigmoid_focal_losses
from detseg.detection.matching import FOREGROUND, IGNORED, match, without_padding
from detseg.detection.nms import NO_SCORE, best_candidates, is_at_least, suppress, take_rows, top_rows
from detseg.layers.conv import Conv2D
from detseg.layers.norm import create_norm
from detseg.layers.replicas import replica_count

MIN_SIZE = 1e-2  # pixels that a box must have left of its width and height in the image


def create_retinanet(
    backbone,
    class_count,
    *,
    channels=3,
    finest_stride=8,
    top_levels="conv_c5",
    fpn_channels=256,
    head_convolutions=4,
    head_norm=None,
    prior=0.01,
    anchor_sizes=None,
    anchor_ratios=(0.5, 1.0, 2.0),
    anchor_scales=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
    anchor_form="cell",
    foreground_iou=0.5,
    background_iou=0.4,
    focal_alpha=0.25,
    focal_gamma=2.0,
    box_loss="l1",
    smooth_l1_beta=1 / 9,
    box_loss_weight=1.0,
    box_deviations=(1, 1, 1, 1),
    score_threshold=0.05,
    nms_iou=0.5,
    max_detections=100,
    max_candidates=1000,
):
    """A `RetinaNet` that takes raw pixels (B, H, W, channels), of any H and W.

    backbone:           a `detseg.backbones.Backbone` for images of `channels` channels.
    class_count:        K, without background.
    finest_stride:      4, 8 (section 4: P3) or 16, native stride of the finest level.
    top_levels:         two more levels: "conv_c5", of the backbone's last map (footnote 2), or "conv_p5", of the
                        pyramid's (torchvision).
    fpn_channels:       of the pyramid and of the heads.
    head_convolutions:  3x3 convolutions of each of the two heads before the one that says classes or boxes.
    head_norm:          norm of the pyramid and of these: None (the paper), "group", or "batch", see `_head`.
    prior:              score of every class at every anchor at the start of training (section 4.1).
    anchor_sizes:       one item a level, a number or several; None: 4 times the native stride (section 4: 32 to 512
                        on P3 to P7). Levels that an output stride below 32 has dilated keep the sizes of their names.
    anchor_ratios, anchor_scales:  as in `Anchors`.
    anchor_form:        "cell", or "torchvision": at the corners, of whole pixels, the stride of a level being image
                        size // map size.
    foreground_iou, background_iou:  an anchor is foreground from the one on, background below the other (section 4).
    focal_alpha, focal_gamma:        of `sigmoid_focal_losses`.
    box_loss, smooth_l1_beta, box_deviations:  of `box_losses`.
    score_threshold, nms_iou, max_detections, max_candidates:  of `RetinaNet.detect`.
    Raises UserError for anchor sizes that don't fit the levels.
    """
    images = keras.Input((None, None, channels), dtype="uint8", name="images")
    features = backbone(Preprocess(backbone.preprocessing, channels, name="preprocess")(images))
    keys = [key for key in (4, 8, 16, 32) if key >= finest_stride]
    features, strides = {key: features[key] for key in keys}, {key: backbone.strides[key] for key in keys}
    levels, strides = fpn(features, strides, fpn_channels, top_levels, head_norm)

    sizes = tuple(4 * key for key in levels) if anchor_sizes is None else anchor_sizes
    anchors = LevelAnchors(sizes, anchor_ratios, anchor_scales, anchor_form, strides)
    tower = (head_convolutions, head_norm)
    bias = -math.log((1 - prior) / prior)  # section 4.1, "Initialization"
    outputs = {
        "class_logits": _head(levels, *tower, anchors.count() * class_count, bias, "class"),
        "box_targets": _head(levels, *tower, anchors.count() * 4, 0.0, "box"),
    }
    model = RetinaNet(images, outputs, name="retinanet")
    model.class_count = class_count
    model.anchors = anchors
    model.channels = channels
    model.foreground_iou, model.background_iou = foreground_iou, background_iou
    model.focal = {"alpha": focal_alpha, "gamma": focal_gamma}
    model.box_loss, model.box_loss_weight, model.smooth_l1_beta = box_loss, box_loss_weight, smooth_l1_beta
    model.box_deviations = tuple(box_deviations)
    model.score_threshold, model.nms_iou = score_threshold, nms_iou
    model.max_detections, model.max_candidates = max_detections, max_candidates
    return model


class RetinaNet(keras.Model):
    """images (B, H, W, C) -> {"class_logits": .., "box_targets": ..}, for each level, from fine to coarse, a float32
    map (B, h, w, A * K) of logits and one (B, h, w, A * 4) of regression targets, A the anchors of a position.

    Trained by the stock fit on ground truth {"boxes": (B, G, 4) float32, "labels": (B, G) int32, -1 where padded,
    "is_crowd": (B, G) bool}. Logs class_loss and box_loss, whose sum is the loss. Made by `create_retinanet`, which
    sets the attributes (Keras makes functional models only by the stock constructor).
    """

    def __init__(self, *inputs_and_outputs, **stock_arguments):
        super().__init__(*inputs_and_outputs, **stock_arguments)
        self.class_loss_tracker = keras.metrics.Mean(name="class_loss")
        self.box_loss_tracker = keras.metrics.Mean(name="box_loss")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The sums of both losses over the batch, each divided by the number of foreground anchors (section 4).

        Anchors of an IoU between background and foreground, and those in a crowd, don't count for the classes.
        """
        if sample_weight is not None:
            raise ValueError("sample_weight: a detector's images have no weights")
        y = y if self.jit_compile else without_padding(y)
        anchors = self.level_anchors(x, y_pred)
        valid = y["labels"] >= 0
        background = (0.0, self.background_iou)
        joined = ops.concatenate(anchors)  # (N, 4)
        matched, states = match(joined, y["boxes"], valid, self.foreground_iou, background, True, y["is_crowd"])
        is_foreground = ops.equal(states, FOREGROUND)  # (B, N)
        foreground = ops.maximum(ops.sum(ops.cast(is_foreground, "float32")), 1.0)

        labels = ops.where(is_foreground, take_rows(ops.cast(y["labels"], "int32"), matched), -1)
        class_loss = self._class_loss(y_pred["class_logits"], labels, ops.not_equal(states, IGNORED)) / foreground
        targets = ops.concatenate([_rows(x, 4) for x in y_pred["box_targets"]], axis=1)  # (B, N, 4)
        losses = box_losses(
            self.box_loss, targets, joined, take_rows(y["boxes"], matched), self.box_deviations, self.smooth_l1_beta
        )
        box_loss = self.box_loss_weight * ops.sum(ops.where(is_foreground, losses, 0.0)) / foreground
        self.class_loss_tracker.update_state(class_loss)
        self.box_loss_tracker.update_state(box_loss)
        return sum(self.losses, class_loss + box_loss) / replica_count()

    def _class_loss(self, logits, labels, counted):
        """The focal losses' sum over the counted anchors, level by level: joined, they would be there twice.

        logits:           of each level (B, h, w, A * K).
        labels, counted:  (B, N) int32, -1 for background; (B, N) bool; of all levels.
        """
        total, start = 0.0, 0
        for level in logits:
            level = _rows(level, self.class_count)  # (B, n, K)
            end = start + ops.shape(level)[1]
            is_true = ops.equal(labels[:, start:end, None], ops.arange(self.class_count, dtype="int32"))
            losses = ops.sum(sigmoid_focal_losses(level, is_true, **self.focal), axis=-1)  # (B, n)
            total = total + ops.sum(ops.where(counted[:, start:end], losses, 0.0))
            start = end
        return total

    def detect(self, images, image_sizes, score_threshold=None, max_detections=None, under_xla=False):
        """The objects in images: those of each level's best scores, joined, after suppression within each class.

        images:           (B, H, W, C) raw pixels, images smaller than that at the top left.
        image_sizes:      (B, 2), height and width of each image in pixels, to which boxes are clipped.
        score_threshold:  None (the model's) or a number: only scores above it count.
        max_detections:   D, None (the model's) or int.
        under_xla:        as in `nms`.
        Returns           boxes (B, D, 4) float32, labels (B, D) int32 (-1 where not valid), scores (B, D) float32,
                          valid (B, D) bool, by falling score.
        """
        threshold = self.score_threshold if score_threshold is None else score_threshold
        outputs = self(images, training=False)
        levels = zip(outputs["class_logits"], outputs["box_targets"], self.level_anchors(images, outputs), strict=True)
        found = [self._candidates(*level, image_sizes, _logit(threshold)) for level in levels]
        boxes, labels, logits, valid = (ops.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        scores = ops.where(valid, ops.sigmoid(logits), 0.0)
        count = self.max_detections if max_detections is None else max_detections
        return suppress(boxes, labels, scores, valid, self.nms_iou, count, under_xla)

    def _candidates(self, logits, targets, anchors, image_sizes, least_logit):
        """The `best_candidates` of a level, scored by logits and clipped.

        The best pairs of an anchor and a class are among the anchors of the best single logit: of all the others
        nothing is computed.
        """
        logits, targets = _rows(logits, self.class_count), _rows(targets, 4)
        present = logits.shape[1]
        count = self.max_candidates if present is None else min(self.max_candidates, present)
        best, places = top_rows(ops.max(logits, axis=-1), count)  # (B, C)
        logits = ops.where(best[..., None] > NO_SCORE, take_rows(logits, places), NO_SCORE)  # (B, C, K)
        moved = ops.take(anchors, places, axis=0)  # (B, C, 4)
        boxes = decode_boxes(take_rows(targets, places), moved, deviations=self.box_deviations)
        pairs = min(self.max_candidates, count * self.class_count)
        boxes, labels, logits, valid = best_candidates(boxes[:, :, None], logits, least_logit, pairs)
        boxes = clip_boxes(boxes, image_sizes)
        return boxes, labels, logits, ops.logical_and(valid, is_at_least(boxes, MIN_SIZE))

    def level_anchors(self, images, outputs):
        """The anchors of each level for images (B, H, W, C) and what the model says of them: list of (n, 4) float32."""
        return self.anchors(ops.shape(images)[1:3], [ops.shape(level)[1:3] for level in outputs["class_logits"]])


def _rows(maps, width):
    """Maps (B, h, w, A * width) as (B, n, width), a row for each anchor."""
    batch, height, columns = ops.shape(maps)[:3]
    return ops.reshape(maps, (batch, height * columns * (maps.shape[-1] // width), width))


def _head(levels, convolutions, norm, outputs, bias, name):
    """What a head says of each level (section 4): a list of (B, h, w, outputs) float32.

    Its convolutions are the same for all levels, and so is group normalisation. Batch normalisation is not: each level
    has statistics, scale and offset of its own, as in EfficientDet, since levels differ in their statistics, and moving
    averages that all of them pull at in turn would be those of the last.
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
    return Conv2D(
        filters,
        3,
        padding="same",
        use_bias=use_bias,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        bias_initializer=keras.initializers.Constant(bias),
        name=name,
    )


def _logit(score):
    """The logit of a score, beyond all logits outside of 0 and 1."""
    if not 0 < score < 1:
        return -math.inf if score <= 0 else math.inf
    return math.log(score) - math.log1p(-score)
