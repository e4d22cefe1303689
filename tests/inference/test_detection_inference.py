"""Boxes found in a resized and padded image are boxes of the image as it was."""

from types import SimpleNamespace

import numpy as np
import pytest
from keras import ops

from detseg.data.augment import resized_size
from detseg.errors import UserError
from detseg.inference.detection import DetectionInference
from detseg.inference.prediction import DetectionPredictionOptions

FIT = SimpleNamespace(shorter=60, longer=100)
OPTIONS = SimpleNamespace(score_threshold=0.05, max_detections=100)
BOXES = np.array([[0, 0, 12.25, 40], [17.5, 3.125, 90, 31], [50, 9, 50.5, 10]], "float32")  # in the image as it was


class KnownBoxes:
    """Finds `boxes` in any image, and the whole image that it is told of, a little too far; the fifth isn't valid."""

    channels = 3
    options = OPTIONS

    def __init__(self, boxes):
        self._boxes = np.asarray(boxes, "float32")

    def detect(self, images, image_sizes, score_threshold, max_detections, under_xla=False):
        height, width = image_sizes[:1, :1], image_sizes[:1, 1:]
        whole = ops.concatenate([0 * width, 0 * height, width * (1 + 1e-6), height * (1 + 1e-6)], axis=1)
        padding = ops.zeros((1, 4)) + 7.0
        boxes = ops.concatenate([ops.convert_to_tensor(self._boxes), whole, padding], axis=0)
        labels, scores = np.array([[1, 0, 2, 0, 1]], "int32"), np.array([[0.9, 0.8, 0.7, 0.6, 0.5]], "float32")
        valid = np.array([[True, True, True, True, False]])
        return boxes[None], ops.convert_to_tensor(labels), ops.convert_to_tensor(scores), ops.convert_to_tensor(valid)


class BrightSpot:
    """Finds the box around what is white, in the pixels of the image that it is given."""

    channels = 3
    options = OPTIONS

    def detect(self, images, image_sizes, score_threshold, max_detections, under_xla=False):
        is_white = ops.min(images[0], axis=-1) > 250  # (h, w)
        edges = []
        for axis in (0, 1):
            line = ops.cast(ops.any(is_white, axis=axis), "float32")  # columns, then rows
            end = ops.cast(ops.shape(line)[0], "float32")
            places = ops.arange(ops.shape(line)[0], dtype="float32")
            edges.append((ops.min(ops.where(line > 0, places, end)), ops.max(ops.where(line > 0, places + 1, 0.0))))
        box = ops.stack([edges[0][0], edges[1][0], edges[0][1], edges[1][1]])
        one = ops.ones((1, 1))
        return box[None, None], ops.cast(one, "int32"), one, one > 0


def image_of(height, width):
    return np.zeros((height, width, 3), "uint8")


@pytest.mark.parametrize(
    "resize",
    [None, FIT, [64, 96], [50, 333]],
    ids=["as it is", "shorter and longer", "multiples of 32", "neither"],
)
@pytest.mark.parametrize("size", [(40, 90), (41, 91), (120, 97), (500, 353), (97, 1000)])
def test_boxes_come_back_in_the_pixels_of_the_image(size, resize):
    height, width = size
    new_height, new_width = resized_size(resize, height, width)
    factors = np.array([new_width / width, new_height / height] * 2)
    found = DetectionInference(KnownBoxes(BOXES * factors), resize)(image_of(height, width))
    np.testing.assert_allclose(found.boxes[:3], BOXES, atol=1e-3, rtol=0)
    np.testing.assert_array_equal(found.boxes[3], [0, 0, width, height])  # not beyond the image by a rounding
    assert found.labels.tolist() == [1, 0, 2, 0]
    np.testing.assert_array_equal(found.scores, np.array([0.9, 0.8, 0.7, 0.6], "float32"))


@pytest.mark.parametrize(
    ("size", "resize"),
    [
        ((90, 70), None),  # padded to 96x96
        ((120, 180), FIT),  # 60x90 in the bucket 64x96
        ((180, 120), FIT),
        ((120, 200), [60, 100]),  # padded to 64x128
    ],
)
def test_padding_does_not_move_what_is_seen(size, resize):
    image = image_of(*size)
    image[8:24, 12:30] = 255  # even: halving makes no mixed pixels
    found = DetectionInference(BrightSpot(), resize)(image)
    np.testing.assert_allclose(found.boxes, [[12, 8, 30, 24]], atol=1e-3, rtol=0)


def test_a_threshold_and_a_number_choose_among_what_is_found_without_another_graph():
    inference = DetectionInference(KnownBoxes(BOXES))
    image = image_of(40, 90)
    whole = inference(image)
    for threshold in (0.65, 0.75, 0.85):
        found = inference(image, DetectionPredictionOptions(score_threshold=threshold))
        np.testing.assert_array_equal(found.boxes, whole.boxes[whole.scores > threshold])
    found = inference(image, DetectionPredictionOptions(max_detections=2))
    np.testing.assert_array_equal(found.labels, whole.labels[:2])
    assert len(inference._compiled) == 1


@pytest.mark.parametrize(
    "options",
    [*({"score_threshold": value} for value in ("0.5", 1, -0.1)), *({"max_detections": v} for v in (0, 2.5, True))],
)
def test_options_that_are_no_such_numbers_are_told(options):
    (name,) = options
    with pytest.raises(UserError, match=rf"{name}: got .*, expected a"):
        DetectionPredictionOptions(**options)
