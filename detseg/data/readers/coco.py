"""COCO instance files, as boxes and masks or painted to semantic labels."""

import itertools
import json
import os
from os import PathLike
from pathlib import Path

import numpy as np

from detseg.data import coco_checks
from detseg.data.checks import Finding, raise_problems
from detseg.data.classes import BACKGROUND, LARGEST_CLASS_COUNT, Selection, select_classes, select_object_classes
from detseg.data.images import check_size
from detseg.data.masks import decode_masks, encode_segmentation, paint_maps
from detseg.data.readers.base import DetectionFiles, Entry, FileDataset, check_folder
from detseg.data.sample import Sample
from detseg.errors import UserError


class CocoFiles(FileDataset):
    """The images of a COCO instances file.

    annotations:    JSON file, images: folder of its file names; both relative to root, the data set's folder.
    split:          the split's name. classes, channels, value_range: the config's data section.
    masks, areas:   what of the annotations is checked, see `find_coco_problems`.
    Raises          UserError that lists what is wrong with the file: section, index or id, field.
    """

    def __init__(self, root, annotations, images, split, classes, channels, value_range, masks, areas):
        check_folder(root, "data.root")
        self.annotation_path, image_folder = Path(root) / annotations, Path(root) / images
        self.label_paths = [self.annotation_path]
        check_folder(image_folder, f"data.{split}.images")
        if isinstance(classes, str):
            raise UserError(f"data.classes: {classes!r}, but {self.annotation_path} names its categories. Use null")
        self.split, self.channels, self.value_range = split, channels, value_range
        content = _load(self.annotation_path)
        problems = coco_checks.find_coco_problems(self.annotation_path, content, masks, areas)
        raise_problems(self.annotation_path, list(problems))
        self._set_images(content["images"], image_folder)
        position_of = {image["id"]: i for i, image in enumerate(content["images"])}
        self._categories = sorted(content["categories"], key=lambda category: category["id"])
        self._entries = [[] for _ in self.names]  # of each image; their labels are the file's category ids
        for index, source in enumerate(content["annotations"]):
            i, is_crowd = position_of[source["image_id"]], bool(source.get("iscrowd", 0))
            entry = Entry(i, index, source["category_id"], source, is_crowd, area=source.get("area"))
            self._entries[i].append(entry)

    def _set_images(self, images, folder):
        if not images:
            raise UserError(f"{self.annotation_path}: the split is empty: section images holds no image")
        self.image_paths = [folder / image["file_name"] for image in images]
        self.names = [Path(image["file_name"]).with_suffix("").as_posix() for image in images]
        self.image_ids = [image["id"] for image in images]
        self._sizes = [(image["height"], image["width"]) for image in images]
        first, double, missing = {}, [], []
        folders = {path.parent for path in self.image_paths}
        files = {parent: set(os.listdir(parent)) for parent in folders if parent.is_dir()}
        for i, (image, name, path) in enumerate(zip(images, self.names, self.image_paths, strict=True)):
            place = (self.annotation_path, f"images[{i}] (id {image['id']})", "file_name")
            if first.setdefault(name, i) != i:
                earlier = images[first[name]]
                listed = f"images[{first[name]}] (id {earlier['id']}): field file_name {earlier['file_name']!r}"
                double.append(Finding(*place, "double", repr(image["file_name"]), f"listed already by {listed}"))
            if path.name not in files.get(path.parent, ()):
                missing.append(Finding(*place, "missing", repr(image["file_name"]), f"no such file in {folder}"))
        one = "; an image has one entry, and two files may not differ in their suffix only"
        raise_problems(self.annotation_path, double, one)
        raise_problems(self.annotation_path, missing, f"; add the files or correct data.{self.split}.images")

    def labels_source(self, i):
        return f"{self.annotation_path} (image id {self.image_ids[i]})"

    def _encode(self, entry):
        """The RLE of an entry."""
        try:
            return encode_segmentation(entry.source["segmentation"], self._sizes[entry.image])
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{self.annotation_path}: {self._place(entry)}: field segmentation: {error}") from error

    def _place(self, entry):
        return f"annotations[{entry.index}] (id {entry.source['id']}, image {self.image_paths[entry.image].name})"


