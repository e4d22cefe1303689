"""Images through R-CNN: scores of softmax and SVMs, boxes moved once and twice, with and without proposals."""

from types import SimpleNamespace

import numpy as np
import pytest

from detseg.detection.boxes import encode_boxes
from detseg.inference.prediction import DetectionPredictionOptions
from detseg.inference.rcnn import RCNNInference, RegionDescriber

TRUTH = np.array([[10, 10, 50, 40], [60, 20, 90, 80]], np.float32)
PROPOSALS = np.array([[12, 8, 48, 44], [14, 10, 50, 40], [58, 24, 86, 76], [0, 60, 20, 90]], np.float32)
IMAGE = np.zeros((100, 120, 3), np.uint8)


class Oracle:
    """Regressors that know the truth: maps hold a box and the object that is nearest."""

    def deltas(self, maps):
        return np.asarray(encode_boxes(maps[:, 4:], maps[:, :4]))


def inference(monkeypatch, heads, **options):
    """R-CNN whose network says of a box: itself and its object, features that are its IoU, equal logits."""
    own = {"test_proposals": 10, "score_threshold": 0.1, "nms_iou": 0.3, "max_detections": 5, "classifier": "svm"}
    options = SimpleNamespace(**own | {"box_regression": "ridge"} | options)

    def describe(self, image, boxes):
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        nearest = TRUTH[(np.abs(boxes[:, None] - TRUTH).sum(axis=2)).argmin(axis=1)] if len(boxes) else boxes
        quality = 100 - np.abs(boxes - nearest).sum(axis=1, keepdims=True)  # (n, 1)
        logits = np.zeros((len(boxes), 3), np.float32)
        logits[:, 0] = quality[:, 0] / 20
        return np.concatenate([boxes, nearest], axis=1), quality, logits

    monkeypatch.setattr(RegionDescriber, "__init__", lambda *arguments: None)
    monkeypatch.setattr(RegionDescriber, "__call__", describe)
    return RCNNInference(SimpleNamespace(options=options, heads=heads, class_count=2), lambda image: PROPOSALS[:1])


def heads():
    svms = SimpleNamespace(scores=lambda features: np.concatenate([(features - 80) / 10, -10 + 0 * features], axis=1))
    return SimpleNamespace(svms=svms, regressors=(Oracle(), Oracle()))


def test_boxes_are_moved_by_the_regressors_and_the_same_ones_unmoved_come_along(monkeypatch):
    found = inference(monkeypatch, heads())(IMAGE, proposals=PROPOSALS)
    assert np.allclose(found.boxes, TRUTH, atol=1e-3)
    assert found.labels.tolist() == [0, 0]
    assert np.array_equal(found.without_regression.boxes, PROPOSALS[[1, 2]])
    assert np.array_equal(found.proposals, PROPOSALS[[1, 2]])
    assert np.array_equal(found.scores, found.without_regression.scores)


def test_scores_of_svms_are_the_logistic_of_their_margins(monkeypatch):
    found = inference(monkeypatch, heads(), box_regression="none")(IMAGE, proposals=PROPOSALS)
    margins = (np.array([96, 86]) - 80) / 10
    assert np.allclose(found.scores, 1 / (1 + np.exp(-margins)))
    assert found.without_regression is None


def test_without_heads_the_network_scores_by_softmax_where_the_proposals_are(monkeypatch):
    found = inference(monkeypatch, None)(IMAGE, proposals=PROPOSALS)
    assert np.array_equal(found.boxes[0], PROPOSALS[1])
    assert np.allclose(found.scores[0], np.exp(96 / 20) / (np.exp(96 / 20) + 2))


def test_iterated_boxes_are_scored_again_where_they_are(monkeypatch):
    found = inference(monkeypatch, heads(), box_regression="iterated")(IMAGE, proposals=PROPOSALS)
    assert np.allclose(found.boxes, TRUTH, atol=1e-3)
    assert np.allclose(found.scores, 1 / (1 + np.exp(-2)), atol=1e-3)
    assert np.array_equal(found.proposals, PROPOSALS[[1, 2]])


@pytest.mark.parametrize("box_regression", ["none", "ridge", "iterated"])
def test_no_proposals_and_nothing_above_the_threshold_are_no_detections(monkeypatch, box_regression):
    detect = inference(monkeypatch, heads(), box_regression=box_regression)
    for proposals, options in (
        (PROPOSALS[:0], DetectionPredictionOptions()),
        (PROPOSALS, DetectionPredictionOptions(score_threshold=0.999)),
    ):
        found = detect(IMAGE, options, proposals)
        assert found.boxes.shape == found.proposals.shape == (0, 4)
        assert len(found.labels) == len(found.scores) == 0


def test_a_proposal_without_size_is_no_detection(monkeypatch):
    thin = np.array([[14, 10, 14, 40], [14, 10, 50, 40]], np.float32)
    found = inference(monkeypatch, heads())(IMAGE, proposals=thin)
    assert np.isfinite(found.boxes).all()
    assert (found.without_regression.boxes == thin[1:]).all()


def test_an_image_that_comes_without_proposals_gets_some(monkeypatch):
    found = inference(monkeypatch, heads()).batch([IMAGE, IMAGE])
    assert [len(each.boxes) for each in found] == [1, 1]


def test_options_bound_what_is_found(monkeypatch):
    detect = inference(monkeypatch, heads())
    best = detect(IMAGE, DetectionPredictionOptions(max_detections=1), PROPOSALS)
    assert np.allclose(best.boxes, TRUTH[:1], atol=1e-3)
    assert len(detect(IMAGE, DetectionPredictionOptions(score_threshold=0.7), PROPOSALS).boxes) == 1
