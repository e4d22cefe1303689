"""What a detector is scored by: collected image by image over a split."""

import numpy as np

from detseg.metrics.coco import CocoScores
from detseg.metrics.confusion import DetectionConfusion
from detseg.metrics.voc import VocScores


class DetectionScores:
    """Collects COCO's and VOC's figures and a confusion matrix.

    Crowds count for VOC as difficult, and difficult objects for COCO as crowds: neither has to be found, and what lies
    in them counts nowhere.

    classes:    names, index = label.
    masks:      bool, whether to score masks too.
    engine:     hotcoco or pycocotools; None for hotcoco where it is installed.
    voc:        VocScores, whose curves can be drawn.
    confusion:  DetectionConfusion.
    """

    def __init__(self, classes, masks=False, engine=None):
        names = dict(enumerate(classes))
        self._boxes = CocoScores(names, "bbox", engine)
        self._masks = CocoScores(names, "segm", engine) if masks else None
        self.voc = VocScores(classes)
        self.confusion = DetectionConfusion(len(classes))

    def update(
        self,
        true_boxes,
        true_labels,
        boxes,
        labels,
        scores,
        *,
        is_crowd=None,
        difficult=None,
        areas=None,
        true_masks=None,
        masks=None,
        image_id=None,
    ):
        """Adds an image.

        true_boxes:         float (G, 4), true_labels int (G,).
        boxes:              float (D, 4), those found; labels int (D,), scores float (D,).
        is_crowd:           bool (G,), COCO's iscrowd; difficult bool (G,), VOC's; None for none.
        areas:              float (G,), COCO's area; None for the areas of boxes, and of masks for these.
        true_masks, masks:  lists of G and of D compressed RLEs, where masks are scored.
        image_id:           number or text, unique; None for the number of images before it.
        """
        ignored = np.zeros(len(true_labels), bool)
        for flags in (is_crowd, difficult):
            if flags is not None:
                ignored |= np.asarray(flags, bool)
        self._boxes.update_boxes(true_boxes, true_labels, boxes, labels, scores, ignored, areas, image_id)
        if self._masks:
            self._masks.update_masks(true_masks, true_labels, masks, labels, scores, ignored, areas, image_id)
        self.voc.update(true_boxes, true_labels, boxes, labels, scores, ignored)
        self.confusion.update(true_boxes, true_labels, boxes, labels, scores, ignored)

    def result(self):
        """The scores as in evaluation/SPLIT.json; undefined ones are nan.

        Returns  dict: coco {AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl}, voc {mAP07, mAP, per_class {name:
                 {AP07, AP}}}, per_class {name: {AP, AP50}} by COCO, and engine, what computed COCO's; with masks too
                 coco_masks and per_class_masks.
        """
        boxes = self._boxes.result()
        result = {"coco": boxes["coco"], "voc": self.voc.result(), "per_class": boxes["per_class"]}
        if self._masks:
            masks = self._masks.result()
            result |= {"coco_masks": masks["coco"], "per_class_masks": masks["per_class"]}
        return result | {"engine": boxes["engine"]}
