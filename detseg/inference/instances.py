"""Instances out of semantic probabilities: connected components, or a watershed that parts touching ones."""

from functools import partial

import cv2
import numpy as np
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from detseg.data.masks import label_components

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def find_class_instances(probabilities, threshold=0.5, method="components", min_pixels=1, min_depth=1.0):
    """The objects of every class but label 0, background.

    probabilities:  float (H, W, K). Foreground is where the labels 1..K-1 sum up to more than `threshold`; its pixels
                    belong to the likeliest of these, and every label's instances are found by themselves.
    method:         components (4-connected) or watershed (`split_at_necks`, with `min_depth`).
    min_pixels:     smaller instances are dropped.
    Returns         instance_ids int32 (H, W), 0 = none, 1..N; labels int64 (N,), 1..K-1; scores float32 (N,), the mean
                    probability of the instance's label inside.
    """
    separate = {"components": label_components, "watershed": partial(split_at_necks, min_depth=min_depth)}[method]
    foreground = probabilities[..., 1:]
    label_map = np.where(foreground.sum(-1) > threshold, 1 + foreground.argmax(-1), 0)
    instance_ids, labels, scores = np.zeros(label_map.shape, np.int32), [], []
    for label in range(1, probabilities.shape[-1]):
        ids = separate(label_map == label)
        sizes = np.bincount(ids.ravel())
        is_kept = (sizes >= min_pixels) & (np.arange(len(sizes)) > 0)
        new_ids = np.where(is_kept, len(scores) + np.cumsum(is_kept), 0).astype(np.int32)
        instance_ids += new_ids[ids]
        sums = np.bincount(ids.ravel(), probabilities[..., label].ravel())
        scores += (sums[is_kept] / sizes[is_kept]).tolist()
        labels += [label] * np.count_nonzero(is_kept)
    return instance_ids, np.array(labels, np.int64), np.array(scores, np.float32)


def split_at_necks(mask, min_depth=1.0):
    """Components parted by a watershed on the distance to the background (Vincent and Soille 1991; Soille 2004).

    mask:       bool (H, W).
    min_depth:  pixels by which the distance falls between two of its maxima that are two objects (h-maxima).
    Returns     int32 (H, W), 0 outside, 1..N inside: at least one for each 4-connected component, every pixel assigned.
    """
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Outside lies so deep that even a component shallower than min_depth keeps a maximum.
    relief = np.pad(np.where(mask, distance, -min_depth), 1, constant_values=-min_depth)
    cut = reconstruction(relief - min_depth, relief, footprint=_CROSS)
    markers = label_components(local_maxima(cut, connectivity=1)[1:-1, 1:-1] & mask)
    return watershed(-distance, markers, connectivity=1, mask=mask)
