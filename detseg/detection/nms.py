"""Non-maximum suppression: from many overlapping candidates to a fixed number of detections."""

import keras
import numpy as np
from keras import ops

from detseg.detection.boxes import corners, pairwise_iou

NO_SCORE = float(np.finfo("float32").min)  # of what must never be chosen


def best_pairs(scores, score_threshold, count):
    """The `count` (C) pairs of a box and a class that score highest, above score_threshold.

    scores:   (B, N, K), without background.
    Returns   scores (B, C), `NO_SCORE` where there is none; places (B, C) int32: place // K is the box, % K the class.
    """
    batch, boxes, classes = ops.shape(scores)
    ranked = ops.where(scores > score_threshold, scores, NO_SCORE)
    return top_rows(ops.reshape(ranked, (batch, boxes * classes)), count)


def suppress(boxes, labels, scores, valid, iou_threshold=0.5, max_detections=100, under_xla=False, carried=()):
    """What is left of candidates after `nms` for each label by itself.

    boxes, labels, scores, valid:  (B, C, 4), (B, C) int, (B, C), (B, C) bool.
    carried:   more arrays (B, C, 4).
    Returns the same of D = max_detections each, by falling score; zeros and the label -1 where not valid.
    """
    indices, kept = nms(boxes, scores, iou_threshold, max_detections, valid, labels, under_xla)
    boxes, *carried = (ops.where(kept[..., None], take_rows(array, indices), 0.0) for array in (boxes, *carried))
    labels = ops.where(kept, take_rows(labels, indices), -1)
    return boxes, labels, ops.where(kept, take_rows(scores, indices), 0.0), kept, *carried


def nms(boxes, scores, iou_threshold, max_detections, valid=None, labels=None, under_xla=False):
    """Greedy non-maximum suppression in every image.

    The box of highest score, of equals the first, is kept, and all that overlap it by an IoU above the threshold are
    dropped; then the next of the rest, and so on.

    boxes:           (B, N, 4), valid ones of positive size; N may be 0.
    scores:          (B, N), finite.
    max_detections:  D, the number that is kept at most.
    valid:           None or (B, N) bool: the others don't take part.
    labels:          None or (B, N) int >= 0: boxes with different labels don't suppress each other.
    under_xla:       bool, whether XLA compiles this (model.jit_compile, tf.function(jit_compile=True)), where
                     TensorFlow's kernels don't work; there is no way to see that from here.
    Returns          indices (B, D) int32 into N by falling score, 0 where not kept; kept (B, D) bool.
    """
    boxes, scores = ops.stop_gradient(ops.cast(boxes, "float32")), ops.stop_gradient(ops.cast(scores, "float32"))
    if valid is not None:
        scores = ops.where(valid, scores, NO_SCORE)
    if keras.backend.backend() == "tensorflow" and not under_xla:
        return _nms_by_kernel(boxes, scores, labels, iou_threshold, max_detections)
    return _nms_by_fixpoint(boxes, scores, labels, iou_threshold, max_detections)


def _nms_by_fixpoint(boxes, scores, labels, iou_threshold, max_detections):
    """Every backend: who is kept follows from who is kept among the better ones, until nothing changes; no other set
    than the greedy choice is its own consequence."""
    scores, order = ops.top_k(scores, ops.shape(scores)[1])  # equals stay in order
    boxes = take_rows(boxes, order)
    exists = scores > NO_SCORE  # (B, N)
    rank = ops.arange(ops.shape(scores)[1])
    beats = ops.logical_and(pairwise_iou(boxes, boxes) > iou_threshold, rank[:, None] < rank[None, :])  # (B, N, N)
    if labels is not None:
        labels = take_rows(labels, order)
        beats = ops.logical_and(beats, ops.equal(labels[:, :, None], labels[:, None, :]))
    beats = ops.cast(beats, "float32")

    def step(kept, _):
        beaten = ops.matmul(ops.cast(kept, "float32")[:, None, :], beats)[:, 0] > 0
        still = ops.logical_and(exists, ops.logical_not(beaten))
        return still, ops.any(ops.not_equal(still, kept))

    kept, _ = ops.while_loop(lambda kept, changed: changed, step, (exists, ops.convert_to_tensor(True)))
    kept, places = top_rows(ops.cast(kept, "float32"), max_detections)
    kept = kept > 0
    return ops.where(kept, take_rows(order, places), 0), kept


def _nms_by_kernel(boxes, scores, labels, iou_threshold, max_detections):
    """TensorFlow's own kernel, image by image, the boxes of each label in a cell of a square grid to themselves. That
    rounds their corners to float32 at the grid's size: 1e-3 pixels for 80 classes in an image of 1333 pixels."""
    import tensorflow as tf

    if labels is not None:
        reach = ops.max(ops.abs(boxes), axis=(1, 2), initial=0.0)[:, None]  # (B, 1)
        columns = ops.ceil(ops.sqrt(ops.cast(ops.max(labels, initial=0) + 1, "float32")))
        labels = ops.cast(labels, "float32")
        row = ops.floor((labels + 0.5) / columns)
        cell = ops.stack([labels - row * columns, row], axis=-1) * (2 * reach + 1)[..., None]  # (B, N, 2)
        boxes = boxes + ops.concatenate([cell, cell], axis=-1)

    def of_an_image(inputs):
        most = {"max_output_size": max_detections, "pad_to_max_output_size": True}
        least = {"iou_threshold": iou_threshold, "score_threshold": NO_SCORE}  # a score must be above it
        indices, count = tf.raw_ops.NonMaxSuppressionV4(boxes=inputs[0], scores=inputs[1], **most, **least)
        return tf.ensure_shape(indices, (max_detections,)), tf.range(max_detections) < count

    if boxes.shape[0] is None:
        return tf.map_fn(of_an_image, (boxes, scores), fn_output_signature=(tf.int32, tf.bool))
    indices, kept = zip(*[of_an_image(x) for x in zip(tf.unstack(boxes), tf.unstack(scores), strict=True)], strict=True)
    return tf.stack(indices), tf.stack(kept)


def top_rows(scores, count):
    """The highest scores of each image, of equals the first, also where N, static or not, is less than `count`.

    scores:   (B, N) float32.
    Returns   scores (B, count), `NO_SCORE` where there is none; places (B, count) int32 in N, 0 where there is none.
    """
    present = ops.shape(scores)[1]
    if isinstance(present, int) and present >= count:
        return ops.top_k(scores, count)
    missing = count - present if isinstance(present, int) else ops.maximum(count - present, 0)
    scores = ops.pad(scores, [(0, 0), (0, missing)], constant_values=NO_SCORE)
    scores, places = ops.top_k(scores, count)
    return scores, ops.where(places < present, places, 0)


def take_rows(values, indices):
    """Rows of each image by index: values (B, N, ...), indices (B, D) int -> (B, D, ...); zeros where N is 0."""
    if not values.shape[1]:
        values = ops.pad(values, [(0, 0), (0, 1), *[(0, 0)] * (len(values.shape) - 2)])
    batch, rows = ops.shape(values)[:2]
    flat = ops.reshape(values, (batch * rows, *ops.shape(values)[2:]))
    starts = ops.cast(ops.arange(batch) * rows, "int32")[:, None]  # (B, 1)
    return ops.take(flat, starts + ops.cast(indices, "int32"), axis=0)


def is_at_least(boxes, min_size):
    """Which boxes (..., 4) are `min_size` pixels wide and high: (...) bool."""
    x1, y1, x2, y2 = corners(boxes)
    return ops.logical_and(x2 - x1 >= min_size, y2 - y1 >= min_size)
