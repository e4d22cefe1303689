import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detseg.errors import UserError
from detseg.metrics import semantic as metrics
from detseg.metrics.semantic import confusion_matrix, dice_scores, segmentation_scores


def strided(array):
    """The same values in every second row and third column of a larger array."""
    spread = np.zeros((2 * array.shape[0], 3 * array.shape[1]), array.dtype)
    spread[::2, ::3] = array
    return spread[::2, ::3]


DTYPES = st.sampled_from([np.uint8, np.int64, np.int32, np.uint16, np.int8, bool])
ORDERS = st.sampled_from([np.ascontiguousarray, np.asfortranarray, strided, lambda array: array.T.copy().T])


def test_scores_of_a_2x3_image_by_hand():
    labels = np.array([[0, 0, 1], [1, 1, 255]], np.uint8)
    predictions = np.array([[0, 1, 1], [1, 0, 2]], np.uint8)
    confusion = confusion_matrix(labels, predictions, 3)
    np.testing.assert_array_equal(confusion, [[1, 1, 0], [1, 2, 0], [0, 0, 0]])
    scores = segmentation_scores(confusion)
    np.testing.assert_allclose(scores["iou"], [1 / 3, 2 / 4, np.nan])
    assert scores["miou"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert scores["pixel_accuracy"] == pytest.approx(3 / 5)
    assert scores["mean_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores["frequency_weighted_iou"] == pytest.approx((2 * 1 / 3 + 3 * 1 / 2) / 5)


def test_a_class_that_is_only_predicted_counts_as_zero_and_an_absent_one_not_at_all():
    scores = segmentation_scores(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(scores["iou"], [3 / 4, 0, np.nan])
    assert scores["miou"] == pytest.approx(3 / 8)


def test_dice_by_hand():
    scores = dice_scores(np.array([[1, 1, 0, 0], [1, 2, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]))
    np.testing.assert_allclose(scores["dice"], [2 * 1 / (2 + 2), 2 * 2 / (4 + 3), np.nan, 0])
    assert scores["mean_dice"] == pytest.approx((1 / 2 + 4 / 7 + 0) / 3)
    assert np.isnan(dice_scores(np.zeros((2, 2), int))["mean_dice"])


def test_nothing_labelled_gives_nan_everywhere():
    scores = segmentation_scores(np.zeros((2, 2), int))
    assert all(np.isnan(scores[key]) for key in ("miou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"))


def test_perfect_prediction_scores_one():
    labels = np.random.default_rng(0).integers(0, 4, (20, 30)).astype(np.uint8)
    scores = segmentation_scores(confusion_matrix(labels, labels, 4))
    assert (
        scores["miou"] == scores["pixel_accuracy"] == scores["mean_accuracy"] == scores["frequency_weighted_iou"] == 1
    )


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_confusion_matrix_equals_counting_pixel_by_pixel(class_count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice([*range(class_count), 255], (9, 11)).astype(np.uint8)
    predictions = rng.integers(0, class_count, (9, 11)).astype(np.uint8)
    expected = np.zeros((class_count, class_count), int)
    for label, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
        if label != 255:
            expected[label, prediction] += 1
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, class_count), expected)


def test_confusion_matrix_with_the_most_classes_and_an_ignore_label_among_them():
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    confusion = confusion_matrix(labels, np.minimum(labels, 254), 255)
    np.testing.assert_array_equal(confusion, np.eye(255))
    confusion = confusion_matrix(labels % 3, labels % 3, 3, ignore_label=1)
    np.testing.assert_array_equal(np.diag(confusion), [86, 0, 85])


def test_counting_in_chunks_changes_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    labels, predictions = (rng.integers(0, 5, (31, 17)).astype(np.uint8) for _ in range(2))
    whole = confusion_matrix(labels, predictions, 5)
    monkeypatch.setattr(metrics, "_PIXELS_PER_CALL", 100)
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, 5), whole)


def test_values_outside_the_classes_are_refused():
    zeros = np.zeros((2, 2), np.uint8)
    wrong = zeros.copy()
    wrong[1, 0] = 3
    for dtype in (np.uint8, np.int64):
        with pytest.raises(UserError, match=r"predictions: 3 at \(1, 0\), expected classes 0..2$"):
            confusion_matrix(zeros, wrong.astype(dtype), 3)
        with pytest.raises(UserError, match=r"labels: 3 at \(1, 0\), expected classes 0..2 or ignore label 255"):
            confusion_matrix(wrong.astype(dtype), zeros, 3)
    with pytest.raises(UserError, match=r"labels: -1 at \(0, 0\)"):
        confusion_matrix(zeros.astype(int) - 1, zeros, 3)
    with pytest.raises(UserError, match="labels: 255"):
        confusion_matrix(zeros + 255, zeros, 3, ignore_label=None)
    with pytest.raises(UserError, match="labels: 255"):
        confusion_matrix(zeros + 255, zeros, 3, ignore_label=-1)
    with pytest.raises(UserError, match="equal shapes"):
        confusion_matrix(zeros, np.zeros((2, 3), np.uint8), 3)


def test_what_is_no_map_of_class_indices_is_refused():
    zeros = np.zeros((2, 2), np.uint8)
    with pytest.raises(UserError, match="predictions: an array of float32, expected class indices of an integer type"):
        confusion_matrix(zeros, zeros.astype(np.float32), 3)
    with pytest.raises(UserError, match="labels: an array of <U1"):
        confusion_matrix([["a"]], [[0]], 3)
    with pytest.raises(UserError, match="labels: expected an array of numbers"):
        confusion_matrix([[0, 1], [0]], [[0]], 3)
    for function in (segmentation_scores, dice_scores):
        with pytest.raises(UserError, match=r"a confusion matrix of shape \(2, 3\), expected \(K, K\)"):
            function(np.zeros((2, 3), int))


@given(DTYPES, DTYPES, ORDERS, ORDERS, st.integers(0, 2**32 - 1))
def test_dtype_and_memory_order_of_label_maps_change_nothing(label_type, prediction_type, one_order, other_order, seed):
    rng = np.random.default_rng(seed)
    class_count = 2 if bool in (label_type, prediction_type) else 5
    labels, predictions = rng.integers(0, class_count, (2, 7, 9))
    if label_type is not bool:
        labels[rng.random(labels.shape) < 0.2] = 100
    expected = confusion_matrix(labels.astype(np.uint8), predictions.astype(np.uint8), class_count, 100)
    given_labels, guesses = one_order(labels.astype(label_type)), other_order(predictions.astype(prediction_type))
    for form in (given_labels, given_labels.tolist()):
        counts = confusion_matrix(form, guesses, class_count, 100)
        np.testing.assert_array_equal(counts, expected)
        assert counts.dtype == np.int64


def test_ignore_labels_and_classes_that_no_byte_holds():
    labels, predictions = np.array([[0, 700, -1], [2, 2, -1]]), np.array([[0, 700, 5], [2, 0, 700]])
    confusion = confusion_matrix(labels, predictions, 701, ignore_label=-1)
    assert confusion.sum() == 4
    assert (confusion[0, 0], confusion[700, 700], confusion[2, 2], confusion[2, 0]) == (1, 1, 1, 1)
    assert confusion_matrix([[0, 255]], [[0, 255]], 256, ignore_label=None)[255, 255] == 1
    assert confusion_matrix([[1, 65535]], [[1, 0]], 2, ignore_label=65535).tolist() == [[0, 0], [0, 1]]
