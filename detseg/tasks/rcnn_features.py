"""What R-CNN's network says of the regions of the training images, kept on disk while classifiers are fitted on it."""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from detseg.detection.box_regression import check_finite
from detseg.detection.boxes import encode_boxes
from detseg.errors import UserError
from detseg.files import make_folder, written_whole
from detseg.tasks.rcnn_regions import regions_of

logger = logging.getLogger("detseg")

_DTYPE = np.dtype(np.float16)


class RegionFeatures:
    """Features of all regions of a data set, and maps of those that teach a regressor, in a folder, as float16.

    An image's are appended when they are there, and its number is noted after that: a kill at any moment costs one
    image. Memory holds those of one.

    folder:       for the files; about 2 * (feature_count * regions + map_values * teachers) bytes.
    dataset:      Dataset whose samples have objects and proposals.
    options:      RCNNOptions.
    model:        RCNN: says how many values there are.
    weights:      the file of its weights, which the features belong to.
    """

    def __init__(self, folder, dataset, options, model, weights):
        self._folder, self._dataset, self._options = Path(folder), dataset, options
        self._class_count = model.class_count
        self._widths = {"features": model.feature_count, "maps": model.map_values}  # values of a row of each file
        digest = hashlib.blake2b(weights.read_bytes(), digest_size=16)
        described = ("crop_size", "context", "train_proposals", "regression_iou")
        digest.update(json.dumps([getattr(options, name) for name in described]).encode())
        counts = [(0, 0)]
        for i in range(len(dataset)):
            regions = self.regions(i)
            digest.update(regions.boxes.tobytes() + regions.labels.tobytes())
            counts.append((len(regions.boxes), np.count_nonzero(self._teaches(regions))))
        starts = np.cumsum(counts, axis=0)  # (images + 1, 2)
        self._starts = dict(zip(self._widths, starts.T, strict=True))
        self.fingerprint = digest.hexdigest()

    def regions(self, i):
        """The `Regions` of an image, in its own pixels."""
        proposals = self._dataset.proposals(i)[: self._options.train_proposals]
        return regions_of(self._dataset.objects(i), proposals, self._class_count)

    def _teaches(self, regions):
        """bool (n,): of whose maps a regressor learns."""
        return regions.overlaps.max(axis=1, initial=0) > self._options.regression_iou

    @property
    def map_values(self):
        return self._widths["maps"]

    # ----- on disk ---------------------------------------------------------------------------------------------------

    def collect(self, describe):
        """Has the network describe the images that aren't done yet. UserError where the disk is full.

        describe:  function (image uint8 (H, W, C), boxes (n, 4)) -> maps (n, map_values), features (n, feature_count).
        """
        done = self._images_done()
        if done == len(self._dataset):
            return
        make_folder(self._folder, "--run")
        size = sum(self._bytes(name, -1) for name in self._widths) / 1e9
        logger.info("features of %d regions: %.2f GB in %s", self._starts["features"][-1], size, self._folder)
        bar = tqdm(total=len(self._dataset), initial=done, desc="features", unit="img", disable=None)
        try:
            with open(self._path("features"), "ab") as features, open(self._path("maps"), "ab") as maps, bar:
                for name, file in (("features", features), ("maps", maps)):
                    file.truncate(self._bytes(name, done))
                for i in range(done, len(self._dataset)):
                    regions = self.regions(i)
                    of_maps, of_features = describe(self._dataset.image(i), regions.boxes)
                    features.write(self._as_bytes(of_features, i))
                    maps.write(self._as_bytes(of_maps[self._teaches(regions)], i))
                    features.flush()
                    maps.flush()
                    self._note(i + 1)
                    bar.update()
        except OSError as error:
            raise UserError(
                f"{self._folder}: the features can't be written: {error.strerror or error}. They take about "
                f"{size:.2f} GB; make room and go on with --resume"
            ) from error

    def _as_bytes(self, values, i):
        with np.errstate(over="ignore"):
            stored = values.astype(_DTYPE)
        check_finite(stored, self._dataset.names[i])
        return stored.tobytes()

    def _images_done(self):
        """How many images have their rows in the files; 0 where those belong to other weights, settings or images."""
        try:
            noted = json.loads(self._noted.read_text(encoding="utf-8"))
            is_whole = all(
                self._path(name).stat().st_size >= self._bytes(name, noted["images"]) for name in self._widths
            )
            return noted["images"] if noted["fingerprint"] == self.fingerprint and is_whole else 0
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return 0

    def _note(self, images):
        with written_whole(self._noted) as temporary:
            temporary.write_text(json.dumps({"images": images, "fingerprint": self.fingerprint}), encoding="utf-8")

    @property
    def _noted(self):
        return self._folder / "done.json"

    def _path(self, name):
        return self._folder / f"{name}.f16"

    def _bytes(self, name, images):
        """The size of a file with the rows of the first images."""
        return int(self._starts[name][images]) * self._widths[name] * _DTYPE.itemsize

    def _rows(self, name, i):
        """float32 (n, width): what a file has of an image."""
        start, stop = self._starts[name][i : i + 2]
        shape = (stop - start, self._widths[name])
        rows = np.fromfile(self._path(name), _DTYPE, shape[0] * shape[1], offset=self._bytes(name, i))
        return rows.reshape(shape).astype(np.float32)

    def remove(self):
        shutil.rmtree(self._folder, ignore_errors=True)

    # ----- to learn from ---------------------------------------------------------------------------------------------

    def norms(self, name):
        """float (n,): the lengths of the rows of "features" or "maps"."""
        norms = [np.linalg.norm(self._rows(name, i), axis=1) for i in range(len(self._dataset))]
        return np.concatenate(norms)

    def for_svms(self):
        """Image by image, what `train_svms` learns from: features, is_truth, labels, overlaps."""
        for i in tqdm(range(len(self._dataset)), "SVMs", unit="img", disable=None):
            regions = self.regions(i)
            overlaps = np.where(regions.in_crowd[:, None], 1.0, regions.overlaps)  # nobody's negatives
            yield self._rows("features", i), regions.is_object, regions.labels, overlaps

    def for_regressor(self, k):
        """Image by image, what the regressor of class k learns from: maps (n, d), targets (n, 4)."""
        for i in range(len(self._dataset)):
            regions = self.regions(i)
            teaches = regions.overlaps[:, k] > self._options.regression_iou
            if teaches.any():
                maps = self._rows("maps", i)[teaches[self._teaches(regions)]]
                truth = regions.boxes[regions.nearest[teaches, k]]
                yield maps, np.asarray(encode_boxes(truth, regions.boxes[teaches]))
