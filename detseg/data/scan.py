"""The scan: every image of a split is read once with its labels, before anything is trained or scored on it."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from tqdm import tqdm

from detseg.data.checks import Finding, findings_of, raise_problems, sample_findings
from detseg.data.dataset import Dataset
from detseg.errors import UserError
from detseg.files import written_whole

_log = logging.getLogger("detseg")
_VERSION = 4  # of what is checked and counted: raise it with every change, so that old results aren't used


def scan_split(dataset, task, cache_dir=None, progress=True):
    """Read every sample of a dataset once, and report all that is wrong with them together.

    dataset:    Dataset.
    task:       "segmentation": its samples have label maps; "detection": they have objects.
    cache_dir:  the result is kept in cache_dir/scans as long as no file or setting changes (`Dataset.fingerprint`);
                $DETSEG_CACHE, $XDG_CACHE_HOME/detseg or ~/.cache/detseg unless given.
    progress:   whether to show a bar.
    Returns     SplitScan for segmentation, ObjectScan for detection. Classes that never occur are logged as a warning.
    Raises      FindingsError. Image files must also pass Pillow's strict decoder or, for PNG, its checksums.
    """
    kind = _KINDS[task]
    if not isinstance(dataset, Dataset):
        raise UserError(f"the data set is a {type(dataset).__name__}, expected a class derived from detseg.Dataset")
    if not len(dataset) or not len(dataset.classes):
        found = f"{len(dataset)} samples of {len(dataset.classes)} classes"
        raise UserError(f"split {dataset.split!r}: {found}, expected at least one of each")
    fingerprint = dataset.fingerprint()
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache_dir = cache_dir or os.environ.get("DETSEG_CACHE") or Path(caches) / "detseg"
    path = Path(cache_dir) / "scans" / f"{task}{_VERSION}_{fingerprint}.npz"
    scan = None if fingerprint is None else _read_cached(path, kind, dataset)
    if scan is None:
        scan = kind.collect(dataset, _examine_all(dataset, kind, progress))
        if fingerprint is not None:
            _write_cached(path, scan)
    for warning in scan.warnings(dataset):
        _log.warning("split %r: %s", dataset.split, warning)
    return scan


def median_frequency_weights(scan):
    """Class weights that balance frequencies: median frequency / frequency (Eigen & Fergus 2015, section 6.3.2).

    A class's frequency is its share of the labelled pixels of the images in which it occurs; the median is over the
    classes that occur. The others weigh 0.
    Returns     float64 (K,).
    """
    occurs = scan.class_pixels > 0  # (K,)
    weights = np.zeros(len(occurs))
    if occurs.any():
        frequency = scan.class_pixels[occurs] / scan.class_image_pixels[occurs]
        weights[occurs] = np.median(frequency) / frequency
    return weights


def _examine_all(dataset, kind, progress):
    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
    try:
        results = pool.map(lambda i: _examine(dataset, kind, i), range(len(dataset)))
        hidden = None if progress else True  # None: where there is no terminal
        results = list(tqdm(results, f"checking {dataset.split}", len(dataset), unit="img", disable=hidden))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest
    findings = [finding for found, _ in results for finding in found]
    raise_problems(f"split {dataset.split!r}", findings, f" in {len(dataset)} images")
    return [result for _, result in results]


def _examine(dataset, kind, i):
    try:
        sample = dataset[i]
    except UserError as error:
        return _reading_findings(dataset, kind, i, error), None
    findings = sample_findings(sample, dataset, i, kind.needed) or _file_findings(dataset.image_paths[i])
    return findings, None if findings else kind.examine(sample, dataset)


def _reading_findings(dataset, kind, i, error):
    """All that is wrong with a sample that can't be read: image and labels may be broken both."""
    findings = []
    for read in (dataset.image, getattr(dataset, kind.needed)):
        try:
            read(i)
            findings += _file_findings(dataset.image_paths[i]) if read == dataset.image else []
        except UserError as part:
            findings += findings_of(part)
    return list(dict.fromkeys(findings)) or findings_of(error)


def _file_findings(path):
    """Pillow refuses what cv2 fills with grey: broken JPEG streams, PNG chunks with a wrong checksum."""
    if path is None or path.suffix.lower() in (".tif", ".tiff", ".npy"):  # kinds that Pillow lacks are read strictly
        return []
    try:
        with Image.open(path) as image:
            check = image.verify if image.format == "PNG" else image.load
            check()
    except Image.UnidentifiedImageError:
        return []  # a format that only cv2 knows, such as float RGB TIFF
    except Exception as error:  # the decoders raise whatever they like on broken files
        advice = f"corrupt: {error}. Replace the file or take it out of the split"
        return [Finding(path, "", "", "unreadable", "", advice)]
    return []


def array_forms(scan):
    """{field: (dtype, *sides)} of a scan or its kind."""
    return {field.name: field.type.__metadata__ for field in fields(scan)}


