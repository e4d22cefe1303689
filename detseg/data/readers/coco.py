"""COCO instance files as boxes and masks."""

from typing import NamedTuple

import numpy as np
from pycocotools import mask as rle

from detseg.data.checks import find_bad_boxes, settle_bad_boxes
from detseg.data.classes import select_object_classes
from detseg.data.detection_files import DetectionFiles
from detseg.data.readers.coco_file import fit_only_as_corners, fits_as_corners, is_number, looks_like_corners
from detseg.data.readers.coco_segmentation import CocoFiles
from detseg.errors import UserError


class _Entry(NamedTuple):
    image: int  # index
    index: int  # in the file's section annotations
    annotation: dict
    label: int


class CocoDetection(DetectionFiles, CocoFiles):
    """A COCO instances file as objects, in the file's order; see `detseg.data.datasets` for what a dataset offers.

    Labels follow the categories by ascending id. An object's area is that of the file, or else its box's.

    root, annotations, images, split, classes, channels: see `CocoFiles`.
    on_bad_box:     "refuse" or "drop", see `find_bad_boxes`.
    masks:          whether objects have masks, decoded from polygons and either form of RLE on access.
    category_ids:   tuple of K ids, of each class (where classes are merged by their names: of the first).
    Raises          UserError as CocoFiles, for bad boxes, and for boxes most of which seem to be x1 y1 x2 y2.
    """

    def __init__(
        self,
        root,
        annotations,
        images,
        split="train",
        classes=None,
        channels=3,
        on_bad_box="refuse",
        masks=False,
    ):
        super().__init__(root, annotations, images, split, classes, channels, masks, areas=True)
        self.has_masks, self._on_bad_box = masks, on_bad_box
        self._labels = self._set_classes(classes)
        label_of = dict(self._labels)
        entries = [
            _Entry(i, index, annotation, label_of[annotation["category_id"]])
            for i, group in enumerate(self._annotations)
            for index, annotation in group
            if label_of[annotation["category_id"]] is not None
        ]
        del self._annotations, self._categories
        boxes, kept = self._checked_boxes(entries)
        entries = [entries[k] for k in kept]
        box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).tolist()
        self._set_objects(
            image_of=[entry.image for entry in entries],
            boxes=boxes,
            labels=[entry.label for entry in entries],
            is_crowd=[entry.annotation.get("iscrowd", 0) for entry in entries],
            difficult=np.zeros(len(entries), bool),
            areas=[
                area if entry.annotation.get("area") is None else entry.annotation["area"]
                for entry, area in zip(entries, box_areas, strict=True)
            ],
        )
        self._masked = [(entry.image, entry.index, entry.annotation) for entry in entries] if masks else None

    def settings(self):
        return {
            "classes": self.classes,
            "category_ids": self.category_ids,
            "labels": self._labels,
            "on_bad_box": self._on_bad_box,
            "channels": self.channels,
            "masks": self.has_masks,
        }

    def _set_classes(self, selection):
        """Pairs of the file's category id and our label or None."""
        ids = [category["id"] for category in self._categories]
        names = [category["name"] for category in self._categories]
        if not names:
            raise UserError(f"{self.annotation_path}: section categories holds no category")
        self.classes, labels = select_object_classes(names, selection, self.annotation_path)
        self.category_ids = tuple(ids[labels.index(label)] for label in range(len(self.classes)))
        return list(zip(ids, labels, strict=True))

    def _checked_boxes(self, entries):
        """Boxes of the good ones of `entries`, float64 (M, 4) clipped to the image, and their positions, int (M,)."""
        written = np.array([_numbers(entry.annotation.get("bbox")) for entry in entries], np.float64).reshape(-1, 4)
        sizes = np.array([self._sizes[entry.image] for entry in entries]).reshape(-1, 2)
        corners = looks_like_corners(written, sizes) | fit_only_as_corners(written, sizes)
        if corners.any():
            raise UserError(
                f"{self.annotation_path}: field bbox: {corners.sum()} of {len(written)} boxes end outside of their "
                f"image as [x, y, width, height], while they fit as [x1, y1, x2, y2]; the first is "
                f"{self._bbox_place(entries[corners.argmax()])}. Write [x1, y1, x2 - x1, y2 - y1], or correct those "
                "boxes if that is what the others are"
            )
        boxes = np.concatenate([written[:, :2], written[:, :2] + written[:, 2:]], axis=1)
        boxes, bad, clipped = find_bad_boxes(boxes, sizes, written[:, 2:])
        as_corners = fits_as_corners(written, sizes)
        lines = []
        for k, problem in bad.items():
            hint = "; as [x1, y1, x2, y2] it would fit" if as_corners[k] else ""
            lines.append(f"{self._bbox_place(entries[k])}: {_form_problem(entries[k].annotation) or problem + hint}")
        moved = [f"{self._bbox_place(entries[k])}: by {pixels:g} px" for k, pixels in clipped.items()]
        settle_bad_boxes(lines, moved, self.split, len(entries), self._on_bad_box)
        kept = np.setdiff1d(np.arange(len(entries)), list(bad))
        return boxes[kept], kept

    def _bbox_place(self, entry):
        place = self._place(entry.image, entry.index, entry.annotation)
        return f"{place}: field bbox {entry.annotation.get('bbox')!r}"

    def _masks(self, i):
        start, end = self._starts[i : i + 2]
        if start == end:
            return np.zeros((0, *self._sizes[i]), np.uint8)
        encoded = [self._encode(*masked) for masked in self._masked[start:end]]
        return np.ascontiguousarray(rle.decode(encoded).transpose(2, 0, 1))


def _numbers(bbox):
    """A bbox as four floats, nan where it is none."""
    return [float("nan")] * 4 if _is_malformed(bbox) else bbox


def _is_malformed(bbox):
    return not isinstance(bbox, list) or len(bbox) != 4 or not all(is_number(value) for value in bbox)


def _form_problem(annotation):
    if "bbox" not in annotation:
        return "missing, expected [x, y, width, height]"
    return "expected four finite numbers [x, y, width, height]" if _is_malformed(annotation["bbox"]) else None
