"""Metrics of any memory order, dtype and form of the same numbers are equal; what cannot be is refused."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from detseg import metrics
from detseg.errors import UserError


def strided(array):
    """The same values in a part of a larger array."""
    spread = np.full([2 * side for side in array.shape], 1, array.dtype)
    spread[tuple(slice(None, None, 2) for _ in array.shape)] = array
    return spread[tuple(slice(None, None, 2) for _ in array.shape)]


ORDERS = [
    np.asfortranarray,  # as a table of columns has it
    lambda array: np.ascontiguousarray(array.T).T,
    strided,
    lambda array: np.ascontiguousarray(array[::-1])[::-1],
    np.ndarray.tolist,
]
OBJECT_KEYS = ("true_boxes", "true_labels", "boxes", "labels", "scores", "is_crowd", "areas")


def random_objects(seed):
    """Arguments of `DetectionScores.update`: numbers that float32 holds."""
    rng = np.random.default_rng(seed)
    true_count, extra = rng.integers(2, 9), rng.integers(0, 4)
    corners = rng.integers(0, 20, (true_count, 2))
    truth = np.hstack([corners, corners + rng.integers(3, 20, (true_count, 2))]).astype(np.float32)
    found = np.concatenate([truth + rng.integers(-1, 2, truth.shape), truth[:extra]]).astype(np.float32)
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    labels = rng.integers(0, 2, true_count)
    return {
        "true_boxes": truth,
        "true_labels": labels,
        "boxes": found,
        "labels": np.concatenate([labels, labels[:extra]]),
        "scores": rng.random(len(found)).astype(np.float32),
        "is_crowd": rng.random(true_count) < 0.2,
        "areas": 0.5 * (truth[:, 2:] - truth[:, :2]).prod(1),
    }


def masks_of(boxes):
    """bool (N, 44, 42): rectangles with a corner cut off."""
    rows, columns = np.indices((44, 42))
    x1, y1, x2, y2 = boxes.astype(int).T[:, :, None, None]
    return (columns >= x1) & (columns < x2) & (rows >= y1) & (rows < y2) & (rows + columns > x1 + y1)


def as_rles(masks):
    return [rle.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]


def every_figure(objects, order=np.asarray, as_masks=as_rles):
    masks = {"true_masks": objects["true_boxes"], "masks": objects["boxes"]}
    masks = {key: as_masks(masks_of(boxes)) for key, boxes in masks.items()}
    given = {key: order(objects[key]) for key in OBJECT_KEYS} | masks
    results = []
    for engine in ("pycocotools", "hotcoco"):
        if importlib.util.find_spec(engine):
            scores = metrics.DetectionScores(("cat", "dog"), masks=True, engine=engine)
            scores.update(**given)
            results += [scores.result(), scores.confusion.matrix.tolist()]
    instances = metrics.InstanceScores({0: "cat", 1: "dog"})
    keys = ("true_masks", "true_labels", "masks", "labels", "scores", "is_crowd")
    instances.update(*(given[key] for key in keys))
    return [*results, instances.result()]


@given(st.integers(0, 2**32 - 1), st.sampled_from(ORDERS))
@settings(max_examples=25, deadline=None)
def test_memory_order_changes_no_figure_of_a_detector(seed, order):
    objects = random_objects(seed)
    np.testing.assert_equal(every_figure(objects, order), every_figure(objects))


@pytest.mark.parametrize("as_masks", [np.asarray, np.asfortranarray, strided, list, lambda masks: 255 * masks])
def test_masks_are_arrays_or_rles_alike(as_masks):
    objects = random_objects(3)
    np.testing.assert_equal(every_figure(objects, as_masks=as_masks), every_figure(objects))


def test_boxes_of_a_table_in_columns_score_one():
    """pycocotools reads a buffer in columns as if it were in rows: VOC's mAP was 0.444 here."""
    x, y = 20.0 * np.arange(9), 7.0 * np.arange(9)
    table = np.array([x, y, x + 10, y + 12]).T  # (9, 4)
    assert not table.flags.c_contiguous
    scores = metrics.DetectionScores(("cat",))
    scores.update(table, [0] * 9, table, [0] * 9, np.linspace(1, 0.5, 9))
    result = scores.result()
    assert (result["voc"]["mAP"], result["coco"]["AP"]) == pytest.approx((1, 1))
    np.testing.assert_array_equal(np.diag(metrics.box_overlaps(table, table)), np.ones(9))


