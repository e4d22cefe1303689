"""Pascal VOC's layouts for detection and segmentation."""

import re
from collections import namedtuple
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from defusedxml import DefusedXmlException, ElementTree

from detseg.data.checks import Finding, findings_of, raise_problems
from detseg.data.classes import Palette, Selection, not_among, object_class_names, select_object_classes
from detseg.data.images import check_size, read_instance_ids
from detseg.data.readers.base import DetectionFiles, Entry, MaskFiles, check_folder, find_files, read_list
from detseg.errors import UserError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
_VOID = 255  # of SegmentationObject: the border of objects, and what is too hard to tell

# An <object>: corners as written, nan for what is missing or no number; problem: what is wrong with the form of its
# bndbox, (field, value, advice), or None.
VOCObject = namedtuple("VOCObject", "name difficult corners problem")


class VOCSegmentation(MaskFiles):
    """ROOT/ImageSets/Segmentation/LIST.txt names the images, ROOT/JPEGImages and ROOT/SegmentationClass hold them.

    root:           the data set's folder. Its classes.txt names the masks' indices, or data.classes is "voc".
    list_name:      name of the list without .txt, such as "train".
    split:          the split's name, the list's unless given. The rest: see `MaskFiles`.
    Images are NAME.jpg, or .jpeg, .png, .bmp, .tif, .webp where there is no .jpg; masks are NAME.png.
    Raises          UserError for a missing folder or list, an empty one, names listed twice or without their files.
    """

    def __init__(
        self,
        root: str | PathLike,
        list_name: str,
        split: str | None = None,
        classes: Selection = None,
        channels: int = 3,
        ignore_label: int = 255,
        palette: Palette = None,
        value_range: tuple[float, float] | None = None,
    ):
        root, split = Path(root), split or list_name
        check_folder(root, "data.root")
        path = root / "ImageSets" / "Segmentation" / f"{list_name}.txt"
        names = read_list(path, f"data.{split}")
        images = find_files(root / "JPEGImages", {path: names})
        masks = find_files(root / "SegmentationClass", {path: names}, (".png",))
        files = names, list(images.values()), list(masks.values())
        super().__init__(split, files, root, classes, channels, ignore_label, palette, value_range)


class VOCDetection(DetectionFiles):
    """ROOT/ImageSets/Main/LIST.txt names the images, ROOT/JPEGImages and ROOT/Annotations hold them and their boxes.

    root:           the data set's folder.
    lists:          {split: name of its list without .txt}, of all splits that there are.
    split:          the one to read.
    classes, channels, value_range: the config's data section. The source's classes are those of ROOT/classes.txt
                    without a background; VOC's twenty if classes is "voc"; else the names in the annotations of all
                    splits, sorted.
    voc_boxes:      "inclusive": the devkit's first and last pixel, counted from 1; "continuous": edges as written.
    on_bad_box:     "refuse" or "drop", see `checked_boxes`.
    masks:          whether objects have masks, from ROOT/SegmentationObject, where pixels of the XML's first object
                    are 1, of the next 2 and so on; the lists are those of ImageSets/Segmentation then.
    Raises          UserError that lists what is wrong with lists and annotations: file, object[index from 0] and field.
    """

    settings = ("classes", "_label_of", "_voc_boxes", "_on_bad_box", "has_masks")

    def __init__(
        self,
        root: str | PathLike,
        lists: Mapping[str, str],
        split: str = "train",
        classes: Selection = None,
        channels: int = 3,
        voc_boxes: str = "inclusive",
        on_bad_box: str = "refuse",
        masks: bool = False,
        value_range: tuple[float, float] | None = None,
    ):
        root = Path(root)
        self.split, self.channels, self.value_range, self.has_masks = split, channels, value_range, masks
        self._voc_boxes, self._on_bad_box = voc_boxes, on_bad_box
        check_folder(root, "data.root")
        folder = root / "ImageSets" / ("Segmentation" if masks else "Main")
        names_of = {folder / f"{name}.txt": _read_names(folder / f"{name}.txt", each) for each, name in lists.items()}
        own = {path: names for path, names in names_of.items() if path == folder / f"{lists[split]}.txt"}
        (self.names,) = own.values()
        self.image_ids = self.names
        self.image_paths = list(find_files(root / "JPEGImages", own).values())
        self._mask_paths = list(find_files(root / "SegmentationObject", own, (".png",)).values()) if masks else []
        source_names, source = object_class_names(root, classes)
        # Where nothing else names the classes, the annotations of all splits do.
        paths = find_files(root / "Annotations", names_of if source_names is None else own, (".xml",))
        self.label_paths = [*(paths[name] for name in self.names), *self._mask_paths]
        annotations, findings = {}, []
        for name, path in paths.items():
            try:
                annotations[name] = read_voc_annotation(path)
            except UserError as error:
                findings += findings_of(error)
        raise_problems(root / "Annotations", findings)
        if source_names is None:
            source = f"the annotations in {root / 'Annotations'}"
            source_names = sorted({item.name for _, objects in annotations.values() for item in objects})
            if not source_names:
                raise UserError(f"{root / 'Annotations'}: no object in any of the {len(annotations)} annotations")
        self.classes, labels = select_object_classes(source_names, classes, source)
        self._label_of = dict(zip(source_names, labels, strict=True))  # None: left out by data.classes
        annotations = [annotations[name] for name in self.names]
        self._sizes = [size or self.image(i).shape[:2] for i, (size, _) in enumerate(annotations)]
        self._file_counts = [len(objects) for _, objects in annotations]
        self._read_boxes(self._entries(annotations, source))

    def _entries(self, annotations, source):
        label_of, entries, unknown = self._label_of, [], []
        for i, (_, objects) in enumerate(annotations):
            for index, item in enumerate(objects):
                if item.name not in label_of:
                    place = (self.label_paths[i], f"object[{index}]", "name", "unknown", repr(item.name))
                    unknown.append(Finding(*place, f"not {not_among(list(label_of), item.name, source)}"))
                elif label_of[item.name] is not None:
                    entries.append(Entry(i, index, label_of[item.name], item, difficult=item.difficult))
        raise_problems(f"split {self.split!r}", unknown)
        return entries

    def _read_boxes(self, entries):
        written = np.array([entry.source.corners for entry in entries], np.float64).reshape(-1, 4)

        def describe(k, problem):
            image, index, _, item, *_ = entries[k]
            corners = " ".join(f"{field} {value:g}" for field, value in zip(CORNERS, item.corners, strict=True))
            field, value, advice = item.problem or ("bndbox", corners, problem)
            return Finding(self.label_paths[image], f"object[{index}] ({item.name})", field, "box", value, advice)

        boxes = written
        if self._voc_boxes == "inclusive":
            boxes = written - np.array([1, 1, 0, 0])
            # Whoever writes 0 counts from 0: the devkit's first pixel is 1.
            from_zero = np.flatnonzero(((written[:, :2] >= 0) & (written[:, :2] < 1)).any(axis=1))
            if len(from_zero):
                count = f"{len(from_zero)} of {len(entries)} objects in split {self.split!r}"
                raise UserError(
                    f"{describe(from_zero[0], f'xmin or ymin is below 1 ({count})')}, but by data.voc_boxes: inclusive "
                    "pixels are counted from 1. Set data.voc_boxes: continuous if the boxes are edges counted from 0, "
                    "as labelImg, CVAT and others write them"
                )
        self._set_objects(entries, boxes, written[:, 2:] - written[:, :2], describe)

    def _masks(self, i):
        path, count = self._mask_paths[i], self._file_counts[i]
        ids = read_instance_ids(path)
        ids[ids == _VOID] = 0
        check_size(self._sizes[i], self.image_paths[i], ids.shape, path)
        if ids.max() > count:
            row, column = np.argwhere(ids > count)[0]
            found = f"object number {ids[row, column]} at row {row}, column {column}"
            raise UserError(f"{path}: {found}, but {self.labels_source(i)} has {count} objects")
        values = [entry.index + 1 for entry in self._masked[slice(*self._starts[i : i + 2])]]
        return (ids == np.reshape(values, (-1, 1, 1))).astype(np.uint8)


