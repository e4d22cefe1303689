"""Images beside PNGs in which every pixel is the number of its object."""

import numpy as np

from detseg.data.classes import BACKGROUND, index_class_names, index_palette, select_object_classes
from detseg.data.detection_files import DetectionFiles
from detseg.data.elastic import boxes_of_masks
from detseg.data.images import check_size, read_instance_ids, read_label_map
from detseg.data.objects import Objects
from detseg.data.readers.folder import paired_files
from detseg.data.sample import Sample
from detseg.errors import UserError


class InstanceFolder(DetectionFiles):
    """Every image of one folder with the object numbers of the same stem in another, as objects with masks.

    An object's box is the one around its pixels, its label the class that the mask of the same stem in a third folder
    has there; ignore_label there takes pixels away from it. See `detseg.data.datasets` for what a dataset offers.

    root:               the data set's folder, with classes.txt, whose background, if it has one, is no object's class.
    images, instances:  folders relative to root. instances: 0 is no object, any other number (up to 65535, as PNG) one.
    masks:              folder of class masks, or None where there is one class.
    split, classes, channels, ignore_label, palette: as of `FolderSegmentation`.
    Raises              UserError for a missing or empty folder, and files without their counterparts.
    """

    has_masks = True

    def __init__(
        self,
        root,
        images,
        instances,
        masks=None,
        split="train",
        classes=None,
        channels=3,
        ignore_label=255,
        palette=None,
    ):
        self.split, self.channels, self.ignore_label = split, channels, ignore_label
        self.names, self.image_paths, self.instance_paths = paired_files(root, images, instances, split, "instances")
        self.image_ids = self.names
        self.mask_paths = None if masks is None else paired_files(root, images, masks, split, "masks")[2]
        names, source = index_class_names(root, classes)
        self._source_class_count = len(names)
        self._palette = index_palette(palette, names, ignore_label, source)
        of_objects = [index for index, name in enumerate(names) if name.lower() != BACKGROUND]
        self.classes, labels = select_object_classes([names[index] for index in of_objects], classes, source)
        self.category_ids = tuple(range(1, len(self.classes) + 1))
        self._label_of = dict(zip(of_objects, labels, strict=True))  # source's index -> our label, None: not asked for
        if masks is None and len(of_objects) != 1:
            raise UserError(
                f"data.{split}.masks: missing; {source} has {len(of_objects)} classes of objects, and nothing says "
                "which an object is of. Expected a folder of class masks, or a single class"
            )
        self._only_label = labels[0] if masks is None else None

    def __getitem__(self, i):
        image, objects = self.image(i), self.objects(i)
        check_size(image.shape[:2], self.image_paths[i], objects.masks.shape[1:], self.labels_source(i))
        return Sample(image, self.names[i], self.image_paths[i], objects=objects)

    def objects(self, i):
        ids = read_instance_ids(self.instance_paths[i])
        if self.mask_paths is None:
            numbers = np.unique(ids[ids > 0])
            labels = np.full(len(numbers), self._only_label)
        else:
            numbers, labels = self._labelled(i, ids)
        masks = (ids == numbers[:, None, None]).astype(np.uint8)  # (N, H, W)
        return Objects(
            boxes=boxes_of_masks(masks),
            labels=labels.astype(np.int64),
            is_crowd=np.zeros(len(masks), bool),
            difficult=np.zeros(len(masks), bool),
            areas=masks.sum(axis=(1, 2), dtype=np.float64),
            masks=masks,
        )

    def _labelled(self, i, ids):
        """Numbers and labels of the objects asked for, each int (N,); ignored pixels of ids become 0."""
        source, mask_path = self.labels_source(i), self.mask_paths[i]
        indices = read_label_map(mask_path, self._source_class_count, self.ignore_label, self._palette)
        check_size(ids.shape, source, indices.shape, mask_path)
        ids[indices == self.ignore_label] = 0
        pairs = np.unique(np.stack([ids, indices], axis=-1)[ids > 0], axis=0).tolist()
        index_of = dict(pairs)
        for number, index in pairs:
            if index_of[number] != index:
                raise UserError(
                    f"{source}: object {number} lies on more than one class of {mask_path}: indices {index} and "
                    f"{index_of[number]}"
                )
            if index not in self._label_of:
                raise UserError(f"{source}: object {number} lies on the background of {mask_path} (index {index})")
        labels = {number: self._label_of[index] for number, index in pairs if self._label_of[index] is not None}
        return np.array(list(labels), int), np.array(list(labels.values()), int)

    def labels_source(self, i):
        return str(self.instance_paths[i])

    def label_files(self):
        return [*self.instance_paths, *(self.mask_paths or ())]

    def settings(self):
        return {
            "classes": self.classes,
            "labels": list(self._label_of.items()),
            "channels": self.channels,
            "ignore_label": self.ignore_label,
            "palette": self._palette and sorted(self._palette.items()),
        }
