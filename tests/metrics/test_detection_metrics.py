import numpy as np
import pytest

from detseg.metrics.detection import DetectionConfusion, DetectionScores

A, B, C = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]


def test_result_has_the_keys_of_an_evaluation_file():
    scores = DetectionScores(("cat", "dog"), engine="pycocotools")
    scores.update([A], [0], [A], [0], [0.9])
    result = scores.result()
    assert list(result) == ["coco", "voc", "per_class", "engine"]
    assert len(result["coco"]) == 12
    assert (result["coco"]["AP"], result["voc"]["mAP07"], result["voc"]["mAP"]) == pytest.approx((1, 1, 1))
    assert result["per_class"]["cat"] == {"AP": pytest.approx(1), "AP50": pytest.approx(1)}
    assert np.isnan(result["per_class"]["dog"]["AP"])


@pytest.mark.parametrize("key", ["is_crowd", "difficult"])
def test_crowds_and_difficult_objects_count_nowhere(key):
    scores = DetectionScores(("cat",), engine="pycocotools")
    scores.update([A, B], [0, 0], [A, B, B], [0, 0, 0], [0.6, 0.9, 0.8], **{key: [False, True]})
    result = scores.result()
    assert (result["coco"]["AP"], result["voc"]["mAP"]) == pytest.approx((1, 1))
    assert scores.confusion.matrix.tolist() == [[1, 0], [0, 0]]


def test_confusion_by_hand():
    confusion = DetectionConfusion(2)
    found = [B, A, [0, 0, 10, 9], C, A]
    confusion.update([A, B, [70, 0, 80, 10]], [0, 1, 1], found, [0, 0, 0, 1, 1], [0.6, 0.9, 0.8, 0.7, 0.4])
    # A is found and found again, B taken for the other class, C invented, the last one missed; one has a low score.
    assert confusion.matrix.tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0]]
    confusion.update([], [], [], [], [])
    confusion.update([A], [0], [], [], [])
    confusion.update([], [], [A], [0], [0.9])
    assert confusion.matrix.tolist() == [[1, 0, 1], [1, 0, 1], [2, 1, 0]]


def test_confusion_ignores_what_lies_in_a_crowd():
    confusion = DetectionConfusion(1)
    confusion.update([[0, 0, 100, 100], A], [0, 0], [A, B, [95, 0, 120, 10]], [0, 0, 0], [0.9, 0.8, 0.7], [True, False])
    assert confusion.matrix.tolist() == [[1, 0], [1, 0]]
