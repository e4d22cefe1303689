"""Boundary F-score of semantic segmentation: how well the outlines of each class are met."""

import cv2
import numpy as np

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def find_boundary(mask, ignored):
    """The pixels of a mask with a 4-neighbour outside of it; the image's edge and ignored pixels are no outside.

    mask, ignored:  bool (H, W).
    Returns         bool (H, W).
    """
    is_interior = cv2.erode((mask | ignored).astype(np.uint8), _CROSS) > 0  # beyond the image's edge counts as inside
    return mask & ~ignored & ~is_interior


class BoundaryScores:
    """Collects the boundary F-score of every class over a split (Csurka et al. 2013, section 3; F of DAVIS, 2016).

    Precision is the share of a class's predicted boundary pixels that have a true boundary pixel of the class within
    `tolerance`, recall the share of true ones that have a predicted one; F is their harmonic mean. The pixels of all
    images are added up before dividing (Csurka et al. take the mean over images). Boundary pixels within `tolerance`
    of an ignored pixel are left out, since their partner may lie in there: labels that ignore a band along every
    object (VOC) leave nothing to score.

    class_count:   K.
    tolerance:     pixels, Euclidean (Csurka et al.: 0.75 % of the image's diagonal; 5.4 at 512x512).
    ignore_label:  pixels of this label have no class.
    """

    def __init__(self, class_count, tolerance=2.0, ignore_label=255):
        reach = np.arange(-int(tolerance), int(tolerance) + 1)
        self._disk = (reach[:, None] ** 2 + reach**2 <= tolerance**2).astype(np.uint8)
        self._ignore_label = ignore_label
        self._predicted = np.zeros((class_count, 2), np.int64)  # boundary pixels: met, all
        self._true = np.zeros((class_count, 2), np.int64)

    def update(self, labels, predictions):
        """Adds an image. labels: uint8 (H, W), 0..K-1 or ignore_label; predictions: uint8 (H, W), 0..K-1."""
        if labels.shape != predictions.shape:
            raise ValueError(f"labels are {labels.shape}, predictions {predictions.shape}: expected equal shapes")
        ignored = labels == self._ignore_label
        is_scored = ~self._near(ignored)
        for index in range(len(self._true)):
            predicted = find_boundary(predictions == index, ignored)
            true = find_boundary(labels == index, ignored)
            self._predicted[index] += _count(predicted & is_scored, self._near(true))
            self._true[index] += _count(true & is_scored, self._near(predicted))

    def _near(self, pixels):
        """bool (H, W): at most `tolerance` from one of these."""
        return cv2.dilate(pixels.astype(np.uint8), self._disk) > 0

    def result(self):
        """The scores of the split; undefined ones are nan.

        Returns  dict: boundary_f, the mean over classes that have a boundary in labels or predictions, and of each
                 class boundary_f_of_class, precision and recall, float (K,). A class with a boundary in only one of
                 both has F 0.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            precision, recall = (counts[:, 0] / counts[:, 1] for counts in (self._predicted, self._true))
            f_scores = np.nan_to_num(2 * precision * recall / (precision + recall))
        f_scores[np.isnan(precision) & np.isnan(recall)] = np.nan
        defined = f_scores[~np.isnan(f_scores)]
        return {
            "boundary_f": float(defined.mean()) if defined.size else float("nan"),
            "boundary_f_of_class": f_scores,
            "precision": precision,
            "recall": recall,
        }


def _count(boundary, near_other):
    return np.count_nonzero(boundary & near_other), np.count_nonzero(boundary)
