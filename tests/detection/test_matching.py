import numpy as np
import pytest

from detseg.detection.matching import BACKGROUND, FOREGROUND, IGNORED, match, match_boxes

RNG = np.random.default_rng(0)


def random_boxes(*shape, grid=4):
    """Corners on a coarse grid: many equal overlaps."""
    corners = RNG.integers(0, 10, (*shape, 2)) * grid
    return np.concatenate([corners, corners + RNG.integers(1, 5, (*shape, 2)) * grid], -1).astype("float32")


def reference(anchors, boxes, valid, foreground, background, low_quality, crowd, usable):
    """One image, in words of the papers."""

    def intersection(a, b):
        return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))

    def area(a):
        return (a[2] - a[0]) * (a[3] - a[1])

    def iou(a, b):
        return np.float32(intersection(a, b) / (area(a) + area(b) - intersection(a, b)))

    objects = [g for g in range(len(boxes)) if valid[g] and not crowd[g]]
    matched, states = [], []
    for n, anchor in enumerate(anchors):
        overlaps = {g: iou(anchor, boxes[g]) for g in objects}
        matched.append(max(overlaps, key=overlaps.get, default=0))  # the first of equals
        best = overlaps.get(matched[-1], 0)
        covered = any(intersection(anchor, boxes[g]) > 0.5 * area(anchor) for g in np.flatnonzero(valid & crowd))
        is_best = [
            g for g in objects
            if overlaps[g] > 0 and overlaps[g] == max(iou(a, boxes[g]) for i, a in enumerate(anchors) if usable[i])
        ]  # fmt: skip
        if not usable[n]:
            states.append(IGNORED)
        elif best >= foreground or (low_quality and is_best):
            states.append(FOREGROUND)
        else:
            states.append(BACKGROUND if background[0] <= best < background[1] and not covered else IGNORED)
    return matched, states


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize(("foreground", "background"), [(0.7, (0.0, 0.3)), (0.5, (0.1, 0.5))])
def test_matches_are_those_of_a_plain_implementation(low_quality, foreground, background):
    anchors, boxes = random_boxes(3, 60), random_boxes(3, 5)
    valid, crowd, usable = (
        RNG.uniform(size=(3, 5)) < 0.8,
        RNG.uniform(size=(3, 5)) < 0.3,
        RNG.uniform(size=(3, 60)) < 0.9,
    )
    matched, states = match_boxes(anchors, boxes, valid, foreground, background, low_quality, crowd, usable)
    for image in range(3):
        arguments = (foreground, background, low_quality, crowd[image], usable[image])
        expected, expected_states = reference(anchors[image], boxes[image], valid[image], *arguments)
        np.testing.assert_array_equal(states[image], expected_states)
        used = usable[image]
        np.testing.assert_array_equal(np.array(matched[image])[used], np.array(expected)[used])


def test_all_equally_good_anchors_of_a_low_quality_box_are_foreground_by_hand():
    """Of the tied ones the first stands for box 0, which it overlaps more than box 1: torchvision's rule."""
    boxes = np.array([[[0, 0, 10, 10], [0, 8, 10, 28]]], "float32")
    anchors = np.array([[0, 0, 10, 10], [0, 20, 10, 30], [20, 0, 30, 10], [0, 18, 10, 28]], "float32")
    valid = np.ones((1, 2), bool)
    matched, states = match_boxes(anchors, boxes, valid, 0.7, (0.0, 0.3), low_quality=True)
    np.testing.assert_array_equal(states, [[FOREGROUND, IGNORED, BACKGROUND, FOREGROUND]])
    np.testing.assert_array_equal(matched, [[0, 1, 0, 1]])
    _, states = match_boxes(anchors, boxes, valid, 0.7, (0.0, 0.3))
    np.testing.assert_array_equal(states, [[FOREGROUND, IGNORED, BACKGROUND, IGNORED]])
    tied = np.array([[0, 3, 10, 13], [0, 23, 10, 33], [0, 0, 10, 10]], "float32")  # 1/5 of box 1: the first two
    matched, states = match_boxes(tied, boxes, valid, 0.7, (0.0, 0.3), low_quality=True)
    np.testing.assert_array_equal(states, [[FOREGROUND] * 3])
    np.testing.assert_array_equal(matched, [[0, 1, 0]])


