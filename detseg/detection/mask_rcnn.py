"""Mask R-CNN (He et al., ICCV 2017): Faster R-CNN with a mask for each of its detections."""

import keras
from keras import ops

from detseg.detection.faster_rcnn import FasterRCNN
from detseg.detection.mask_head import create_mask_head, mask_losses, mask_targets, masks_of
from detseg.detection.matching import rows_to_compute
from detseg.detection.nms import suppress, take_rows
from detseg.detection.options import MaskRCNNOptions
from detseg.detection.region_detector import mean_of


@keras.saving.register_keras_serializable("detseg")
class MaskRCNN(FasterRCNN):
    """Mask R-CNN; `mask_head` takes regions' features. Its ground truth also has "masks" (B, G, S, S) uint8 of 0..255:
    shares of each object's mask in S x S cells of its box, see `mask_targets`. An object whose mask has no pixel is
    found, and its mask not learned."""

    options_class = MaskRCNNOptions
    loss_names = (*FasterRCNN.loss_names, "mask_loss")

    def __init__(self, options, class_count, channels=3, seed=0, backbone=None, name="mask_rcnn"):
        super().__init__(options, class_count, channels, seed, backbone, name)
        options, width = self.options, self.extractor.outputs[0].shape[-1]
        layers = (options.mask_channels, options.mask_convolutions, options.head_norm)
        self.mask_head = create_mask_head(width, options.mask_roi_size, class_count, *layers)

    @property
    def mask_size(self):
        """Rows and columns of a region's mask."""
        return 2 * self.options.mask_roi_size

    def _mask_logits(self, features, regions, labels, training, under_xla):
        """Logits (B * R, M, M) of the masks of regions (B, R, 4), each of its class, labels (B, R)."""
        size = self.options.mask_roi_size
        pooled = self.align(features, regions, size, under_xla)  # (B, R, P, P, C)
        pooled = ops.reshape(pooled, (-1, size, size, pooled.shape[-1]))
        return masks_of(self.mask_head(pooled, training=training), ops.reshape(labels, (-1,)))

    def _detector_losses(self, images, objects, outputs, training):
        losses, (regions, matched, is_object, _) = self._losses_and_regions(images, objects, outputs, training)
        if "masks" not in objects:
            raise ValueError("the ground truth has no masks, which mask_rcnn learns from")
        # Those of objects come first, so that the others' masks needn't be computed.
        most = max(1, int(self.options.roi_samples * self.options.roi_foreground_share))
        most = rows_to_compute(is_object[:, :most], self.jit_compile)
        regions, matched, is_object = regions[:, :most], matched[:, :most], is_object[:, :most]
        labels = ops.where(is_object, ops.cast(take_rows(objects["labels"], matched), "int32"), 0)
        logits = self._mask_logits(outputs["features"], regions, labels, training, self.jit_compile)
        has_mask = ops.any(objects["masks"] > 0, axis=(2, 3))  # (B, G)
        is_learned = ops.reshape(ops.logical_and(is_object, take_rows(has_mask, matched)), (-1,))
        targets = mask_targets(objects["masks"], objects["boxes"], matched, regions, self.mask_size)
        targets = ops.reshape(targets, (-1, self.mask_size, self.mask_size))
        mask_loss = mean_of(mask_losses(logits, targets), is_learned, is_learned)
        return *losses, self.options.mask_loss_weight * mask_loss

    def detect(self, images, image_sizes, score_threshold=None, max_detections=None, under_xla=False):
        """As `Detector.detect`, and the masks of the final boxes: probabilities (B, D, M, M) float32 of M x M cells of
        each box; zeros where not valid."""
        threshold, count = self.limits(score_threshold, max_detections)
        features, candidates = self._features_and_candidates(images, image_sizes, threshold, count, under_xla)
        boxes, labels, scores, valid = suppress(*candidates, self.options.nms_iou, count, under_xla)
        most = rows_to_compute(valid, under_xla)
        of_class = ops.maximum(labels, 0)[:, :most]
        logits = self._mask_logits(features, boxes[:, :most], of_class, False, under_xla)
        size = self.mask_size
        masks = ops.reshape(ops.sigmoid(logits), (-1, most, size, size))
        masks = ops.where(valid[:, :most, None, None], masks, 0.0)
        masks = ops.pad(masks, [(0, 0), (0, count - most), (0, 0), (0, 0)])
        return boxes, labels, scores, valid, ops.reshape(masks, (-1, count, size, size))
