"""Pixel weights that make a network learn the gaps between objects (U-Net, MICCAI 2015, eq. 2).

    w(x) = wc(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

wc, the weight of a pixel's class, is class_weights of the losses; `border_weights` gives the second term. Instance ids
are integers (H, W): one positive number for the pixels of each object, in any order and with any gaps, 0 for the
background.
"""

import cv2
import numpy as np


def border_weights(instance_ids, w0=10.0, sigma=5.0):
    """The border term w0 exp(-(d1 + d2)^2 / (2 sigma^2)).

    d1 and d2 are the Euclidean distances in pixels from a pixel's centre to the centre of the nearest pixel of the
    nearest and of the second nearest object. As in the paper's figure 3 and in common implementations the term is for
    the background: it is 0 inside of objects, and everywhere if there are fewer than two. Objects that touch have no
    gap between them: `separate_touching` makes one.

    w0, sigma:  the term's largest value, and its width in pixels, > 0. A gap one pixel wide has w0 exp(-2 / sigma^2).
    Returns     float32 (H, W). Values below the float32 rounding of w0 (1.2e-7 w0) may come as 0.
    """
    # Where d1 + d2 is larger than this, the term is below the rounding of w0: so objects farther away don't matter.
    reach = sigma * np.sqrt(-2 * np.log(np.finfo(np.float32).eps))
    nearest, second = _two_nearest_distances(instance_ids, reach)
    weights = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    weights[instance_ids > 0] = 0
    return weights


def instances_of_components(label_map, background=0, ignore_label=255, connectivity=4):
    """Instance ids where only classes are known: the connected components of each class but the background.

    label_map:     uint8 (H, W) of class indices; ignored pixels belong to no object.
    connectivity:  4 or 8. With 4, objects that meet at corners only are two, and a diagonal line one pixel wide
                   separates those on its sides.
    Returns        int32 (H, W): 1, 2, ..; 0 elsewhere.
    """
    instance_ids = np.zeros(label_map.shape, np.int32)
    count = 0
    for label in np.flatnonzero(np.bincount(label_map.ravel(), minlength=256)):
        if label in (background, ignore_label):
            continue
        found, components = cv2.connectedComponents((label_map == label).view(np.uint8), connectivity=connectivity)
        inside = components > 0
        instance_ids[inside] = components[inside] + count
        count += found - 1  # cv2 counts the rest as one
    return instance_ids


def separate_touching(instance_ids, gap=1):
    """Pixels of objects, bool (H, W), near another object: made background for training, they separate touching ones.

    gap:  how near, in pixels, diagonal steps counting as one. Both objects lose up to this many pixels, so touching
          ones end up 2 * gap pixels apart.
    """
    ids = instance_ids.astype(np.float64)  # cv2 filters no int32; a double holds each exactly
    square = np.ones((2 * gap + 1, 2 * gap + 1), np.uint8)
    inside = ids > 0
    largest = cv2.dilate(ids, square)
    smallest = cv2.erode(np.where(inside, ids, np.inf), square)  # of the objects
    return inside & ((largest != ids) | (smallest != ids))


def _two_nearest_distances(instance_ids, reach):
    """Distances to the nearest and the second nearest object, both float32 (H, W); infinite where there is none.

    Each object counts in a window of its own, at all pixels within `reach`, so that the cost doesn't grow with the
    number of objects times the image's area.
    """
    nearest = np.full(instance_ids.shape, np.inf, np.float32)  # squared up to the end
    second = nearest.copy()
    for instance_id, window in _windows(instance_ids, int(reach)):
        outside = (instance_ids[window] != instance_id).view(np.uint8)
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        # cv2's last digit depends on where the array lies in memory, but the squares are whole numbers.
        squared = np.rint(np.square(distance, out=distance), out=distance)
        near, next_near = nearest[window], second[window]
        np.minimum(next_near, np.maximum(near, squared), out=next_near)
        np.minimum(near, squared, out=near)
    return np.sqrt(nearest), np.sqrt(second)


def _windows(instance_ids, margin):
    """(id, (row slice, column slice)) of each object: its bounding box, wider by `margin` pixels on each side."""
    # From the runs of equal ids along the rows, which are far fewer than the pixels.
    width = instance_ids.shape[1]
    changes = np.ones((len(instance_ids), width + 1), bool)
    changes[:, 1:-1] = instance_ids[:, 1:] != instance_ids[:, :-1]
    first, last = np.flatnonzero(changes[:, :-1]), np.flatnonzero(changes[:, 1:])  # pixel numbers
    ids = instance_ids.ravel()[first]
    order = np.argsort(ids, kind="stable")
    order = order[ids[order] > 0]
    ids, rows, left, right = ids[order], first[order] // width, first[order] % width, last[order] % width
    starts = np.flatnonzero(np.diff(ids, prepend=0))  # of each object's runs
    if not len(starts):
        return
    top, bottom = np.minimum.reduceat(rows, starts) - margin, np.maximum.reduceat(rows, starts) + margin + 1
    left, right = np.minimum.reduceat(left, starts) - margin, np.maximum.reduceat(right, starts) + margin + 1
    for instance_id, y1, y2, x1, x2 in zip(ids[starts], top.clip(0), bottom, left.clip(0), right, strict=True):
        yield instance_id, (slice(y1, y2), slice(x1, x2))