def _read_names(path, split):
    names = read_list(path, f"data.{split}")
    if all(re.search(r"\s-?[01]$", name) for name in names) and any(name.endswith(" -1") for name in names):
        expected = "expected one with image names only, such as train"
        raise UserError(f"{path}: every line ends in -1, 0 or 1: a list of one class (data.{split}), {expected}")
    return names


def read_voc_annotation(path):
    """The image's size and the objects in an XML file. An object's box is its own bndbox, not that of a <part> of it.

    Returns  (height, width), or None where the file doesn't say (or says 0);
             list of VOCObject, in the file's order; bad boxes are left to the caller.
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise UserError(f"{path}: the root element is <{root.tag}>, expected <annotation>")
    sides = []
    for field in ("height", "width"):
        text = (root.findtext(f"size/{field}") or "0").strip()
        if not text.isdecimal():
            raise UserError(f"{path}: field size/{field} is {text!r}, expected a whole number of pixels")
        sides.append(int(text))
    objects = [_read_object(element, f"{path}: object[{k}]") for k, element in enumerate(root.findall("object"))]
    return tuple(sides) if all(sides) else None, objects


def voc_element(tag, content):
    """An XML element; content: what stands in it, or {field: content of its element}."""
    element = Element(tag)
    if isinstance(content, dict):
        element.extend(voc_element(field, value) for field, value in content.items())
    else:
        element.text = str(content)
    return element


def _parse(path):
    try:
        return ElementTree.fromstring(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: the annotation cannot be read: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise UserError(f"{path}:{error.position[0]}: not valid XML: {error}") from error
    except DefusedXmlException as error:
        raise UserError(
            f"{path}: defines entities ({type(error).__name__}), which can blow up to any size or read other files; "
            "annotations need none. Take them out"
        ) from error
    except (ValueError, LookupError) as error:  # encodings that aren't known or don't fit
        raise UserError(f"{path}: not valid XML: {error}") from error


def _read_object(element, place):
    name = (element.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{place}: field name is missing or empty, expected a class name")
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise UserError(f"{place} ({name}): field difficult is {difficult!r}, expected 0 or 1")
    corners, problem = [], None
    if element.find("bndbox") is None:
        problem = ("bndbox", "", "missing, expected xmin, ymin, xmax, ymax")
    for field in CORNERS:
        text = (element.findtext(f"bndbox/{field}") or "").strip()
        try:
            corners.append(float(text))
        except ValueError:
            corners.append(float("nan"))
            problem = problem or (f"bndbox/{field}", repr(text), "expected a number" if text else "missing or empty")
    return VOCObject(name, difficult == "1", tuple(corners), problem)