class CocoDetection(DetectionFiles, CocoFiles):
    """A COCO instances file as objects, in the file's order.

    Labels follow the categories by ascending id. An object's area is that of the file, or else its box's.

    root, annotations, images, split, classes, channels, value_range: see `CocoFiles`.
    on_bad_box:     "refuse" or "drop", see `checked_boxes`.
    masks:          whether objects have masks, decoded from polygons and either form of RLE on access.
    category_ids:   tuple of K ids, of each class (where classes are merged by their names: of the first).
    Raises          UserError as CocoFiles, for bad boxes, and for boxes most of which seem to be x1 y1 x2 y2.
    """

    settings = ("classes", "category_ids", "_label_of", "_on_bad_box", "has_masks")

    def __init__(
        self,
        root: str | PathLike,
        annotations: str,
        images: str,
        split: str = "train",
        classes: Selection = None,
        channels: int = 3,
        on_bad_box: str = "refuse",
        masks: bool = False,
        value_range: tuple[float, float] | None = None,
    ):
        super().__init__(root, annotations, images, split, classes, channels, value_range, masks, areas=True)
        self.has_masks, self._on_bad_box = masks, on_bad_box
        if not self._categories:
            raise UserError(f"{self.annotation_path}: section categories holds no category")
        ids, names = zip(*((category["id"], category["name"]) for category in self._categories), strict=True)
        self.classes, labels = select_object_classes(names, classes, self.annotation_path)
        self.category_ids = tuple(ids[labels.index(label)] for label in range(len(self.classes)))
        self._label_of = label_of = dict(zip(ids, labels, strict=True))  # the file's category id -> our label or None
        entries = [entry._replace(label=label_of[entry.label]) for entry in itertools.chain(*self._entries)]
        del self._entries, self._categories
        self._read_boxes([entry for entry in entries if entry.label is not None])

    def _read_boxes(self, entries):
        problems = [coco_checks.bbox_problem(entry.source) for entry in entries]
        written = [[np.nan] * 4 if bad else entry.source["bbox"] for entry, bad in zip(entries, problems, strict=True)]
        written = np.array(written, np.float64).reshape(-1, 4)
        sizes = np.array([self._sizes[entry.image] for entry in entries]).reshape(-1, 2)

        def describe(k, problem):
            place = (self.annotation_path, self._place(entries[k]), "bbox", "box")
            return Finding(*place, repr(entries[k].source.get("bbox")), problems[k] or problem)

        corners = coco_checks.looks_like_corners(written, sizes) | coco_checks.fit_only_as_corners(written, sizes)
        if corners.any():
            raise UserError(
                f"{self.annotation_path}: field bbox: {corners.sum()} of {len(written)} boxes end outside of their "
                f"image as [x, y, width, height], while they fit as [x1, y1, x2, y2]; the first is "
                f"{describe(corners.argmax(), '')}. Write [x1, y1, x2 - x1, y2 - y1], or correct those boxes if that "
                "is what the others are"
            )
        boxes = np.concatenate([written[:, :2], written[:, :2] + written[:, 2:]], axis=1)
        hints = np.where(coco_checks.fits_as_corners(written, sizes), "; as [x1, y1, x2, y2] it would fit", "")
        self._set_objects(entries, boxes, written[:, 2:], describe, hints)

    def _masks(self, i):
        entries = self._masked[slice(*self._starts[i : i + 2])]
        return decode_masks([self._encode(entry) for entry in entries], self._sizes[i])


class CocoSegmentation(CocoFiles):
    """A COCO instances file as semantic labels.

    0 is background, then come the categories by ascending id. Where objects overlap, the one with the smaller mask is
    on top, so that no object hides within a larger one; of two equal ones the later in the file. Crowd regions are
    ignore_label where no object lies. An image without annotations is all background. A category that is itself named
    background counts as background, and so do crowds of classes that data.classes leaves out.

    root, annotations, images, split, classes, channels, value_range: see `CocoFiles`.
    category_ids:   the file's category ids, ascending.
    """

    has_masks = True
    settings = ("classes", "category_ids", "_table", "ignore_label")

    def __init__(
        self,
        root: str | PathLike,
        annotations: str,
        images: str,
        split: str = "train",
        classes: Selection = None,
        channels: int = 3,
        ignore_label: int = 255,
        value_range: tuple[float, float] | None = None,
    ):
        super().__init__(root, annotations, images, split, classes, channels, value_range, masks=True, areas=False)
        self.ignore_label = ignore_label
        self.category_ids = tuple(category["id"] for category in self._categories)
        names = [BACKGROUND, *(c["name"] for c in self._categories if c["name"].lower() != BACKGROUND)]
        if len(names) > LARGEST_CLASS_COUNT:
            raise UserError(
                f"{self.annotation_path}: {len(names) - 1} categories, but label maps hold at most "
                f"{LARGEST_CLASS_COUNT - 1} beside the background"
            )
        self.classes, self._table = select_classes(names, classes, ignore_label, self.annotation_path)
        self._background = int(self._table[0])
        index_of = {name: index for index, name in enumerate(names)}
        self._label_of_category = {c["id"]: int(self._table[index_of.get(c["name"], 0)]) for c in self._categories}

    def __getitem__(self, i):
        image = self.image(i)
        maps = paint_maps(*self._instances(i), self._sizes[i], self._background, self.ignore_label)
        check_size(image.shape[:2], self.image_paths[i], self._sizes[i], self.labels_source(i))
        return Sample(image, self.names[i], self.image_paths[i], *maps)

    def label_map(self, i):
        return paint_maps(*self._instances(i), self._sizes[i], self._background, self.ignore_label)[0]

    def true_instances(self, i):
        """(masks, labels, is_crowd) of the annotations that aren't background; the masks may overlap."""
        masks, labels, is_crowd = self._instances(i)
        kept = [n for n, label in enumerate(labels) if label != self._background]
        return [masks[n] for n in kept], np.array(labels, int)[kept], np.array(is_crowd, bool)[kept]

    def _instances(self, i):
        entries = self._entries[i]
        labels = [self._label_of_category[entry.label] for entry in entries]
        return [self._encode(entry) for entry in entries], labels, [entry.is_crowd for entry in entries]


def _load(path):
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        others = sorted(other.name for other in path.parent.glob("*.json"))
        there = f"there are: {', '.join(others)}" if others else f"there is no .json file in {path.parent}"
        raise UserError(f"{path}: no such annotation file; {there}") from error
    except OSError as error:
        raise UserError(f"{path}: the annotation file cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); expected COCO JSON") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON {type(content).__name__}, expected an object with images, annotations, ...")
    for section in ("images", "annotations", "categories"):
        if not isinstance(content.get(section), list):
            found = f"is a {type(content[section]).__name__}" if section in content else "is missing"
            raise UserError(f"{path}: section {section} {found}, expected a list. Sections are: {', '.join(content)}")
    return content
