"""Images with one mask file each: what VOC segmentation and folder pairs share, and the reader of folder pairs."""

from pathlib import Path

import cv2

from detseg.data.classes import index_class_names, index_palette, select_classes
from detseg.data.images import IMAGE_SUFFIXES, check_same_size, read_image, read_label_map
from detseg.data.sample import Sample
from detseg.errors import UserError


class MaskFiles:
    """Images and their mask files, read on access; see `detseg.data.datasets` for what a dataset offers.

    split:          the split's name.
    names:          list of unique str.
    image_paths:    list of Path, one a name.
    mask_paths:     list of Path, one a name.
    root:           the folder whose classes.txt names the masks' indices.
    classes, channels, ignore_label, palette: the config's data section. With a palette, colour masks are read too;
                    its keys name the source's classes (see `index_palette`).
    """

    def __init__(
        self, split, names, image_paths, mask_paths, root, classes=None, channels=3, ignore_label=255, palette=None
    ):
        source_names, source = index_class_names(root, classes)
        self.split = split
        self.names = names
        self.image_paths = image_paths
        self.mask_paths = mask_paths
        self.channels = channels
        self.ignore_label = ignore_label
        self.classes, self._table = select_classes(source_names, classes, ignore_label, source)
        self._source_class_count = len(source_names)
        self._keeps_labels = self._table[: len(source_names)].tolist() == list(range(len(source_names)))
        self._palette = index_palette(palette, source_names, ignore_label, source)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        image, label_map = self.image(i), self.label_map(i)
        check_same_size(image, self.image_paths[i], label_map, self.labels_source(i))
        return Sample(image=image, name=self.names[i], path=self.image_paths[i], label_map=label_map)

    def image(self, i):
        return read_image(self.image_paths[i], self.channels)

    def label_map(self, i):
        labels = read_label_map(self.mask_paths[i], self._source_class_count, self.ignore_label, self._palette)
        return labels if self._keeps_labels else cv2.LUT(labels, self._table)

    def labels_source(self, i):
        return str(self.mask_paths[i])

    def label_files(self):
        return self.mask_paths

    def settings(self):
        return {
            "classes": self.classes,
            "source_class_count": self._source_class_count,
            "table": self._table.tolist(),
            "channels": self.channels,
            "ignore_label": self.ignore_label,
            "palette": self._palette and sorted(self._palette.items()),
        }


class FolderSegmentation(MaskFiles):
    """Every image of one folder with the mask of the same stem in another.

    root:           the data set's folder, with classes.txt.
    images, masks:  folders relative to root. Files with other suffixes than an image's, and hidden ones, don't count.
    split:          the split's name.
    Raises          UserError for a missing or empty folder, images without mask, masks without image, and stems that
                    two files of a folder share.
    """

    def __init__(self, root, images, masks, split="train", **data):
        names, image_paths, mask_paths = paired_files(root, images, masks, split)
        super().__init__(split, names, image_paths, mask_paths, root, **data)


def paired_files(root, images, masks, split, field="masks"):
    """Names, image paths and mask paths, each a list, of the files with one stem in two folders relative to root.

    field:  the config's key, in data.train and so on, for the folder `masks`.
    """
    image_folder, mask_folder = Path(root) / images, Path(root) / masks
    image_of = _one_file_a_stem(image_folder, f"data.{split}.images")
    mask_of = _one_file_a_stem(mask_folder, f"data.{split}.{field}")
    if missing := sorted(image_of.keys() - mask_of.keys()):
        raise UserError(
            f"{mask_folder}: {some_of(missing, 'image', 'images')} of {image_folder} without a mask; "
            "expected a mask file with the same stem for each"
        )
    if missing := sorted(mask_of.keys() - image_of.keys()):
        raise UserError(
            f"{image_folder}: {some_of(missing, 'mask', 'masks')} of {mask_folder} without an image; "
            "expected an image file with the same stem for each"
        )
    names = sorted(image_of)
    return names, [image_of[name] for name in names], [mask_of[name] for name in names]


def list_files(folder, field, suffixes=IMAGE_SUFFIXES):
    """{stem: [Path, ...] in the order of suffixes} of a folder's files; `field` of the config leads to it."""
    check_folder(folder, field)
    files = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            files.setdefault(path.stem, []).append(path)
    for paths in files.values():
        paths.sort(key=lambda path: suffixes.index(path.suffix.lower()))
    return files


def check_folder(folder, field):
    """UserError unless the folder exists; `field` is the place in the config that leads to it."""
    folder = Path(folder)
    if folder.is_dir():
        return
    if folder.exists():
        raise UserError(f"{folder}: a file, expected a folder ({field})")
    nearest = next((parent for parent in folder.parents if parent.is_dir()), None)
    there = "" if nearest is None else f" In {nearest} there are: {_entries(nearest)}."
    relative = "" if folder.is_absolute() else f" Paths are relative to the working directory {Path.cwd()}."
    raise UserError(f"{folder}: no such folder ({field}).{there}{relative}")


def some_of(names, singular, plural):
    """The count and up to five of the names: "7 images (a, b, c, d, e, ...)"."""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} {singular if len(names) == 1 else plural} ({shown})"


def _one_file_a_stem(folder, field):
    files = list_files(folder, field)
    if not files:
        raise UserError(
            f"{folder}: no image files ({field}), expected files ending in {', '.join(IMAGE_SUFFIXES)}. "
            f"There are: {_entries(folder)}"
        )
    for paths in files.values():
        if len(paths) > 1:
            both = " and ".join(path.name for path in paths)
            raise UserError(f"{folder}: {both} share a stem, so their pair is not clear. Keep one of them")
    return {stem: paths[0] for stem, paths in files.items()}


def _entries(folder):
    names = sorted(path.name for path in folder.iterdir())
    return (", ".join(names[:10]) + (", ..." if len(names) > 10 else "")) or "(nothing)"
