"""Masks pasted into their boxes."""

import numpy as np
import pytest
from pycocotools import mask as rle

from detseg.inference.paste import paste_masks


def pasted(mask, box, size, **options):
    return rle.decode(paste_masks(np.asarray(mask, np.float32)[None], np.array([box], float), size, **options)[0])


@pytest.mark.parametrize("box", [(2, 3, 10, 11), (0, 0, 16, 12), (5, 1, 6, 9)])
def test_a_full_mask_fills_its_box_and_nothing_else(box):
    expected = np.zeros((12, 16), np.uint8)
    expected[box[1] : box[3], box[0] : box[2]] = 1
    np.testing.assert_array_equal(pasted(np.ones((28, 28)), box, (12, 16)), expected)


def test_cells_as_large_as_pixels_stay_what_they_are():
    mask = np.random.default_rng(0).random((7, 7)).round()
    found = pasted(mask, (3, 2, 10, 9), (12, 16))
    np.testing.assert_array_equal(found[2:9, 3:10], mask)


def test_the_threshold_is_applied_after_pasting():
    """Two cells of 0.2 and 0.9 on four pixels: at the pixels' centres 0.15, 0.375, 0.725, 0.675 (zeros lie beyond)."""
    for threshold, expected in ((0.5, [0, 0, 1, 1]), (0.7, [0, 0, 1, 0]), (0.3, [0, 1, 1, 1]), (0.1, [1, 1, 1, 1])):
        mask = np.array([[0.2, 0.9], [0.2, 0.9]])
        found = pasted(np.repeat(mask[:1], 4, 0)[:2], (0, 0, 4, 2), (2, 4), threshold=threshold)
        np.testing.assert_array_equal(found[0], expected)


def test_what_lies_beyond_the_image_is_cut_off():
    for rule in ("detectron2", "torchvision"):
        assert pasted(np.ones((28, 28)), (-10, -10, 30, 30), (8, 9), rule=rule).all()
        assert not pasted(np.ones((28, 28)), (20, 20, 30, 30), (8, 9), rule=rule).any()


def test_no_detections_have_no_masks():
    assert paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), (8, 9)) == []


def test_torchvisions_rule_rounds_down_and_counts_the_last_pixel_too():
    """With a cell more on each side the box reaches from 1.86 to 6.14: pixels 1 to 6."""
    found = pasted(np.ones((28, 28)), (2, 2, 6, 6), (10, 10), rule="torchvision")
    assert found[1:7, 1:7].all()
    assert found.sum() == 36
