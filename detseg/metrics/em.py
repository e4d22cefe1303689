"""Scores of membrane segmentation in electron microscopy, as the ISBI 2012 challenge defines them.

Source: Arganda-Carreras et al. 2015, "Crowdsourcing the creation of image segmentation algorithms for connectomics",
and the challenge's evaluation script in Fiji (Trainable_Segmentation: RandError, VariationOfInformation, PixelError).
What these fix and the paper leaves open:

cells        4-connected components of interior pixels: a membrane of one pixel that runs diagonally separates. The
             proposal's interior is where its probability is above the threshold.
thinning     the proposal's cells grow into the proposed membrane by a watershed until lines of one pixel are left
             between them; membrane that ends inside a cell vanishes. The true membrane is not thinned.
restriction  only pixels of true cells count. A proposed line pixel among them is a cell of its own.
stack        V_rand and V_info are the mean over images; the older Rand error and pixel error add up pairs and pixels
             of all images before they divide. One threshold serves all images, and each score has its own best one.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import watershed

from detseg.data.masks import label_components
from detseg.metrics.arrays import Array, as_label_map, check_same_shape

THRESHOLDS = tuple(i / 10 for i in range(1, 10))  # the challenge's but for 0 and 1, at which all is one cell

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def thin_borders(cells: NDArray) -> NDArray:
    """Grows cells until lines of one pixel lie between them (Vincent and Soille 1991, on two levels).

    cells:    int32 (H, W), 0 = membrane, 4-connected cells from 1.
    Returns   int32 (H, W), 0 = line. A map without cells becomes one cell: nothing separates its pixels.
    """
    if not cells.any():
        return np.ones_like(cells)
    membrane = (cells == 0).astype(np.uint8)
    shore = cv2.dilate(membrane, _CROSS)  # membrane and the cell pixels beside it: the others need no flooding
    flat = np.zeros_like(membrane)
    grown = watershed(flat, cells * shore, connectivity=1, mask=shore.astype(bool), watershed_line=True)
    return np.where(membrane, grown, cells)


def count_overlaps(truth: NDArray, proposal: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Pixel counts of two partitions and of their overlaps, over the pixels of true cells.

    truth, proposal:  int (H, W), cells from 1; 0 = not counted in truth, a cell for each pixel in the proposal.
    Returns           int64 counts, in no order: of non-empty overlaps, of true cells, of proposed cells.
    """
    inside = truth > 0
    truth, proposal = truth[inside], proposal[inside]
    singles = np.ones(np.count_nonzero(proposal == 0), np.int64)
    true_sizes = np.unique(truth, return_counts=True)[1]
    truth, proposal = truth[proposal > 0], proposal[proposal > 0]
    pairs = truth.astype(np.int64) * (proposal.max(initial=0) + 1) + proposal
    overlaps, proposed_sizes = (np.append(np.unique(x, return_counts=True)[1], singles) for x in (pairs, proposal))
    return overlaps, true_sizes, proposed_sizes


def rand_scores(overlaps: NDArray, true_sizes: NDArray, proposed_sizes: NDArray) -> tuple[float, ...]:
    """V_rand at alpha 0.5, split and merge score, of what `count_overlaps` returns; nan where there is no true cell.

    split and merge are the probabilities that two pixels of one true cell are in one proposed cell, and that two of one
    proposed cell are in one true cell; V_rand is their harmonic mean.
    """
    together, in_truth, in_proposal = pair_counts(overlaps, true_sizes, proposed_sizes)
    if not in_truth:
        return (float("nan"),) * 3
    return 2 * together / (in_truth + in_proposal), together / in_truth, together / in_proposal


def pair_counts(*partitions: NDArray) -> list[float]:
    """Ordered pairs of pixels in one part, a pixel with itself included (the challenge's N^2 normalisation)."""
    return [float(np.square(sizes.astype(np.float64)).sum()) for sizes in partitions]


