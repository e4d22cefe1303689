"""What the readers of files share: images with a mask file each, images with objects, and how files are found."""

import functools
import hashlib
import itertools
import json
import os
from collections import Counter, namedtuple
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from detseg.data.checks import checked_boxes
from detseg.data.classes import index_class_names, index_palette, select_classes
from detseg.data.dataset import Dataset
from detseg.data.images import IMAGE_SUFFIXES, check_size, read_image, read_label_map
from detseg.data.objects import Objects
from detseg.data.sample import Sample
from detseg.errors import UserError


class FileDataset(Dataset):
    """A data set of image files. A reader sets split, channels, value_range (see `read_image`), names, image_paths,
    classes, and label_paths: list of Path, the files that hold the labels, first of all one for each image.
    """

    settings = ()  # names of attributes: what, beside files, channels and value_range, the samples depend on

    def __len__(self):
        return len(self.names)

    def image(self, i):
        return read_image(self.image_paths[i], self.channels, self.value_range)

    def labels_source(self, i):
        return str(self.label_paths[i])

    def fingerprint(self):
        content = {
            "dataset": type(self).__name__,
            "settings": {name: getattr(self, name) for name in (*self.settings, "channels", "value_range")},
            "images": [_file_state(path) for path in self.image_paths],
            "labels": [_file_state(path) for path in self.label_paths],
        }
        return hashlib.sha256(json.dumps(content, default=np.ndarray.tolist).encode()).hexdigest()[:32]


class MaskFiles(FileDataset):
    """Images and their mask files.

    files:          names, image_paths and label_paths. root: the folder whose classes.txt names the masks' indices.
    classes, channels, ignore_label, palette, value_range: the config's data section. With a palette, colour masks are
                    read too; its keys name the source's classes (see `index_palette`).
    """

    has_masks = False
    settings = ("classes", "ignore_label", "_class_count", "_table", "_palette")

    def __init__(self, split, files, root, classes, channels, ignore_label, palette, value_range):
        source_names, source = index_class_names(root, classes)
        self.split, self.channels, self.ignore_label, self.value_range = split, channels, ignore_label, value_range
        self.names, self.image_paths, self.label_paths = files
        self.classes, self._table = select_classes(source_names, classes, ignore_label, source)
        self._class_count = len(source_names)
        self._palette = index_palette(palette, source_names, ignore_label, source)

    def __getitem__(self, i):
        image, label_map = self.image(i), self.label_map(i)
        check_size(image.shape[:2], self.image_paths[i], label_map.shape, self.labels_source(i))
        return Sample(image, self.names[i], self.image_paths[i], label_map)

    def label_map(self, i):
        labels = read_label_map(self.label_paths[i], self._class_count, self.ignore_label, self._palette)
        return cv2.LUT(labels, self._table)


# An object as a file has it: the index of its image, its own in the file, its label and what the file says of it. The
# rest is as of `Objects`; an area of None is the box's.
Entry = namedtuple("Entry", "image index label source is_crowd difficult area", defaults=(False, False, None))


class DetectionFiles(FileDataset):
    """Images with their objects. Beside what `FileDataset` asks for, a reader sets _sizes, N (height, width) by the
    labels, has_masks and _on_bad_box, calls `_set_objects`, and defines _masks(i): uint8 (n, H, W), an image's objects.
    """

    def __getitem__(self, i):
        image, objects = self.image(i), self.objects(i)
        size = self._sizes[i] if objects.masks is None else objects.masks.shape[1:]
        check_size(image.shape[:2], self.image_paths[i], size, self.labels_source(i))
        return Sample(image, self.names[i], self.image_paths[i], objects=objects)

    def objects(self, i):
        objects = self._all.select(slice(*self._starts[i : i + 2]))
        return replace(objects, masks=self._masks(i)) if self.has_masks else objects

    def _set_objects(self, entries, boxes, sides, describe, hints=None):
        """Keeps the entries of all images, image by image, whose boxes are good, see `checked_boxes`."""
        sizes = [self._sizes[entry.image] for entry in entries]
        boxes, kept = checked_boxes(boxes, sizes, sides, describe, self.split, self._on_bad_box, hints)
        entries = [entries[k] for k in kept]
        images, _, labels, _, is_crowd, difficult, areas = zip(*entries, strict=True) if entries else [()] * 7
        areas = np.array(areas, np.float64)  # nan for None
        areas = np.where(np.isnan(areas), (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), areas)
        self._all = Objects(boxes, labels, is_crowd, difficult, areas)
        self._starts = np.searchsorted(images, np.arange(len(self.names) + 1))
        self._masked = entries if self.has_masks else None


