"""Faster R-CNN (Ren et al. 2015) on one map, as there, or on a feature pyramid (FPN: Lin et al. 2017, section 4)."""

import keras
from keras import ops
from scipy import special

from detseg.detection.heads import create_rpn
from detseg.detection.losses import box_losses
from detseg.detection.matching import FOREGROUND, match_boxes
from detseg.detection.nms import NO_SCORE, take_rows
from detseg.detection.options import FasterRCNNOptions
from detseg.detection.proposals import sample, select_proposals
from detseg.detection.region_detector import RegionDetector, mean_of

RPN_FOREGROUND_SHARE = 0.5  # section 3.1.3


@keras.saving.register_keras_serializable("detseg")
class FasterRCNN(RegionDetector):
    """Faster R-CNN: `rpn` proposes the regions."""

    options_class = FasterRCNNOptions
    loss_names = ("rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss")

    def __init__(self, options, class_count, channels=3, seed=0, backbone=None, name="faster_rcnn"):
        super().__init__(options, class_count, channels, seed, backbone, name)

    def create_proposer(self, strides, width):
        self.anchors = self.create_anchors(strides)
        self.rpn = create_rpn(width, self.anchors.count(), self.options.rpn_channels, self.options.head_norm)

    def call(self, images, training=None):
        """{"features": levels (B, h, w, C), "objectness": logits (B, N) and "deltas": (B, N, 4), of each level's
        anchors}, lists."""
        features = keras.tree.flatten(self.extractor(images, training=training))  # Keras hands one map out by itself
        batch = ops.shape(images)[0]
        outputs = {"features": features, "objectness": [], "deltas": []}
        for level in features:
            objectness, deltas = self.rpn(level, training=training)
            outputs["objectness"].append(ops.reshape(objectness, (batch, -1)))
            outputs["deltas"].append(ops.reshape(deltas, (batch, -1, 4)))
        return outputs

    def _candidates(self, images, image_sizes, threshold, count, under_xla):
        """As `region_candidates`, of the regions that the network itself proposes, without these."""
        return self._features_and_candidates(images, image_sizes, threshold, count, under_xla)[1]

    def _features_and_candidates(self, images, image_sizes, threshold, count, under_xla):
        """The extractor's levels, and `_candidates`."""
        outputs = self(images, training=False)
        anchors = self.level_anchors(images, outputs["features"])
        regions = self._proposals(outputs, anchors, image_sizes, False, under_xla)
        features = outputs["features"]
        return features, self.region_candidates(features, *regions, image_sizes, threshold, count, under_xla)[:4]

    def _proposals(self, outputs, anchors, image_sizes, training, under_xla):
        """Proposals (B, P, 4) and valid (B, P) of `select_proposals`."""
        options, maps = self.options, (outputs["objectness"], outputs["deltas"])
        in_training = (options.train_candidates, options.train_proposals)
        counts = in_training if training else (options.test_candidates, options.test_proposals)
        least = NO_SCORE if training or not options.rpn_score_threshold else special.logit(options.rpn_score_threshold)
        arguments = (image_sizes, *counts, options.rpn_nms_iou, under_xla, float(least))
        proposals, _, valid = select_proposals(*maps, anchors, *arguments)
        return proposals, valid

    def _detector_losses(self, images, objects, outputs, training):
        return self._losses_and_regions(images, objects, outputs, training)[0]

    def _losses_and_regions(self, images, objects, outputs, training):
        """The losses of `FasterRCNN.loss_names`, and the regions of `draw_regions`."""
        anchors = self.level_anchors(images, outputs["features"])
        rpn_losses = self._rpn_losses(outputs, ops.concatenate(anchors, axis=0), objects)
        proposals = self._proposals(outputs, anchors, objects["image_sizes"], True, self.jit_compile)
        regions = self.draw_regions(*proposals, objects)
        return (*rpn_losses, *self.head_losses(outputs["features"], regions, objects, training)), regions

    def _rpn_losses(self, outputs, anchors, objects):
        """Log loss over two classes, and smooth L1 of foreground; both over the number of sampled anchors (eq. 1), of
        which some reach out of the image (FPN, section 5.1)."""
        options = self.options
        ious = (options.rpn_foreground_iou, (0.0, options.rpn_background_iou))
        truth = (objects["boxes"], objects["labels"] >= 0)
        matched, states = match_boxes(anchors, *truth, *ious, low_quality=True, crowd=objects["is_crowd"])
        chosen, drawn = sample(states, options.rpn_samples, RPN_FOREGROUND_SHARE, self.seeds)  # (B, S)
        is_object = ops.logical_and(drawn, ops.equal(take_rows(states, chosen), FOREGROUND))
        logits = take_rows(ops.concatenate(outputs["objectness"], axis=1), chosen)
        deltas = take_rows(ops.concatenate(outputs["deltas"], axis=1), chosen)
        boxes = take_rows(objects["boxes"], take_rows(matched, chosen))
        log_loss = ops.binary_crossentropy(ops.cast(is_object, "float32"), logits, from_logits=True)
        anchors = ops.take(anchors, chosen, axis=0)
        box_loss = box_losses("smooth_l1", deltas, anchors, boxes, beta=options.smooth_l1_beta)
        return mean_of(log_loss, drawn, drawn), mean_of(box_loss, is_object, drawn)
