"""What R-CNN's fine-tuning draws from an image, and what its regions stand for."""

import numpy as np
import pytest

from detseg.data.objects import Objects
from detseg.data.sample import Sample
from detseg.detection.rcnn_options import RCNNOptions
from detseg.tasks.rcnn_regions import draw_crops, regions_of

OPTIONS = RCNNOptions(backbone="mobilenetv2", batch_crops=64, train_proposals=100)
OBJECTS = Objects([[0, 0, 40, 40], [50, 50, 90, 90]], [1, 0])


def sample(proposals, objects=OBJECTS):
    proposals = np.asarray(proposals, np.float32).reshape(-1, 4)
    return Sample(np.zeros((100, 100, 3), np.uint8), "a", objects=objects, proposals=proposals)


def draw(sample, images=2, seed=0):
    return draw_crops(sample, OPTIONS, 2, images, np.random.default_rng(seed))


def test_regions_know_their_overlap_with_each_class_and_whose_it_is():
    regions = regions_of(OBJECTS, np.array([[0, 0, 40, 20], [50, 50, 90, 80], [0, 90, 10, 100]], np.float32), 3)
    assert regions.labels.tolist() == [1, 0, -1, -1, -1]
    assert np.allclose(regions.overlaps, [[0, 1, 0], [1, 0, 0], [0, 0.5, 0], [0.75, 0, 0], [0, 0, 0]])
    assert regions.nearest[2, 1] == 0
    assert regions.nearest[3, 0] == 1


def test_a_quarter_of_an_images_share_are_objects_and_the_rest_is_background():
    overlapping, far = [[0, 0, 40, 38]] * 20, [[0, 60, 40, 90]] * 40
    boxes, labels = draw(sample(overlapping + far))
    assert len(boxes) == len(labels) == 32
    assert (labels != 2).sum() == 8
    assert (labels[labels != 2] <= 1).all()


def test_labels_are_those_of_the_object_that_a_region_overlaps_most():
    boxes, labels = draw(sample([[0, 0, 40, 38], [50, 52, 90, 90], [60, 0, 90, 20]]))
    for box, label in zip(boxes, labels, strict=True):
        centre = box.reshape(2, 2).mean(axis=0)
        assert label == (2 if box[1] == 0 and box[0] == 60 else 1 if centre[0] < 50 else 0)


@pytest.mark.parametrize("proposals", [[], [[0, 0, 40, 40]]])
def test_where_there_is_no_background_objects_fill_up(proposals):
    _, labels = draw(sample(proposals))
    assert len(labels) == 32
    assert (labels < 2).all()


def test_where_there_is_no_object_background_fills_up():
    _, labels = draw(sample([[0, 0, 40, 40], [20, 20, 50, 50]], Objects(np.zeros((0, 4)), [])))
    assert len(labels) == 32
    assert (labels == 2).all()


def test_an_image_with_nothing_in_it_is_background_as_a_whole():
    boxes, labels = draw(sample([], Objects(np.zeros((0, 4)), [])))
    assert (labels == 2).all()
    assert (boxes == [0, 0, 100, 100]).all()


def test_what_lies_in_a_crowd_is_nobodys_background_and_a_crowd_is_no_object():
    objects = Objects([[0, 0, 60, 60], [80, 80, 100, 100]], [0, 1], is_crowd=[True, False])
    boxes, labels = draw(sample([[5, 5, 30, 30], [60, 0, 90, 40]], objects))
    assert not (boxes == [5, 5, 30, 30]).all(axis=1).any()
    assert set(labels.tolist()) == {1, 2}


def test_the_draw_follows_the_generator():
    proposals = np.random.default_rng(3).uniform(0, 50, (80, 4)) + np.array([0, 0, 20, 20])
    first, again, other = (draw(sample(proposals), seed=seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
