"""COCO instance files: their images, and their objects painted to semantic labels."""

from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from detseg.data.checks import raise_problems
from detseg.data.classes import BACKGROUND, LARGEST_CLASS_COUNT, select_classes
from detseg.data.images import check_same_size, read_image
from detseg.data.readers.coco_file import encode_segmentation, read_coco_file
from detseg.data.readers.folder import check_folder
from detseg.data.sample import Sample
from detseg.errors import UserError


class CocoFiles:
    """The images of a COCO instances file, whatever is made of its annotations.

    root:           the data set's folder.
    annotations:    JSON file, images: folder of its file names; both relative to root.
    split:          the split's name.
    classes, channels: the config's data section.
    masks, areas:   what of the annotations is checked, see `read_coco_file`.
    image_ids:      list of the file's image ids.
    Raises          UserError that lists what is wrong with the file: section, index or id, field.
    """

    def __init__(self, root, annotations, images, split, classes, channels, masks, areas):
        check_folder(root, "data.root")
        self.annotation_path, image_folder = Path(root) / annotations, Path(root) / images
        check_folder(image_folder, f"data.{split}.images")
        if isinstance(classes, str):
            raise UserError(f"data.classes: {classes!r}, but {self.annotation_path} names its categories. Use null")
        self.split = split
        self.channels = channels
        content = read_coco_file(self.annotation_path, masks, areas)
        self._set_images(content["images"], image_folder)
        position_of = {image["id"]: i for i, image in enumerate(content["images"])}
        self._categories = sorted(content["categories"], key=lambda category: category["id"])
        self._annotations = [[] for _ in self.names]  # of each image: index in the file, annotation
        for index, annotation in enumerate(content["annotations"]):
            self._annotations[position_of[annotation["image_id"]]].append((index, annotation))

    def _set_images(self, images, folder):
        if not images:
            raise UserError(f"{self.annotation_path}: the split is empty: section images holds no image")
        self.image_paths = [folder / image["file_name"] for image in images]
        self.names = [Path(image["file_name"]).with_suffix("").as_posix() for image in images]
        self.image_ids = [image["id"] for image in images]
        self._sizes = [(image["height"], image["width"]) for image in images]
        first = {}
        raise_problems(
            self.annotation_path,
            [
                f"{_field_file_name(images, i)}, listed already by {_field_file_name(images, first[name])}"
                for i, name in enumerate(self.names)
                if first.setdefault(name, i) != i
            ],
            "; an image has one entry, and two files may not differ in their suffix only",
        )
        listings = {parent: _file_names(parent) for parent in {path.parent for path in self.image_paths}}
        raise_problems(
            self.annotation_path,
            [
                f"{_field_file_name(images, i)}, no such file in {folder}"
                for i, path in enumerate(self.image_paths)
                if path.name not in listings[path.parent]
            ],
            f"; add the files or correct data.{self.split}.images",
        )

    def labels_source(self, i):
        return f"{self.annotation_path} (image id {self.image_ids[i]})"

    def label_files(self):
        return [self.annotation_path]

    def _encode(self, i, index, annotation):
        """The RLE of an annotation of the i-th image; index: in the file."""
        try:
            return encode_segmentation(annotation["segmentation"], self._sizes[i])
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{self._place(i, index, annotation)}: field segmentation: {error}") from error

    def _place(self, i, index, annotation):
        return f"{self.annotation_path}: annotations[{index}] (id {annotation['id']}, image {self.image_paths[i].name})"


class CocoSegmentation(CocoFiles):
    """A COCO instances file as semantic labels; see `detseg.data.datasets` for what a dataset offers.

    0 is background, then come the categories by ascending id. Where objects overlap, the one with the smaller mask is
    on top, so that no object hides within a larger one; of two equal ones the later in the file. Crowd regions are
    ignore_label where no object lies. An image without annotations is all background. A category that is itself named
    background counts as background, and so do crowds of classes that data.classes leaves out.

    root, annotations, images, split: see `CocoFiles`.
    classes, channels, ignore_label: the config's data section.
    category_ids:   the file's category ids, ascending.
    """

    def __init__(
        self, root, annotations, images, split="train", classes=None, channels=3, ignore_label=255, palette=None
    ):
        if palette is not None:
            raise UserError("data.palette: is for mask files; with data.format coco leave it out")
        super().__init__(root, annotations, images, split, classes, channels, masks=True, areas=False)
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

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        image = self.image(i)
        label_map, instance_ids = self._maps(i)
        check_same_size(image, self.image_paths[i], label_map, self.labels_source(i))
        return Sample(image, self.names[i], self.image_paths[i], label_map, instance_ids)

    def image(self, i):
        return read_image(self.image_paths[i], self.channels)

    def label_map(self, i):
        return self._maps(i)[0]

    def true_instances(self, i):
        """Masks (N compressed RLEs), labels (N,) and crowds (N,) of the annotations that aren't background."""
        masks, labels, crowds = self._instances(i)
        kept = [n for n, label in enumerate(labels) if label != self._background]
        return [masks[n] for n in kept], np.array(labels, int)[kept], np.array(crowds, bool)[kept]

    def settings(self):
        return {
            "classes": self.classes,
            "category_ids": self.category_ids,
            "table": self._table.tolist(),
            "channels": self.channels,
            "ignore_label": self.ignore_label,
        }

    def _maps(self, i):
        return paint_maps(*self._instances(i), self._sizes[i], self._background, self.ignore_label)

    def _instances(self, i):
        annotations = [annotation for _, annotation in self._annotations[i]]
        masks = [self._encode(i, index, annotation) for index, annotation in self._annotations[i]]
        labels = [self._label_of_category[annotation["category_id"]] for annotation in annotations]
        crowds = [bool(annotation.get("iscrowd", 0)) for annotation in annotations]
        return masks, labels, crowds


def paint_maps(masks, labels, crowds, size, background=0, ignore_label=255):
    """Instances painted to semantic labels: smaller masks over larger ones, crowds under all of them.

    masks:      N compressed RLEs of (H, W).
    labels:     N class indices.
    crowds:     N bools; a crowd becomes ignore_label, unless its label is the background.
    size:       (H, W).
    Returns     label map, uint8 (H, W); instance ids, int32 (H, W): 1 + the mask's index, 0 for background and crowds.
    """
    ids = np.zeros(size, np.int32)  # (H, W)
    areas = [int(rle.area(mask)) for mask in masks]
    for i in sorted(range(len(masks)), key=lambda i: (not crowds[i], -areas[i])):
        if crowds[i] and labels[i] == background:
            continue
        x, y, width, height = rle.toBbox(masks[i]).astype(int)
        part = (slice(y, y + height), slice(x, x + width))
        np.copyto(ids[part], i + 1, where=rle.decode(masks[i])[part] != 0)
    labels, crowds = np.array(labels, np.uint8), np.array(crowds, bool)
    painted = np.where(crowds, ignore_label, labels)  # (N,)
    objects = np.where(crowds | (labels == background), 0, np.arange(1, len(masks) + 1))  # (N,)
    label_map = np.concatenate([[background], painted]).astype(np.uint8)[ids]
    return label_map, np.concatenate([[0], objects]).astype(np.int32)[ids]


def _field_file_name(images, i):
    return f"images[{i}] (id {images[i]['id']}): field file_name {images[i]['file_name']!r}"


def _file_names(folder):
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