def _read_cached(path, kind, dataset):
    """The scan that the file holds, or None unless it is there, whole, of this kind and of such a data set."""
    lengths, values = {"N": len(dataset), "K": len(dataset.classes)}, {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name, (dtype, *sides) in array_forms(kind).items():
                array = arrays[name]
                if "M" in sides:
                    lengths["M"] = int(values["object_counts"].sum())
                if array.dtype != dtype or array.shape != tuple(lengths.get(side, side) for side in sides):
                    return None
                values[name] = array if array.ndim else array.item()
    except Exception:  # zipfile, zlib and numpy raise whatever they like on damaged files
        return None
    return kind(**{**values, "image_sizes": tuple(map(tuple, values["image_sizes"].tolist()))})


def _write_cached(path, scan):
    arrays = {name: np.asarray(getattr(scan, name), dtype) for name, (dtype, *_) in array_forms(scan).items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            np.savez_compressed(temporary, **arrays)
    except (OSError, UserError) as error:
        _log.info("the scan's result is not kept: %s", error)


# Both kinds of scans have: needed, the field of a sample that they are of; examine, what of a good sample goes into it;
# collect, the scan of what examine gave for all samples; and warnings, list of str. The fields note their dtype and
# shape, by which the cache checks what it holds: "N" images, "K" classes, "M" objects, or a number.


@dataclass(frozen=True, eq=False)
class SplitScan:
    """What a split of samples with label maps holds."""

    image_sizes: Annotated[tuple, np.int64, "N", 2]  # (height, width) of each
    class_pixels: Annotated[np.ndarray, np.int64, "K"]  # pixels of each class
    class_image_pixels: Annotated[np.ndarray, np.int64, "K"]  # labelled ones of the images in which the class occurs
    class_presence: Annotated[np.ndarray, bool, "N", "K"]  # whether the image has a pixel of the class
    ignored_pixels: Annotated[int, np.int64]  # pixels of ignore_label

    needed = "label_map"

    @staticmethod
    def examine(sample, dataset):
        """((height, width), int64 (256,) pixels of each label)."""
        return sample.label_map.shape, np.bincount(sample.label_map.ravel(), minlength=256)

    @classmethod
    def collect(cls, dataset, results):
        sizes, counts = zip(*results, strict=True)
        counts = np.stack(counts)  # (N, 256)
        ignored = counts[:, dataset.ignore_label].copy()  # (N,)
        counts[:, dataset.ignore_label] = 0
        counts = counts[:, : len(dataset.classes)]  # (N, K)
        presence, labelled = counts > 0, counts.sum(axis=1, keepdims=True)  # (N, K), (N, 1)
        return cls(sizes, counts.sum(axis=0), (presence * labelled).sum(axis=0), presence, int(ignored.sum()))

    def warnings(self, dataset):
        occurs = self.class_pixels > 0  # (K,)
        absent = [name for k, name in enumerate(dataset.classes) if not occurs[k] and k != dataset.ignore_label]
        if not absent:
            return []
        warning = f"no pixel of class {', '.join(absent)}."
        if self.ignored_pixels and not occurs[1:].any():
            advice = "if they are black and white, store 0 and 1 instead"
            warning += f" All masks hold only 0 and the ignore label {dataset.ignore_label}: {advice}"
        return [warning]


@dataclass(frozen=True, eq=False)
class ObjectScan:
    """What a split of samples with objects holds. Crowds count in object_counts, boxes and is_crowd only."""

    image_sizes: Annotated[tuple, np.int64, "N", 2]  # (height, width) of each
    class_objects: Annotated[np.ndarray, np.int64, "K"]  # objects of each class
    class_presence: Annotated[np.ndarray, bool, "N", "K"]  # whether the image has an object of the class
    object_counts: Annotated[np.ndarray, np.int64, "N"]  # objects of each image, crowds too: what room a batch needs
    maskless: Annotated[int, np.int64]  # objects whose mask has no pixel
    boxes: Annotated[np.ndarray, np.float32, "M", 4]  # those of all objects, image by image
    is_crowd: Annotated[np.ndarray, bool, "M"]

    needed = "objects"

    @staticmethod
    def examine(sample, dataset):
        """((height, width), int64 (K,) objects of each class, objects without a pixel, boxes, is_crowd)."""
        objects = sample.objects
        counts = np.bincount(objects.labels[~objects.is_crowd], minlength=len(dataset.classes))
        maskless = 0 if objects.masks is None else int((~objects.masks.any(axis=(1, 2))).sum())
        return sample.image.shape[:2], counts, maskless, objects.boxes, objects.is_crowd

    @classmethod
    def collect(cls, dataset, results):
        sizes, counts, maskless, boxes, is_crowd = zip(*results, strict=True)
        counts, object_counts = np.stack(counts), np.array([len(each) for each in boxes])  # (N, K), (N,)
        boxes, is_crowd = np.concatenate(boxes), np.concatenate(is_crowd)
        return cls(sizes, counts.sum(axis=0), counts > 0, object_counts, sum(maskless), boxes, is_crowd)

    def warnings(self, dataset):
        absent = [name for name, count in zip(dataset.classes, self.class_objects, strict=True) if count == 0]
        warnings = [f"no object of class {', '.join(absent)}."] if absent else []
        if self.maskless:
            warnings.append(f"{self.maskless} of {self.object_counts.sum()} objects have masks without a pixel.")
        return warnings

    def boxes_at(self, new_sizes):
        """The boxes of all objects but crowds when the images are resized, as by `Objects.resized`.

        new_sizes:  N (height, width).
        Returns     float32 (M', 4), less what loses its width or height.
        """
        sizes, new_sizes = np.reshape(self.image_sizes, (-1, 2)), np.reshape(new_sizes, (-1, 2))
        scales = (new_sizes / sizes)[:, [1, 0, 1, 0]].astype(np.float32)  # (N, 4)
        limits = new_sizes[:, [1, 0, 1, 0]].astype(np.float32)
        boxes = self.boxes * scales.repeat(self.object_counts, axis=0)  # (M, 4)
        boxes = boxes.clip(0, limits.repeat(self.object_counts, axis=0))
        return boxes[~self.is_crowd & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)]


_KINDS = {"segmentation": SplitScan, "detection": ObjectScan}
