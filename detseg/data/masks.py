"""Masks of objects: run-length codes (COCO's RLE) in both forms, polygons, label maps, and what follows from masks.

An RLE is {"size": [H, W], "counts": ...} as pycocotools takes it. Arrays may come in any memory order.
"""

from itertools import pairwise

import cv2
import numpy as np
from pycocotools import mask as rle


def encode_masks(masks):
    """Masks (N, H, W), bool or uint8 0/1, that may overlap, as N compressed RLEs."""
    return rle.encode(np.asfortranarray(np.asarray(masks).transpose(1, 2, 0), np.uint8))


def decode_masks(codes, size):
    """N compressed RLEs of `size` (H, W) as uint8 (N, H, W) of 0 and 1."""
    if not codes:
        return np.zeros((0, *size), np.uint8)
    return np.ascontiguousarray(rle.decode(codes).transpose(2, 0, 1))


def code_areas(codes):
    """Pixels of N compressed RLEs: int64 (N,). pycocotools' own way (2.0.11) overflows at more than 255 masks."""
    return np.array([rle.area(code) for code in codes], np.int64)


def decode_part(code):
    """The mask of a compressed RLE within its bounding box: (rows, columns) as slices, and uint8 (h, w) of 0 and 1."""
    x, y, width, height = rle.toBbox(code).astype(int)
    part = slice(y, y + height), slice(x, x + width)
    return part, rle.decode(code)[part]


def encode_instances(instance_ids):
    """The masks of instances 1..N, all of which occur in instance_ids, int (H, W), 0 = none: N compressed RLEs."""
    height, width = instance_ids.shape
    columns = instance_ids.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(columns[1:] != columns[:-1]) + 1])  # of runs of one id
    ends = np.append(starts[1:], columns.size)
    ids = columns[starts]
    order = np.argsort(ids, kind="stable")
    edges = np.stack([starts, ends], axis=1)[order]  # (runs, 2)
    firsts = np.searchsorted(ids[order], np.arange(1, ids.max(initial=0) + 2))
    codes = []
    for first, last in pairwise(firsts):
        # COCO's counts are runs of zeros and ones in turn: the differences between the edges of an instance's runs.
        after = [] if edges[last - 1, 1] == columns.size else columns.size
        counts = np.diff(edges[first:last].ravel(), prepend=0, append=after)
        codes.append(rle.frPyObjects({"size": [height, width], "counts": counts}, height, width))
    return codes


def paint_instances(codes, size):
    """N compressed RLEs of `size` (H, W) as uint16 (H, W): 1 + the index of the first mask that has a pixel, 0: none.

    Raises ValueError for more than 65535.
    """
    if len(codes) > np.iinfo(np.uint16).max:
        raise ValueError(f"{len(codes)} masks, expected up to 65535")
    ids = np.zeros(size, np.uint16)
    for number in range(len(codes), 0, -1):
        part, mask = decode_part(codes[number - 1])
        np.copyto(ids[part], number, where=mask != 0)
    return ids


def label_components(mask):
    """4-connected components: bool (H, W) -> int32 (H, W), 0 outside, 1..N inside."""
    return cv2.connectedComponents(np.ascontiguousarray(mask, np.uint8), connectivity=4, ltype=cv2.CV_32S)[1]


def boxes_of_masks(masks):
    """The boxes around the pixels of instance masks, uint8 (N, H, W): float32 (N, 4), zeros where a mask is empty."""
    boxes = [cv2.boundingRect(mask) for mask in np.ascontiguousarray(masks)]  # x, y, width, height
    x, y, width, height = np.array(boxes, np.float32).reshape(-1, 4).T
    return np.stack([x, y, x + width, y + height], axis=1)


def mask_areas(masks):
    """Pixels of instance masks, uint8 (N, H, W): float64 (N,)."""
    return np.array([cv2.countNonZero(mask) for mask in np.ascontiguousarray(masks)], np.float64)


def resize_masks(masks, size):
    """Instance masks, uint8 (N, H, W), at another `size` (height, width): the nearest pixel's."""
    masks, new = np.ascontiguousarray(masks), (size[1], size[0])
    resized = [cv2.resize(mask, new, interpolation=cv2.INTER_NEAREST_EXACT) for mask in masks]
    return np.array(resized, np.uint8).reshape(-1, *size)


