"""Fast R-CNN (Girshick, ICCV 2015): regions that somebody else proposes, read from the feature maps of the image."""

import keras
from keras import ops

from detseg.detection.nms import is_at_least, suppress
from detseg.detection.options import FastRCNNOptions
from detseg.detection.proposals import MIN_SIZE
from detseg.detection.region_detector import RegionDetector


@keras.saving.register_keras_serializable("detseg")
class FastRCNN(RegionDetector):
    """Fast R-CNN. Its ground truth also has "proposals" (B, P, 4), of no size where there are fewer than P."""

    options_class = FastRCNNOptions
    loss_names = ("class_loss", "box_loss")

    def __init__(self, options, class_count, channels=3, seed=0, backbone=None, name="fast_rcnn"):
        super().__init__(options, class_count, channels, seed, backbone, name)

    def call(self, images, training=None):
        """{"features": levels (B, h, w, C)}."""
        return {"features": keras.tree.flatten(self.extractor(images, training=training))}

    def detect(self, images, image_sizes, proposals, score_threshold=None, max_detections=None, under_xla=False):
        """As `Detector.detect`, of proposals (B, options.test_proposals, 4) in the pixels of the images.

        Returns  boxes, labels, scores and valid as there, and the proposal (B, D, 4) that each box was moved from.
        """
        threshold, count = self.limits(score_threshold, max_detections)
        features = self(images, training=False)["features"]
        exists = is_at_least(proposals, MIN_SIZE)
        arguments = (image_sizes, threshold, count, under_xla)
        *candidates, sources = self.region_candidates(features, proposals, exists, *arguments)
        return suppress(*candidates, self.options.nms_iou, count, under_xla, carried=(sources,))

    def _detector_losses(self, images, objects, outputs, training):
        proposals = ops.cast(objects["proposals"], "float32")
        exists = is_at_least(proposals, MIN_SIZE)
        regions = self.draw_regions(proposals, exists, objects)
        return self.head_losses(outputs["features"], regions, objects, training)
