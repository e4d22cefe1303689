"""Which class a detector takes which object for."""

import numpy as np

from detseg.metrics.voc import box_overlaps


class DetectionConfusion:
    """Collects a confusion matrix of a split, image by image.

    Detections of at least `min_score`, the best first, take the free true box that they overlap most, of whatever
    class, if IoU >= `min_overlap`. Those that find none are objects found in the background, unless they lie in an
    ignored box; true boxes left over are taken for background.

    class_count:  K.
    matrix:       int64 (K + 1, K + 1), rows: what is there, columns: what was found, last of both: background.
    """

    def __init__(self, class_count, min_overlap=0.5, min_score=0.5):
        self.matrix = np.zeros((class_count + 1, class_count + 1), np.int64)
        self.min_overlap = min_overlap
        self.min_score = min_score

    def update(self, true_boxes, true_labels, boxes, labels, scores, ignored=None):
        """Adds an image.

        true_boxes:   float (G, 4), true_labels int (G,).
        boxes:        float (D, 4), those found; labels int (D,), scores float (D,).
        ignored:      bool (G,), crowds and difficult objects, which needn't be found; None for none.
        """
        background = len(self.matrix) - 1
        true_labels, scores = np.asarray(true_labels, np.int64), np.asarray(scores, np.float64)
        ignored = np.zeros(len(true_labels), bool) if ignored is None else np.asarray(ignored, bool)
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= self.min_score]
        labels = np.asarray(labels, np.int64)[order]
        overlaps = box_overlaps(np.asarray(boxes)[order], true_boxes, ignored)  # (D, G)
        in_ignored = (overlaps[:, ignored] >= self.min_overlap).any(1)
        overlaps, true_labels = overlaps[:, ~ignored], true_labels[~ignored]
        taken_for = np.full(len(true_labels), background)
        for label, row, is_in_ignored in zip(labels.tolist(), overlaps, in_ignored, strict=True):
            free = np.where(taken_for == background, row, 0)
            if free.max(initial=0) >= self.min_overlap:
                taken_for[free.argmax()] = label
            elif not is_in_ignored:
                self.matrix[background, label] += 1
        np.add.at(self.matrix, (true_labels, taken_for), 1)
