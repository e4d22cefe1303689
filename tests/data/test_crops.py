"""Regions warped to squares."""

import numpy as np
import pytest

from detseg.data.augment import fill_colour
from detseg.data.crops import warp_regions


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


def test_a_box_as_large_as_its_square_without_context_is_cut_out_as_it_is(image):
    squares = warp_regions(image, [[10, 20, 42, 52]], 32, 0)
    assert np.array_equal(squares[0], image[20:52, 10:42])


def test_context_is_what_lies_around_the_box_in_the_image(image):
    squares = warp_regions(image, [[20, 16, 44, 40]], 32, 4)  # 24 pixels wide, so that a pixel stays one
    assert np.array_equal(squares[0], image[12:44, 16:48])


def test_the_box_fills_the_middle_whatever_its_aspect_ratio():
    image = np.zeros((200, 200, 1), np.uint8)
    image[40:60, 30:150] = 255
    square = warp_regions(image, [[30, 40, 150, 60]], 64, 8)[0, :, :, 0]
    assert (square[9:55, 9:55] == 255).all()
    assert square[:5].max() == square[59:].max() == square[:, :5].max() == square[:, 59:].max() == 0


def test_what_lies_outside_of_the_image_is_filled_as_augmentation_fills_it(image):
    square = warp_regions(image, [[0, 0, 16, 16]], 32, 8)[0]
    assert (square[:8] == fill_colour(3)).all()
    assert (square[:, :8] == fill_colour(3)).all()
    assert np.array_equal(square[8:, 8:], image[:24, :24])


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_no_boxes_and_boxes_thinner_than_a_pixel_pass(channels):
    image = np.full((20, 20, channels), 7, np.uint8)
    assert warp_regions(image, np.zeros((0, 4)), 32, 4).shape == (0, 32, 32, channels)
    squares = warp_regions(image, [[5, 5, 5.2, 15]], 32, 4)
    assert squares.shape == (1, 32, 32, channels)
    assert (squares == 7).all()
