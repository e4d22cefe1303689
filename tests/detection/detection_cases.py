"""One chain through all parts of a detector, that every backend and compiler must take with the same result."""

import numpy as np
from keras import ops

from detseg.detection.anchors import Anchors
from detseg.detection.boxes import ciou, decode_boxes, encode_boxes, giou, iou
from detseg.detection.matching import match_boxes
from detseg.detection.nms import NO_SCORE, best_pairs, is_at_least, suppress, take_rows
from detseg.detection.proposals import sample, sample_proposals, select_proposals
from detseg.detection.roi_align import roi_align, roi_pool

STRIDES = (4, 8)
SIZES = ((12, 16), (6, 8))
IMAGE_SIZES = ((48, 64), (40, 60))
CLASSES = 3


def inputs():
    """Two images with padded ground truth; the second has a crowd and no object."""
    rng = np.random.default_rng(0)
    anchors = sum(height * width * 3 for height, width in SIZES)
    arrays = {
        "fine": rng.normal(size=(2, *SIZES[0], 4)),
        "coarse": rng.normal(size=(2, *SIZES[1], 4)),
        "objectness": rng.normal(size=(2, anchors)),
        "deltas": rng.normal(size=(2, anchors, 4)) * 0.2,
        "scores": rng.uniform(size=(2, 50, CLASSES)),
        "boxes": np.array([[[8, 8, 40, 40], [3, 5, 20, 30], [0, 0, 0, 0]], [[0, 0, 64, 30], [0] * 4, [0] * 4]]),
    }
    return {name: np.asarray(array, "float32") for name, array in arrays.items()}


def best_candidates(boxes, scores, threshold=0.05, count=1000, min_size=1e-2):
    """Of boxes (B, N, K or 1, 4) of each class, or of all, and scores (B, N, K) the best pairs of a box and a class of
    scores above the threshold: boxes (B, count, 4), labels, scores, valid (B, count)."""
    batch, number, classes = ops.shape(boxes)[0], ops.shape(boxes)[1], scores.shape[-1]
    scores = ops.where(is_at_least(boxes, min_size), scores, NO_SCORE)
    scores, places = best_pairs(scores, threshold, count)
    rows = places if boxes.shape[2] > 1 else places // classes
    boxes = take_rows(ops.reshape(boxes, (batch, number * boxes.shape[2], 4)), rows)
    return boxes, places % classes, scores, scores > NO_SCORE


def postprocess(boxes, scores, threshold=0.05, iou_threshold=0.5, count=100, candidates=1000, under_xla=False):
    """Detections: the `best_candidates` that are left after suppression within each class."""
    return suppress(*best_candidates(boxes, scores, threshold, candidates), iou_threshold, count, under_xla)


def detect(arrays, under_xla=False):
    """(scalar that has a gradient in "fine", "coarse" and "deltas", {name: result})."""
    maps, boxes = [arrays["fine"], arrays["coarse"]], arrays["boxes"]
    valid = ops.convert_to_tensor(np.array([[True, True, False], [True, False, False]]))
    crowd = ops.convert_to_tensor(np.array([[False, False, False], [True, False, False]]))
    image_sizes = ops.convert_to_tensor(np.array(IMAGE_SIZES, "float32"))
    levels = Anchors((12, 24), STRIDES)((48, 64), SIZES)
    anchors = ops.concatenate(levels, axis=0)
    heights, widths = image_sizes[:, :1], image_sizes[:, 1:]
    inside = (ops.min(anchors, axis=1) >= -8) & (anchors[:, 2] <= widths + 8) & (anchors[:, 3] <= heights + 8)
    matched, states = match_boxes(anchors, boxes, valid, 0.7, (0.0, 0.3), True, crowd, inside)
    targets = encode_boxes(take_rows(boxes, matched), anchors)
    first = levels[0].shape[0]
    proposals, ranks, exists = select_proposals(
        [arrays["objectness"][:, :first], arrays["objectness"][:, first:]],
        [arrays["deltas"][:, :first], arrays["deltas"][:, first:]],
        levels,
        image_sizes,
        max_candidates=100,
        max_proposals=50,
        iou_threshold=0.7,
        under_xla=under_xla,
    )
    _, sampled = sample(states, 64, 0.5, seed=1)
    _, _, is_foreground, drawn = sample_proposals(proposals, exists, boxes, valid, crowd, 0.5, (0.0, 0.5), 16, 0.25, 2)
    not_aligned = roi_align(maps, proposals, STRIDES, 3, 1, False, (16, 2), under_xla)
    aligned = roi_align(maps, proposals, STRIDES, 3, 1, True, (16, 2), under_xla)
    pooled = roi_pool(maps[1], proposals, 8, 3)
    found = postprocess(proposals[:, :, None], arrays["scores"], 0.85, 0.5, 20, 60, under_xla=under_xla)
    decoded = decode_boxes(arrays["deltas"], anchors)
    losses = [1 - ops.mean(overlap(decoded, take_rows(boxes, matched))) for overlap in (iou, giou, ciou)]
    results = {
        "matched": matched, "states": states, "targets": targets, "proposals": proposals, "ranks": ranks,
        "sampled": ops.sum(ops.cast(sampled, "int32"), axis=1), "drawn": ops.sum(ops.cast(drawn, "int32"), axis=1),
        "foreground": ops.sum(ops.cast(is_foreground, "int32"), axis=1), "aligned": aligned,
        "not aligned": not_aligned, "pooled": pooled, "losses": ops.stack(losses),
        **dict(zip(("found", "labels", "scores", "valid"), found, strict=True)),
    }  # fmt: skip
    features = sum(ops.mean(ops.square(x)) for x in (not_aligned, aligned, pooled))
    return features + sum(losses), results
