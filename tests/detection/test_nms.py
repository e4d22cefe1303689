import numpy as np
import pytest
import tensorflow as tf
from detection_cases import postprocess

from detseg.detection.nms import nms, suppress, take_rows, top_rows

BOTH_WAYS = pytest.mark.parametrize("under_xla", [False, True], ids=["kernel", "fixpoint"])


def random_boxes(rng, *shape, extent=100, size=40):
    """Whole pixels: overlaps at the threshold, and equal ones, are the same in every arithmetic."""
    corners = rng.integers(0, extent, (*shape, 2))
    return np.concatenate([corners, corners + rng.integers(1, size, (*shape, 2))], -1).astype("float32")


def greedy(boxes, scores, threshold, count, valid=None, labels=None):
    """Indices that are kept in one image, one after the other."""
    boxes = boxes.astype("float64")
    labels = np.zeros(len(boxes)) if labels is None else labels
    left = [i for i in np.argsort(-scores, kind="stable") if valid is None or valid[i]]
    kept = []
    while left and len(kept) < count:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if labels[i] != labels[best] or overlap(boxes[i], boxes[best]) <= np.float32(threshold)]
    return kept


def overlap(a, b):
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    intersection = sides.clip(0).prod()
    return np.float32(intersection / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - intersection))


@BOTH_WAYS
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("classes", [None, 1, 3, 80])
def test_nms_is_the_greedy_algorithm_also_on_ties(under_xla, threshold, classes):
    rng = np.random.default_rng(classes)
    boxes = random_boxes(rng, 3, 80, extent=40 if classes is None else 1300)
    boxes[:, 40:] = boxes[:, :40]  # equal boxes
    boxes[:, 1::4] = boxes[:, ::4] + [0, 0, 5, 0]
    scores = rng.integers(0, 6, (3, 80)).astype("float32") / 8  # equal scores
    valid = rng.uniform(size=(3, 80)) < 0.9
    valid[2] = False
    labels = None if classes is None else rng.integers(0, classes, (3, 80))
    indices, kept = (np.array(x) for x in nms(boxes, scores, threshold, 50, valid, labels, under_xla))
    for image in range(3):
        of_image = None if labels is None else labels[image]
        expected = greedy(boxes[image], scores[image], threshold, 50, valid[image], of_image)
        np.testing.assert_array_equal(indices[image, kept[image]], expected)
        assert kept[image, : len(expected)].all()
        np.testing.assert_array_equal(indices[image, ~kept[image]], 0)


@BOTH_WAYS
def test_a_chain_of_boxes_is_resolved_from_its_better_end(under_xla):
    starts = np.arange(30) * 4
    boxes = np.stack([starts, 0 * starts, starts + 10, 0 * starts + 10], -1)[None].astype("float32")
    scores = -np.arange(30, dtype="float32")[None]
    indices, kept = nms(boxes, scores, 0.4, 30, under_xla=under_xla)  # neighbours overlap by 3/7, others by 1/9
    np.testing.assert_array_equal(np.array(indices)[np.array(kept)], np.arange(0, 30, 2))


@BOTH_WAYS
@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_boxes_than_detections_are_padded(under_xla, count):
    boxes = np.array([[[0, 0, 10, 10], [50, 0, 60, 10], [90, 0, 99, 10]]], "float32")[:, :count]
    labels = np.zeros((1, count), "int32")
    scores = np.arange(3, dtype="float32")[None, :count] - 5  # negative ones are scores too
    indices, kept = nms(boxes, scores, 0.5, 5, labels=labels, under_xla=under_xla)
    np.testing.assert_array_equal(indices, [[*reversed(range(count)), *[0] * (5 - count)]])
    np.testing.assert_array_equal(kept, [[True] * count + [False] * (5 - count)])
    found, found_labels, found_scores, _ = suppress(boxes, labels, scores, labels == 0, 0.5, 5, under_xla)
    np.testing.assert_array_equal(found[:, count:], 0)
    np.testing.assert_array_equal(found_labels, [[0] * count + [-1] * (5 - count)])
    np.testing.assert_array_equal(found_scores[:, count:], 0)


