"""The objects of an image, and how they follow when the image is changed."""

from dataclasses import dataclass, fields, replace

import numpy as np

from detseg.data.elastic import move_boxes, move_masks
from detseg.data.masks import boxes_of_masks, mask_areas, resize_masks
from detseg.data.pixels import cut_window
from detseg.errors import UserError

# "Label all objects of the defined categories, unless [...] less than 10-20% of the object is visible" (VOC2011
# Annotation Guidelines): what is cut off further isn't labelled in data sets either.
MIN_VISIBILITY = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """N objects of one image; arrays follow the conventions of `detseg`.

    boxes:      float32 (N, 4), each within the image and of positive width and height.
    labels:     int64 (N,), 0..K-1.
    is_crowd:   bool (N,), COCO's iscrowd: a region of many objects, neither trained nor scored on. None: no crowd.
    difficult:  bool (N,), VOC's: not scored on. None: none is.
    areas:      float64 (N,), pixels of the object as its source says. COCO's small, medium and large go by it. None:
                those of the boxes.
    masks:      uint8 (N, H, W) of 0 and 1, or None where they weren't asked for. A mask has no pixel where its source
                has none for it: an outline between pixel centres, an object that others hide.

    Arrays of other number types, lists and tables of pandas are converted; UserError for what has another shape or
    kind. The methods return new Objects and take the place of an object from its mask where there are masks, else from
    its box. They leave out what loses its last pixel, or its box's width or height.
    """

    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray | None = None
    difficult: np.ndarray | None = None
    areas: np.ndarray | None = None
    masks: np.ndarray | None = None

    def __post_init__(self):
        def convert(name, values, *form):
            object.__setattr__(self, name, converted(f"Objects: {name}", values, *form))

        convert("boxes", self.boxes, np.float32, "iuf", (None, 4), "(N, 4): x1 y1 x2 y2 in pixels")
        count = len(self.boxes)
        convert("labels", self.labels, np.int64, "iu", (count,), "whole numbers, 0..K-1")
        for name, flags in (("is_crowd", self.is_crowd), ("difficult", self.difficult)):
            convert(name, np.zeros(count, bool) if flags is None else flags, bool, "biu", (count,), "bool")
        areas = _extents(self.boxes) if self.areas is None else self.areas
        convert("areas", areas, np.float64, "iuf", (count,), "numbers of pixels")
        if self.masks is not None:
            convert("masks", self.masks, np.uint8, "biu", (count, None, None), "(N, H, W) of 0 and 1")

    def __len__(self):
        return len(self.boxes)

    def select(self, chosen):
        """Those at `chosen`: bool (N,), int (M,) or a slice."""
        arrays = (getattr(self, field.name) for field in fields(self))
        return Objects(*(None if array is None else array[chosen] for array in arrays))

    def resized(self, size, new_size):
        """As in the image when it is scaled from `size` to `new_size`, both (H, W)."""
        scale_y, scale_x = (new / old for old, new in zip(size, new_size, strict=True))
        boxes = clip_boxes(self.boxes * np.array([scale_x, scale_y] * 2, np.float32), new_size)
        return self._changed(boxes, None if self.masks is None else resize_masks(self.masks, new_size))

    def cropped(self, starts, size, min_visibility=MIN_VISIBILITY):
        """Those in the window of `size` (H, W) that starts at (row, column) `starts`, which may lie in padding.

        min_visibility:  share of an object's mask, or else box, that has to be in the window for it to stay. A crowd
                         stays as long as any of it is there: nobody knows what is left over of its objects.
        A box that the window cuts becomes the one around the rest of the mask; without masks it is clipped.
        """
        row, column = starts
        moved = self.boxes - np.array([column, row] * 2, np.float32)
        boxes = clip_boxes(moved, size)
        if self.masks is None:
            return self._changed(boxes, None, min_visibility)
        masks = [cut_window(mask, starts, size, 0) for mask in self.masks]
        masks = np.array(masks, np.uint8).reshape(-1, *size)
        is_cut = (boxes != moved).any(axis=1)  # (N,)
        boxes[is_cut] = boxes_of_masks(masks[is_cut])
        return self._changed(boxes, masks, min_visibility)

    def flipped(self, axes, size):
        """As in the image of `size` (H, W) mirrored along `axes`: 0 turns it upside down, 1 swaps left and right."""
        x1, y1, x2, y2 = self.boxes.T
        height, width = np.float32(size)
        if 0 in axes:
            y1, y2 = height - y2, height - y1
        if 1 in axes:
            x1, x2 = width - x2, width - x1
        masks = None if self.masks is None else np.flip(self.masks, [axis + 1 for axis in axes])
        return self._changed(np.stack([x1, y1, x2, y2], axis=1), masks)

    def turned(self, turns, size):
        """As in the image of `size` (H, W) after `turns` quarter turns to the left, as by np.rot90."""
        boxes, (height, width) = self.boxes, np.float32(size)
        for _ in range(turns % 4):
            x1, y1, x2, y2 = boxes.T
            boxes = np.stack([y1, width - x2, y2, width - x1], axis=1)
            height, width = width, height
        return self._changed(boxes, None if self.masks is None else np.rot90(self.masks, turns, axes=(1, 2)))

    def deformed(self, maps, min_visibility=MIN_VISIBILITY):
        """As in the image moved by `maps` of `detseg.data.elastic`.

        Mirrored copies of an object beyond the border don't belong to it. min_visibility: see `cropped`.
        """
        if self.masks is None:
            return self._changed(move_boxes(self.boxes, maps), None, min_visibility)
        height, width = maps[0].shape
        is_in_width = np.abs(maps[0] - (width - 1) / 2) <= width / 2  # (H, W)
        is_in_height = np.abs(maps[1] - (height - 1) / 2) <= height / 2
        masks = move_masks(self.masks, maps) * (is_in_width & is_in_height)
        return self._changed(boxes_of_masks(masks), masks, min_visibility)

    def placed(self, index, boxes, masks=None):
        """The objects at `index`, int (M,), in places that somebody else found, of which an object may have several.

        masks:  uint8 (N, H, W), of all objects; of each, what lies in its box is taken.
        """
        chosen = self.select(index)
        if masks is None:
            return chosen._changed(boxes, None)
        parts = np.zeros((len(index), *masks.shape[1:]), np.uint8)
        corners = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1).astype(int)
        for part, number, (x1, y1, x2, y2) in zip(parts, index, corners, strict=True):
            part[y1:y2, x1:x2] = masks[number, y1:y2, x1:x2]
        return chosen._changed(boxes_of_masks(parts), parts)

    def _changed(self, boxes, masks, min_visibility=0.0):
        """With other boxes and masks, less what has become empty or has shrunk below min_visibility."""
        masks = None if masks is None else np.ascontiguousarray(masks)
        growth = _extents(boxes, masks) / np.maximum(_extents(self.boxes, self.masks), 1e-9)  # (N,)
        is_whole = (growth > 0) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        is_visible = (growth >= min_visibility) | self.is_crowd
        changed = replace(self, boxes=boxes, masks=masks, areas=self.areas * growth)
        return changed if (is_whole & is_visible).all() else changed.select(is_whole & is_visible)


