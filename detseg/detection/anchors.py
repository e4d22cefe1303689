"""Anchors: boxes of fixed sizes and shapes at every position of every feature level (Faster R-CNN, section 3.1.1)."""

from dataclasses import dataclass

import numpy as np
from keras import ops

CENTRES = {"cell": 0.5, "torchvision": 0.0}  # form -> of a position's anchors, in strides from its cell's top left


@dataclass(frozen=True, slots=True)
class Anchors:
    """The anchors of a detector's levels, at each position ordered by ratio, then by size, then by scale.

    form:  "cell": in the middle of the stride x stride pixels of a position, as in the paper's code (which also rounds
           the shapes of size 16 before it scales them). "torchvision": at their top left; the corners of the anchors
           around 0 are rounded to whole pixels; positions are image size // map size apart, which is not the stride
           where a map's size has been rounded up.
    """

    sizes: tuple  # of each level, or a tuple for each, equally long: square roots of the anchors' areas, in pixels
    strides: tuple  # of each level, in pixels
    ratios: tuple = (0.5, 1.0, 2.0)  # height / width, for every level
    scales: tuple = (1.0,)  # by which each size is multiplied
    form: str = "cell"

    def __post_init__(self):
        if self.form not in CENTRES:
            raise ValueError(f"form {self.form!r}: expected one of {', '.join(CENTRES)}")

    def count(self):
        """How many there are at a position."""
        return len(self.shapes(0))

    def shapes(self, level):
        """float32 (A, 4): the anchors of the level of this index around (0, 0)."""
        sizes = np.outer(np.atleast_1d(self.sizes[level]), self.scales).ravel().astype("float32")
        heights = np.sqrt(np.array(self.ratios, "float32"))  # of area 1
        widths = 1 / heights
        width, height = np.outer(widths, sizes).ravel(), np.outer(heights, sizes).ravel()
        shapes = np.stack([-width, -height, width, height], axis=-1) / 2
        return shapes.round() if self.form == "torchvision" else shapes

    def __call__(self, image_size, level_sizes):
        """The anchors of each level, unclipped: list of (height * width * A, 4) float32, by row, then as in `shapes`.

        image_size, level_sizes:  (height, width) of the padded image and of each level's map, ints or scalar tensors.
        """
        anchors = []
        for level, (rows, columns) in enumerate(level_sizes):
            vertical = horizontal = self.strides[level]
            if self.form == "torchvision":
                vertical, horizontal = image_size[0] // rows, image_size[1] // columns
            x, y = ops.meshgrid(self._centres(columns, horizontal), self._centres(rows, vertical))  # (H, W)
            centres = ops.stack([x, y, x, y], axis=-1)  # (H, W, 4)
            anchors.append(ops.reshape(centres[:, :, None] + self.shapes(level), (-1, 4)))
        return anchors

    def _centres(self, count, stride):
        return (ops.arange(count, dtype="float32") + CENTRES[self.form]) * ops.cast(stride, "float32")


def anchor_recall(anchors, boxes):
    """(share, missed): how many objects an anchor with the nearest centre overlaps by IoU 0.5, and the others, (M, 4).

    anchors:  `Anchors`, taken to lie at their levels' strides.
    boxes:    float (N, 4), at the size at which the model sees them.
    """
    boxes = np.asarray(boxes, np.float64)
    best = np.zeros(len(boxes))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for level, stride in enumerate(anchors.strides):
        offset = CENTRES[anchors.form] * stride
        nearest = np.maximum(np.rint((centres - offset) / stride), 0) * stride + offset  # (N, 2)
        for shape in anchors.shapes(level).astype(np.float64):
            starts, ends = nearest + shape[:2], nearest + shape[2:]
            overlap = np.clip(np.minimum(ends, boxes[:, 2:]) - np.maximum(starts, boxes[:, :2]), 0, None).prod(1)
            area = (shape[2:] - shape[:2]).prod()
            best = np.maximum(best, overlap / (areas + area - overlap))
    found = best >= 0.5
    return float(found.mean()) if len(found) else 1.0, boxes[~found]
