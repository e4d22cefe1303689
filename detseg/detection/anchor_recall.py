"""How many of a data set's objects anchors can find at all."""

from typing import NamedTuple

import numpy as np

from detseg.detection.anchors import CENTRES


class AnchorRecall(NamedTuple):
    """share: float, of the objects that some anchor overlaps by at least `iou`; missed: float32 (M, 4), the others."""

    share: float
    iou: float
    missed: np.ndarray

    def describe_missed(self):
        """Their typical size and shape, as text."""
        width, height = (np.median(self.missed[:, i + 2] - self.missed[:, i]) for i in (0, 1))
        return f"about {width:.0f}x{height:.0f} (width x height, medians of {len(self.missed)})"


def anchor_recall(level_anchors, boxes, iou=0.5):
    """The AnchorRecall of objects, taking for each the anchors whose centres are nearest to its own.

    level_anchors:  `LevelAnchors`, taken to lie at their levels' strides.
    boxes:          float (N, 4), at the size at which the model sees them.
    """
    anchors, boxes = level_anchors.anchors, np.asarray(boxes, np.float64)
    best = np.zeros(len(boxes))
    sizes = boxes[:, 2:] - boxes[:, :2]  # (N, 2) width, height
    areas = sizes.prod(1)
    for level, stride in enumerate(level_anchors.strides):
        offset = CENTRES[anchors.centre] * stride
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        nearest = np.maximum(np.rint((centres - offset) / stride), 0) * stride + offset  # (N, 2)
        for shape in anchors.shapes(level).astype(np.float64):
            starts, ends = nearest + shape[:2], nearest + shape[2:]
            overlap = np.clip(np.minimum(ends, boxes[:, 2:]) - np.maximum(starts, boxes[:, :2]), 0, None).prod(1)
            area = (shape[2:] - shape[:2]).prod()
            best = np.maximum(best, overlap / (areas + area - overlap))
    found = best >= iou
    return AnchorRecall(float(found.mean()) if len(found) else 1.0, iou, boxes[~found])
