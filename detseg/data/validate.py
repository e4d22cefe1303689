"""The scan: every image and label map of a split is read once, before anything is trained or scored on it."""

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from detseg.data.images import check_same_size
from detseg.errors import UserError
from detseg.files import written_whole

_log = logging.getLogger("detseg")
_VERSION = 2  # of what is checked and counted: to be raised with every change, so that old results aren't used
_MOST_PROBLEMS_SHOWN = 20


@dataclass(frozen=True, eq=False)
class SplitScan:
    """What a split holds.

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


def scan_split(dataset, cache_dir=None, progress=True):
    """Read every sample of a dataset once, and report all that is wrong with them together.

    dataset:    see `detseg.data.datasets`.
    cache_dir:  the result is kept in cache_dir/scans as long as no file or setting changes (path, size, time of
                change); $DETSEG_CACHE, $XDG_CACHE_HOME/detseg or ~/.cache/detseg unless given.
    progress:   whether to show a bar.
    Returns     SplitScan. Classes that never occur are logged as a warning.
    Raises      UserError that lists up to 20 problems and their number. Beyond what reading for training checks,
                an image must also pass Pillow's strict decoder or, for PNG, its checksums.
    """
    path = (Path(cache_dir) if cache_dir else _default_cache()) / "scans" / f"{_fingerprint(dataset)}.json"
    scan = _read_cached(path, len(dataset), len(dataset.classes))
    if scan is None:
        scan = _scan(dataset, progress)
        _write_cached(path, scan)
    _warn_of_absent_classes(dataset, scan)
    return scan


def median_frequency_weights(scan):
    """Class weights that balance frequencies: median frequency / frequency (Eigen & Fergus 2015, section 6.3.2).

    A class's frequency is its share of the labelled pixels of the images in which it occurs; the median is over the
    classes that occur. A class that never occurs weighs 0: it has no frequency, and no pixel that the weight would
    apply to.
    Returns     float64 (K,).
    """
    occurs = scan.class_pixels > 0  # (K,)
    weights = np.zeros(len(occurs))
    if occurs.any():
        frequency = scan.class_pixels[occurs] / scan.class_image_pixels[occurs]
        weights[occurs] = np.median(frequency) / frequency
    return weights


def _scan(dataset, progress):
    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
    try:
        results = pool.map(lambda i: _examine(dataset, i), range(len(dataset)))
        results = list(
            tqdm(
                results,
                desc=f"checking {dataset.split}",
                total=len(dataset),
                unit="img",
                disable=None if progress else True,
            )
        )
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest
    problems = [problem for found, _, _ in results for problem in found]
    if problems:
        shown = "\n  ".join(problems[:_MOST_PROBLEMS_SHOWN])
        rest = len(problems) - _MOST_PROBLEMS_SHOWN
        more = f"\n  ... and {rest} more" if rest > 0 else ""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"split {dataset.split!r}: {count} in {len(dataset)} images:\n  {shown}{more}")
    counts = np.stack([count for _, _, count in results])  # (N, 256)
    ignored = counts[:, dataset.ignore_label].copy()  # (N,)
    counts[:, dataset.ignore_label] = 0
    counts = counts[:, : len(dataset.classes)]  # (N, K)
    labelled = counts.sum(axis=1, keepdims=True)  # (N, 1)
    return SplitScan(
        image_sizes=tuple(size for _, size, _ in results),
        class_pixels=counts.sum(axis=0),
        class_image_pixels=((counts > 0) * labelled).sum(axis=0),
        class_presence=counts > 0,
        ignored_pixels=int(ignored.sum()),
    )


def _examine(dataset, i):
    """(list of problems, (height, width), int64 (256,) pixels of each label) of one sample."""
    problems = []

    def attempt(check, *arguments):
        try:
            return check(*arguments)
        except UserError as error:
            problems.append(str(error))

    image = attempt(dataset.image, i)
    if image is not None:
        attempt(_check_strictly, dataset.image_paths[i])
    label_map = attempt(dataset.label_map, i)
    if label_map is None:
        return problems, None, None
    if image is not None:
        attempt(check_same_size, image, dataset.image_paths[i], label_map, dataset.labels_source(i))
    return problems, label_map.shape, np.bincount(label_map.ravel(), minlength=256)


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


def _warn_of_absent_classes(dataset, scan):
    absent = [
        name
        for label, name in enumerate(dataset.classes)
        if scan.class_pixels[label] == 0 and label != dataset.ignore_label
    ]
    if not absent:
        return
    hint = ""
    if scan.ignored_pixels and np.flatnonzero(scan.class_pixels).tolist() in ([], [0]):
        hint = (
            f" All masks hold only 0 and the ignore label {dataset.ignore_label}: if they are black and white, "
            "store 0 and 1 instead"
        )
    _log.warning("split %r: no pixel of class %s.%s", dataset.split, ", ".join(absent), hint)


def _default_cache():
    if os.environ.get("DETSEG_CACHE"):
        return Path(os.environ["DETSEG_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "detseg"
    return Path.home() / ".cache" / "detseg"


def _fingerprint(dataset):
    """A hash of all that a scan's result depends on."""
    content = {
        "version": _VERSION,
        "dataset": type(dataset).__name__,
        "settings": dataset.settings(),
        "images": [_file_state(path) for path in dataset.image_paths],
        "labels": [_file_state(path) for path in dataset.label_files()],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _file_state(path):
    try:
        status = os.stat(path)
    except OSError:
        return str(path), None, None  # the scan itself says what is wrong
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def _read_cached(path, image_count, class_count):
    """The scan that the file holds, or None if there is none or it is damaged."""
    try:
        content = json.loads(path.read_text())
        class_presence = np.zeros((image_count, class_count), bool)
        for row, labels in zip(class_presence, content["image_classes"], strict=True):
            row[labels] = True
        scan = SplitScan(
            image_sizes=tuple((int(height), int(width)) for height, width in content["image_sizes"]),
            class_pixels=np.array(content["class_pixels"], np.int64),
            class_image_pixels=np.array(content["class_image_pixels"], np.int64),
            class_presence=class_presence,
            ignored_pixels=int(content["ignored_pixels"]),
        )
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return None
    is_whole = (
        len(scan.image_sizes) == image_count
        and scan.class_pixels.shape == (class_count,)
        and scan.class_image_pixels.shape == (class_count,)
    )
    return scan if is_whole else None


def _write_cached(path, scan):
    content = {
        "image_sizes": scan.image_sizes,
        "class_pixels": scan.class_pixels.tolist(),
        "class_image_pixels": scan.class_image_pixels.tolist(),
        "image_classes": [np.flatnonzero(row).tolist() for row in scan.class_presence],
        "ignored_pixels": scan.ignored_pixels,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(content))
    except OSError as error:
        _log.info("the scan's result is not kept: %s", error)