def crop_masks(masks, boxes, size):
    """Instance masks within their boxes, in cells: uint8 (N, size, size), 0..255, the share of a cell that is the mask.

    masks, boxes:  uint8 (N, H, W) of 0 and 1; (N, 4), within the image. What of a mask lies beyond its box is left out.
    """
    crops = np.zeros((len(masks), size, size), np.uint8)
    steps = np.linspace(0, 1, size + 1)
    for crop, mask, box in zip(crops, masks, np.asarray(boxes, np.float64), strict=True):
        (left, top), (right, bottom) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        sums = cv2.integral(np.ascontiguousarray(mask[top:bottom, left:right])).astype(np.float64)
        # Between pixels' edges these sums are linear along each axis: a cell's share follows exactly.
        for axis, (start, end, first) in enumerate(((box[1], box[3], top), (box[0], box[2], left))):
            edges = start + steps * (end - start) - first
            low = np.minimum(edges.astype(int), sums.shape[axis] - 2)
            part = np.expand_dims(edges - low, 1 - axis)
            sums = sums.take(low, axis) * (1 - part) + sums.take(low + 1, axis) * part
        cell = (box[2:] - box[:2]).prod() / size**2
        np.rint(np.diff(np.diff(sums, axis=0), axis=1) * (255 / cell), out=crop, casting="unsafe")
    return crops


def paint_maps(codes, labels, is_crowd, size, background=0, ignore_label=255):
    """Instances painted to semantic labels: smaller masks over larger ones, crowds under all of them.

    codes:      N compressed RLEs of `size` (H, W); labels: their N class indices.
    is_crowd:   N bools; a crowd becomes ignore_label, unless its label is the background.
    Returns     label map, uint8 (H, W); instance ids, int32 (H, W): 1 + the mask's index, 0 for background and crowds.
    """
    ids = np.zeros(size, np.int32)  # (H, W)
    labels, is_crowd = np.array(labels, np.uint8), np.array(is_crowd, bool)
    for i in sorted(range(len(codes)), key=lambda i: (not is_crowd[i], -int(rle.area(codes[i])))):
        if not (is_crowd[i] and labels[i] == background):
            part, mask = decode_part(codes[i])
            np.copyto(ids[part], i + 1, where=mask != 0)
    painted = np.where(is_crowd, ignore_label, labels)  # (N,)
    objects = np.where(is_crowd | (labels == background), 0, np.arange(1, len(codes) + 1))  # (N,)
    label_map = np.concatenate([[background], painted]).astype(np.uint8)[ids]
    return label_map, np.concatenate([[0], objects]).astype(np.int32)[ids]


def encode_segmentation(segmentation, size):
    """Any of COCO's three forms (polygons, uncompressed and compressed RLE) as one compressed RLE.

    Raises  ValueError, where pycocotools itself crashes on coordinates that are no numbers or far away, and reads
            uninitialised memory for counts that are too short.
    """
    height, width = size
    if isinstance(segmentation, list):
        for polygon in segmentation:
            points = _array(polygon)
            if points.ndim != 1 or points.dtype.kind not in "iuf" or not np.isfinite(points).all():
                expected = "expected x1, y1, x2, y2, ... in one list"
                raise ValueError(f"a polygon has coordinates that are no numbers, {expected}")
            points = points.reshape(-1, 2)  # (N, 2) x, y
            low, high = points.min(axis=0), points.max(axis=0)
            if (low < (-width, -height)).any() or (high > (2 * width, 2 * height)).any():
                raise ValueError(
                    f"a polygon spans x {low[0]:g}..{high[0]:g}, y {low[1]:g}..{high[1]:g}, far outside of its image "
                    f"of {width}x{height} (width x height)"
                )
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    if segmentation["size"] != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, but its image has {[height, width]}")
    is_compressed = isinstance(segmentation["counts"], str)
    counts = decompress_counts(segmentation["counts"]) if is_compressed else _array(segmentation["counts"])
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.min(initial=0) < 0:
        raise ValueError("its counts are not a list of whole numbers >= 0")
    if counts.sum() != height * width:
        raise ValueError(f"its counts sum to {counts.sum()}, expected {height} x {width} = {height * width}")
    return segmentation if is_compressed else rle.frPyObjects(segmentation, height, width)


def decompress_counts(text):
    """The counts of a compressed RLE string (pycocotools' rleFrString): 5 bits a character, then differences."""
    characters = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    if not text or characters.min() < 0 or characters.max() > 63 or characters[-1] & 0x20:
        raise ValueError("its counts are not a compressed RLE string")
    starts = np.concatenate([[0], np.flatnonzero((characters & 0x20) == 0)[:-1] + 1])
    lengths = np.diff(starts, append=characters.size)
    if lengths.max() > 7:
        raise ValueError("its counts are not a compressed RLE string")
    place = np.arange(characters.size) - np.repeat(starts, lengths)
    counts = np.add.reduceat((characters & 0x1F) << (5 * place), starts)
    is_negative = (characters[starts + lengths - 1] & 0x10) != 0
    counts -= is_negative * (1 << (5 * lengths))
    counts[1::2] = np.cumsum(counts[1::2])  # from the fourth on, a count is the difference to the last but one;
    counts[2::2] = np.cumsum(counts[2::2])  # the first three stand for themselves
    return counts


def _array(values):
    """A list from a JSON file as an array: of dtype object where that is nested unevenly."""
    try:
        return np.asarray(values)
    except ValueError:
        return np.empty(1, object)