def information_scores(overlaps: NDArray, true_sizes: NDArray, proposed_sizes: NDArray) -> tuple[float, ...]:
    """V_info at alpha 0.5, split and merge score, of what `count_overlaps` returns: the mutual information in units of
    the mean entropy, the proposal's and the truth's; nan where that is zero."""
    joint, truth, proposal = (_entropy(sizes) for sizes in (overlaps, true_sizes, proposed_sizes))
    mutual = truth + proposal - joint
    return tuple(mutual / total if total > 0 else float("nan") for total in ((truth + proposal) / 2, proposal, truth))


def _entropy(sizes):
    """In nats, of the part that a random pixel is in."""
    total = sizes.sum()
    return float(np.log(total) - (sizes * np.log(sizes)).sum() / total) if sizes.size > 1 else 0.0


class EMScores:
    """Collects the challenge's scores over the images of a split, at every threshold.

    interior_label:  class index of the cells' interior. All other classes are membrane.
    ignore_label:    class index of pixels that count nowhere (in the true cells they are a gap, like membrane).
    thresholds:      on the interior's probability, to choose the best from.
    """

    def __init__(
        self, interior_label: int = 1, ignore_label: int | None = 255, thresholds: Sequence[float] = THRESHOLDS
    ):
        self._interior_label, self._ignore_label = interior_label, ignore_label
        self._thresholds = np.asarray(thresholds, np.float64)
        self._rand, self._information = [], []  # of each image: (thresholds, 3)
        self._pairs = np.zeros((len(thresholds), 3))  # of the cells before thinning
        self._pixels = np.zeros((len(thresholds), 3))  # interior in both, in the truth, in the proposal

    def update(self, labels: Array, interior_probability: Array) -> None:
        """Adds an image.

        labels:                (H, W), class indices of any integer type or bool.
        interior_probability:  float (H, W), of the cells' interior: 1 - that of membrane.
        Raises                 UserError for floats as labels and when the shapes differ.
        """
        labels, interior_probability = as_label_map(labels, "labels"), np.ascontiguousarray(interior_probability)
        check_same_shape(labels, interior_probability, "probabilities")
        is_interior = labels == self._interior_label
        is_known = labels != self._ignore_label
        truth = label_components(is_interior)
        overlaps = []
        for i, threshold in enumerate(self._thresholds):
            proposed = interior_probability > threshold
            cells = label_components(proposed)
            self._pairs[i] += pair_counts(*count_overlaps(truth, cells))
            self._pixels[i] += [np.count_nonzero(x) for x in (is_interior & proposed, is_interior, proposed & is_known)]
            overlaps.append(count_overlaps(truth, thin_borders(cells)))
        self._rand.append([rand_scores(*counts) for counts in overlaps])
        self._information.append([information_scores(*counts) for counts in overlaps])

    def result(self) -> dict[str, float]:
        """The scores at their best threshold, as in evaluation/SPLIT.json under `em`; undefined ones are nan.

        Returns  dict: v_rand, v_rand_split, v_rand_merge, v_rand_threshold, the same four of v_info, rand_error and
                 pixel_error (1 - the best F-score) with rand_error_threshold and pixel_error_threshold.
        """
        result = {}
        for name, images in (("v_rand", self._rand), ("v_info", self._information)):
            images = np.ma.masked_invalid(np.reshape(images, (-1, self._thresholds.size, 3)))
            means = images.mean(axis=0).filled(np.nan)
            best, result[f"{name}_threshold"] = self._best(means[:, 0])
            result |= dict(zip((name, f"{name}_split", f"{name}_merge"), means[best].tolist(), strict=True))
        for name, (both, truth, proposal) in (("rand_error", self._pairs.T), ("pixel_error", self._pixels.T)):
            f_scores = np.full(truth.shape, np.nan)
            np.divide(2 * both, truth + proposal, where=truth > 0, out=f_scores)
            best, result[f"{name}_threshold"] = self._best(f_scores)
            result[name] = 1 - float(f_scores[best])
        return result

    def _best(self, scores):
        """Index and threshold of the highest score, the first of equal ones."""
        best = int(np.argmax(np.nan_to_num(scores, nan=-1)))
        return best, float("nan") if np.isnan(scores[best]) else float(self._thresholds[best])
