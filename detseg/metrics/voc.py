"""Average precision of boxes as the PASCAL VOC devkit computes it (VOCevaldet.m, VOCap.m)."""

from typing import NamedTuple

import numpy as np
from pycocotools import mask as rle

MIN_OVERLAP = 0.5


class PrecisionRecall(NamedTuple):
    """What a detector reaches with the detections down to each score, at IoU 0.5.

    recall, precision, scores:  float64 (N,), scores descending; detections that count nowhere are left out. Recall is
                                nan where there is nothing to be found.
    object_count:               the objects to be found.
    """

    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray
    object_count: int

    def average(self, rule):
        """Average precision by `eleven_point_average` or `area_average`; nan where there is nothing to be found."""
        return rule(self.recall, self.precision) if self.object_count else float("nan")


class VocScores:
    """Collects true and found boxes of a split, image by image.

    Every detection belongs to the true box of its class that it overlaps most (of equals to the first), if IoU >= 0.5.
    In the order of falling scores the first detection of a box is right; the others, duplicates, are false positives
    like those that belong to no box, even where another box is free. What belongs to a difficult box counts nowhere,
    and difficult boxes needn't be found. Detections of equal score stay in the order of `update`.

    Boxes are half-open. VOC's inclusive ones become that by xmin - 1, ymin - 1, so that the devkit's widths
    xmax - xmin + 1 and therefore its IoUs come out exactly.

    classes:  names, index = label.
    """

    def __init__(self, classes):
        self._classes = classes
        self._truth = []  # of each image: labels (G,), difficult (G,)
        self._found = []  # of each image: labels (D,), scores (D,), the box that each belongs to (D,)
        self._box_count = 0

    def update(self, true_boxes, true_labels, boxes, labels, scores, difficult=None):
        """Adds an image.

        true_boxes:   float (G, 4), true_labels int (G,).
        boxes:        float (D, 4), those found; labels int (D,), scores float (D,).
        difficult:    bool (G,); None for none.
        """
        true_labels, labels = np.asarray(true_labels, np.int64), np.asarray(labels, np.int64)
        difficult = np.zeros(len(true_labels), bool) if difficult is None else np.asarray(difficult, bool)
        owners = np.full(len(labels), -1)
        if len(true_labels) and len(labels):
            overlaps = box_overlaps(boxes, true_boxes) * (labels[:, None] == true_labels)  # (D, G)
            nearest = overlaps.argmax(1)
            is_owned = overlaps.max(1) >= MIN_OVERLAP
            owners[is_owned] = self._box_count + nearest[is_owned]
        self._box_count += len(true_labels)
        self._truth.append((true_labels, difficult))
        self._found.append((labels, np.asarray(scores, np.float64), owners))

    def curves(self):
        """{name: PrecisionRecall} of every class."""
        true_labels, difficult = _joined(self._truth, (np.int64, bool))
        labels, scores, owners = _joined(self._found, (np.int64, np.float64, np.int64))
        counts = np.bincount(true_labels[~difficult], minlength=len(self._classes))
        is_ignored = (owners >= 0) & np.append(difficult, False)[owners]  # -1, no owner, reads the last
        curves = {}
        for label, name in enumerate(self._classes):
            chosen = np.flatnonzero((labels == label) & ~is_ignored)
            chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
            curves[name] = _curve(owners[chosen], scores[chosen], counts[label])
        return curves

    def result(self):
        """The scores; undefined ones are nan, and left out of the means.

        Returns  dict: mAP07 (11 points), mAP (area), per_class {name: {AP07, AP}}.
        """
        per_class = {
            name: {"AP07": curve.average(eleven_point_average), "AP": curve.average(area_average)}
            for name, curve in self.curves().items()
        }
        means = {key: _mean_of_defined([scores[key] for scores in per_class.values()]) for key in ("AP07", "AP")}
        return {"mAP07": means["AP07"], "mAP": means["AP"], "per_class": per_class}


def eleven_point_average(recall, precision):
    """Average precision of VOC2007: the mean over recalls 0, 0.1 .. 1 of the best precision at that recall or more.

    recall, precision:  float (N,) in the order of falling scores.
    """
    # In floating point as the devkit has them: 3 * 0.1 is a little more than 0.3, and a recall of 3 / 10 too little.
    thresholds = 0.1 * np.arange(11)
    return float(np.mean([precision[recall >= threshold].max(initial=0.0) for threshold in thresholds]))


def area_average(recall, precision):
    """Average precision since VOC2010: the area below the curve after precision is made monotone, from the right.

    Arguments as of `eleven_point_average`.
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def box_overlaps(boxes, others, is_crowd=None):
    """IoU of each box with each other one, as COCO and VOC define it.

    boxes:      float (N, 4), others (M, 4), x1 y1 x2 y2.
    is_crowd:   bool (M,), others of which COCO takes the share of the box that lies in them; None for none.
    Returns     float64 (N, M).
    """
    boxes, others = (np.asarray(array, np.float64).reshape(-1, 4) for array in (boxes, others))
    is_crowd = np.zeros(len(others), np.uint8) if is_crowd is None else np.asarray(is_crowd, np.uint8)
    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))
    as_xywh = (np.concatenate([array[:, :2], array[:, 2:] - array[:, :2]], axis=1) for array in (boxes, others))
    return rle.iou(*as_xywh, is_crowd)


def _curve(owners, scores, count):
    """The curve of one class from its detections in order: `owners` (N,), -1: none, and the `count` of boxes."""
    _, firsts = np.unique(owners, return_index=True)
    is_right = np.zeros(len(owners), bool)
    is_right[firsts] = True
    is_right &= owners >= 0
    hits = np.cumsum(is_right)
    recall = hits / count if count else np.full(len(hits), np.nan)
    return PrecisionRecall(recall, hits / np.arange(1, len(hits) + 1), scores, int(count))


def _joined(parts, dtypes):
    columns = zip(*parts, strict=True) if parts else [()] * len(dtypes)
    return [np.concatenate([np.zeros(0, dtype), *column]) for dtype, column in zip(dtypes, columns, strict=True)]


def _mean_of_defined(values):
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
