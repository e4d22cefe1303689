"""Average precision of boxes, or masks, as the PASCAL VOC devkit computes it (VOCevaldet.m, VOCap.m)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from detseg.metrics.arrays import (
    Array,
    Flags,
    Masks,
    as_boxes,
    as_column,
    as_labels,
    as_rles,
    mean_of_defined,
    to_xywh,
)

MIN_OVERLAP = 0.5


class PrecisionRecall(NamedTuple):
    """What a detector reaches with the detections down to each score.

    recall, precision, scores:  float64 (N,), scores descending; without detections that count nowhere.
    object_count:               the objects to be found; where there are none, recall is nan.
    """

    recall: NDArray
    precision: NDArray
    scores: NDArray
    object_count: int

    def average(self, rule: Callable[[NDArray, NDArray], float]) -> float:
        """Average precision by `eleven_point_average` or `area_average`; nan where there is nothing to be found."""
        return rule(self.recall, self.precision) if self.object_count else float("nan")


class VocScores:
    """Collects true and found boxes, or masks, of a split, image by image.

    Every detection belongs to the true box of its class that it overlaps most (of equals to the first), if IoU >=
    min_overlap. In the order of falling scores, of equals in that of `update`, the first detection of a box is right;
    the others are false positives like those that belong to no box, even where another box is free. What belongs to a
    difficult box counts nowhere, and difficult boxes needn't be found.

    Boxes are half-open: the devkit's IoUs come out exactly where VOC's inclusive boxes become xmin - 1, ymin - 1.

    classes:  names, index = label.
    masks:    bool, whether objects are masks, which overlap by their pixels (Hariharan et al.: Simultaneous Detection
              and Segmentation, ECCV 2014: AP^r), in the place of boxes.
    """

    def __init__(self, classes: Sequence[str], min_overlap: float = MIN_OVERLAP, masks: bool = False):
        self.min_overlap = min_overlap
        self._overlaps = mask_overlaps if masks else box_overlaps
        self._as_objects = as_rles if masks else as_boxes
        self._classes = classes
        none = np.zeros(0, np.int64)
        self._truth = [(none, none.astype(bool))]  # of each image: labels (G,), difficult (G,)
        self._found = [(none, none.astype(float), none)]  # labels (D,), scores (D,), the box each belongs to (D,)
        self._box_count = 0

    def update(
        self,
        truth: Array | Masks,
        true_labels: Array,
        found: Array | Masks,
        labels: Array,
        scores: Array,
        difficult: Flags = None,
    ) -> None:
        """Adds an image as `DetectionScores.update`, of boxes or masks. difficult: bool (G,); None for none."""
        kind = "masks" if self._as_objects is as_rles else "boxes"
        truth, found = self._as_objects(truth, f"true_{kind}"), self._as_objects(found, kind)
        known = range(len(self._classes))
        true_labels = as_labels(true_labels, len(truth), known, "true_labels")
        labels, scores = as_labels(labels, len(found), known), as_column(scores, len(found), np.float64, "scores")
        difficult = as_column(difficult, len(truth), bool, "difficult")
        owners = np.full(len(labels), -1)
        if true_labels.size and labels.size:
            overlaps = self._overlaps(found, truth) * (labels[:, None] == true_labels)  # (D, G)
            nearest = overlaps.argmax(1)
            is_owned = overlaps.max(1) >= self.min_overlap
            owners[is_owned] = self._box_count + nearest[is_owned]
        self._box_count += len(true_labels)
        self._truth.append((true_labels, difficult))
        self._found.append((labels, scores, owners))

    def curves(self) -> dict[str, PrecisionRecall]:
        """{name: PrecisionRecall} of every class."""
        true_labels, difficult = map(np.concatenate, zip(*self._truth, strict=True))
        labels, scores, owners = map(np.concatenate, zip(*self._found, strict=True))
        counts = np.bincount(true_labels[~difficult], minlength=len(self._classes))
        is_ignored = (owners >= 0) & np.append(difficult, False)[owners]  # -1, no owner, reads the last
        curves = {}
        for label, name in enumerate(self._classes):
            chosen = np.flatnonzero((labels == label) & ~is_ignored)
            chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
            is_right = np.zeros(len(chosen), bool)
            is_right[np.unique(owners[chosen], return_index=True)[1]] = True  # the first detection of each box
            hits, count = np.cumsum(is_right & (owners[chosen] >= 0)), int(counts[label])
            recall = hits / count if count else np.full(len(hits), np.nan)
            curves[name] = PrecisionRecall(recall, hits / np.arange(1, len(hits) + 1), scores[chosen], count)
        return curves

    def result(self) -> dict:
        """The scores; undefined ones are nan, and left out of the means.

        Returns  dict: mAP07 (11 points), mAP (area), per_class {name: {AP07, AP}}.
        """
        per_class = {
            name: {"AP07": curve.average(eleven_point_average), "AP": curve.average(area_average)}
            for name, curve in self.curves().items()
        }
        means = {f"m{key}": mean_of_defined([scores[key] for scores in per_class.values()]) for key in ("AP07", "AP")}
        return means | {"per_class": per_class}


def eleven_point_average(recall: NDArray, precision: NDArray) -> float:
    """Average precision of VOC2007: the mean over recalls 0, 0.1 .. 1 of the best precision at that recall or more.

    recall, precision:  float (N,) in the order of falling scores.
    """
    # In floating point as the devkit has them: 3 * 0.1 is a little more than 0.3, and a recall of 3 / 10 too little.
    thresholds = 0.1 * np.arange(11)
    return float(np.mean([precision[recall >= threshold].max(initial=0.0) for threshold in thresholds]))


def area_average(recall: NDArray, precision: NDArray) -> float:
    """Average precision since VOC2010: the area below the curve after precision is made monotone, from the right."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def box_overlaps(boxes: Array, others: Array, is_crowd: Flags = None) -> NDArray[np.float64]:
    """IoU of each box with each other one, as COCO and VOC define it.

    boxes:      float (N, 4), others (M, 4), x1 y1 x2 y2.
    is_crowd:   bool (M,), others of which COCO takes the share of the box that lies in them; None for none.
    Returns     float64 (N, M).
    """
    boxes, others = as_boxes(boxes), as_boxes(others, "others")
    is_crowd = as_column(is_crowd, len(others), bool, "is_crowd").astype(np.uint8)
    if not boxes.size or not others.size:
        return np.zeros((len(boxes), len(others)))
    return rle.iou(to_xywh(boxes), to_xywh(others), is_crowd)


def mask_overlaps(masks: Sequence[dict], others: Sequence[dict]) -> NDArray[np.float64]:
    """IoU of each of N compressed RLEs with each of M others: float64 (N, M)."""
    if not len(masks) or not len(others):
        return np.zeros((len(masks), len(others)))
    return np.asarray(rle.iou(list(masks), list(others), [0] * len(others)))
