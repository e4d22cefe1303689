"""Regions of an image warped to squares, as R-CNN sees them."""

import numpy as np

from detseg.data.augment import fill_colour, resize_image
from detseg.data.pixels import cut_window


def warp_regions(image, boxes, size, context):
    """Each box with some of its surroundings, warped to a square whatever its aspect ratio (R-CNN, appendix A, (d)).

    image:    uint8 (H, W, C).
    boxes:    (N, 4), x1 y1 x2 y2; what lies outside of the image is filled as augmentation fills it.
    size:     side S of the squares in pixels.
    context:  pixels of a square on each side that lie around the box: the box itself becomes S - 2 * context wide.
    Returns   uint8 (N, S, S, C). The window around a box is rounded to whole pixels, at least one.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]  # (N, 2)
    half = sides * (size / (size - 2 * context)) / 2
    low = np.rint(centres - half).astype(int)
    high = np.maximum(np.rint(centres + half).astype(int), low + 1)
    fill = fill_colour(image.shape[2])
    squares = np.empty((len(boxes), size, size, image.shape[2]), np.uint8)
    for square, (x1, y1), (x2, y2) in zip(squares, low, high, strict=True):
        square[:] = resize_image(cut_window(image, (y1, x1), (y2 - y1, x2 - x1), fill), size, size)
    return squares
