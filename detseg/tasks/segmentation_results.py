"""The files that predict writes for segmentation."""

import numpy as np

from detseg.data.palette import voc_palette, write_index_png
from detseg.data.windows import write_label_tiff
from detseg.files import written_whole
from detseg.report.drawing import Overview, draw_label_map, write_png


class SegmentationWriter:
    """Writes predictions into the folder `output`.

    classes:        tuple of K class names, index = label.
    probabilities:  bool, whether predictions carry them.
    suffixes:       the endings, after an image's stem, of the files written for it.
    """

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