@BOTH_WAYS
def test_postprocess_of_three_boxes_by_hand(under_xla):
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [30, 30, 40, 40], [50, 50, 50.001, 60]], "float32")[None, :, None]
    scores = np.array([[0.5, 0.25], [0.75, 0.125], [0.0625, 0.5], [0.9, 0.9]], "float32")[None]
    found, labels, values, valid = postprocess(boxes, scores, 0.0625, 0.5, 4, 100, under_xla=under_xla)
    # 1 suppresses 0 in class 0; in class 1 it is the other way round. The last box is too narrow. 0.0625 is not above.
    np.testing.assert_array_equal(found, boxes[:, [1, 2, 0, 0], 0] * [[[1], [1], [1], [0]]])
    np.testing.assert_array_equal(labels, [[0, 1, 1, -1]])
    np.testing.assert_array_equal(values, [[0.75, 0.5, 0.25, 0]])
    np.testing.assert_array_equal(valid, [[True, True, True, False]])


@BOTH_WAYS
@pytest.mark.parametrize("specific", [False, True])
def test_postprocess_is_a_plain_loop_over_classes(under_xla, specific):
    rng = np.random.default_rng(1)
    boxes = random_boxes(rng, 2, 40, 5 if specific else 1)
    scores = rng.uniform(size=(2, 40, 5)).astype("float32")
    found, labels, values, valid = (
        np.array(x) for x in postprocess(boxes, scores, 0.4, 0.5, 200, 200, under_xla=under_xla)
    )
    for image in range(2):
        expected = {}
        for label in range(5):
            of_class = boxes[image, :, label if specific else 0]
            chosen = greedy(of_class, scores[image, :, label], 0.5, 99, scores[image, :, label] > 0.4)
            expected |= {(scores[image, i, label], label): of_class[i] for i in chosen}
        ranked = sorted(expected, reverse=True)
        assert valid[image].sum() == len(ranked)
        assert list(zip(values[image, : len(ranked)], labels[image], strict=False)) == ranked
        np.testing.assert_array_equal(found[image, : len(ranked)], [expected[key] for key in ranked])


@BOTH_WAYS
def test_nothing_above_the_threshold_and_nothing_at_all_give_no_detections(under_xla):
    for count in (0, 7):
        boxes, scores = np.ones((2, count, 1, 4), "float32"), np.zeros((2, count, 3), "float32")
        found, labels, values, valid = postprocess(boxes, scores, count=4, under_xla=under_xla)
        np.testing.assert_array_equal(found, np.zeros((2, 4, 4)))
        np.testing.assert_array_equal(labels, np.full((2, 4), -1))
        np.testing.assert_array_equal(values, 0)
        assert not np.array(valid).any()


@BOTH_WAYS
def test_a_graph_for_any_number_of_images_and_boxes_gives_the_eager_result(under_xla):
    rng = np.random.default_rng(2)
    signature = [tf.TensorSpec([None, None, 1, 4]), tf.TensorSpec([None, None, 3])]
    graph = tf.function(lambda *x: postprocess(*x, count=9, candidates=20, under_xla=under_xla), signature)
    for batch, count in ((2, 30), (1, 2), (3, 0)):
        boxes, scores = random_boxes(rng, batch, count, 1), rng.uniform(size=(batch, count, 3)).astype("float32")
        results = graph(boxes, scores)
        for result, expected in zip(results, postprocess(boxes, scores, 0.05, 0.5, 9, 20), strict=True):
            assert result.shape[:2] == (batch, 9)
            np.testing.assert_array_equal(result, expected)


def test_top_rows_of_fewer_than_asked_for():
    scores, places = top_rows(np.array([[1, 3, 3]], "float32"), 5)
    np.testing.assert_array_equal(places, [[1, 2, 0, 0, 0]])
    np.testing.assert_array_equal(scores[:, :3], [[3, 3, 1]])
    assert (np.array(scores)[:, 3:] < -1e38).all()


def test_rows_are_taken_from_their_own_image():
    values = np.arange(12).reshape(2, 3, 2)
    np.testing.assert_array_equal(take_rows(values, [[2, 0], [1, 1]]), [values[0, [2, 0]], values[1, [1, 1]]])
    np.testing.assert_array_equal(take_rows(values[:, :0], [[0], [0]]), np.zeros((2, 1, 2)))