def test_a_box_that_no_anchor_overlaps_makes_no_anchor_foreground():
    boxes = np.array([[[90, 90, 99, 99], [0, 0, 4, 4]]], "float32")
    anchors = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], "float32")
    _, states = match_boxes(anchors, boxes, np.ones((1, 2), bool), 0.7, (0.0, 0.3), low_quality=True)
    np.testing.assert_array_equal(states, [[FOREGROUND, BACKGROUND]])


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("low_quality", [False, True])
def test_without_an_object_all_is_background(count, low_quality):
    anchors, boxes = random_boxes(2, 7), random_boxes(2, count)
    none = np.zeros((2, count), bool)
    matched, states = match_boxes(anchors, boxes, none, 0.7, (0.0, 0.3), low_quality, crowd=~none)
    assert matched.shape == states.shape == (2, 7)
    assert (np.array(states) == BACKGROUND).all()
    np.testing.assert_array_equal(matched, 0)


def test_background_inside_a_crowd_is_ignored_foreground_is_not():
    boxes = np.array([[[0, 0, 100, 100], [0, 0, 10, 10]]], "float32")
    anchors = np.array([[0, 0, 10, 9], [40, 40, 50, 50], [95, 0, 105, 10], [94, 0, 104, 10]], "float32")
    crowd = np.array([[True, False]])
    matched, states = match_boxes(anchors, boxes, np.ones((1, 2), bool), crowd=crowd)
    np.testing.assert_array_equal(states, [[FOREGROUND, IGNORED, BACKGROUND, IGNORED]])  # half inside is not more
    assert matched[0, 0] == 1


def test_anchors_outside_the_image_are_nobodys_best():
    boxes = np.array([[[0, 0, 10, 10]]], "float32")
    anchors = np.array([[-2, 0, 8, 10], [0, 4, 10, 14], [5, 5, 20, 20]], "float32")
    usable = np.array([[False, True, True]])
    _, states = match_boxes(anchors, boxes, np.ones((1, 1), bool), 0.7, (0.0, 0.3), low_quality=True, usable=usable)
    np.testing.assert_array_equal(states, [[IGNORED, FOREGROUND, BACKGROUND]])


def test_a_matrix_of_overlaps_is_matched_by_hand_with_and_without_a_batch():
    overlaps = np.array([[0.8, 0.6], [0.2, 0.4], [0.0, 0.1], [0.3, 0.2], [-1.0, -1.0]])  # 5 anchors, 2 boxes
    matched, states = match(overlaps, 0.7, (0.1, 0.3))
    np.testing.assert_array_equal(matched, [0, 1, 1, 0, 0])
    np.testing.assert_array_equal(states, [FOREGROUND, IGNORED, BACKGROUND, IGNORED, IGNORED])
    for ours, expected in zip(
        match(np.asfortranarray([overlaps] * 2), 0.7, (0.1, 0.3)), (matched, states), strict=True
    ):
        np.testing.assert_array_equal(ours, [expected] * 2)
    _, states = match(overlaps[1:].tolist(), 0.7, (0.1, 0.3), low_quality=True)  # best of box 0: 0.3, of box 1: 0.4
    np.testing.assert_array_equal(states, [FOREGROUND, BACKGROUND, FOREGROUND, IGNORED])


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize(("anchors", "boxes"), [(0, 3), (4, 0), (0, 0)])
def test_no_anchors_and_no_boxes_are_matched_to_nothing(low_quality, anchors, boxes):
    for shape in ((anchors, boxes), (2, anchors, boxes)):
        matched, states = match(np.zeros(shape), 0.7, (0.0, 0.3), low_quality)
        np.testing.assert_array_equal(matched, np.zeros(shape[:-1]))
        np.testing.assert_array_equal(states, np.full(shape[:-1], BACKGROUND))
    everything = (random_boxes(anchors), random_boxes(2, boxes), np.ones((2, boxes), bool))
    matched, states = match_boxes(*everything, low_quality=low_quality, crowd=np.zeros((2, boxes), bool))
    assert matched.shape == states.shape == (2, anchors)
