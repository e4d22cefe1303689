"""What a detector is scored by: collected image by image over a split."""

from collections.abc import Sequence

import numpy as np

from detseg.metrics.arrays import Array, Flags, Masks, as_boxes, as_column, as_labels
from detseg.metrics.coco import CocoScores, CocoSettings
from detseg.metrics.voc import MIN_OVERLAP, VocScores, box_overlaps


class DetectionScores:
    """Collects COCO's and VOC's figures and a confusion matrix.

    Neither crowds nor difficult objects have to be found, and what lies in them counts nowhere.

    classes:         names, index = label.
    masks:           bool, whether to score masks too.
    engine, coco:    engine and settings of `CocoScores`.
    voc_overlap:     IoU from which VOC calls a box found.
    voc, confusion:  the VocScores, whose curves can be drawn, and the DetectionConfusion.
    """

    def __init__(
        self,
        classes: Sequence[str],
        masks: bool = False,
        engine: str | None = None,
        coco: CocoSettings | None = None,
        voc_overlap: float = MIN_OVERLAP,
    ):
        names = dict(enumerate(classes))
        self._boxes = CocoScores(names, "bbox", engine, coco)
        self._masks = CocoScores(names, "segm", engine, coco) if masks else None
        self._voc_masks = VocScores(classes, voc_overlap, masks=True) if masks else None
        self.voc = VocScores(classes, voc_overlap)
        self.confusion = DetectionConfusion(len(classes))

    def update(
        self,
        true_boxes: Array,
        true_labels: Array,
        boxes: Array,
        labels: Array,
        scores: Array,
        *,
        is_crowd: Flags = None,
        difficult: Flags = None,
        areas: Array | None = None,
        true_masks: Masks | None = None,
        masks: Masks | None = None,
        image_id: int | str | None = None,
    ) -> None:
        """Adds an image.

        true_boxes:         float (G, 4), true_labels int (G,).
        boxes:              float (D, 4), those found; labels int (D,), scores float (D,).
        is_crowd:           bool (G,), COCO's iscrowd; difficult bool (G,), VOC's; None for none.
        true_masks, masks:  G and D masks, where these are scored: compressed RLEs, or bool (N, H, W).
        areas, image_id:    as in `CocoScores.update`.
        """
        count = len(true_labels)
        ignored = as_column(is_crowd, count, bool, "is_crowd") | as_column(difficult, count, bool, "difficult")
        self._boxes.update(true_boxes, true_labels, boxes, labels, scores, ignored, areas, image_id)
        if self._masks:
            self._masks.update(true_masks, true_labels, masks, labels, scores, ignored, areas, image_id)
            self._voc_masks.update(true_masks, true_labels, masks, labels, scores, ignored)
        self.voc.update(true_boxes, true_labels, boxes, labels, scores, ignored)
        self.confusion.update(true_boxes, true_labels, boxes, labels, scores, ignored)

    def result(self) -> dict:
        """The scores as in evaluation/SPLIT.json; undefined ones are nan.

        Returns  dict: coco, per_class, engine and images_over_max_detections as of `CocoScores`, voc as of `VocScores`;
                 with masks too coco_masks, voc_masks and per_class_masks.
        """
        boxes = self._boxes.result()
        result = {"coco": boxes["coco"], "voc": self.voc.result(), "per_class": boxes["per_class"]}
        if self._masks:
            masks = self._masks.result()
            result |= {"coco_masks": masks["coco"], "voc_masks": self._voc_masks.result()}
            result["per_class_masks"] = masks["per_class"]
        return result | {key: boxes[key] for key in ("engine", "images_over_max_detections") if key in boxes}


class DetectionConfusion:
    """Collects a confusion matrix of a split, image by image.

    Detections of at least `min_score`, the best first, take the free true box that they overlap most, of whatever
    class, if IoU >= `min_overlap`. Those that find none are objects found in the background, unless they lie in an
    ignored box; true boxes left over are taken for background.

    class_count:  K.
    matrix:       int64 (K + 1, K + 1), rows: what is there, columns: what was found, last of both: background.
    """

    def __init__(self, class_count: int, min_overlap: float = 0.5, min_score: float = 0.5):
        self.matrix = np.zeros((class_count + 1, class_count + 1), np.int64)
        self.min_overlap = min_overlap
        self.min_score = min_score

    def update(
        self, true_boxes: Array, true_labels: Array, boxes: Array, labels: Array, scores: Array, ignored: Flags = None
    ) -> None:
        """Adds an image as `DetectionScores.update`. ignored: bool (G,), crowds and difficult objects; None: none."""
        background = len(self.matrix) - 1
        true_boxes, boxes = as_boxes(true_boxes, "true_boxes"), as_boxes(boxes)
        true_labels = as_labels(true_labels, len(true_boxes), range(background), "true_labels")
        ignored = as_column(ignored, len(true_boxes), bool, "ignored")
        scores = as_column(scores, len(boxes), np.float64, "scores")
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= self.min_score]
        labels = as_labels(labels, len(boxes), range(background))[order]
        overlaps = box_overlaps(boxes[order], true_boxes, ignored)  # (D, G)
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