@given(st.integers(0, 2**32 - 1), st.sampled_from(ORDERS), st.sampled_from([np.int64, np.int16, np.uint16, bool]))
@settings(max_examples=25, deadline=None)
def test_memory_order_and_dtype_change_no_boundary_and_no_membrane_score(seed, order, dtype):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (4, 5)).repeat(4, 0).repeat(3, 1).astype(np.uint8)
    guesses = np.where(rng.random(labels.shape) < 0.1, 1 - labels, labels).astype(np.uint8)

    def figures(labels, guesses, probability):
        boundary, em = metrics.BoundaryScores(2), metrics.EMScores()
        boundary.update(labels, guesses)
        em.update(labels, probability)
        return boundary.result(), em.result()

    probability = rng.random(labels.shape).astype(np.float32)
    given = (order(labels.astype(dtype)), order(guesses.astype(dtype)), order(probability))
    np.testing.assert_equal(figures(*given), figures(labels, guesses, probability))


WRONG = [
    ({"boxes": np.zeros((2, 5))}, r"boxes: an array of shape \(2, 5\), expected \(N, 4\): x1 y1 x2 y2"),
    ({"true_boxes": np.zeros((1, 2, 4))}, r"true_boxes: an array of shape \(1, 2, 4\)"),
    ({"labels": [0]}, r"labels: int64 of shape \(1,\), expected int64 of shape \(2,\), one for each box or mask"),
    ({"labels": [0, 0.5]}, r"labels: float64 of shape \(2,\), expected int64"),
    ({"labels": [0, 2]}, "labels: 2, expected labels of the classes: 0, 1"),
    ({"true_labels": [-1]}, "true_labels: -1, expected labels of the classes: 0, 1"),
    ({"scores": [[0.5, 0.4]]}, r"scores: float64 of shape \(1, 2\)"),
    ({"is_crowd": [False, True]}, r"is_crowd: bool of shape \(2,\), expected bool of shape \(1,\)"),
    ({"masks": [{"size": [4, 5], "counts": [0, 20]}] * 2}, "masks: an array of object of shape"),
    ({"masks": np.ones((2, 5, 4), bool)}, r"masks of \(4, 5\) and \(5, 4\), expected all masks of an image of its"),
    ({"boxes": [[0, 0, 4, 4], [0, 0, 3]]}, "boxes: expected an array of numbers: "),
    ({"labels": ["cat", "dog"]}, "labels: expected an array of numbers: "),
    ({"labels": None}, "labels: "),
    ({"scores": None}, "scores: "),
    ({"masks": None}, r"masks: an array of object of shape \(\), expected compressed RLEs"),
    ({"masks": [np.zeros((4, 5)), np.zeros((4, 5))]}, "masks: an array of float64 of shape"),
    (
        {"true_masks": np.zeros((4, 5), bool)},
        r"true_masks: an array of bool of shape \(4, 5\), expected",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_arguments_are_named_with_what_is_expected(change, message):
    masks = np.ones((2, 4, 5), bool)
    right = {"true_boxes": [[0, 0, 4, 4]], "true_labels": [0], "true_masks": masks[:1], "masks": masks}
    right |= {"boxes": [[0, 0, 4, 4], [0, 0, 3, 3]], "labels": [0, 1], "scores": [0.9, 0.8]}
    scores = metrics.DetectionScores(("cat", "dog"), masks=True)
    scores.update(**right)
    with pytest.raises(UserError, match=message):
        scores.update(**right | change)


def test_the_door_shows_what_it_has():
    assert {"confusion_matrix", "DetectionScores", "VocScores", "box_overlaps", "area_average"} <= set(dir(metrics))
    for name in metrics.__all__:
        assert getattr(metrics, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'miou'"):
        metrics.miou  # noqa: B018
