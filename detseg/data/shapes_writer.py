"""The embedded data set on disk: shapes written at once as VOC detection, VOC segmentation and COCO instances."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from tqdm import tqdm

from detseg.data.masks import encode_masks
from detseg.data.palette import voc_palette, write_index_png
from detseg.data.readers.voc import voc_element
from detseg.data.shapes import CLASSES, OCCLUDED, SPLITS, bounding_box, draw_picture, paint_label_maps
from detseg.errors import UserError

VERSION = 5  # of the pictures and files: to be raised with every change of what is written
MARKER = "shapes.json"
_IMAGE_FILES = {"JPEGImages": "jpg", "Annotations": "xml", "SegmentationClass": "png", "SegmentationObject": "png"}
_LISTS = ("ImageSets/Main", "ImageSets/Segmentation")
_ID_STEP = 1_000_000  # of the COCO image ids from split to split, so that an id depends on no other split's count


@dataclass(frozen=True, slots=True)
class ShapesSummary:
    """What a shapes folder holds."""

    root: Path
    images: dict  # {split: number of images}
    objects: int  # in all splits
    occluded: int  # how many of them are partly hidden by another (at least 5% of their pixels)
    written: bool  # False when the folder was there already

    def __str__(self):
        images = ", ".join(f"{count} {split}" for split, count in self.images.items())
        share = f"{self.occluded / self.objects:.0%} partly occluded" if self.objects else "none occluded"
        state = "written" if self.written else "there already"
        return f"{self.root}: {images} images, {self.objects} objects, {share} ({state})"


def make_shapes(root, train=400, val=100, test=100, size=192, seed=0):
    """Write the shapes data set into the folder `root`, in three layouts over the same images.

    JPEGImages/NAME.jpg, and: Annotations/NAME.xml with ImageSets/Main (VOC detection: the visible part's box, 1-based
    inclusive); SegmentationClass and SegmentationObject/NAME.png with ImageSets/Segmentation and classes.txt (VOC
    segmentation: 0 background, 255 void); annotations/instances_SPLIT.json (COCO: exact visible pixels as RLE).
    The folder appears by rename when it is complete. Nothing is written when `root` holds this very set already.

    root:             path of the folder to make; it may exist if it is empty.
    train, val, test: numbers of images, >= 0.
    size:             side of the square images in pixels, at least 128.
    seed:             int >= 0; every image is a function of (seed, split, index, size).
    Returns           ShapesSummary.
    Raises            UserError when an argument is out of range, or `root` holds anything else.
    """
    root = Path(root)
    counts = {"train": train, "val": val, "test": test}
    for name, value in {**counts, "size": size, "seed": seed}.items():
        least = 128 if name == "size" else 0
        if not isinstance(value, int) or value < least:
            raise UserError(f"make-shapes: {name} is {value!r}, expected a whole number of at least {least}")
    if max(counts.values()) >= _ID_STEP:
        raise UserError(f"make-shapes: {max(counts.values())} images in a split, expected fewer than {_ID_STEP}")
    marker = {"data_set": "detseg shapes", "version": VERSION, "seed": seed, "size": size, "images": counts}
    found = _find_existing(root, marker)
    if found is not None:
        return found
    target = root.resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        for folder in (*_IMAGE_FILES, *_LISTS, "annotations"):
            (partial / folder).mkdir(parents=True)
        objects, occluded = _write_splits(partial, counts, size, seed)
        (partial / "classes.txt").write_text("\n".join(("background", *CLASSES)) + "\n")
        (partial / MARKER).write_text(json.dumps({**marker, "objects": objects, "occluded": occluded}, indent=1) + "\n")
        if target.exists():
            target.rmdir()  # empty: seen above, and rmdir refuses anything else
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ShapesSummary(root, counts, objects, occluded, written=True)


def image_name(split, index):
    """The name of a split's `index`-th image, from 1: shapes_train_0001."""
    return f"shapes_{split}_{index:04d}"


