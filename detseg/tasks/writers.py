"""The files that predict writes.

A writer has `suffixes`, the endings after an image's stem of the files written for it, and `files`, the others' names.
"""

import cv2
import numpy as np

from detseg.data.masks import paint_instances
from detseg.data.palette import voc_palette, write_index_png
from detseg.data.windows import write_label_tiff
from detseg.files import written_whole
from detseg.inference.results_files import coco_entries, write_coco_results, write_voc_annotation
from detseg.report.drawing import Overview, draw_detections, draw_label_map, write_png


class SegmentationWriter:
    """Writes predictions into the folder `output`.

    classes:        tuple of K class names, index = label.
    probabilities:  bool, whether predictions carry them.
    """

    files = ()

    def __init__(self, output, classes, probabilities=False):
        self._output = output
        self._classes = classes
        self.suffixes = (".png", "_overlay.png", ".npz") if probabilities else (".png", "_overlay.png")

    def write(self, prediction, image, path):
        """Writes STEM.png (palette PNG of class indices), STEM_overlay.png and, where the prediction has probabilities,
        STEM.npz (probabilities (H, W, K), classes) for the image file `path`."""
        output, stem = self._output, path.stem
        write_index_png(output / f"{stem}.png", prediction.label_map, voc_palette())
        write_png(output / f"{stem}_overlay.png", draw_label_map(image, prediction.label_map, self._classes))
        if prediction.probabilities is not None:
            with written_whole(output / f"{stem}.npz") as temporary:
                np.savez_compressed(temporary, probabilities=prediction.probabilities, classes=np.array(self._classes))

    def write_large(self, bands, source, path):
        """Writes STEM.tif (palette TIFF of class indices, row by row) and a reduced STEM_overlay.png.

        bands:   iterable of Predictions of bands of rows, from the top down.
        source:  what they were made from: has shape (H, W, C) and read(row, column, height, width).
        """
        overview = Overview(source)
        label_maps = (overview.add(band.label_map) for band in bands)
        write_label_tiff(self._output / f"{path.stem}.tif", source.shape[:2], label_maps, voc_palette())
        drawing = draw_label_map(overview.image, overview.label_map, self._classes)
        write_png(self._output / f"{path.stem}_overlay.png", drawing)

    def finish(self):
        """Nothing is left to write after the last image."""


class DetectionWriter:
    """Writes predictions into the folder `output`.

    classes:       tuple of K class names, index = label.
    category_ids:  the source's id of each class; None: counted from 1.
    voc_xml:       bool, whether to write a VOC annotation for each image too.
    inclusive:     bool, whether the numbers in that are the devkit's or the box's edges (data.voc_boxes).
    instance_ids:  bool, whether to write an image of object numbers for each image too.
    """

    files = ("predictions.json",)

    def __init__(self, output, classes, category_ids=None, voc_xml=False, inclusive=True, instance_ids=False):
        self._output = output
        self._classes = classes
        self._category_ids = category_ids or range(1, len(classes) + 1)
        self._voc_xml = voc_xml
        self._inclusive = inclusive
        self._instance_ids = instance_ids
        self._entries, self._images = [], 0
        more = {".xml": voc_xml, "_instances.png": instance_ids}
        self.suffixes = ("_overlay.png", *(suffix for suffix, is_asked in more.items() if is_asked))

    def write(self, prediction, image, path):
        """Writes STEM_overlay.png and, where asked for, STEM.xml and STEM_instances.png for the image file `path`.

        STEM_instances.png, 16 bits: the number of the object that each pixel belongs to, from 1 on by falling score, of
        several the one of the highest score; 0: none.
        """
        self._images += 1
        self._entries += coco_entries(prediction, self._images, self._category_ids, path.name)
        found = (prediction.boxes, prediction.labels, self._classes, prediction.scores, prediction.masks)
        write_png(self._output / f"{path.stem}_overlay.png", draw_detections(image, *found))
        if self._instance_ids:
            ids = paint_instances(prediction.masks, image.shape[:2])
            with written_whole(self._output / f"{path.stem}_instances.png") as temporary:
                temporary.write_bytes(cv2.imencode(".png", ids)[1])
        if self._voc_xml:
            target = self._output / f"{path.stem}.xml"
            write_voc_annotation(target, path.name, image.shape, prediction, self._classes, self._inclusive)

    def finish(self):
        """Writes predictions.json: COCO results of all images, with file_name; image_id counts images from 1."""
        write_coco_results(self._output / self.files[0], self._entries)
