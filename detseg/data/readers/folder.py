"""Folders of images beside folders of masks: of classes, or of the numbers of objects."""

from os import PathLike

import numpy as np

from detseg.data.classes import BACKGROUND, Palette, Selection, index_class_names, index_palette, select_object_classes
from detseg.data.images import check_size, read_instance_ids, read_label_map
from detseg.data.masks import boxes_of_masks, mask_areas
from detseg.data.objects import Objects
from detseg.data.readers.base import DetectionFiles, MaskFiles, paired_files
from detseg.errors import UserError


class FolderSegmentation(MaskFiles):
    """Every image of one folder with the mask of the same stem in another.

    root:           the data set's folder, with classes.txt.
    images, masks:  folders relative to root. Files with other suffixes than an image's, and hidden ones, don't count.
    split:          the split's name. The rest: see `MaskFiles`.
    Raises          UserError for a missing or empty folder, images without mask, masks without image, and stems that
                    two files of a folder share.
    """

    def __init__(
        self,
        root: str | PathLike,
        images: str,
        masks: str,
        split: str = "train",
        classes: Selection = None,
        channels: int = 3,
        ignore_label: int = 255,
        palette: Palette = None,
        value_range: tuple[float, float] | None = None,
    ):
        files = paired_files(root, images, masks, split)
        super().__init__(split, files, root, classes, channels, ignore_label, palette, value_range)


class InstanceFolder(DetectionFiles):
    """Every image of one folder with the object numbers of the same stem in another, as objects with masks.

    An object's box is the one around its pixels, its label the class that the mask of the same stem in a third folder
    has there; ignore_label there takes pixels away from it.

    root:               the data set's folder, with classes.txt, whose background, if it has one, is no object's class.
    images, instances:  folders relative to root. instances: 0 is no object, any other number (up to 65535, as PNG) one.
    masks:              folder of class masks, or None where there is one class.
    split, classes, channels, ignore_label, palette, value_range: as of `FolderSegmentation`.
    Raises              UserError for a missing or empty folder, and files without their counterparts.
    """

    has_masks = True
    settings = ("classes", "_label_of", "_only_label", "ignore_label", "_class_count", "_palette")

    def __init__(
        self,
        root: str | PathLike,
        images: str,
        instances: str,
        masks: str | None = None,
        split: str = "train",
        classes: Selection = None,
        channels: int = 3,
        ignore_label: int = 255,
        palette: Palette = None,
        value_range: tuple[float, float] | None = None,
    ):
        self.split, self.channels, self.value_range, self.ignore_label = split, channels, value_range, ignore_label
        self.names, self.image_paths, instance_paths = paired_files(root, images, instances, split, "instances")
        self.image_ids = self.names
        self._mask_paths = [] if masks is None else paired_files(root, images, masks, split)[2]
        self.label_paths = [*instance_paths, *self._mask_paths]
        names, source = index_class_names(root, classes)
        self._class_count = len(names)
        self._palette = index_palette(palette, names, ignore_label, source)
        of_objects = [index for index, name in enumerate(names) if name.lower() != BACKGROUND]
        self.classes, labels = select_object_classes([names[index] for index in of_objects], classes, source)
        self._label_of = dict(zip(of_objects, labels, strict=True))  # source's index -> our label, None: not asked for
        if masks is None and len(of_objects) != 1:
            raise UserError(
                f"data.{split}.masks: missing; {source} has {len(of_objects)} classes of objects, and nothing says "
                "which an object is of. Expected a folder of class masks, or a single class"
            )
        self._only_label = labels[0] if masks is None else None

    def objects(self, i):
        ids = read_instance_ids(self.label_paths[i])
        if self._mask_paths:
            label_of = self._labelled(i, ids)
        else:
            label_of = dict.fromkeys(np.unique(ids[ids > 0]).tolist(), self._only_label)
        masks = (ids == np.reshape(list(label_of), (-1, 1, 1))).astype(np.uint8)  # (N, H, W)
        return Objects(boxes_of_masks(masks), list(label_of.values()), areas=mask_areas(masks), masks=masks)

    def _labelled(self, i, ids):
        """{number: label} of the objects; ignored pixels of ids become 0."""
        source, mask_path = self.labels_source(i), self._mask_paths[i]
        indices = read_label_map(mask_path, self._class_count, self.ignore_label, self._palette)
        check_size(ids.shape, source, indices.shape, mask_path)
        ids[indices == self.ignore_label] = 0
        pairs = np.unique(np.stack([ids, indices], axis=-1)[ids > 0], axis=0).tolist()
        index_of = dict(pairs)
        for number, index in pairs:
            if index_of[number] != index:
                both = f"indices {index} and {index_of[number]}"
                raise UserError(f"{source}: object {number} lies on more than one class of {mask_path}: {both}")
            if index not in self._label_of:
                raise UserError(f"{source}: object {number} lies on the background of {mask_path} (index {index})")
        return {number: self._label_of[index] for number, index in pairs if self._label_of[index] is not None}
