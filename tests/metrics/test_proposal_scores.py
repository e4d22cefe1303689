"""Recall of proposals and their mean average best overlap, by hand."""

import numpy as np
import pytest

from detseg.metrics.proposals import ProposalScores


@pytest.fixture
def scores():
    scores = ProposalScores(("a", "b", "c"))
    # IoU with the first object: 0.5, then 1; with the second 0.75; the third, difficult, and the crowd don't count.
    scores.update(
        [[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60], [70, 70, 90, 90]],
        [0, 1, 0, 1],
        [[0, 0, 10, 5], [20, 0, 30, 7.5], [0, 0, 10, 10]],
        is_crowd=[False, False, False, True],
        difficult=[False, False, True, False],
    )
    scores.update([[0, 0, 4, 4]], [0], np.zeros((0, 4)))
    return scores


def test_best_overlaps_are_of_the_first_so_many_proposals(scores):
    assert scores.best_overlaps(1).tolist() == [0.5, 0, 0]
    assert scores.best_overlaps(2).tolist() == [0.5, 0.75, 0]
    assert scores.best_overlaps().tolist() == [1, 0.75, 0]


def test_recall_and_mean_average_best_overlap(scores):
    result = scores.result()
    assert result["recall"]["0.5"]["100"] == pytest.approx(2 / 3)
    assert result["recall"]["0.7"]["2000"] == pytest.approx(2 / 3)
    assert scores.recall(0.7, 1) == 0
    assert result["abo"]["a"] == 0.5
    assert result["abo"]["b"] == 0.75
    assert np.isnan(result["abo"]["c"])
    assert result["mabo"] == pytest.approx(0.625)
    assert (result["images"], result["objects"], result["boxes_per_image"], result["images_without_proposals"]) == (
        2,
        3,
        1.5,
        1,
    )


def test_the_curve_rises_to_the_recall_of_all(scores):
    counts, recall = scores.recall_curve(0.5)
    assert counts.tolist() == [1, 2, 3]
    assert np.allclose(recall, [1 / 3, 2 / 3, 2 / 3])


def test_nothing_at_all_is_undefined_and_no_error():
    result = ProposalScores(("a",)).result()
    assert np.isnan([result["mabo"], result["boxes_per_image"], result["recall"]["0.5"]["100"]]).all()
