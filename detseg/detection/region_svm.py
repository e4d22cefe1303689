"""R-CNN's linear SVMs, one a class, with hard negative mining (Girshick et al., arXiv 1311.2524v5, section 2.3 and
appendix B; the constants are those of the authors' code)."""

import logging
import warnings
from dataclasses import dataclass

import numpy as np

from detseg.errors import UserError

logger = logging.getLogger("detseg")

POSITIVE_WEIGHT = 2.0
INTERCEPT_SCALING = 10.0
HARD_MARGIN = -1.0001  # a negative that scores above it is hard
EASY_MARGIN = -1.2  # one that scores below it is dropped again
RETRAIN_EVERY = 2000  # hard negatives of a class
NEVER = -10.0  # margin of a class without objects to learn from


@dataclass(frozen=True, eq=False)
class Svms:
    """Linear classifiers of K classes: margins = scale * features @ weights + biases.

    weights:  float32 (D, K); biases float32 (K,); zeros and `NEVER` for a class that had no object.
    scale:    of the features.
    """

    weights: np.ndarray
    biases: np.ndarray
    scale: float

    def scores(self, features):
        """float32 (n, K): the margins of features (n, D)."""
        return np.asarray(features, np.float32) * np.float32(self.scale) @ self.weights + self.biases

    def arrays(self):
        """{name: array}, of which `from_arrays` makes it again."""
        return {"weights": self.weights, "biases": self.biases, "scale": np.array(self.scale)}

    @classmethod
    def from_arrays(cls, arrays):
        return cls(arrays["weights"], arrays["biases"], float(arrays["scale"]))


def load_linear_svc():
    """scikit-learn's LinearSVC; UserError where it is missing."""
    try:
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise UserError(
            'model.classifier: svm needs scikit-learn: pip install "detseg[rcnn]"; or take classifier: softmax'
        ) from error
    return LinearSVC


def train_svms(images, classes, scale, cost=0.001, negative_iou=0.3):
    """Trains the SVMs of all classes in one pass over the images.

    images:        function of no arguments -> iterator of an image's (features (n, D), is_object (n,) bool, labels (n,)
                   int 0..K-1 where is_object, overlaps (n, K): largest IoU with an object of each class). It is called
                   twice: for the positives, which are the objects alone, and to mine negatives.
    classes:       K names, for the log.
    scale:         of the features, to the mean norm 20 for which a cost of 0.001 is given.
    negative_iou:  below it a region is a negative of a class.
    Returns        Svms. In memory are the objects' features and, for each class, its hard negatives, float32.
    Raises         UserError where scikit-learn is missing.
    """
    linear_svc = load_linear_svc()

    def create():
        # The positives count twice; scikit-learn's intercept is a feature of the value intercept_scaling.
        weights = {"class_weight": {1: POSITIVE_WEIGHT}, "intercept_scaling": INTERCEPT_SCALING}
        return linear_svc(C=cost, loss="hinge", **weights, random_state=0, max_iter=20_000)

    positives = [[] for _ in classes]
    for features, is_object, labels, _ in images():
        scaled = np.asarray(features, np.float32) * np.float32(scale)
        width = scaled.shape[1]
        for k in np.unique(labels[is_object]):
            positives[k].append(scaled[is_object & (labels == k)])
    miners = [_Miner(np.concatenate(rows), create) if rows else None for rows in positives]
    for features, _, _, overlaps in images():
        scaled = np.asarray(features, np.float32) * np.float32(scale)
        for k, miner in enumerate(miners):
            if miner is not None:
                miner.add(scaled[overlaps[:, k] < negative_iou])
    weights, biases = np.zeros((width, len(classes)), np.float32), np.full(len(classes), NEVER, np.float32)
    for k, (name, miner) in enumerate(zip(classes, miners, strict=True)):
        if miner is None:
            logger.warning("%s: no object to learn from: its SVM finds nothing", name)
            continue
        weights[:, k], biases[k] = miner.finish()
        counts = (len(miner.positives), len(miner.negatives), miner.seen, miner.trainings)
        logger.info("%s: SVM of %d objects and %d hard negatives of %d, trained %d times", name, *counts)
    return Svms(weights, biases, scale)


class _Miner:
    """The SVM of one class while negatives come in, image by image."""

    def __init__(self, positives, create):
        self.positives, self._create = positives, create
        self.negatives = np.zeros((0, positives.shape[1]), np.float32)
        self.seen = self.trainings = 0
        self._new = []  # hard negatives since the last training
        self._weights, self._bias = np.zeros(positives.shape[1]), 0.0

    def add(self, candidates):
        """Keeps the hard ones of the candidates (n, D), the first image's all; retrains when there are many."""
        hard = candidates if not self.trainings else candidates[self._margins(candidates) > HARD_MARGIN]
        self.seen += len(candidates)
        if len(hard):
            self._new.append(hard)
        if self._new and (not self.trainings or sum(map(len, self._new)) >= RETRAIN_EVERY):
            self._train()
            self.negatives = self.negatives[self._margins(self.negatives) >= EASY_MARGIN]

    def finish(self):
        """(weights (D,), bias) of all that was kept."""
        if self._new or not self.trainings:
            self._train()
        return self._weights, self._bias

    def _margins(self, features):
        return features @ self._weights + self._bias

    def _train(self):
        self.trainings += 1
        self.negatives = np.concatenate([self.negatives, *self._new])
        self._new = []
        if not len(self.negatives):  # nothing is to be told apart
            self._bias = 1.0
            return
        labels = np.concatenate([np.ones(len(self.positives)), -np.ones(len(self.negatives))])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            svm = self._create().fit(np.concatenate([self.positives, self.negatives]), labels)
        for warning in caught:
            logger.warning("SVM of %d objects: %s", len(self.positives), warning.message)
        self._weights, self._bias = svm.coef_[0], float(svm.intercept_[0])
