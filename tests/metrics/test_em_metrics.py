from collections import Counter, deque
from itertools import product
from math import log
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.data.masks import label_components
from detseg.errors import UserError
from detseg.metrics.em import (
    EMScores,
    count_overlaps,
    information_scores,
    rand_scores,
    thin_borders,
)

ISBI = Path(__file__).resolve().parents[2] / "../shared/datasets/isbi"


def scores_of(truth, proposal):
    overlaps = count_overlaps(np.asarray(truth), np.asarray(proposal))
    return rand_scores(*overlaps), information_scores(*overlaps)


def read_validation_labels():
    split = ISBI / "ImageSets/Segmentation/val.txt"
    if not split.exists():
        pytest.skip(f"no data set at {ISBI}")
    return [cv2.imread(str(ISBI / f"SegmentationClass/{name}.png"), -1) for name in split.read_text().split()]


def flood(interior):
    """Vincent and Soille's watershed on two levels, one pixel after the other."""
    labels = label_components(interior).tolist()
    height, width = interior.shape
    waiting, queued = -1, -2

    def around(y, x):
        for v, u in ((y - 1, x), (y, x + 1), (y + 1, x), (y, x - 1)):
            if 0 <= v < height and 0 <= u < width:
                yield v, u

    membrane = [(y, x) for x, y in product(range(width), range(height)) if not interior[y, x]]
    queue = deque((y, x) for y, x in membrane if any(labels[v][u] > 0 for v, u in around(y, x)))
    for y, x in membrane:
        labels[y][x] = waiting
    for y, x in queue:
        labels[y][x] = queued
    may_overrule = False
    while queue:
        y, x = queue.popleft()
        for v, u in around(y, x):
            other, own = labels[v][u], labels[y][x]
            if other > 0 and (own == queued or (own == 0 and may_overrule)):
                labels[y][x] = other
            elif other > 0 and own > 0 and own != other:
                labels[y][x], may_overrule = 0, False
            elif other == 0 and own == queued:
                labels[y][x], may_overrule = 0, True
            elif other == waiting:
                labels[v][u] = queued
                queue.append((v, u))
    return np.array(labels)


def noisy_probability(labels, seed):
    noise = np.random.default_rng(seed).normal(0, 0.6, labels.shape)
    return cv2.GaussianBlur((labels == 1) + noise, (0, 0), 2).astype(np.float32)


def test_rand_and_information_scores_of_six_pixels_by_hand():
    # Of the five pixels of true cells, two share cells 1 and 1, one 1 and 2, one 2 and 2; one is a proposed line.
    rand, information = scores_of([[1, 1, 1, 2, 2, 0]], [[1, 1, 2, 2, 0, 3]])
    together, in_truth, in_proposal = 4 + 1 + 1 + 1, 9 + 4, 4 + 4 + 1
    assert rand == pytest.approx((2 * together / (in_truth + in_proposal), together / in_truth, together / in_proposal))
    truth = -(0.6 * log(0.6) + 0.4 * log(0.4))
    proposal = -(0.4 * log(0.4) + 0.4 * log(0.4) + 0.2 * log(0.2))
    mutual = truth + proposal + (0.4 * log(0.4) + 3 * 0.2 * log(0.2))
    assert information == pytest.approx((2 * mutual / (truth + proposal), mutual / proposal, mutual / truth))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=20)
