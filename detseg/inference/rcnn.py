"""Images through R-CNN: proposals warped and described by the network, scored, moved, suppressed."""

import dataclasses

import numpy as np
from scipy import special

from detseg.data.augment import resize_image, resized_size
from detseg.data.crops import warp_regions
from detseg.detection.boxes import decode_boxes
from detseg.detection.nms import nms
from detseg.inference.compile import compile_for
from detseg.inference.detection import PLAIN
from detseg.inference.prediction import Prediction

BATCH = 64  # squares that go through the network at once
MAX_CANDIDATES = 1000  # pairs of a proposal and a class that come to the last suppression


class RegionDescriber:
    """R-CNN's network as a function of an image and boxes in it; it reads the model's weights at each call."""

    def __init__(self, model, resize=None):
        """resize: the config's data.resize, which the image gets first."""
        self._model, self._resize = model, resize
        size = model.options.crop_size
        self._run = compile_for(model, model.describe, ((BATCH, size, size, model.channels), "uint8"))

    def __call__(self, image, boxes):
        """image uint8 (H, W, C), boxes (n, 4) -> maps (n, d), features (n, D), logits (n, K + 1), float32."""
        size, options = image.shape[:2], self._model.options
        resized = resize_image(image, *resized_size(self._resize, *size))
        factors = np.array([resized.shape[1] / size[1], resized.shape[0] / size[0]] * 2)
        counts = (self._model.map_values, self._model.feature_count, self._model.class_count + 1)
        described = [np.zeros((len(boxes), count), np.float32) for count in counts]
        squares = np.zeros((BATCH, options.crop_size, options.crop_size, image.shape[2]), np.uint8)
        for start in range(0, len(boxes), BATCH):
            batch = np.asarray(boxes[start : start + BATCH]) * factors
            squares[: len(batch)] = warp_regions(resized, batch, options.crop_size, options.context)
            for whole, part in zip(described, self._run(squares), strict=True):
                whole[start : start + len(batch)] = np.asarray(part)[: len(batch)]
        return described


class RCNNInference:
    """R-CNN as a function of uint8 images (H, W, C) of any size -> Prediction, also while it trains.

    model:    RCNN; without `heads` it is the fine-tuned network alone: softmax, and boxes where the proposals are.
    propose:  function image -> proposals (P, 4), for images that come without.
    resize:   the config's data.resize.
    """

    def __init__(self, model, propose, resize=None):
        self._model, self._propose, self._describe = model, propose, RegionDescriber(model, resize)

    def batch(self, images, options=PLAIN):
        """The Predictions of a list of images."""
        return [self(image, options) for image in images]

    def __call__(self, image, options=PLAIN, proposals=None):
        """The Prediction of one image. options: DetectionPredictionOptions; proposals: (P, 4), or None to find them."""
        own = self._model.options
        proposals = self._propose(image) if proposals is None else proposals
        proposals = np.asarray(proposals[: own.test_proposals], np.float32)
        maps, features, logits = self._describe(image, proposals)
        threshold = own.score_threshold if options.score_threshold is None else options.score_threshold
        most = options.max_detections or own.max_detections
        scores = self._scores(features, logits)  # (P, K)
        rows, labels = np.nonzero(scores > threshold)
        best = np.argsort(-scores[rows, labels], kind="stable")[: max(MAX_CANDIDATES, most)]
        rows, labels = rows[best], labels[best]
        found = (proposals[rows], labels, scores[rows, labels])
        plain = _suppressed(*found, found[0], own.nms_iou, most)
        if self._model.heads is None or own.box_regression == "none":
            return plain
        moved = self._moved(image, proposals[rows], labels, maps[rows])
        regressed = _suppressed(moved, *found[1:], found[0], own.nms_iou, most)
        if own.box_regression == "iterated" and len(regressed.boxes):
            regressed = self._again(image, regressed, threshold, most)
        return dataclasses.replace(regressed, without_regression=plain)

    def _scores(self, features, logits):
        """float32 (P, K): of the SVMs, or the softmax."""
        heads = self._model.heads
        if heads is not None and self._model.options.classifier == "svm":
            return special.expit(heads.svms.scores(features))
        return special.softmax(logits, axis=1)[:, :-1]

    def _moved(self, image, boxes, labels, maps):
        """Boxes (n, 4) where the regressors of their classes move them, cut to the image."""
        moved = np.array(boxes, np.float32)
        for k in np.unique(labels):
            own = labels == k
            moved[own] = decode_boxes(self._model.heads.regressors[k].deltas(maps[own]), moved[own])
        height, width = image.shape[:2]
        return moved.clip(0, np.array([width, height] * 2, np.float32))

    def _again(self, image, found, threshold, most):
        """Detections scored where they are now, and moved once more (appendix C: it does not improve the paper's)."""
        maps, features, logits = self._describe(image, found.boxes)
        scores = self._scores(features, logits)[np.arange(len(found.labels)), found.labels]
        moved = self._moved(image, found.boxes, found.labels, maps)
        kept = scores > threshold
        parts = (moved[kept], found.labels[kept], scores[kept], found.proposals[kept])
        return _suppressed(*parts, self._model.options.nms_iou, most)


def _suppressed(boxes, labels, scores, proposals, iou_threshold, most):
    """The Prediction that is left of candidates (n, ...) after suppression within each class."""
    has_size = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    room = max(MAX_CANDIDATES, most) - len(boxes)  # up to one number of candidates, so that nothing is compiled twice
    padded = [np.pad(part, [(0, room), *[(0, 0)] * (part.ndim - 1)]) for part in (boxes, scores, has_size, labels)]
    of_image = [part[None] for part in padded]
    indices, kept = nms(*of_image[:2], iou_threshold, most, *of_image[2:])
    chosen = np.asarray(indices)[0][np.asarray(kept)[0]]
    return Prediction(
        boxes=boxes[chosen], labels=labels[chosen].astype(np.int64), scores=scores[chosen], proposals=proposals[chosen]
    )
