"""What Fast and Faster R-CNN share: a head on regions of the feature maps, its losses and its detections."""

import logging

import keras
from keras import ops

from detseg.backbones.backbone import Preprocess
from detseg.backbones.weights import dense_weights
from detseg.detection.boxes import clip_boxes, decode_boxes
from detseg.detection.detector import Detector
from detseg.detection.fpn import fpn
from detseg.detection.heads import create_dense_head, create_stage_head, load_dense_weights, split_backbone
from detseg.detection.losses import box_losses
from detseg.detection.nms import NO_SCORE, best_pairs, is_at_least, take_rows
from detseg.detection.proposals import sample_proposals
from detseg.detection.roi_align import roi_align, roi_pool
from detseg.detection.truncated_svd import truncate_head
from detseg.errors import UserError
from detseg.layers.padding import PadToMultiple

logger = logging.getLogger("detseg")

MAX_CANDIDATES = 1000  # pairs of a region and a class that come to the last suppression
MIN_SIZE = 1e-2  # pixels, of detections


class RegionDetector(Detector):
    """Base of the detectors that classify regions. Of `Detector`'s sub-models, `head` takes regions' features."""

    padding_multiple = 32  # the deepest native stride of every backbone

    def __init__(self, options, class_count, channels, seed, backbone, name):
        super().__init__(options, class_count, channels, seed, backbone, name)
        options, backbone = self.options, self.backbone
        keys = [key for key in options.level_keys if key in backbone.keys]
        if missing := [key for key in options.level_keys if isinstance(key, str) and key not in keys]:
            known = ", ".join(map(str, backbone.keys))
            raise UserError(f"model.pyramid_levels: {backbone.name} has no level {missing[0]}; its levels are {known}")
        if options.head == "stage":
            trunk, stage = split_backbone(backbone)
        else:
            maps = [backbone.model.outputs[backbone.keys.index(key)] for key in keys]
            trunk = keras.Model(backbone.model.input, maps, name=backbone.name)
        images = keras.Input((None, None, channels), dtype="uint8", name="images")
        x = Preprocess(backbone.preprocessing, channels, name="preprocess")(images)
        x = PadToMultiple(self.padding_multiple, name="pad")(x)
        levels = dict(zip(keys, keras.tree.flatten(trunk(x)), strict=True))
        strides = {key: backbone.strides[key] for key in keys}
        if options.neck == "fpn":
            levels, strides = fpn(levels, strides, options.fpn_channels, "pool", options.head_norm)
        self.extractor = keras.Model(images, list(levels.values()), name="extractor")

        width, norm = self.extractor.outputs[0].shape[-1], options.head_norm
        self.create_proposer(strides, width)
        self.box_count = 1 if options.class_agnostic else class_count  # 1: all classes share their deltas
        regions = (options.roi_size, class_count, self.box_count)
        if options.head == "stage":
            self.head = create_stage_head(stage, *regions)
        else:
            self.head = create_dense_head(width, *regions, options.head_channels, norm, options.dropout)
        # Regions are pooled from the levels that the backbone has, so not from the pooled one (FPN, section 4.2), and
        # from the finer of two of one stride, which knows what the coarser one knows.
        self.strides = strides = tuple(strides.values())
        own = range(max(1, len(strides) - 1))
        self.region_levels = tuple(i for i in own if i == 0 or strides[i] > strides[i - 1])
        self.seeds = keras.random.SeedGenerator(seed, name="samples")

    def create_proposer(self, strides, width):
        """Makes what proposes regions, between the extractor and the head.

        strides:  {key: actual stride} of the extractor's levels; width: their channels.
        """

    @classmethod
    def create(cls, options, class_count, channels=3, seed=0, pretrained=True):
        """As `Detector.create`; the dense layers of a VGG's weights become fc6 and fc7 if those are as in the paper."""
        model = super().create(options, class_count, channels, seed, pretrained)
        options = model.options
        if not pretrained or options.weights is None or not options.has_dense_layers or options.neck != "none":
            return model
        if (options.roi_size, options.head_channels, options.head_norm) != (7, 4096, None):
            needed = "roi_size 7, head_channels 4096 and no head_norm"
            logger.warning("model: fc6 and fc7 start at random: they fit %s", needed)
        elif dense := dense_weights(options.weights, options.backbone):
            load_dense_weights(model.head, dense)
        else:
            logger.warning("model.weights: %s has no dense layers: fc6 and fc7 start at random", options.weights)
        return model

    def compress_head(self, ranks):
        """Puts `truncate_head` in the place of the head, for prediction; UserError for ranks that can't be."""
        try:
            self.head = truncate_head(self.head, ranks)
        except ValueError as error:
            raise UserError(f"model.truncated_svd: {error}") from error

    def region_candidates(self, features, proposals, exists, image_sizes, threshold, count, under_xla):
        """Boxes (B, C, 4), labels, scores and valid (B, C) of the best pairs of a region and a class; C >= `count`; and
        the proposals (B, C, 4) that they were moved from.

        features:           the extractor's levels.
        proposals, exists:  (B, P, 4) and (B, P) bool, P = options.test_proposals.
        """
        logits, deltas = self._classify(features, proposals, False, under_xla)

        regions, classes = self.options.test_proposals, self.class_count
        scores = ops.where(exists[..., None], ops.softmax(logits, axis=-1)[..., :classes], NO_SCORE)  # (B, P, K)
        scores, places = best_pairs(scores, threshold, max(MAX_CANDIDATES, count))
        rows = places // classes if self.box_count == 1 else places  # decoded are only the boxes that may be kept
        deltas = take_rows(ops.reshape(deltas, (-1, regions * self.box_count, 4)), rows)
        regions = take_rows(proposals, places // classes)
        boxes = clip_boxes(decode_boxes(deltas, regions, deviations=self.options.box_deviations), image_sizes)
        valid = ops.logical_and(scores > NO_SCORE, is_at_least(boxes, MIN_SIZE))
        return boxes, places % classes, scores, valid, regions

    def _classify(self, features, regions, training, under_xla):
        """Logits (B, R, K + 1) and deltas (B, R, box_count, 4) of regions (B, R, 4)."""
        count, size = regions.shape[1], self.options.roi_size
        if self.options.roi_pooling == "pool":
            pooled = roi_pool(features[0], regions, self.strides[0], size, inside=True)
        else:
            pooled = self.align(features, regions, size, under_xla)
        pooled = ops.reshape(pooled, (-1, size, size, features[0].shape[-1]))  # (B * R, P, P, C)
        logits, deltas = self.head(pooled, training=training)
        logits = ops.reshape(logits, (-1, count, self.class_count + 1))
        return logits, ops.reshape(deltas, (-1, count, self.box_count, 4))

    def align(self, features, regions, size, under_xla):
        """Features (B, R, size, size, C) of regions (B, R, 4), each from the level that it belongs to."""
        maps, strides = ([x[i] for i in self.region_levels] for x in (features, self.strides))
        how = {"aligned": self.options.roi_aligned, "under_xla": under_xla}
        return roi_align(maps, regions, strides, size, self.options.sampling_ratio, **how)

    def draw_regions(self, proposals, exists, objects):
        """`sample_proposals` to train on, of proposals (B, P, 4) that exist (B, P) bool; objects: the ground truth."""
        options = self.options
        truth = (objects["boxes"], objects["labels"] >= 0, objects["is_crowd"])
        ious = (options.roi_foreground_iou, options.roi_background_iou)
        counts = (options.roi_samples, options.roi_foreground_share)
        return sample_proposals(proposals, exists, *truth, *ious, *counts, self.seeds)

    def head_losses(self, features, regions, objects, training):
        """Log loss over K + 1 classes, and the true class's box loss of foreground; both over the number of regions
        (Fast R-CNN, eq. 1).

        regions:  of `draw_regions`; objects: the ground truth.
        """
        options = self.options
        regions, matched, is_object, drawn = regions
        logits, deltas = self._classify(features, regions, training, self.jit_compile)
        labels = ops.cast(take_rows(objects["labels"], matched), "int32")  # (B, S)
        classes = ops.where(is_object, labels, self.class_count)
        log_loss = ops.sparse_categorical_crossentropy(classes, logits, from_logits=True)
        rows = ops.arange(options.roi_samples) * self.box_count + ops.where(is_object, labels, 0) % self.box_count
        deltas = take_rows(ops.reshape(deltas, (-1, options.roi_samples * self.box_count, 4)), rows)
        boxes = take_rows(objects["boxes"], matched)
        box_loss = box_losses(options.box_loss, deltas, regions, boxes, options.box_deviations, options.smooth_l1_beta)
        return mean_of(log_loss, drawn, drawn), options.box_loss_weight * mean_of(box_loss, is_object, drawn)


def mean_of(losses, which, of):
    """The sum of those `which` count over the number of `of`, both bool: 0 where there are none."""
    total = ops.sum(ops.where(which, losses, 0.0))
    return total / ops.maximum(ops.sum(ops.cast(of, "float32")), 1.0)
