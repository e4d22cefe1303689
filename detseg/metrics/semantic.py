"""Scores of semantic segmentation from a confusion matrix over all pixels of a split."""

import cv2
import numpy as np

# cv2.calcHist counts in float32, which is exact up to 2**24 a call.
_PIXELS_PER_CALL = 1 << 24


def confusion_matrix(labels, predictions, class_count, ignore_label=255):
    """Pixel counts of every pair of true and predicted class.

    labels:       uint8 (H, W), 0..K-1 or ignore_label; ignored pixels are not counted.
    predictions:  uint8 (H, W), 0..K-1.
    Returns       int64 (K, K): row = true class, column = predicted class.
    Raises        ValueError when the shapes differ or a prediction is not below class_count.
    """
    if labels.shape != predictions.shape:
        raise ValueError(f"labels are {labels.shape}, predictions {predictions.shape}: expected equal shapes")
    if predictions.size and predictions.max() >= class_count:
        raise ValueError(f"predicted class {predictions.max()}, but there are {class_count} classes")
    # Ignored pixels go to a row of their own, cut off at the end: a boolean index would copy both maps.
    row_starts = np.full(256, class_count * class_count, np.uint16)
    row_starts[:class_count] = np.arange(class_count) * class_count
    known = np.zeros(256, bool)
    known[[*range(class_count), ignore_label]] = True
    if not known[labels].all():
        wrong = labels[~known[labels]][0]
        raise ValueError(f"label {wrong}, but there are {class_count} classes and ignore label {ignore_label}")
    if ignore_label < class_count:
        row_starts[ignore_label] = class_count * class_count
    codes = (row_starts[labels] + predictions).reshape(1, -1)
    bins = (class_count + 1) * class_count
    counts = np.zeros(bins, np.int64)
    for start in range(0, codes.shape[1], _PIXELS_PER_CALL):
        chunk = np.ascontiguousarray(codes[:, start : start + _PIXELS_PER_CALL])
        counts += cv2.calcHist([chunk], [0], None, [bins], [0, bins]).ravel().astype(np.int64)
    return counts[: class_count * class_count].reshape(class_count, class_count)


def segmentation_scores(confusion):
    """The four scores of the FCN paper (section 5) from a confusion matrix.

    confusion:  int (K, K), row = true class, column = predicted class.
    Returns     a dict: miou, pixel_accuracy, mean_accuracy, frequency_weighted_iou (floats) and iou, float (K,).
                A class that is neither labelled nor predicted anywhere has an undefined IoU (nan) and is left out of
                the mean, as in the VOC devkit; one that is only predicted counts with IoU 0. mean_accuracy is over the
                labelled classes. All are nan where nothing is labelled.
    """
    confusion = confusion.astype(np.float64)
    hits = np.diag(confusion)  # (K,)
    labelled = confusion.sum(1)
    union = labelled + confusion.sum(0) - hits
    total = labelled.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = hits / union  # nan for absent classes
        accuracy = hits / labelled
        frequency_weighted = np.sum(labelled * np.where(union > 0, iou, 0.0)) / total
    return {
        "miou": _mean_of_defined(iou),
        "pixel_accuracy": float(hits.sum() / total) if total else float("nan"),
        "mean_accuracy": _mean_of_defined(accuracy),
        "frequency_weighted_iou": float(frequency_weighted),
        "iou": iou,
    }


def dice_scores(confusion):
    """Dice coefficient 2 I / (A + B) of each class: I pixels in common, A labelled, B predicted.

    confusion:  int (K, K), row = true class, column = predicted class.
    Returns     a dict: mean_dice (float) and dice, float (K,), with the conventions of `segmentation_scores`.
    """
    confusion = confusion.astype(np.float64)
    with np.errstate(invalid="ignore"):
        dice = 2 * np.diag(confusion) / (confusion.sum(1) + confusion.sum(0))  # nan for absent classes
    return {"mean_dice": _mean_of_defined(dice), "dice": dice}


def _mean_of_defined(values):
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
