"""How well proposals cover the objects of a split: recall and mean average best overlap."""

from collections.abc import Sequence

import numpy as np

from detseg.metrics.arrays import Array, Flags, as_boxes, as_column, as_labels, mean_of_defined
from detseg.metrics.voc import box_overlaps

COUNTS = (100, 500, 2000)  # of proposals, for which there are figures
OVERLAPS = (0.5, 0.7)  # IoU from which a proposal covers an object


class ProposalScores:
    """Collects how well the best of an image's proposals overlap its objects.

    Crowds and difficult objects are left out.

    classes:  names, index = label.
    """

    def __init__(self, classes: Sequence[str]):
        self._classes = tuple(classes)
        self._labels: list[np.ndarray] = []
        self._ious: list[np.ndarray] = []  # (G, P) of each image, the largest IoU with the first 1, 2, .. P proposals
        self._counts: list[int] = []

    def update(
        self, true_boxes: Array, true_labels: Array, proposals: Array, is_crowd: Flags = None, difficult: Flags = None
    ) -> None:
        """Adds an image.

        true_boxes:  float (G, 4), true_labels int (G,); is_crowd, difficult: bool (G,), None for none.
        proposals:   float (P, 4), best first.
        """
        true_boxes = as_boxes(true_boxes, "true_boxes")
        flags = [as_column(flag, len(true_boxes), bool, "flags") for flag in (is_crowd, difficult)]
        labels = as_labels(true_labels, len(true_boxes), range(len(self._classes)), "true_labels")
        counted = ~(flags[0] | flags[1])
        overlaps = box_overlaps(proposals, true_boxes[counted]).T  # (G, P)
        self._ious.append(np.maximum.accumulate(overlaps, axis=1).astype(np.float32))
        self._labels.append(labels[counted])
        self._counts.append(overlaps.shape[1])

    def best_overlaps(self, count: int | None = None) -> np.ndarray:
        """float32 (N,): the largest IoU of each object with one of the first `count` proposals; None: with any."""
        best = []
        for ious in self._ious:
            last = ious.shape[1] if count is None else min(count, ious.shape[1])
            best.append(ious[:, last - 1] if last else np.zeros(len(ious), np.float32))
        return np.concatenate([np.zeros(0, np.float32), *best])

    def recall(self, overlap: float, count: int | None = None) -> float:
        """The share of objects that one of the first `count` proposals overlaps by this IoU or more; nan of none."""
        best = self.best_overlaps(count)
        return float((best >= overlap).mean()) if len(best) else float("nan")

    def recall_curve(self, overlap: float) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of proposals, int (N,), about evenly on a logarithmic scale, and the recall of so many."""
        counts = np.unique(np.geomspace(1, max([1, *self._counts]), 60).astype(int))
        return counts, np.array([self.recall(overlap, count) for count in counts.tolist()])

    def result(self) -> dict:
        """images, objects, boxes_per_image, images_without_proposals; recall {"0.5": {"100": ..}, ..}; abo, the mean
        best overlap of each class's objects, and mabo, its mean over the classes (Uijlings et al. 2013, section 5).
        """
        labels, best = np.concatenate([np.zeros(0, int), *self._labels]), self.best_overlaps()
        abo = {
            name: float(best[labels == k].mean()) if (labels == k).any() else float("nan")
            for k, name in enumerate(self._classes)
        }
        return {
            "images": len(self._counts),
            "objects": len(labels),
            "boxes_per_image": float(np.mean(self._counts)) if self._counts else float("nan"),
            "images_without_proposals": sum(count == 0 for count in self._counts),
            "recall": {f"{iou:g}": {f"{count}": self.recall(iou, count) for count in COUNTS} for iou in OVERLAPS},
            "mabo": mean_of_defined(list(abo.values())),
            "abo": abo,
        }
