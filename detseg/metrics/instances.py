"""Scores of instance masks over a split: COCO's average precision and that of the Data Science Bowl 2018."""

from collections.abc import Mapping

import numpy as np
from pycocotools import mask as rle
from scipy.optimize import linear_sum_assignment

from detseg.metrics.arrays import Array, Flags, Masks, as_column, as_labels, as_rles, mean_of_defined
from detseg.metrics.coco import IOU_THRESHOLDS, CocoScores, CocoSettings


class InstanceScores:
    """Collects true and found instances of a split, image by image.

    coco      `CocoScores` of masks.
    dsb_ap    the Data Science Bowl's: TP / (TP + FP + FN) of an image at each IoU threshold 0.5, 0.55 .. 0.95, matched
              at IoU > threshold without regard to scores; the mean over thresholds, then over images. An image with
              neither true nor found instances is undefined and left out; one with found ones only has 0.
    f1_50     2 TP / (2 TP + FP + FN) at IoU > 0.5, counted over the split.

    In the last two, as many instances as can be are matched, one to one and within their class, and as in COCO a crowd
    needn't be found: what lies in it, by more than the threshold of its own area, and has no match counts nowhere.

    classes:  {label: name} of the object classes.
    coco:     thresholds other than COCO's in COCO's figures.
    """

    def __init__(self, classes: Mapping[int, str], coco: CocoSettings | None = None):
        self._classes = classes
        self._coco = CocoScores(classes, "segm", settings=coco)
        self._average_precisions = []  # the Data Science Bowl's, of each image
        self._counts_at_50 = np.zeros(3, np.int64)  # TP, FP, FN

    def update(
        self,
        true_masks: Masks,
        true_labels: Array,
        masks: Masks,
        labels: Array,
        scores: Array,
        true_crowds: Flags = None,
        image_id: int | str | None = None,
    ) -> None:
        """Adds an image.

        true_masks:  T compressed RLEs or bool (T, H, W); they may overlap.
        masks:       N of the same, those found; labels int (N,), scores float (N,); the rest as in `CocoScores.update`.
        """
        true_masks, masks = as_rles(true_masks, "true_masks"), as_rles(masks)
        true_labels = as_labels(true_labels, len(true_masks), self._classes, "true_labels")
        labels = as_labels(labels, len(masks), self._classes)
        crowds = as_column(true_crowds, len(true_masks), bool, "true_crowds")
        self._coco.update(true_masks, true_labels, masks, labels, scores, crowds, image_id=image_id)
        counts = _count_matches(true_masks, true_labels, masks, labels, crowds)  # (thresholds, 3)
        self._counts_at_50 += counts[0]
        counts = counts[counts.sum(1) > 0]
        if counts.size:
            self._average_precisions.append((counts[:, 0] / counts.sum(1)).mean())

    def result(self) -> dict:
        """The scores as in evaluation/SPLIT.json under `instances`; undefined ones are nan.

        Returns  dict: coco, per_class, engine and images_over_max_detections as of `CocoScores`, dsb_ap and f1_50.
        """
        hits, false_positives, misses = self._counts_at_50.tolist()
        instances = 2 * hits + false_positives + misses
        f1 = 2 * hits / instances if instances else float("nan")
        return self._coco.result() | {"dsb_ap": mean_of_defined(self._average_precisions), "f1_50": f1}


def _count_matches(true_masks, true_labels, masks, labels, true_crowds):
    """int64 (10, 3): true positives, false positives and false negatives of one image at every IoU threshold."""
    if not masks or not true_masks:
        return np.array([[0, len(masks), np.count_nonzero(~true_crowds)]] * len(IOU_THRESHOLDS))
    # pycocotools: for a crowd, the share of the found mask that lies in it.
    overlaps = rle.iou(masks, true_masks, true_crowds.astype(np.uint8)) * (labels[:, None] == true_labels)  # (N, T)
    with_instances, with_crowds = overlaps[:, ~true_crowds], overlaps[:, true_crowds]
    counts = []
    for threshold in IOU_THRESHOLDS:
        is_match = with_instances > threshold
        found, true = linear_sum_assignment(is_match, maximize=True)
        matched = found[is_match[found, true]]
        is_excused = (with_crowds > threshold).any(1)
        is_excused[matched] = True
        misses = with_instances.shape[1] - len(matched)
        counts.append([len(matched), np.count_nonzero(~is_excused), misses])
    return np.array(counts, np.int64)
