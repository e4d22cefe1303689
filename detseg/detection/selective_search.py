"""Selective Search (Uijlings et al., IJCV 2013): boxes that may hold objects, without learning.

An image is cut into regions (Felzenszwalb & Huttenlocher, IJCV 2004), of which the two neighbours that are most alike
are merged until one is left (algorithm 1). Every region on the way is a proposal. What changes the boxes that are found
changes the version in detseg/data/proposals.py too, so that older files aren't taken for new ones.
"""

import heapq
from dataclasses import dataclass

import cv2
import numpy as np
from skimage.segmentation import felzenszwalb

MIN_SIDE = 20  # pixels, of a proposal's width and height, as in the authors' code
_SIGMA = 0.8  # of the smoothing before an image is cut
_COLOUR_BINS, _TEXTURE_BINS, _ORIENTATIONS = 25, 10, 8  # section 3.2


@dataclass(frozen=True)
class Mode:
    """What the groupings differ in (sections 3.2 and 5.2)."""

    spaces: tuple[str, ...]  # colour spaces
    likenesses: tuple[str, ...]  # which of c(olour), t(exture), s(ize) and f(ill) are summed
    ks: tuple[int, ...]  # of the cut: larger ones leave larger regions; also the fewest pixels of a region


MODES = {
    "fast": Mode(("hsv", "lab"), ("ctsf", "tsf"), (50, 100)),
    "quality": Mode(("hsv", "lab", "rgi", "hue", "intensity"), ("ctsf", "tsf", "f", "s"), (50, 100, 150, 300)),
}


def selective_search(image, mode="fast", seed=0):
    """The proposals of an image.

    image:    uint8 (H, W, C): RGB; of more than three channels the first three count, a single one as grey.
    mode:     of `MODES`.
    seed:     int, of the order: a region's place in its grouping, counted from the whole image, is multiplied by a
              random number, by which all groupings' regions are sorted (section 4).
    Returns   float32 (P, 4), x1 y1 x2 y2 in whole pixels, best first, each once; both sides are `MIN_SIDE` or more, so
              an image that is smaller has none.
    """
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        return np.zeros((0, 4), np.float32)
    mode, rng = MODES[mode], np.random.default_rng(seed)
    rgb = np.ascontiguousarray(image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2))
    boxes, ranks = [], []
    for space in mode.spaces:
        pixels = _in_space(rgb, space)
        bins = _pixel_bins(pixels)
        for k in mode.ks:
            labels = felzenszwalb(pixels, scale=k, sigma=_SIGMA, min_size=k, channel_axis=-1)
            regions = _first_regions(labels, *bins)
            for likeness in mode.likenesses:
                found = _group(*regions, likeness, height * width)
                boxes.append(found[::-1])  # the whole image first
                ranks.append(np.arange(1, len(found) + 1) * rng.random(len(found)))
    boxes, ranks = np.concatenate(boxes), np.concatenate(ranks)
    is_large = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(axis=1)
    boxes = boxes[is_large][np.argsort(ranks[is_large], kind="stable")]
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)].astype(np.float32)