def test_scores_equal_going_through_all_pairs_of_pixels(seed, true_cells, proposed_cells):
    rng = np.random.default_rng(seed)
    truth, proposal = rng.integers(0, true_cells + 1, (8, 8)), rng.integers(0, proposed_cells + 1, (8, 8))
    # A line pixel gets an id of its own; ids of cells are positive.
    pixels = [(t, p or -i) for i, (t, p) in enumerate(zip(truth.flat, proposal.flat, strict=True), start=1) if t]
    same_truth = same_proposal = same_both = 0
    for (t1, p1), (t2, p2) in product(pixels, pixels):
        same_truth += t1 == t2
        same_proposal += p1 == p2
        same_both += t1 == t2 and p1 == p2
    rand, information = scores_of(truth, proposal)
    assert rand[1:] == pytest.approx((same_both / same_truth, same_both / same_proposal))
    assert rand[0] == pytest.approx(2 * rand[1] * rand[2] / (rand[1] + rand[2]))  # the harmonic mean
    count = len(pixels)
    both, first, second = (Counter(x) for x in (pixels, [t for t, _ in pixels], [p for _, p in pixels]))
    mutual = sum(k / count * log(k * count / (first[t] * second[p])) for (t, p), k in both.items())
    in_truth, in_proposal = (-sum(k / count * log(k / count) for k in c.values()) for c in (first, second))
    if in_truth and in_proposal:
        expected = 2 * mutual / (in_truth + in_proposal), mutual / in_proposal, mutual / in_truth
        assert information == pytest.approx(expected, abs=1e-12)


def test_splitting_a_cell_lowers_the_split_scores_and_merging_two_the_merge_scores():
    truth = np.repeat([[1, 2, 3]], 4, axis=0).repeat(5, axis=1)
    split, merged = truth.copy(), np.minimum(truth, 2)
    split[:2, 5:10] = 4
    for score, of_split, of_merged in zip(
        ("rand", "info"), scores_of(truth, split), scores_of(truth, merged), strict=True
    ):
        assert of_split[2] == pytest.approx(1), score
        assert of_split[1] < 0.9, score
        assert of_merged[1] == pytest.approx(1), score
        assert of_merged[2] < 0.9, score
    assert scores_of(truth, truth) == ((1, 1, 1), (1, 1, 1))


def test_which_numbers_cells_have_changes_nothing():
    rng = np.random.default_rng(0)
    truth, proposal = rng.integers(0, 6, (20, 30)), rng.integers(0, 9, (20, 30))
    renamed = scores_of(np.array([0, 30, 2, 7, 1, 9])[truth], np.array([0, 3, 1, 2, 8, 5, 4, 7, 1000])[proposal])
    for scores, expected in zip(renamed, scores_of(truth, proposal), strict=True):
        assert scores == pytest.approx(expected)


def test_undefined_scores_are_nan():
    nothing, one_cell = np.zeros((3, 3), int), np.ones((3, 3), int)
    assert np.isnan(scores_of(nothing, one_cell)).all()
    rand, information = scores_of(one_cell, one_cell)
    assert rand == (1, 1, 1)
    assert np.isnan(information).all()
    assert all(np.isnan(value) for value in EMScores().result().values())


