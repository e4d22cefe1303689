"""Scores of instance masks over a split: COCO's average precision and that of the Data Science Bowl 2018."""

import numpy as np
from pycocotools import mask as rle
from scipy.optimize import linear_sum_assignment

from detseg.metrics.coco import CocoScores

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


class InstanceScores:
    """Collects true and found instances of a split, image by image.

    coco      `CocoScores` of masks: of each image the 100 best finds, matched at IoU >= threshold.
    dsb_ap    the Data Science Bowl's: TP / (TP + FP + FN) of an image at each IoU threshold 0.5, 0.55 .. 0.95, matched
              at IoU > threshold without regard to scores; the mean over thresholds, then over images. An image with
              neither true nor found instances is undefined and left out; one with found ones only has 0.
    f1_50     2 TP / (2 TP + FP + FN) at IoU > 0.5, counted over the split.

    In the last two an instance is matched with one of its class at most once, so that as many as can be are matched,
    and as in COCO a crowd is no instance to be found: what lies in it, by more than the threshold of its own area, and
    has no match counts nowhere.

    classes:  {label: name} of the object classes.
    """

    def __init__(self, classes):
        self._coco = CocoScores(classes, "segm")
        self._average_precisions = []  # the Data Science Bowl's, of each image
        self._counts_at_50 = np.zeros(3, np.int64)  # TP, FP, FN

    def update(self, true_masks, true_labels, masks, labels, scores, true_crowds=None, image_id=None):
        """Adds an image.

        true_masks:   list of T RLEs (`encode_instances`, `encode_masks`, or a COCO file's), which may overlap.
        true_labels:  int (T,), keys of `classes`.
        masks:        list of N RLEs, those found; labels int (N,), scores float (N,).
        true_crowds:  bool (T,), COCO's iscrowd; None for no crowds.
        image_id:     number or text, unique; None for the number of images before it. See `CocoScores.update_boxes`.
        """
        true_labels, labels = np.asarray(true_labels, np.int64), np.asarray(labels, np.int64)
        crowds = np.zeros(len(true_masks), bool) if true_crowds is None else np.asarray(true_crowds, bool)
        self._coco.update_masks(true_masks, true_labels, masks, labels, scores, crowds, image_id=image_id)
        counts = count_matches(true_masks, true_labels, masks, labels, crowds)  # (thresholds, 3)
        self._counts_at_50 += counts[0]
        counts = counts[counts.sum(1) > 0]
        if counts.size:
            self._average_precisions.append((counts[:, 0] / counts.sum(1)).mean())

    def result(self):
        """The scores as in evaluation/SPLIT.json under `instances`; undefined ones are nan.

        Returns  dict: coco {AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl}, per_class {name: {AP, AP50}} and
                 engine as of `CocoScores`, dsb_ap and f1_50.
        """
        true_positives, false_positives, false_negatives = self._counts_at_50.tolist()
        instances = 2 * true_positives + false_positives + false_negatives
        return {
            **self._coco.result(),
            "dsb_ap": float(np.mean(self._average_precisions)) if self._average_precisions else float("nan"),
            "f1_50": 2 * true_positives / instances if instances else float("nan"),
        }


def count_matches(true_masks, true_labels, masks, labels, true_crowds):
    """True positives, false positives and false negatives of one image at every IoU threshold.

    Arguments as in `InstanceScores.update`, labels and crowds as arrays.
    Returns    int64 (10, 3).
    """
    if not masks or not true_masks:
        missed, invented = np.count_nonzero(~true_crowds), len(masks)
        return np.tile(np.array([0, invented, missed], np.int64), (len(IOU_THRESHOLDS), 1))
    # pycocotools: for a crowd, the share of the found mask that lies in it.
    overlaps = rle.iou(masks, true_masks, true_crowds.astype(np.uint8)) * (labels[:, None] == true_labels)  # (N, T)
    with_instances, with_crowds = overlaps[:, ~true_crowds], overlaps[:, true_crowds]
    counts = []
    for threshold in IOU_THRESHOLDS:
        is_match = with_instances > threshold
        found, true = linear_sum_assignment(is_match, maximize=True)
        is_matched = np.zeros(len(masks), bool)
        is_matched[found] = is_match[found, true]
        hits = np.count_nonzero(is_matched)
        in_crowd = (with_crowds > threshold).any(1)
        counts.append([hits, np.count_nonzero(~is_matched & ~in_crowd), with_instances.shape[1] - hits])
    return np.array(counts, np.int64)
