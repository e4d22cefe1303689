"""The files that predict writes for detection."""

from detseg.detection.results_files import (
    coco_entries,
    is_own_annotation,
    write_coco_results,
    write_voc_annotation,
)
from detseg.errors import UserError
from detseg.report.drawing import write_png
from detseg.report.drawing_detections import draw_detections

FILE_NAME = "predictions.json"


class DetectionWriter:
    """Writes predictions into the folder `output`.

    classes:       tuple of K class names, index = label.
    category_ids:  the source's id of each class; None: counted from 1.
    voc_xml:       bool, whether to write a VOC annotation for each image too.
    inclusive:     bool, whether the numbers in that are the devkit's or the box's edges (data.voc_boxes).
    suffixes:      the endings, after an image's stem, of the files written for it.
    """

    def __init__(self, output, classes, category_ids=None, voc_xml=False, inclusive=True):
        self._output = output
        self._classes = classes
        self._category_ids = category_ids or range(1, len(classes) + 1)
        self._voc_xml = voc_xml
        self._inclusive = inclusive
        self._entries, self._images = [], 0
        self.suffixes = ("_overlay.png", ".xml") if voc_xml else ("_overlay.png",)

    def write(self, prediction, image, path):
        """Writes STEM_overlay.png and, where asked for, STEM.xml for the image file `path`.

        Raises UserError for a STEM.xml that is there already and that detseg didn't write.
        """
        target = self._output / f"{path.stem}.xml"
        if self._voc_xml and target.exists() and not is_own_annotation(target):
            raise UserError(f"{target}: this annotation is not predict's; choose another --output or move it away")
        self._images += 1
        self._entries += coco_entries(prediction, self._images, self._category_ids, path.name)
        drawing = draw_detections(image, prediction.boxes, prediction.labels, self._classes, prediction.scores)
        write_png(self._output / f"{path.stem}_overlay.png", drawing)
        if self._voc_xml:
            write_voc_annotation(target, path.name, image.shape, prediction, self._classes, self._inclusive)

    def finish(self):
        """Writes predictions.json: COCO results of all images, with file_name; image_id counts images from 1."""
        write_coco_results(self._output / FILE_NAME, self._entries)
