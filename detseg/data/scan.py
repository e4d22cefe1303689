"""The scan: every image of a split is read once with its labels, before anything is trained or scored on it."""

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from detseg.data.checks import raise_problems
from detseg.data.scans import MALFORMED, ObjectScan, SplitScan
from detseg.errors import UserError
from detseg.files import written_whole

_log = logging.getLogger("detseg")
_VERSION = 2  # of what is checked and counted: to be raised with every change, so that old results aren't used


def scan_split(dataset, cache_dir=None, progress=True):
    """Read every sample of a dataset once, and report all that is wrong with them together.

    dataset:    see `detseg.data.datasets`.
    cache_dir:  the result is kept in cache_dir/scans as long as no file or setting changes (path, size, time of
                change); $DETSEG_CACHE, $XDG_CACHE_HOME/detseg or ~/.cache/detseg unless given.
    progress:   whether to show a bar.
    Returns     SplitScan of a dataset with label maps, ObjectScan of one with objects. Classes that never occur are
                logged as a warning.
    Raises      UserError that lists up to 20 problems and their number. Beyond what reading for training checks,
                an image must also pass Pillow's strict decoder or, for PNG, its checksums.
    """
    kind = ObjectScan if hasattr(dataset, "objects") else SplitScan
    path = (Path(cache_dir) if cache_dir else _default_cache()) / "scans" / f"{_fingerprint(dataset)}.json"
    scan = _read_cached(path, kind, dataset)
    if scan is None:
        scan = kind.collect(dataset, _examine_all(dataset, kind.examine, progress))
        _write_cached(path, scan)
    for warning in scan.warnings(dataset):
        _log.warning("split %r: %s", dataset.split, warning)
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


def _examine_all(dataset, examine, progress):
    """What `examine` of `detseg.data.scans` gives for each sample; UserError with the problems of all of them."""
    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
    try:
        results = pool.map(lambda i: _examine(dataset, examine, i), range(len(dataset)))
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
    problems = [problem for found, _ in results for problem in found]
    raise_problems(f"split {dataset.split!r}", problems, f" in {len(dataset)} images")
    return [result for _, result in results]


def _examine(dataset, examine, i):
    """(list of problems, what `examine` gives) of one sample."""
    problems = []

    def attempt(check, *arguments):
        try:
            return check(*arguments)
        except UserError as error:
            problems.append(str(error))

    result = examine(dataset, i, attempt)
    return problems, result


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


def _read_cached(path, kind, dataset):
    """The scan that the file holds, or None if there is none or it is damaged."""
    try:
        return kind.from_json(json.loads(path.read_text()), dataset)
    except (OSError, *MALFORMED):
        return None


def _write_cached(path, scan):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(scan.to_json()))
    except OSError as error:
        _log.info("the scan's result is not kept: %s", error)
