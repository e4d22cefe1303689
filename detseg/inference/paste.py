"""Masks that a detector says of boxes, brought to their places in the image."""

import cv2
import numpy as np

from detseg.data.masks import encode_masks


def paste_masks(probabilities, boxes, size, threshold=0.5, rule="detectron2"):
    """Masks of an image, each of them 1 where its probability reaches the threshold, after pasting.

    probabilities:  float32 (N, M, M), of M x M cells of each box; nothing lies beyond it.
    boxes:          float (N, 4), in pixels of the image.
    size:           (H, W) of the image.
    rule:           "detectron2": interpolated at the centres of the image's pixels. "torchvision": as there: the box is
                    widened by a cell of zeros on each side and rounded down to pixels, of which the last counts too.
    Returns         N compressed RLEs of (H, W).
    """
    paste = _RULES[rule]
    codes, canvas = [], np.zeros((1, *size), np.uint8)
    for mask, box in zip(np.asarray(probabilities, np.float32), np.asarray(boxes, np.float64), strict=True):
        (top, left), part = paste(mask, box, size)
        place = canvas[0, top : top + part.shape[0], left : left + part.shape[1]]
        place[...] = part >= threshold
        codes += encode_masks(canvas)
        place[...] = 0
    return codes


def _at_pixel_centres(mask, box, size):
    """((row, column), float32 (h, w)): where in the image the part lies that a mask reaches, and its probabilities."""
    weights, starts = [], []
    for first, last, length in ((box[1], box[3], size[0]), (box[0], box[2], size[1])):
        cells = mask.shape[0]
        start, end = max(0, int(np.floor(first))), min(length, int(np.ceil(last)))
        places = (np.arange(start, end) + 0.5 - first) / max(last - first, 1e-6) * cells - 0.5  # in cells
        distances = np.abs(places[:, None] - np.arange(cells))
        weights.append(np.maximum(1 - distances, 0).astype(np.float32))  # (pixels, M): 0 beyond the outermost cells
        starts.append(start)
    return tuple(starts), weights[0] @ mask @ weights[1].T


def _at_rounded_boxes(mask, box, size):
    """As `_at_pixel_centres`, by torchvision's rule (roi_heads.paste_masks_in_image)."""
    padded = np.pad(mask, 1)
    half = (box[2:] - box[:2]) / 2 * (padded.shape[0] / mask.shape[0])
    centre = (box[2:] + box[:2]) / 2
    left, top = (centre - half).astype(np.float32).astype(int)
    right, bottom = (centre + half).astype(np.float32).astype(int)
    sides = max(right - left + 1, 1), max(bottom - top + 1, 1)
    part = cv2.resize(padded, sides, interpolation=cv2.INTER_LINEAR)
    row, column = min(max(top, 0), size[0]), min(max(left, 0), size[1])
    return (row, column), part[row - top : size[0] - top, column - left : size[1] - left]


_RULES = {"detectron2": _at_pixel_centres, "torchvision": _at_rounded_boxes}