def _file_state(path):
    """What of a file changes when it is written: path, size and time."""
    try:
        status = os.stat(path)
    except OSError:
        return str(path), None, None  # the scan itself says what is wrong
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def paired_files(root, images, masks, split, field="masks"):
    """Names, image paths and mask paths, each a list, of the files with one stem in two folders relative to root."""
    image_folder, mask_folder = Path(root) / images, Path(root) / masks
    image_of = _one_file_a_stem(image_folder, f"data.{split}.images")
    mask_of = _one_file_a_stem(mask_folder, f"data.{split}.{field}")
    for folder, missing, other, (kind, needed) in (
        (mask_folder, image_of.keys() - mask_of.keys(), image_folder, ("image", "a mask")),
        (image_folder, mask_of.keys() - image_of.keys(), mask_folder, ("mask", "an image")),
    ):
        if missing:
            names = some_of(sorted(missing), kind, f"{kind}s")
            expected = f"expected {needed} file with the same stem for each"
            raise UserError(f"{folder}: {names} of {other} without {needed}; {expected}")
    names = sorted(image_of)
    return names, [image_of[name] for name in names], [mask_of[name] for name in names]


def find_files(folder, lists, suffixes=IMAGE_SUFFIXES):
    """{name: Path} of the names in `lists`, {Path of a list: its names}; NAME with slashes lies in subfolders."""
    files_of = functools.cache(lambda parent: _list_files(parent, "data.root", suffixes))
    found = {}
    for name in itertools.chain(*lists.values()):
        # The stem by hand: a name may hold dots.
        found[name] = files_of((folder / name).parent).get(name.rsplit("/", 1)[-1], [None])[0]
    missing = {path: [name for name in names if found[name] is None] for path, names in lists.items()}
    shown = [f"{some_of(names, 'name', 'names')} in {path}" for path, names in missing.items() if names]
    if shown:
        expected = "NAME.jpg (or .jpeg, .png, .bmp, .tif, .webp)" if len(suffixes) > 1 else f"NAME{suffixes[0]}"
        raise UserError(
            f"{folder}: no file for {' and '.join(shown)}; expected {expected}. Add the files or take the names out of "
            "the list"
        )
    return found


def read_list(path, field):
    """The names in a list of images, one a line; `field` of the config leads to it."""
    if not path.is_file():
        lists = sorted(other.stem for other in path.parent.glob("*.txt"))
        there = f"there are: {', '.join(lists)}" if lists else "there are no lists in that folder"
        raise UserError(f"{path}: no such list of images ({field}); expected one name a line; {there}")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); expected one image name a line") from error
    names = [name for name in names if name]
    if not names:
        raise UserError(f"{path}: the split is empty ({field}); expected one image name a line")
    doubles = [name for name, count in Counter(names).items() if count > 1]
    if doubles:
        raise UserError(f"{path}: {some_of(doubles, 'name', 'names')} listed more than once")
    return names


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


def _list_files(folder, field, suffixes):
    check_folder(folder, field)
    paths = [path for path in Path(folder).iterdir() if path.suffix.lower() in suffixes and path.name[0] != "."]
    paths.sort(key=lambda path: (path.stem, suffixes.index(path.suffix.lower()), path))
    return {stem: list(files) for stem, files in itertools.groupby(paths, key=lambda path: path.stem)}


def _one_file_a_stem(folder, field):
    files = _list_files(folder, field, IMAGE_SUFFIXES)
    if not files:
        expected = f"expected files ending in {', '.join(IMAGE_SUFFIXES)}. There are: {_entries(folder)}"
        raise UserError(f"{folder}: no image files ({field}), {expected}")
    for paths in files.values():
        if len(paths) > 1:
            both = " and ".join(path.name for path in paths)
            raise UserError(f"{folder}: {both} share a stem, so their pair is not clear. Keep one of them")
    return {stem: paths[0] for stem, paths in files.items()}


def _entries(folder):
    names = sorted(path.name for path in folder.iterdir())
    return (", ".join(names[:10]) + (", ..." if len(names) > 10 else "")) or "(nothing)"
