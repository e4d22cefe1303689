import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.errors import UserError
from detseg.metrics.semantic import BoundaryScores, find_boundary


def scores_of(labels, predictions, class_count=2, tolerance=1.0):
    scores = BoundaryScores(class_count, tolerance)
    scores.update(np.asarray(labels, np.uint8), np.asarray(predictions, np.uint8))
    return scores.result()


def test_boundary_of_a_square_by_hand():
    mask = np.zeros((5, 6), bool)
    mask[1:4, :4] = True
    expected = mask.copy()
    expected[2, :3] = False  # the image's left edge is no boundary
    np.testing.assert_array_equal(find_boundary(mask, np.zeros_like(mask)), expected)


def test_boundary_scores_of_a_row_by_hand():
    labels = [[0, 0, 0, 1, 1, 1, 1, 1]]
    predictions = [[0, 0, 0, 0, 0, 1, 1, 1]]  # two pixels off
    assert scores_of(labels, predictions, tolerance=1)["boundary_f"] == 0
    assert scores_of(labels, predictions, tolerance=2)["boundary_f"] == 1
    # Class 1: true boundary at 3, predicted at 3, 5 and 6. Class 0: true at 2, predicted at 2, 4 and 7.
    result = scores_of(labels, [[0, 0, 0, 1, 0, 1, 1, 0]], tolerance=1)
    np.testing.assert_allclose(result["precision"], [1 / 3, 1 / 3])
    np.testing.assert_allclose(result["recall"], [1, 1])
    np.testing.assert_allclose(result["boundary_f_of_class"], [0.5, 0.5])
    assert result["boundary_f"] == pytest.approx(0.5)


def test_pixels_of_all_images_are_added_up():
    scores = BoundaryScores(10, tolerance=0, ignore_label=255)
    first, second = np.full((3, 3), 9, np.uint8), np.full((3, 3), 9, np.uint8)
    first[1, 1], second[0, 0] = 0, 0
    scores.update(first, first)
    scores.update(first, second)
    scores.update(first, np.full((3, 3), 9, np.uint8))
    result = scores.result()
    np.testing.assert_allclose([result["precision"][0], result["recall"][0]], [1 / 2, 1 / 3])
    assert result["boundary_f_of_class"][0] == pytest.approx(0.4)


def test_classes_without_boundary_are_undefined_and_those_of_one_side_zero():
    result = scores_of([[0, 0, 1, 1]], [[0, 0, 2, 2]], class_count=4)
    np.testing.assert_allclose(result["boundary_f_of_class"], [1, 0, 0, np.nan])
    assert result["boundary_f"] == pytest.approx(1 / 3)
    assert np.isnan(scores_of([[0, 0]], [[0, 0]])["boundary_f"])
    assert np.isnan(BoundaryScores(3).result()["boundary_f"])


def test_ignored_pixels_and_what_is_near_them_count_nowhere():
    labels = [[0, 0, 1, 1, 1, 1, 255, 255, 0, 0, 0, 0]]
    perfect = [[0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]]
    same_but_for_the_unknown = [[0, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0]]
    assert scores_of(labels, perfect)["boundary_f"] == 1
    result = scores_of(labels, same_but_for_the_unknown)
    # Class 1 at 8 lies beside an ignored pixel; class 0 at 9 does not, and is wrong.
    np.testing.assert_allclose(result["precision"], [1 / 2, 1])
    np.testing.assert_allclose(result["recall"], [1, 1])


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 1.5, 2, 3]))
@settings(max_examples=30)
def test_scores_equal_going_through_all_pairs_of_boundary_pixels(seed, tolerance):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 255], (9, 11), p=[0.4, 0.3, 0.28, 0.02])
    predictions = np.where(rng.random((9, 11)) < 0.7, labels % 3, rng.integers(0, 3, (9, 11)))
    result = scores_of(labels, predictions, 3, tolerance)

    def boundary(label_map, index):
        for y, x in np.argwhere((label_map == index) & (labels != 255)):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(v, u) for v, u in around if 0 <= v < 9 and 0 <= u < 11 and labels[v, u] != 255]
            if any(label_map[v, u] != index for v, u in inside):
                yield y, x

    def share(these, those):
        near = [any((y - v) ** 2 + (x - u) ** 2 <= tolerance**2 for v, u in those) for y, x in scored(these)]
        return np.mean(near) if near else np.nan

    def scored(pixels):
        unknown = np.argwhere(labels == 255)
        return [p for p in pixels if all(((p - q) ** 2).sum() > tolerance**2 for q in unknown)]

    for index in range(3):
        true, predicted = list(boundary(labels, index)), list(boundary(predictions, index))
        np.testing.assert_allclose(result["precision"][index], share(predicted, true))
        np.testing.assert_allclose(result["recall"][index], share(true, predicted))


def test_perfect_prediction_scores_one_at_tolerance_zero():
    labels = np.random.default_rng(0).integers(0, 4, (20, 30))
    assert scores_of(labels, labels, 4, 0)["boundary_f"] == 1


def test_maps_of_two_sizes_are_refused():
    with pytest.raises(UserError, match="expected equal"):
        scores_of([[0, 0]], [[0]])
