"""Ground truth beside prediction, as `evaluate --drawings` draws it."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from detseg.config import load_config
from detseg.data.dataset import Dataset
from detseg.data.objects import Objects
from detseg.data.sample import Sample
from detseg.errors import UserError
from detseg.inference.prediction import Prediction
from detseg.report.drawing import TruthDrawings, draw_detections, draw_label_map
from detseg.tasks import create_task
from detseg.tasks.scoring import score_dataset

CLASSES = ("cat", "dog")
CONFIG = """
task: detection
data: {format: voc, root: r, train: train}
model: {name: retinanet, backbone: resnet18}
train: {epochs: 1, batch_size: 1, optimizer: {name: sgd, learning_rate: 0.1}}
"""
GREY = np.full((300, 400, 3), 100, np.uint8)
BOXES = np.array([[20, 30, 120, 130], [200, 100, 350, 250]], np.float32)
LABELS = np.array([0, 1])


class Pictures(list, Dataset):
    """Samples as a data set."""

    split = "val"


@pytest.fixture
def detection_task(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return create_task(load_config(path), CLASSES)


def masks_of(boxes):
    masks = np.zeros((len(boxes), 300, 400), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1 : y2 - 20, x1:x2] = 1
    return masks


def with_objects(name="a", boxes=BOXES, masks=None):
    flags = np.zeros(len(boxes), bool)
    objects = Objects(boxes, LABELS[: len(boxes)], flags, flags, np.ones(len(boxes)), masks)
    return Sample(GREY, name, Path(f"{name}.jpg"), objects=objects)


def found(scores=(0.9, 0.5), masks=None):
    return Prediction(boxes=BOXES + 5, labels=LABELS, scores=np.array(scores, np.float32), masks=masks)


def test_boxes_and_masks_of_the_data_are_drawn_beside_what_scores_above_the_threshold(detection_task):
    masks = masks_of(BOXES)
    truth, prediction = detection_task.draw_truth_and_found(with_objects(masks=masks), found())
    codes = rle.encode(np.asfortranarray(masks.transpose(1, 2, 0)))
    np.testing.assert_array_equal(truth, draw_detections(GREY, BOXES, LABELS, CLASSES, masks=codes))
    expected = draw_detections(GREY, BOXES[:1] + 5, LABELS[:1], CLASSES, np.array([0.9], np.float32))
    np.testing.assert_array_equal(prediction, expected)
    _, prediction = detection_task.draw_truth_and_found(with_objects(), found((0.1, 0.9), codes))
    expected = draw_detections(GREY, BOXES[1:] + 5, LABELS[1:], CLASSES, np.array([0.9], np.float32), codes[1:])
    np.testing.assert_array_equal(prediction, expected)


@pytest.mark.parametrize("masks", [None, np.zeros((0, 300, 400), np.uint8)])
def test_an_image_without_objects_is_drawn_as_it_is(masks, detection_task):
    drawings = detection_task.draw_truth_and_found(with_objects("a", BOXES[:0], masks), found((0.1, 0.2)))
    np.testing.assert_array_equal(drawings, [GREY, GREY])


def test_the_first_images_are_drawn_into_the_folder_whatever_their_names(detection_task, tmp_path):
    drawings = TruthDrawings(detection_task, tmp_path / "out" / "val_drawings", 2)
    pictures = Pictures([with_objects("../up/a"), with_objects("b"), with_objects("c")])
    result = score_dataset(detection_task, lambda image: found(), pictures, drawings=drawings)
    assert result["images"] == 3
    assert sorted(path.name for path in drawings.folder.rglob("*")) == [".._up_a.png", "b.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "out"}
    drawn = cv2.imread(str(drawings.folder / "b.png"))[..., ::-1]
    truth, prediction = detection_task.draw_truth_and_found(pictures[1], found())
    np.testing.assert_array_equal(drawn[-300:, :400], truth)
    np.testing.assert_array_equal(drawn[-300:, -400:], prediction)


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_evaluated(detection_task, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--drawings: .*file.* can't be made a folder"):
        TruthDrawings(detection_task, tmp_path / "file" / "val_drawings", 2)


def test_label_maps_are_drawn_beside_each_other(quick_config):
    classes = ("background", "cell")
    truth, predicted = np.zeros((2, 300, 400), np.uint8)
    truth[50:100, 60:200] = 1
    truth[:20] = 255
    predicted[60:110, 60:200] = 1
    task = create_task(quick_config(), classes)
    drawings = task.draw_truth_and_found(Sample(GREY, "a", Path("a.png"), truth), Prediction(predicted))
    for drawing, label_map in zip(drawings, (truth, predicted), strict=True):
        np.testing.assert_array_equal(drawing, draw_label_map(GREY, label_map, classes))
