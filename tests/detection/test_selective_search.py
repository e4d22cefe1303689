"""Selective Search."""

import cv2
import numpy as np
import pytest

from detseg.detection.selective_search import MIN_SIDE, _first_regions, _group, selective_search


@pytest.fixture(scope="module")
def picture():
    """Rectangles of several colours on a ground with noise, and where they are."""
    rng = np.random.default_rng(0)
    image = np.full((160, 200, 3), (90, 110, 100), np.uint8)
    boxes = np.array([[10, 12, 70, 60], [90, 20, 180, 90], [30, 90, 80, 150], [120, 105, 160, 140]])
    for (x1, y1, x2, y2), colour in zip(
        boxes, ((200, 40, 40), (40, 60, 200), (230, 220, 60), (30, 170, 60)), strict=True
    ):
        image[y1:y2, x1:x2] = colour
    return (image + rng.integers(0, 12, image.shape)).astype(np.uint8), boxes


def overlaps(boxes, others):
    low, high = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = (high - low).clip(0).prod(axis=2)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=1) for x in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def test_what_stands_out_is_found(picture):
    image, boxes = picture
    assert overlaps(boxes, selective_search(image)).max(axis=1).min() > 0.8


def test_boxes_are_of_whole_pixels_inside_the_image_large_enough_and_each_once(picture):
    found = selective_search(picture[0])
    assert found.dtype == np.float32
    assert np.array_equal(found, np.rint(found))
    assert found.min() >= 0
    assert (found[:, 2:] <= [200, 160]).all()
    assert (found[:, 2:] - found[:, :2] >= MIN_SIDE).all()
    assert len(np.unique(found, axis=0)) == len(found)
    assert [0, 0, 200, 160] in found.tolist()


def test_a_seed_gives_one_order_and_another_seed_another_of_the_same_boxes(picture):
    first, again, other = (selective_search(picture[0], seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(np.unique(first, axis=0), np.unique(other, axis=0))


def test_large_regions_come_first_on_the_whole(picture):
    found = selective_search(picture[0])
    areas = (found[:, 2:] - found[:, :2]).prod(axis=1)
    half = len(areas) // 2
    assert np.median(areas[:half]) > np.median(areas[half:])


def test_quality_finds_more_than_fast(picture):
    image = cv2.resize(picture[0], (100, 80), interpolation=cv2.INTER_AREA)
    assert len(selective_search(image, "quality")) > 2 * len(selective_search(image))


@pytest.mark.parametrize("shape", [(1, 300, 3), (19, 200, 3), (300, 5, 3), (1, 1, 3)])
def test_an_image_smaller_than_a_proposal_has_none(shape):
    assert selective_search(np.zeros(shape, np.uint8)).shape == (0, 4)


@pytest.mark.parametrize("mode", ["fast", "quality"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_of_one_colour_is_one_region(mode, channels):
    found = selective_search(np.full((30, 40, channels), 77, np.uint8), mode)
    assert found.tolist() == [[0, 0, 40, 30]]


def test_grey_is_grey_however_many_channels_it_has(picture):
    grey = picture[0][..., :1]
    assert np.array_equal(selective_search(grey), selective_search(np.repeat(grey, 3, axis=2)))
    alpha = np.concatenate([picture[0], grey], axis=2)
    assert np.array_equal(selective_search(alpha), selective_search(picture[0]))


# ----- by hand -------------------------------------------------------------------------------------------------------

LABELS = np.array([[0, 0, 1, 2], [0, 0, 1, 2]])


def regions(colour=((0, 0, 3, 3), (0, 0, 3, 3))):
    bins = np.array(colour, np.uint8)[..., None]
    return _first_regions(LABELS, bins, np.zeros((2, 4, 1), np.uint8))


def test_first_regions_have_their_boxes_sizes_histograms_and_neighbours():
    boxes, sizes, histograms, colours, pairs = regions()
    assert boxes.tolist() == [[0, 0, 2, 2], [2, 0, 3, 2], [3, 0, 4, 2]]
    assert sizes.tolist() == [4, 2, 2]
    assert colours == 25
    assert [np.flatnonzero(row).tolist() for row in histograms] == [[0, 25], [3, 25], [3, 25]]
    assert np.allclose(histograms.sum(axis=1), 2)
    assert pairs.tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize(
    ("likeness", "first"),
    [
        ("c", [2, 0, 4, 2]),  # 0 and 1 share no colour, 1 and 2 all
        ("s", [2, 0, 4, 2]),  # 1 - 6/8 of 0 and 1, 1 - 4/8 of 1 and 2
    ],
)
def test_the_most_alike_neighbours_are_merged_first(likeness, first):
    found = _group(*regions(), likeness, 8)
    assert found.tolist()[3:] == [first, [0, 0, 4, 2]]


def test_fill_merges_what_leaves_no_gap():
    labels = np.array([[0, 0, 0, 0], [0, 1, 1, 2], [0, 1, 1, 2]])
    parts = _first_regions(labels, np.zeros((3, 4, 1), np.uint8), np.zeros((3, 4, 1), np.uint8))
    assert _group(*parts, "f", 12)[3].tolist() == [1, 1, 4, 3]  # 1 with 2, before 0, whose box has them inside


def test_a_merged_regions_histogram_is_that_of_its_pixels():
    colour = ((0, 0, 3, 3), (0, 0, 3, 5))
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    both = _first_regions(labels, np.array(colour, np.uint8)[..., None], np.zeros((2, 4, 1), np.uint8))
    whole = _first_regions(0 * labels, np.array(colour, np.uint8)[..., None], np.zeros((2, 4, 1), np.uint8))
    assert np.allclose((both[1][:, None] * both[2]).sum(axis=0) / 8, whole[2][0])


def test_regions_that_touch_at_a_corner_only_are_merged_too():
    labels = np.array([[0, 1], [1, 0]])  # as the cut's graph has it, which knows diagonals
    parts = _first_regions(labels, np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2, 1), np.uint8))
    assert len(_group(*parts, "ctsf", 4)) == 3