def test_thinning_leaves_one_pixel_between_cells_and_no_membrane_inside_of_one():
    cells = np.array([[1, 0, 0, 0, 2], [1, 0, 0, 0, 2]])
    np.testing.assert_array_equal(thin_borders(cells), [[1, 1, 0, 2, 2], [1, 1, 0, 2, 2]])
    dead_end = np.array([[1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(thin_borders(dead_end), np.ones((3, 4)))
    np.testing.assert_array_equal(thin_borders(np.zeros((2, 2), int)), np.ones((2, 2)))


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.9))
@settings(max_examples=50)
def test_thinned_cells_keep_their_pixels_and_stay_apart(seed, interior_share):
    interior = np.random.default_rng(seed).random((12, 15)) < interior_share
    cells = label_components(interior)
    thinned = thin_borders(cells)
    np.testing.assert_array_equal(thinned[interior], cells[interior])
    assert (np.unique(thinned[thinned > 0]) == np.arange(1, max(cells.max(), 1) + 1)).all()
    for one, other in ((thinned[1:], thinned[:-1]), (thinned[:, 1:], thinned[:, :-1])):
        assert ((one == other) | (one == 0) | (other == 0)).all()


def test_scores_after_thinning_equal_those_of_the_challenges_watershed():
    # Lines between cells can lie a pixel to either side: the watershed visits pixels of one distance in another order.
    for seed, labels in enumerate(read_validation_labels()[::3]):
        interior = noisy_probability(labels, seed) > 0.6
        truth = label_components(labels == 1)
        expected = scores_of(truth, flood(interior))
        for scores, reference in zip(scores_of(truth, thin_borders(label_components(interior))), expected, strict=True):
            assert scores == pytest.approx(reference, abs=3e-4)


def test_true_labels_as_prediction_score_one_on_isbi():
    # Thinning takes nothing away: the pixels that it moves are membrane in the truth, which does not count.
    scores = EMScores(thresholds=[0.5])
    for labels in read_validation_labels():
        scores.update(labels, (labels == 1).astype(np.float32))
    result = scores.result()
    assert result["v_rand"] == result["v_rand_split"] == result["v_rand_merge"] == 1
    assert result["v_info"] == pytest.approx(1)
    assert result["rand_error"] == result["pixel_error"] == 0


def test_every_score_has_its_best_threshold():
    labels = np.array([[1, 1, 1, 0, 1, 1, 1]], np.uint8)
    # Above 0.3 the membrane is gone, above 0.8 a cell's end as well; thinning brings it back.
    probability = np.array([[0.9, 0.9, 0.9, 0.5, 0.7, 0.9, 0.9]])
    scores = EMScores(thresholds=[0.3, 0.8])
    scores.update(labels, probability)
    result = scores.result()
    assert result["v_rand_threshold"] == result["v_info_threshold"] == 0.8
    # Of the pixels 4 and 5 between the cells, one stays a line: pixel 5, of a true cell, or pixel 4, of none.
    assert result["v_rand"] in (1, pytest.approx(2 * (9 + 4 + 1) / (9 + 9 + 9 + 4 + 1)))
    # Without thinning: pairs 9 + 4 + 1 in both, 18 in the truth, 14 in the proposal, against 18 of 18 and 36.
    assert result["rand_error"] == pytest.approx(1 - 2 * 14 / (18 + 14))
    assert result["rand_error_threshold"] == 0.8
    # Pixels: 6 in both of 6 and 7, against 5 of 6 and 5.
    assert result["pixel_error"] == pytest.approx(1 - 12 / 13)
    assert result["pixel_error_threshold"] == 0.3


def test_a_stack_averages_the_thinned_scores_and_adds_up_pairs_and_pixels_of_the_others():
    first = np.array([[1, 1, 0, 1]], np.uint8)  # found
    second = np.array([[1, 1, 1, 0, 1]], np.uint8)  # merged to one cell
    scores = EMScores(thresholds=[0.5])
    scores.update(first, first.astype(np.float32))
    scores.update(second, np.ones(second.shape, np.float32))
    result = scores.result()
    assert result["v_rand"] == pytest.approx((1 + 2 * 10 / (10 + 16)) / 2)
    assert result["v_rand_merge"] == pytest.approx((1 + 10 / 16) / 2)
    assert result["v_rand_split"] == 1
    assert result["v_info"] == pytest.approx(1 / 2)
    assert result["rand_error"] == pytest.approx(1 - 2 * (5 + 10) / (5 + 10 + 5 + 16))
    assert result["pixel_error"] == pytest.approx(1 - 2 * (3 + 4) / (3 + 4 + 3 + 5))


def test_ignored_pixels_count_nowhere():
    labels = np.array([[1, 1, 0, 1, 255, 255, 255]], np.uint8)
    scores = EMScores(thresholds=[0.5])
    scores.update(labels, np.array([[1, 1, 0, 1, 1, 0, 1]]))
    result = scores.result()
    assert result["v_rand"] == 1
    assert result["rand_error"] == result["pixel_error"] == 0


def test_maps_of_two_sizes_are_refused():
    with pytest.raises(UserError, match="expected equal"):
        EMScores().update(np.zeros((2, 2), np.uint8), np.zeros((2, 3)))