def clip_boxes(boxes, size):
    """Boxes (N, 4) with what lies beyond an image of `size` (H, W) cut off."""
    height, width = size
    return boxes.clip(0, np.array([width, height] * 2, boxes.dtype))


def _extents(boxes, masks=None):
    """What an object covers, (N,): pixels of its mask, or else its box's area."""
    return (boxes[:, 2:].astype(np.float64) - boxes[:, :2]).prod(axis=1) if masks is None else mask_areas(masks)


def converted(name, values, dtype, kinds, shape, expected):
    """Values as a contiguous array, for C code; kinds are NumPy's letters, and None in the shape is any side.

    Raises UserError with the `name` and what is `expected`.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:  # nested unevenly
        raise UserError(f"{name} are no array ({error}), expected {expected}") from error
    if array.size == 0 and array.ndim < len(shape):
        array = np.zeros([side or 0 for side in shape], dtype)  # such as []
    if array.size and array.dtype.kind not in kinds:
        raise UserError(f"{name} are of type {array.dtype}, expected {expected}")
    is_right = [side in (None, found) for side, found in zip(shape, array.shape, strict=False)]
    if array.ndim != len(shape) or not all(is_right):
        of_boxes = "" if shape[0] is None else f", one for each of the {shape[0]} boxes"
        raise UserError(f"{name} have the shape {array.shape}, expected {expected}{of_boxes}")
    return np.ascontiguousarray(array, dtype)
