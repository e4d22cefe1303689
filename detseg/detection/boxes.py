"""Boxes x1 y1 x2 y2: formats, areas, overlaps, clipping, and the regression targets of R-CNN.

All functions take tensors, NumPy arrays and lists of any int or float dtype. All but `convert_boxes` compute in float32
and return the backend's tensors. They and their gradients are finite for degenerate boxes too: a negative width or
height counts as 0, and a ratio to an empty area is 0. Boxes that aren't (..., 4) raise ValueError.
"""

import math

import numpy as np
from keras import ops

LARGEST_LOG_RATIO = math.log(1000 / 16)  # Detectron: a box grows to 1000 pixels from an anchor of 16 at most
SMALLEST_SIZE = 1e-6  # pixels; what is smaller is padding, whose targets nobody reads but must be finite
FORMATS = ("xyxy", "xywh", "cxcywh", "yxyx")  # corners; COCO's corner and size; centre and size; TensorFlow's corners


def corners(boxes):
    """x1, y1, x2, y2 of boxes (..., 4), each (...) float32."""
    boxes = ops.cast(boxes, "float32")
    if boxes.shape[-1] != 4:
        raise ValueError(f"boxes of shape {tuple(boxes.shape)}: expected (..., 4), x1 y1 x2 y2")
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def convert_boxes(boxes, source, target):
    """Boxes in another format.

    boxes:           (..., 4), absolute pixels or fractions of the image.
    source, target:  of `FORMATS`: "xyxy" x1 y1 x2 y2, "xywh" x1 y1 width height, "cxcywh" centre's x y, width height,
                     "yxyx" y1 x1 y2 x2.
    Returns          (..., 4): a float32 tensor for a tensor, otherwise a NumPy array, float64 where float32 might round
                     (int32, int64 and float64), else float32.
    Raises           ValueError for an unknown format.
    """
    for name in (source, target):
        if name not in FORMATS:
            raise ValueError(f"box format {name!r}: expected one of {', '.join(FORMATS)}")
    if ops.is_tensor(boxes):
        boxes, stack = ops.cast(boxes, "float32"), ops.stack
    else:
        boxes, stack = np.asarray(boxes), np.stack
        boxes = boxes.astype(np.result_type(boxes, np.float32))
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"boxes of shape {tuple(boxes.shape)}: expected (..., 4), {source}")
    a, b, c, d = (boxes[..., i] for i in range(4))
    x1, y1, x2, y2 = {
        "xyxy": lambda: (a, b, c, d),
        "xywh": lambda: (a, b, a + c, b + d),
        "cxcywh": lambda: (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
        "yxyx": lambda: (b, a, d, c),
    }[source]()
    converted = {
        "xyxy": lambda: (x1, y1, x2, y2),
        "xywh": lambda: (x1, y1, x2 - x1, y2 - y1),
        "cxcywh": lambda: ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
        "yxyx": lambda: (y1, x1, y2, x2),
    }[target]()
    return stack(converted, axis=-1)


def box_area(boxes):
    """(...) float32 square pixels of boxes (..., 4)."""
    return _area(corners(boxes))


def clip_boxes(boxes, image_sizes):
    """Boxes (B, ..., 4) cut to their images, of height and width (B, 2): float32; outside, no area is left."""
    boxes, sizes = ops.cast(boxes, "float32"), ops.cast(image_sizes, "float32")
    limits = ops.take(sizes, [1, 0, 1, 0], axis=-1)  # (B, 4)
    limits = ops.expand_dims(limits, tuple(range(1, len(boxes.shape) - 1)))
    return ops.minimum(ops.maximum(boxes, 0.0), limits)


# ----- overlaps ------------------------------------------------------------------------------------------------------


def iou(boxes, others):
    """Intersection over union, in [0, 1], of boxes one to one: (..., 4), (..., 4) -> (...). The loss is 1 - iou."""
    return _iou_and_union(corners(boxes), corners(others))[0]


def giou(boxes, others):
    """Generalised IoU, in [-1, 1] (Rezatofighi et al. CVPR 2019, algorithm 1): as `iou`. The loss is 1 - giou."""
    a, b = corners(boxes), corners(others)
    overlap, union = _iou_and_union(a, b)
    hull = _area(_hull(a, b))
    return overlap - _ratio(hull - union, hull)


def ciou(boxes, others):
    """Complete IoU, at most 1 (Zheng et al.: Distance-IoU Loss, 2020, section 3.3): as `iou`; the loss is 1 - ciou.

    The weight alpha of the aspect term is a constant to the gradient, as in the paper's code and torchvision.
    """
    a, b = corners(boxes), corners(others)
    overlap, _ = _iou_and_union(a, b)
    left, top, right, bottom = _hull(a, b)
    diagonal = ops.square(right - left) + ops.square(bottom - top)
    distance = (ops.square(a[0] + a[2] - b[0] - b[2]) + ops.square(a[1] + a[3] - b[1] - b[3])) / 4
    v = 4 / math.pi**2 * ops.square(_aspect_angle(b) - _aspect_angle(a))  # eq. 9
    alpha = ops.stop_gradient(_ratio(v, 1 - overlap + v))  # eq. 11
    return overlap - _ratio(distance, diagonal) - alpha * v  # eq. 7, 10


def pairwise_iou(boxes, others):
    """Intersection over union of each with each: (..., N, 4), (..., M, 4) -> (..., N, M) float32."""
    return _iou_and_union(*_each_with_each(boxes, others))[0]


def pairwise_coverage(boxes, regions):
    """The share of each box's own area that lies in each region, COCO's overlap with a crowd: as `pairwise_iou`."""
    a, b = _each_with_each(boxes, regions)
    return _ratio(_area(_intersection(a, b)), _area(a))


def _each_with_each(boxes, others):
    """Corners that broadcast to (..., N, M)."""
    return [x[..., :, None] for x in corners(boxes)], [x[..., None, :] for x in corners(others)]


def _iou_and_union(a, b):
    intersection = _area(_intersection(a, b))
    union = _area(a) + _area(b) - intersection
    return _ratio(intersection, union), union


def _intersection(a, b):
    return ops.maximum(a[0], b[0]), ops.maximum(a[1], b[1]), ops.minimum(a[2], b[2]), ops.minimum(a[3], b[3])


def _hull(a, b):
    """The smallest box around both."""
    return ops.minimum(a[0], b[0]), ops.minimum(a[1], b[1]), ops.maximum(a[2], b[2]), ops.maximum(a[3], b[3])


def _area(box):
    x1, y1, x2, y2 = box
    return ops.maximum(x2 - x1, 0.0) * ops.maximum(y2 - y1, 0.0)


def _aspect_angle(box):
    x1, y1, x2, y2 = box
    return ops.arctan(ops.maximum(x2 - x1, 0.0) / ops.maximum(y2 - y1, SMALLEST_SIZE))


def _ratio(numerator, denominator):
    """Their quotient, 0 with gradient 0 where the denominator is not positive."""
    some = denominator > 0
    return ops.where(some, numerator / ops.where(some, denominator, 1.0), 0.0)


# ----- regression ----------------------------------------------------------------------------------------------------


def encode_boxes(boxes, proposals, means=(0, 0, 0, 0), deviations=(1, 1, 1, 1)):
    """Regression targets that move `proposals` onto `boxes` (R-CNN, appendix C, eq. 6-9).

    boxes, proposals:   (..., 4), x1 y1 x2 y2 in pixels, of positive width and height; broadcast.
    means, deviations:  of the targets tx, ty, tw, th, which are normalised by them (Fast R-CNN, section 2.3).
                        torchvision's weights 10, 10, 5, 5 are deviations of 0.1, 0.1, 0.2, 0.2.
    Returns             (..., 4) float32: tx, ty in units of the proposal's size, tw, th as log ratios, normalised.
    """
    gx, gy, gw, gh = _centres_and_sizes(boxes)
    px, py, pw, ph = _centres_and_sizes(proposals)
    tx = (gx - px) / pw  # eq. 6
    ty = (gy - py) / ph  # eq. 7
    tw = ops.log(gw / pw)  # eq. 8
    th = ops.log(gh / ph)  # eq. 9
    return (ops.stack([tx, ty, tw, th], axis=-1) - np.array(means, "float32")) / np.array(deviations, "float32")


def decode_boxes(deltas, proposals, means=(0, 0, 0, 0), deviations=(1, 1, 1, 1)):
    """The boxes onto which predicted `deltas` move `proposals` (R-CNN, appendix C, eq. 1-4): undoes `encode_boxes`.

    deltas:     (..., 4), normalised by means and deviations; dw and dh are cut off above `LARGEST_LOG_RATIO`.
    proposals:  (..., 4), x1 y1 x2 y2 in pixels; broadcast against deltas: (..., N, 1, 4) for deltas of each class.
    Returns     (..., 4) float32, not clipped to an image.
    """
    deltas = ops.cast(deltas, "float32") * np.array(deviations, "float32") + np.array(means, "float32")
    dx, dy, dw, dh = corners(deltas)
    px, py, pw, ph = _centres_and_sizes(proposals)
    x = pw * dx + px  # eq. 1
    y = ph * dy + py  # eq. 2
    half_width = 0.5 * pw * ops.exp(ops.minimum(dw, LARGEST_LOG_RATIO))  # eq. 3
    half_height = 0.5 * ph * ops.exp(ops.minimum(dh, LARGEST_LOG_RATIO))  # eq. 4
    return ops.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)


def _centres_and_sizes(boxes):
    """x, y, width, height, each (...) float32."""
    x1, y1, x2, y2 = corners(boxes)
    width, height = ops.maximum(x2 - x1, SMALLEST_SIZE), ops.maximum(y2 - y1, SMALLEST_SIZE)
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height
