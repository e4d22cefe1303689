"""Which object an anchor or a proposal is to find, if any (Faster R-CNN, section 3.1.2; Fast R-CNN, section 2.3)."""

import keras
from keras import ops

from detseg.detection.boxes import pairwise_coverage, pairwise_iou

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1
CROWD_COVERAGE = 0.5  # the least of COCO's IoU thresholds, at which its evaluation forgives a detection in a crowd


def match(overlaps, foreground=0.5, background=(0.0, 0.5), low_quality=False):
    """The ground truth box that overlaps each anchor most, and whether the anchor stands for it.

    overlaps:     (..., N, G) float, IoU of N anchors or proposals with G boxes; negative where the two can't be a pair.
                  N and G may be 0.
    foreground:   an anchor is foreground if its largest IoU reaches this.
    background:   (low, high): it is background if that is in [low, high): Fast R-CNN has (0.1, 0.5), RPN (0, 0.3).
                  What is neither is ignored.
    low_quality:  bool, whether the anchors that overlap a box most, ties included, are foreground however small that
                  IoU is. Such an anchor too stands for the box that it overlaps most itself: perhaps another one. This
                  is torchvision's rule, but there a box that no anchor overlaps makes all anchors foreground.
    Returns       (matched, state), both (..., N) int32. matched: 0..G-1, the box of largest IoU, of equals the first; 0
                  where none overlaps. state: `FOREGROUND`, `BACKGROUND` or `IGNORED`.
    """
    overlaps = ops.stop_gradient(ops.cast(overlaps, "float32"))
    if not overlaps.shape[-1]:  # none, or nobody knows: the largest of nothing isn't defined
        overlaps = ops.pad(overlaps, [*[(0, 0)] * (len(overlaps.shape) - 1), (0, 1)], constant_values=-1.0)
    matched = ops.cast(ops.argmax(overlaps, axis=-1), "int32")
    largest = ops.max(overlaps, axis=-1, initial=0.0)  # (..., N)
    is_foreground = largest >= foreground
    if low_quality:
        best = ops.max(overlaps, axis=-2, keepdims=True, initial=-1.0)  # (..., 1, G)
        is_best = ops.logical_and(ops.equal(overlaps, best), best > 0)
        is_foreground = ops.logical_or(is_foreground, ops.any(is_best, axis=-1))
    is_background = ops.logical_and(largest >= background[0], largest < background[1])
    state = ops.where(is_foreground, FOREGROUND, ops.where(is_background, BACKGROUND, IGNORED))
    return matched, ops.cast(state, "int32")


def match_boxes(
    anchors, boxes, valid, foreground=0.5, background=(0.0, 0.5), low_quality=False, crowd=None, usable=None
):
    """`match` of anchors or proposals, (N, 4) or (B, N, 4), with a batch's ground truth: (B, N) each.

    boxes, valid:  (B, G, 4), and (B, G) bool, False for padding; G may be 0.
    crowd:         None or (B, G) bool: regions of many objects. They match nothing, and background that lies in one to
                   more than `CROWD_COVERAGE` of its own area is ignored.
    usable:        None or (B, N) bool: other anchors, such as padded proposals, are ignored and are no box's best.
    """
    anchors, boxes = ops.stop_gradient(anchors), ops.stop_gradient(boxes)
    objects = valid if crowd is None else ops.logical_and(valid, ops.logical_not(crowd))
    counted = objects[:, None, :]  # (B, 1 or N, G)
    if usable is not None:
        counted = ops.logical_and(counted, usable[:, :, None])
    overlaps = ops.where(counted, pairwise_iou(anchors, boxes), -1.0)  # (B, N, G)
    matched, state = match(overlaps, foreground, background, low_quality)
    if crowd is not None:
        coverage = pairwise_coverage(anchors, boxes)
        in_crowd = ops.logical_and(coverage > CROWD_COVERAGE, ops.logical_and(valid, crowd)[:, None, :])
        is_forgiven = ops.logical_and(ops.equal(state, BACKGROUND), ops.any(in_crowd, axis=-1))
        state = ops.where(is_forgiven, IGNORED, state)
    if usable is not None:
        state = ops.where(usable, state, IGNORED)
    return matched, state


def without_padding(objects):
    """Ground truth with room for no more objects than the fullest image has, where shapes may depend on data."""
    if keras.backend.backend() != "tensorflow":
        return objects
    import tensorflow as tf

    is_object = tf.reduce_any(objects["labels"] >= 0, axis=0)  # (G,)
    most = tf.reduce_max(tf.where(is_object, tf.range(1, tf.size(is_object) + 1), 0))
    of_objects = ("boxes", "labels", "is_crowd", "masks")
    return {key: value[:, :most] if key in of_objects else value for key, value in objects.items()}


def rows_to_compute(is_needed, under_xla):
    """How many of the first rows hold all that are needed in any image, at least 1; N where shapes may not depend on
    data.

    is_needed:  (B, N) bool.
    """
    if keras.backend.backend() != "tensorflow" or under_xla:
        return is_needed.shape[1]
    import tensorflow as tf

    last = tf.where(is_needed, tf.range(1, tf.shape(is_needed)[1] + 1), 1)
    return tf.reduce_max(last)