def _find_existing(root, marker):
    """The summary of `root` if it holds the set that `marker` describes, None if it is free, else UserError."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is a file, expected a folder to make; name another one with --root")
    if not root.exists() or not any(root.iterdir()):
        return None
    try:
        found = json.loads((root / MARKER).read_text())
        objects, occluded = found.pop("objects"), found.pop("occluded")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise UserError(
            f"{root}: holds files that make-shapes did not write, and nothing is written over them; "
            "name an empty or new folder with --root"
        ) from None
    if found != marker:
        others = {key: value for key, value in marker.items() if found.get(key) != value}
        differences = "; ".join(f"{key} {found.get(key)!r} instead of {value!r}" for key, value in others.items())
        advice = "remove the folder or name another one with --root"
        raise UserError(f"{root}: holds another shapes set ({differences}); {advice}")
    missing = [path for path in _expected_files(marker["images"]) if not (root / path).is_file()]
    if missing:
        found = f"{len(missing)} files of the shapes set are missing, the first is {missing[0]}"
        raise UserError(f"{root}: {found}; remove the folder and make it again")
    return ShapesSummary(root, marker["images"], objects, occluded, written=False)


def _expected_files(counts):
    yield "classes.txt"
    for split, count in counts.items():
        yield from (*(f"{folder}/{split}.txt" for folder in _LISTS), f"annotations/instances_{split}.json")
        for index in range(1, count + 1):
            yield from (f"{folder}/{image_name(split, index)}.{kind}" for folder, kind in _IMAGE_FILES.items())


def _write_splits(folder, counts, size, seed):
    """All but the marker and the classes; returns the number of objects and of occluded ones."""
    objects = occluded = 0
    with tqdm(total=sum(counts.values()), desc="shapes", unit="image", disable=None) as progress:
        for split in SPLITS:
            names = [image_name(split, index) for index in range(1, counts[split] + 1)]
            images, annotations = [], []
            for index, name in enumerate(names, start=1):
                picture = draw_picture(seed, split, index, size)
                _write_voc(folder, name, picture)
                image, objects_of_image = _coco_entries(name, _ID_STEP * SPLITS.index(split) + index, picture)
                images.append(image)
                annotations.extend(objects_of_image)
                objects += len(picture.labels)
                occluded += int(np.sum(picture.hidden >= OCCLUDED))
                progress.update()
            for lists in _LISTS:
                (folder / lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
            categories = [{"id": k, "name": name, "supercategory": "shape"} for k, name in enumerate(CLASSES, start=1)]
            info = {"description": f"detseg shapes, {split}", "version": str(VERSION)}
            content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
            (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return objects, occluded


def _write_voc(folder, name, picture):
    Image.fromarray(picture.image).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
    semantic, instances = paint_label_maps(picture)
    write_index_png(folder / "SegmentationClass" / f"{name}.png", semantic, voc_palette())
    write_index_png(folder / "SegmentationObject" / f"{name}.png", instances, voc_palette())
    height, width, depth = picture.image.shape
    content = {"folder": "shapes", "filename": f"{name}.jpg", "source": {"database": "detseg shapes"}}
    content |= {"size": {"width": width, "height": height, "depth": depth}, "segmented": 1}
    root = voc_element("annotation", content)
    for label, mask, hidden in zip(picture.labels, picture.masks, picture.hidden, strict=True):
        x1, y1, x2, y2 = bounding_box(mask)
        item = {"name": CLASSES[label], "pose": "Unspecified", "truncated": 0, "difficult": 0}
        box = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}  # the devkit's: 1-based, inclusive
        root.append(voc_element("object", item | {"occluded": int(hidden >= OCCLUDED), "bndbox": box}))
    ElementTree.indent(root, "\t")
    ElementTree.ElementTree(root).write(folder / "Annotations" / f"{name}.xml")


def _coco_entries(name, image_id, picture):
    """The COCO `images` entry of a picture and its `annotations`; the k-th object's id is 10 * image_id + k, from 1."""
    height, width, _ = picture.image.shape
    image = {"id": image_id, "file_name": f"{name}.jpg", "width": width, "height": height}
    annotations = []
    for k, (label, mask) in enumerate(zip(picture.labels, picture.masks, strict=True), start=1):
        x1, y1, x2, y2 = bounding_box(mask)
        (code,) = encode_masks(mask[None])
        annotation = {"id": 10 * image_id + k, "image_id": image_id, "category_id": int(label) + 1}
        annotation |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": int(mask.sum()), "iscrowd": 0}
        annotation["segmentation"] = {"size": code["size"], "counts": code["counts"].decode("ascii")}
        annotations.append(annotation)
    return image, annotations
