"""Scores of semantic segmentation: of all pixels by a confusion matrix, and of the outlines of each class."""

import cv2
import numpy as np
from numpy.typing import NDArray

from detseg.errors import UserError
from detseg.metrics.arrays import Array, label_maps, mean_of_defined

_PIXELS_PER_CALL = 1 << 24  # cv2.calcHist counts in float32, which is exact up to so many
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def confusion_matrix(
    labels: Array, predictions: Array, class_count: int, ignore_label: int | None = 255
) -> NDArray[np.int64]:
    """Pixel counts of every pair of true and predicted class.

    labels:       of any shape, integer type or bool: 0..K-1 or ignore_label (None: there is none), not counted.
    predictions:  of the same shape, 0..K-1. uint8 maps are counted fastest.
    Returns       int64 (K, K): row = true class, column = predicted class.
    Raises        UserError for floats, unequal shapes and other values.
    """
    labels, predictions = label_maps(labels, predictions, class_count, ignore_label)
    count = _count_bytes if labels.dtype == predictions.dtype == np.uint8 and class_count < 256 else _count
    counts = count(labels, predictions, class_count, ignore_label)
    return counts.reshape(-1, class_count)[:class_count]


def _count(labels, predictions, class_count, ignore_label):
    """Ignored pixels go to a row of their own, cut off at the end: a boolean index would copy both maps."""
    rows = labels.astype(np.int64)
    rows[labels == ignore_label] = class_count
    codes = rows * class_count + predictions.astype(np.int64)
    return np.bincount(codes.ravel(), minlength=(class_count + 1) * class_count)


def _count_bytes(labels, predictions, class_count, ignore_label):
    row_starts = (np.minimum(np.arange(256), class_count) * class_count).astype(np.uint16)
    if ignore_label is not None and 0 <= ignore_label < class_count:
        row_starts[ignore_label] = class_count * class_count
    codes = (row_starts[labels] + predictions).reshape(-1)
    bins = (class_count + 1) * class_count
    counts = np.zeros(bins, np.int64)
    for start in range(0, codes.size, _PIXELS_PER_CALL):
        chunk = codes[start : start + _PIXELS_PER_CALL]
        counts += cv2.calcHist([chunk], [0], None, [bins], [0, bins]).ravel().astype(np.int64)
    return counts


def segmentation_scores(confusion: Array) -> dict:
    """The four scores of the FCN paper (section 5) from a confusion matrix.

    confusion:  int (K, K), row = true class, column = predicted class.
    Returns     a dict: miou, pixel_accuracy, mean_accuracy, frequency_weighted_iou (floats) and iou, float (K,).
                A class that is neither labelled nor predicted anywhere has an undefined IoU (nan) and is left out of
                the mean, as in the VOC devkit; one that is only predicted counts with IoU 0. mean_accuracy is over the
                labelled classes. All are nan where nothing is labelled.
    """
    confusion = _square(confusion)
    hits = np.diag(confusion)  # (K,)
    labelled = confusion.sum(1)
    union = labelled + confusion.sum(0) - hits
    total = labelled.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = hits / union  # nan for absent classes
        accuracy = hits / labelled
        frequency_weighted = np.sum(labelled * np.where(union > 0, iou, 0.0)) / total
    return {
        "miou": mean_of_defined(iou),
        "pixel_accuracy": float(hits.sum() / total) if total else float("nan"),
        "mean_accuracy": mean_of_defined(accuracy),
        "frequency_weighted_iou": float(frequency_weighted),
        "iou": iou,
    }


def dice_scores(confusion: Array) -> dict:
    """Dice coefficient 2 I / (A + B) of each class: I pixels in common, A labelled, B predicted.

    confusion:  int (K, K), row = true class, column = predicted class.
    Returns     a dict: mean_dice (float) and dice, float (K,), with the conventions of `segmentation_scores`.
    """
    confusion = _square(confusion)
    with np.errstate(invalid="ignore"):
        dice = 2 * np.diag(confusion) / (confusion.sum(1) + confusion.sum(0))  # nan for absent classes
    return {"mean_dice": mean_of_defined(dice), "dice": dice}


def _square(confusion):
    confusion = np.asarray(confusion, np.float64)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise UserError(f"a confusion matrix of shape {confusion.shape}, expected (K, K) of counts")
    return confusion


def find_boundary(mask: NDArray[np.bool_], ignored: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels (H, W) of a mask with a 4-neighbour outside; the image's edge and ignored pixels are no outside."""
    is_interior = cv2.erode((mask | ignored).astype(np.uint8), _CROSS) > 0  # beyond the image's edge counts as inside
    return mask & ~ignored & ~is_interior


class BoundaryScores:
    """Collects the boundary F-score of every class over a split (Csurka et al. 2013, section 3; F of DAVIS, 2016).

    Precision is the share of a class's predicted boundary pixels that have a true boundary pixel of the class within
    `tolerance`, recall the share of true ones that have a predicted one; F is their harmonic mean. The pixels of all
    images are added up before dividing (Csurka et al. take the mean over images). Boundary pixels within `tolerance`
    of an ignored pixel are left out: labels that ignore a band along every object (VOC) leave nothing to score.

    class_count:   K.
    tolerance:     pixels, Euclidean (Csurka et al.: 0.75 % of the image's diagonal; 5.4 at 512x512).
    ignore_label:  pixels of this label have no class; None for none.
    """

    def __init__(self, class_count: int, tolerance: float = 2.0, ignore_label: int | None = 255):
        reach = np.arange(-int(tolerance), int(tolerance) + 1)
        self._disk = (reach[:, None] ** 2 + reach**2 <= tolerance**2).astype(np.uint8)
        self._ignore_label = ignore_label
        self._predicted = np.zeros((class_count, 2), np.int64)  # boundary pixels: met, all
        self._true = np.zeros((class_count, 2), np.int64)

    def update(self, labels: Array, predictions: Array) -> None:
        """Adds an image; maps (H, W) as of `confusion_matrix`, and the same UserError."""
        labels, predictions = label_maps(labels, predictions, len(self._true), self._ignore_label)
        ignored = labels == self._ignore_label
        is_scored = ~self._near(ignored)
        for index in range(len(self._true)):
            predicted = find_boundary(predictions == index, ignored)
            true = find_boundary(labels == index, ignored)
            for counts, boundary, other in ((self._predicted, predicted, true), (self._true, true, predicted)):
                boundary = boundary & is_scored
                counts[index] += np.count_nonzero(boundary & self._near(other)), np.count_nonzero(boundary)

    def _near(self, pixels):
        """bool (H, W): at most `tolerance` from one of these."""
        return cv2.dilate(pixels.astype(np.uint8), self._disk) > 0

    def result(self) -> dict:
        """The scores of the split; undefined ones are nan.

        Returns  dict: boundary_f, the mean over classes that have a boundary in labels or predictions (in only one of
                 them: F is 0), and of each class boundary_f_of_class, precision and recall, float (K,).
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            precision, recall = (counts[:, 0] / counts[:, 1] for counts in (self._predicted, self._true))
            f_scores = np.nan_to_num(2 * precision * recall / (precision + recall))
        f_scores[np.isnan(precision) & np.isnan(recall)] = np.nan
        scores = {"boundary_f": mean_of_defined(f_scores), "boundary_f_of_class": f_scores}
        return scores | {"precision": precision, "recall": recall}
