"""What evaluate says of a detector: scores, and the limits on detections that keep them below 1."""

import numpy as np
import pytest

from detseg.data.objects import Objects
from detseg.data.sample import Sample
from detseg.inference.prediction import Prediction
from detseg.tasks.detection_scores import DetectionTaskScores, format_detection_scores


def a_grid(side, crowds=0):
    """(Sample, Prediction that finds all) of side x side boxes, the first of them crowds."""
    rows, columns = np.indices((side, side)).reshape(2, -1) * 20
    boxes = np.stack([columns, rows, columns + 10, rows + 10], axis=1).astype(np.float32)
    labels, none = np.zeros(len(boxes), np.int64), np.zeros(len(boxes), bool)
    objects = Objects(boxes, labels, np.arange(len(boxes)) < crowds, none, np.full(len(boxes), 100.0))
    sample = Sample(np.zeros((400, 400, 3), np.uint8), "a", path=None, objects=objects)
    return sample, Prediction(boxes=boxes, labels=labels, scores=np.linspace(1, 0.5, len(boxes), dtype=np.float32))


def scores_of(*images, max_detections=None):
    scores = DetectionTaskScores(("cell",), max_detections=max_detections)
    for sample, prediction in images:
        scores.update(sample, prediction, None)
    return scores.result() | {"split": "test", "images": len(images)}


def test_225_perfect_boxes_score_less_than_1_and_the_reason_is_said():
    result = scores_of(a_grid(15), max_detections=300)
    assert result["coco"]["AP"] == pytest.approx(0.446, abs=0.001)
    assert result["voc"]["mAP"] == pytest.approx(1)
    assert result["images_over_max_detections"] == {"images": 1, "max_detections": 100}
    lines = format_detection_scores(result).splitlines()
    (line,) = [line for line in lines if "100 best detections" in line]
    assert "1 images have more objects of one class" in line


def test_a_models_own_limit_is_said_where_images_have_more_objects():
    images = [a_grid(3), a_grid(4), a_grid(4, crowds=7)]
    result = scores_of(*images, max_detections=9)
    assert result["images_over_model_max_detections"] == {"images": 1, "max_detections": 9}
    assert "model.max_detections is 9, but 1 images have more objects" in format_detection_scores(result)


@pytest.mark.parametrize("limit", [None, 16])
def test_nothing_is_said_of_limits_that_no_image_reaches(limit):
    result = scores_of(a_grid(4), max_detections=limit)
    assert list(result) == ["coco", "voc", "per_class", "engine", "split", "images"]
    text = format_detection_scores(result)
    assert "best detections" not in text
    assert text.endswith("(VOC); 1 images")


def test_images_per_second_are_printed_where_they_were_measured():
    text = format_detection_scores(scores_of(a_grid(2)) | {"images_per_second": 12.34})
    assert text.endswith("1 images, 12.3 images/s")
