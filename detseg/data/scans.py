"""What a scan of a split finds, for samples with label maps and for samples with objects.

Both kinds offer to `detseg.data.scan`:

    examine(dataset, i, attempt)   what of a sample goes into the scan. attempt(function, *arguments) calls what may
                                   raise UserError, which is reported, and gives None then.
    collect(dataset, results)      the scan, from what `examine` gave for each sample of a split without problems.
    to_json(), from_json(content, dataset)
                                   to a JSON-able dict and back; what isn't such a dict raises one of MALFORMED.
    warnings(dataset)              list of str.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from detseg.data.images import check_same_size
from detseg.errors import UserError

MALFORMED = (ValueError, LookupError, TypeError, OverflowError)


@dataclass(frozen=True, eq=False)
class SplitScan:
    """What a split of samples with label maps holds.

    image_sizes:            tuple of N (height, width).
    class_pixels:           int64 (K,): pixels of each class.
    class_image_pixels:     int64 (K,): pixels with a label (not ignored) of the images in which the class occurs.
    class_presence:         bool (N, K): whether the image has a pixel of the class.
    ignored_pixels:         int: pixels of ignore_label.
    """

    image_sizes: tuple
    class_pixels: np.ndarray
    class_image_pixels: np.ndarray
    class_presence: np.ndarray
    ignored_pixels: int

    @staticmethod
    def examine(dataset, i, attempt):
        """((height, width), int64 (256,) pixels of each label)."""
        image, label_map = attempt(dataset.image, i), attempt(dataset.label_map, i)
        if image is not None:
            attempt(_check_strictly, dataset.image_paths[i])
        if label_map is None:
            return None
        if image is not None:
            attempt(check_same_size, image, dataset.image_paths[i], label_map, dataset.labels_source(i))
        return label_map.shape, np.bincount(label_map.ravel(), minlength=256)

    @classmethod
    def collect(cls, dataset, results):
        counts = np.stack([count for _, count in results])  # (N, 256)
        ignored = counts[:, dataset.ignore_label].copy()  # (N,)
        counts[:, dataset.ignore_label] = 0
        counts = counts[:, : len(dataset.classes)]  # (N, K)
        labelled = counts.sum(axis=1, keepdims=True)  # (N, 1)
        return cls(
            image_sizes=tuple(size for size, _ in results),
            class_pixels=counts.sum(axis=0),
            class_image_pixels=((counts > 0) * labelled).sum(axis=0),
            class_presence=counts > 0,
            ignored_pixels=int(ignored.sum()),
        )

    def to_json(self):
        return {
            "image_sizes": self.image_sizes,
            "class_pixels": self.class_pixels.tolist(),
            "class_image_pixels": self.class_image_pixels.tolist(),
            "image_classes": [np.flatnonzero(row).tolist() for row in self.class_presence],
            "ignored_pixels": self.ignored_pixels,
        }

    @classmethod
    def from_json(cls, content, dataset):
        return cls(
            image_sizes=_sizes(content, dataset),
            class_pixels=_integers(content["class_pixels"], len(dataset.classes)),
            class_image_pixels=_integers(content["class_image_pixels"], len(dataset.classes)),
            class_presence=_presence(content, dataset),
            ignored_pixels=int(content["ignored_pixels"]),
        )

    def warnings(self, dataset):
        absent = [
            name
            for label, name in enumerate(dataset.classes)
            if self.class_pixels[label] == 0 and label != dataset.ignore_label
        ]
        if not absent:
            return []
        hint = ""
        if self.ignored_pixels and np.flatnonzero(self.class_pixels).tolist() in ([], [0]):
            hint = (
                f" All masks hold only 0 and the ignore label {dataset.ignore_label}: if they are black and white, "
                "store 0 and 1 instead"
            )
        return [f"no pixel of class {', '.join(absent)}.{hint}"]


@dataclass(frozen=True, eq=False)
class ObjectScan:
    """What a split of samples with objects holds. A crowd counts in object_counts only.

    image_sizes:     tuple of N (height, width).
    class_objects:   int64 (K,): objects of each class.
    class_presence:  bool (N, K): whether the image has an object of the class.
    object_counts:   int64 (N,): objects of each image, crowds too: what room a batch needs.
    maskless:        int: objects whose mask has no pixel.
    """

    image_sizes: tuple
    class_objects: np.ndarray
    class_presence: np.ndarray
    object_counts: np.ndarray
    maskless: int

    @staticmethod
    def examine(dataset, i, attempt):
        """((height, width), int64 (K,) objects of each class, objects and crowds, objects without a pixel)."""
        sample = attempt(dataset.__getitem__, i)
        if sample is None:
            return None
        attempt(_check_strictly, sample.path)
        objects = sample.objects
        counts = np.bincount(objects.labels[~objects.is_crowd], minlength=len(dataset.classes))
        maskless = 0 if objects.masks is None else int((~objects.masks.any(axis=(1, 2))).sum())
        return sample.image.shape[:2], counts, len(objects), maskless

    @classmethod
    def collect(cls, dataset, results):
        sizes, counts, object_counts, maskless = zip(*results, strict=True)
        counts = np.stack(counts)  # (N, K)
        return cls(sizes, counts.sum(axis=0), counts > 0, np.array(object_counts), sum(maskless))

    def to_json(self):
        return {
            "image_sizes": self.image_sizes,
            "class_objects": self.class_objects.tolist(),
            "image_classes": [np.flatnonzero(row).tolist() for row in self.class_presence],
            "object_counts": self.object_counts.tolist(),
            "maskless": self.maskless,
        }

    @classmethod
    def from_json(cls, content, dataset):
        return cls(
            image_sizes=_sizes(content, dataset),
            class_objects=_integers(content["class_objects"], len(dataset.classes)),
            class_presence=_presence(content, dataset),
            object_counts=_integers(content["object_counts"], len(dataset)),
            maskless=int(content["maskless"]),
        )

    def warnings(self, dataset):
        warnings = []
        absent = [name for name, count in zip(dataset.classes, self.class_objects, strict=True) if count == 0]
        if absent:
            warnings.append(f"no object of class {', '.join(absent)}.")
        if self.maskless:
            warnings.append(f"{self.maskless} of {self.object_counts.sum()} objects have masks without a pixel.")
        return warnings


def _check_strictly(path):
    """Pillow refuses what cv2 fills with grey: broken JPEG streams, PNG chunks with a wrong checksum."""
    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                image.verify()
            else:
                image.load()
    except Image.UnidentifiedImageError:
        return  # a format that only cv2 knows, such as float RGB TIFF
    except Exception as error:  # the decoders raise whatever they like on broken files
        raise UserError(f"{path}: corrupt: {error}. Replace the file or take it out of the split") from error


def _sizes(content, dataset):
    sizes = tuple((int(height), int(width)) for height, width in content["image_sizes"])
    if len(sizes) != len(dataset):
        raise ValueError("not of this split")
    return sizes


def _integers(values, count):
    array = np.array(values, np.int64)
    if array.shape != (count,):
        raise ValueError("not of this split")
    return array


def _presence(content, dataset):
    presence = np.zeros((len(dataset), len(dataset.classes)), bool)
    for row, labels in zip(presence, content["image_classes"], strict=True):
        row[labels] = True
    return presence