def _in_space(rgb, space):
    """uint8 (H, W, 3 or 1)."""
    if space in ("hsv", "hue"):
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV_FULL)
        return hsv if space == "hsv" else np.ascontiguousarray(hsv[..., :1])
    if space == "lab":
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab)
    if space == "intensity":
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None]
    total = np.maximum(rgb.sum(axis=2, dtype=np.int32), 1)
    shares = (255 * rgb[..., :2].astype(np.int32) // total[..., None]).astype(np.uint8)
    return np.concatenate([shares, (total // 3).astype(np.uint8)[..., None]], axis=2)


def _pixel_bins(pixels):
    """Which bin of each histogram a pixel is in: colour uint8 (H, W, C), texture uint8 (H, W, 8 * C)."""
    colour = (pixels.astype(np.int32) * _COLOUR_BINS // 256).astype(np.uint8)
    texture = []
    for channel in np.moveaxis(pixels, 2, 0):
        smooth = cv2.GaussianBlur(channel.astype(np.float32), (0, 0), 1.0)  # sigma = 1
        dx, dy = cv2.Scharr(smooth, cv2.CV_32F, 1, 0, scale=1 / 32), cv2.Scharr(smooth, cv2.CV_32F, 0, 1, scale=1 / 32)
        for orientation in range(_ORIENTATIONS):  # each half of an axis is one
            angle = 2 * np.pi * orientation / _ORIENTATIONS
            slope = np.maximum(np.cos(angle) * dx + np.sin(angle) * dy, 0)
            texture.append(np.minimum(slope * (_TEXTURE_BINS / max(float(slope.max()), 1e-6)), _TEXTURE_BINS - 1))
    return colour, np.stack(texture, axis=2).astype(np.uint8)


def _first_regions(labels, colour, texture):
    """The regions of a label map (H, W), 0..N-1: boxes int (N, 4); sizes (N,); histograms (N, B), colour first,
    either kind of sum 1; how many columns are of colour; the pairs of neighbours (E, 2).
    """
    count = int(labels.max()) + 1
    sizes = np.bincount(labels.ravel(), minlength=count)
    histograms = []
    for bins, bin_count in ((colour, _COLOUR_BINS), (texture, _TEXTURE_BINS)):
        starts = labels.ravel() * bin_count
        counted = [
            np.bincount(starts + channel.ravel(), minlength=count * bin_count).reshape(count, bin_count)
            for channel in np.moveaxis(bins, 2, 0)
        ]
        histograms.append(np.concatenate(counted, axis=1) / (sizes[:, None] * bins.shape[2]))
    rows, columns = np.indices(labels.shape, sparse=True)
    boxes = np.empty((count, 4), int)
    for axis, places in ((0, columns), (1, rows)):
        places = np.broadcast_to(places, labels.shape).ravel()
        low, high = np.full(count, labels.size), np.full(count, -1)
        np.minimum.at(low, labels.ravel(), places)
        np.maximum.at(high, labels.ravel(), places)
        boxes[:, axis], boxes[:, axis + 2] = low, high + 1
    # Diagonal ones too: the cut goes by these, so a region may have no others.
    sides = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    sides += [(labels[:-1, :-1], labels[1:, 1:]), (labels[:-1, 1:], labels[1:, :-1])]
    pairs = np.concatenate([np.stack([a[a != b], b[a != b]], axis=1) for a, b in sides])
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    return boxes, sizes, np.concatenate(histograms, axis=1), histograms[0].shape[1], pairs


def _group(boxes, sizes, histograms, colours, pairs, likeness, image_size):
    """The boxes of all regions, int (2N - 1, 4), in the order in which they come to be: the first ones, then merged."""
    count, total = len(boxes), 2 * len(boxes) - 1
    boxes = np.concatenate([boxes, np.zeros((count - 1, 4), int)])
    sizes = np.concatenate([sizes, np.zeros(count - 1, int)])
    histograms = np.concatenate([histograms, np.zeros((count - 1, histograms.shape[1]))])

    def alike(i, others):
        """Section 3.2: the sum of the similarities of region i with others, (n,)."""
        result = np.zeros(len(others))
        if "c" in likeness:
            result += np.minimum(histograms[i, :colours], histograms[others, :colours]).sum(axis=1)  # eq. 1
        if "t" in likeness:
            result += np.minimum(histograms[i, colours:], histograms[others, colours:]).sum(axis=1)  # eq. 3
        both = sizes[i] + sizes[others]
        if "s" in likeness:
            result += 1 - both / image_size  # eq. 4
        if "f" in likeness:
            low, high = np.minimum(boxes[i, :2], boxes[others, :2]), np.maximum(boxes[i, 2:], boxes[others, 2:])
            result += 1 - ((high - low).prod(axis=1) - both) / image_size  # eq. 5
        return result

    neighbours = [set() for _ in range(total)]
    for a, b in pairs.tolist():
        neighbours[a].add(b)
        neighbours[b].add(a)
    queue = []
    for i in range(count):
        others = np.array([j for j in neighbours[i] if j > i], int)
        queue += [(-value, i, j) for value, j in zip(alike(i, others).tolist(), others.tolist(), strict=True)]
    heapq.heapify(queue)
    is_merged = np.zeros(total, bool)
    for new in range(count, total):
        while True:
            _, i, j = heapq.heappop(queue)
            if not (is_merged[i] or is_merged[j]):
                break
        is_merged[[i, j]] = True
        sizes[new] = sizes[i] + sizes[j]
        histograms[new] = (sizes[i] * histograms[i] + sizes[j] * histograms[j]) / sizes[new]  # eq. 2
        boxes[new] = [*np.minimum(boxes[i, :2], boxes[j, :2]), *np.maximum(boxes[i, 2:], boxes[j, 2:])]
        neighbours[new] = (neighbours[i] | neighbours[j]) - {i, j}
        for k in neighbours[new]:
            neighbours[k] -= {i, j}
            neighbours[k].add(new)
        others = np.array(sorted(neighbours[new]), int)
        for value, k in zip(alike(new, others).tolist(), others.tolist(), strict=True):
            heapq.heappush(queue, (-value, k, new))
    return boxes
