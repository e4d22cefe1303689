"""Which object an anchor or a proposal is to find, if any (Faster R-CNN, section 3.1.2; Fast R-CNN, section 2.3)."""

import keras
from keras import ops

from detseg.detection.boxes import corners, pairwise_coverage, pairwise_iou

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1
CROWD_COVERAGE = 0.5  # the least of COCO's IoU thresholds, at which its evaluation forgives a detection in a crowd


def match(anchors, boxes, valid, foreground=0.5, background=(0.0, 0.5), low_quality=False, crowd=None, usable=None):
    """The ground truth box that overlaps each anchor most, and whether the anchor stands for it.

    anchors:      (N, 4), or (B, N, 4) of each image: anchors or proposals.
    boxes:        (B, G, 4), ground truth, padded to G boxes an image; G may be 0.
    valid:        (B, G) bool, False for padding.
    foreground:   an anchor is foreground if its largest IoU reaches this.
    background:   (low, high): it is background if that is in [low, high): Fast R-CNN has (0.1, 0.5), RPN (0, 0.3).
                  What is neither is ignored.
    low_quality:  bool: every anchor that has a box's largest IoU, ties included, is foreground too, and stands for the
                  box that it overlaps most itself, which may be another one. As in torchvision's Matcher, but that a
                  box which no anchor overlaps makes none foreground (there: all anchors that don't overlap it).
    crowd:        None or (B, G) bool: regions of many objects. They match nothing, and background that lies in one to
                  more than `CROWD_COVERAGE` of its own area is ignored.
    usable:       None, (N,) or (B, N) bool: other anchors are ignored and are no box's best: padded proposals, or
                  anchors that reach out of the image (`inside_image`).
    Returns       (matched, state), both (B, N) int32. matched: 0..G-1, the box of largest IoU, of equals the first; 0
                  where none overlaps. state: `FOREGROUND`, `BACKGROUND` or `IGNORED`.
    """
    anchors, boxes = ops.stop_gradient(anchors), ops.stop_gradient(boxes)
    boxes, valid, crowd = _with_a_box(boxes, valid, crowd)
    objects = valid if crowd is None else ops.logical_and(valid, ops.logical_not(crowd))
    counted = objects[:, None, :]  # (B, 1 or N, G)
    if usable is not None:
        usable = usable if len(usable.shape) == 2 else usable[None]
        counted = ops.logical_and(counted, usable[:, :, None])
    overlaps = ops.where(counted, pairwise_iou(anchors, boxes), -1.0)  # (B, N, G)
    matched = ops.cast(ops.argmax(overlaps, axis=-1), "int32")
    largest = ops.maximum(ops.max(overlaps, axis=-1), 0.0)  # (B, N)

    is_foreground = largest >= foreground
    if low_quality:
        best = ops.max(overlaps, axis=1, keepdims=True)  # (B, 1, G)
        is_best = ops.logical_and(ops.equal(overlaps, best), best > 0)
        is_foreground = ops.logical_or(is_foreground, ops.any(is_best, axis=-1))
    low, high = background
    is_background = ops.logical_and(largest >= low, largest < high)
    if crowd is not None:
        coverage = pairwise_coverage(anchors, boxes)
        in_crowd = ops.logical_and(coverage > CROWD_COVERAGE, ops.logical_and(valid, crowd)[:, None, :])
        is_background = ops.logical_and(is_background, ops.logical_not(ops.any(in_crowd, axis=-1)))
    state = ops.where(is_foreground, FOREGROUND, ops.where(is_background, BACKGROUND, IGNORED))
    if usable is not None:
        state = ops.where(usable, state, IGNORED)
    return matched, ops.cast(state, "int32")


def inside_image(anchors, image_sizes, border=0.0):
    """Which anchors reach out of their image by `border` pixels at most (Faster R-CNN, section 3.3).

    anchors:      (N, 4).
    image_sizes:  (B, 2), height and width.
    Returns       (B, N) bool.
    """
    x1, y1, x2, y2 = corners(anchors)
    sizes = ops.cast(image_sizes, "float32")
    heights, widths = sizes[:, :1], sizes[:, 1:]  # (B, 1)
    inside = ops.logical_and(x1 >= -border, y1 >= -border)  # (N,)
    return ops.logical_and(inside, ops.logical_and(x2 <= widths + border, y2 <= heights + border))


def without_padding(objects):
    """Ground truth with room for no more objects than the fullest image has, where shapes may depend on data.

    Every anchor is compared with every place for an object, and the fullest image of a data set may have a hundred.
    """
    if keras.backend.backend() != "tensorflow":
        return objects
    import tensorflow as tf

    is_object = tf.reduce_any(objects["labels"] >= 0, axis=0)  # (G,)
    most = tf.reduce_max(tf.where(is_object, tf.range(1, tf.size(is_object) + 1), 0))
    return {key: value if key == "image_sizes" else value[:, :most] for key, value in objects.items()}


def _with_a_box(boxes, valid, crowd):
    """The ground truth, with one box of padding where there might be none: the best of nothing is not defined."""
    if boxes.shape[1]:
        return boxes, valid, crowd
    boxes = ops.pad(boxes, [(0, 0), (0, 1), (0, 0)])
    valid, crowd = (None if mask is None else ops.pad(mask, [(0, 0), (0, 1)]) for mask in (valid, crowd))
    return boxes, valid, crowd
