"""Pascal VOC's detection layout."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detseg.data.checks import find_bad_boxes, raise_problems, settle_bad_boxes
from detseg.data.classes import BACKGROUND, BUILT_IN, CLASSES_FILE, not_among, read_class_names, select_object_classes
from detseg.data.detection_files import DetectionFiles
from detseg.data.images import check_size, read_instance_ids
from detseg.data.readers.folder import check_folder
from detseg.data.readers.voc_annotation import CORNERS, VOCObject, read_voc_annotation
from detseg.data.readers.voc_segmentation import IMAGES, find_files, read_list
from detseg.errors import UserError

_ANNOTATIONS = "Annotations"
_MASKS = "SegmentationObject"
_VOID = 255  # of SegmentationObject: the border of objects, and what is too hard to tell


class _Entry(NamedTuple):
    image: int  # index
    index: int  # of the object in its file
    object: VOCObject
    label: int


class VOCDetection(DetectionFiles):
    """ROOT/ImageSets/Main/LIST.txt names the images, ROOT/JPEGImages and ROOT/Annotations hold them and their boxes.

    root:           the data set's folder.
    lists:          {split: name of its list without .txt}, of all splits that there are.
    split:          the one to read.
    classes, channels: the config's data section. The source's classes are those of ROOT/classes.txt without a
                    background; VOC's twenty if classes is "voc"; else the names in the annotations of all splits,
                    sorted.
    voc_boxes:      "inclusive": the devkit's first and last pixel, counted from 1; "continuous": edges as written.
    on_bad_box:     "refuse" or "drop", see `find_bad_boxes`.
    masks:          whether objects have masks, from ROOT/SegmentationObject, where pixels of the XML's first object
                    are 1, of the next 2 and so on; the lists are those of ImageSets/Segmentation then.
    image_ids:      the names; category_ids: 1..K.
    Raises          UserError that lists what is wrong with lists and annotations: file, object[index from 0] and field.
    """

    def __init__(
        self,
        root,
        lists,
        split="train",
        classes=None,
        channels=3,
        voc_boxes="inclusive",
        on_bad_box="refuse",
        masks=False,
    ):
        self.root, self.split, self.channels, self.has_masks = Path(root), split, channels, masks
        self._voc_boxes, self._on_bad_box = voc_boxes, on_bad_box
        check_folder(root, "data.root")
        names_of = self._read_lists(lists)  # by the lists' paths
        own = self._list_path(lists[split])
        self.names = self.image_ids = names_of[own]
        self.image_paths = list(find_files(self.root / IMAGES, {own: self.names}).values())
        self._mask_paths = list(find_files(self.root / _MASKS, {own: self.names}, (".png",)).values()) if masks else []

        source_names, source = self._source_names(classes)
        # Where nothing else names the classes, the annotations of all splits do.
        needed = names_of if source_names is None else {own: self.names}
        annotation_paths = find_files(self.root / _ANNOTATIONS, needed, (".xml",))
        self._annotation_paths = [annotation_paths[name] for name in self.names]
        annotations = _read_annotations(self.root / _ANNOTATIONS, annotation_paths)
        if source_names is None:
            source_names = sorted({item.name for each in annotations.values() for item in each.objects})
            if not source_names:
                raise UserError(f"{self.root / _ANNOTATIONS}: no object in any of the {len(annotations)} annotations")
        self.classes, labels = select_object_classes(source_names, classes, source)
        self.category_ids = tuple(range(1, len(self.classes) + 1))
        self._labels = list(zip(source_names, labels, strict=True))
        entries = self._entries(annotations, dict(self._labels), source)
        boxes, kept = self._checked_boxes(entries)
        self._mask_values = np.array([entries[k].index + 1 for k in kept], int)  # (M,)
        self._file_counts = [len(annotations[name].objects) for name in self.names]
        self._set_objects(
            image_of=[entries[k].image for k in kept],
            boxes=boxes,
            labels=[entries[k].label for k in kept],
            is_crowd=np.zeros(len(kept), bool),
            difficult=[entries[k].object.difficult for k in kept],
            areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        )

    def labels_source(self, i):
        return str(self._annotation_paths[i])

    def label_files(self):
        return [*self._annotation_paths, *self._mask_paths]

    def settings(self):
        return {
            "classes": self.classes,
            "labels": self._labels,
            "voc_boxes": self._voc_boxes,
            "on_bad_box": self._on_bad_box,
            "channels": self.channels,
            "masks": self.has_masks,
        }

    def _list_path(self, name):
        return self.root / "ImageSets" / ("Segmentation" if self.has_masks else "Main") / f"{name}.txt"

    def _read_lists(self, lists):
        """{path of a list: its names}."""
        names_of = {}
        for split, list_name in lists.items():
            path = self._list_path(list_name)
            names = names_of[path] = read_list(path, f"data.{split}")
            if all(re.search(r"\s-?[01]$", name) for name in names) and any(name.endswith(" -1") for name in names):
                raise UserError(
                    f"{path}: every line ends in -1, 0 or 1: a list of one class (data.{split}), expected one with "
                    "image names only, such as train"
                )
        return names_of

    def _source_names(self, classes):
        """The source's class names (None: to be found in the annotations), and where they come from."""
        if isinstance(classes, str) and classes not in BUILT_IN:
            raise UserError(f"data.classes: {classes!r}, expected 'voc', a list of names or {{source name: our name}}")
        path = self.root / CLASSES_FILE
        if isinstance(classes, str):
            return BUILT_IN[classes][1:], f"data.classes: {classes}"
        if path.exists():
            names = [name for name in read_class_names(path, most=None) if name.lower() != BACKGROUND]
            return names, str(path)
        return None, f"the annotations in {self.root / _ANNOTATIONS}"

    def _entries(self, annotations, label_of, source):
        """The objects of the split's images whose classes are asked for."""
        entries, problems = [], []
        self._sizes = []
        for i, name in enumerate(self.names):
            size, objects = annotations[name]
            self._sizes.append(size or self.image(i).shape[:2])
            for index, item in enumerate(objects):
                if item.name not in label_of:
                    place = f"{self._annotation_paths[i]}: object[{index}]"
                    problems.append(
                        f"{place}: field name is {item.name!r}, not {not_among(list(label_of), item.name, source)}"
                    )
                elif label_of[item.name] is not None:
                    entries.append(_Entry(i, index, item, label_of[item.name]))
        raise_problems(f"split {self.split!r}", problems)
        return entries

    def _checked_boxes(self, entries):
        """Boxes of the good ones of `entries`, float64 (M, 4) clipped to the image, and their positions, int (M,)."""
        written = np.array([entry.object.corners for entry in entries], np.float64).reshape(-1, 4)
        boxes = written
        if self._voc_boxes == "inclusive":
            self._check_inclusive(entries, written)
            boxes = written - np.array([1, 1, 0, 0])
        sizes = [self._sizes[entry.image] for entry in entries]
        boxes, bad, clipped = find_bad_boxes(boxes, sizes, written[:, 2:] - written[:, :2])
        lines = [f"{self._place(entries[k])}: {problem}" for k, problem in bad.items()]
        moved = [f"{self._place(entries[k])}: by {pixels:g} px" for k, pixels in clipped.items()]
        settle_bad_boxes(lines, moved, self.split, len(entries), self._on_bad_box)
        kept = np.setdiff1d(np.arange(len(entries)), list(bad))
        return boxes[kept], kept

    def _check_inclusive(self, entries, written):
        """Whoever writes 0 counts from 0: the devkit's first pixel is 1."""
        from_zero = np.flatnonzero(((written[:, :2] >= 0) & (written[:, :2] < 1)).any(axis=1))
        if len(from_zero):
            raise UserError(
                f"{self._place(entries[from_zero[0]])}: xmin or ymin is below 1 ({len(from_zero)} of {len(entries)} "
                f"objects in split {self.split!r}), but by data.voc_boxes: inclusive pixels are counted from 1. Set "
                "data.voc_boxes: continuous if the boxes are edges counted from 0, as labelImg, CVAT and others write "
                "them"
            )

    def _place(self, entry):
        corners = " ".join(f"{field} {value:g}" for field, value in zip(CORNERS, entry.object.corners, strict=True))
        problem = entry.object.problem or f"bndbox {corners}"
        return f"{self._annotation_paths[entry.image]}: object[{entry.index}] ({entry.object.name}): {problem}"

    def _masks(self, i):
        path, count = self._mask_paths[i], self._file_counts[i]
        ids = read_instance_ids(path)
        ids[ids == _VOID] = 0
        check_size(self._sizes[i], self.image_paths[i], ids.shape, path)
        if ids.max() > count:
            row, column = np.argwhere(ids > count)[0]
            raise UserError(
                f"{path}: object number {ids[row, column]} at row {row}, column {column}, but {self.labels_source(i)} "
                f"has {count} objects"
            )
        values = self._mask_values[slice(*self._starts[i : i + 2])]
        return (ids == values[:, None, None]).astype(np.uint8)


def _read_annotations(folder, paths):
    """{name: VOCAnnotation} of {name: Path}."""
    annotations, problems = {}, []
    for name, path in paths.items():
        try:
            annotations[name] = read_voc_annotation(path)
        except UserError as error:
            problems.append(str(error))
    raise_problems(str(folder), problems)
    return annotations
