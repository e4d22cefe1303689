from types import SimpleNamespace

import numpy as np
import pytest

from detseg.report.drawing import Overview, class_colours, draw_label_map

CLASSES = ("background", "cat", "dog")


def picture(height, width, channels=3):
    return np.full((height, width, channels), 100, np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (20, 300), (375, 500), (1200, 800)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_image_stays_at_its_size_beside_the_legend(size, channels):
    label_map = np.zeros(size, np.uint8)
    label_map[size[0] // 2 :] = 2
    drawn = draw_label_map(picture(*size, channels), label_map, CLASSES)
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] == size[0]
    assert drawn.shape[1] > size[1]
    assert drawn.shape[2] == 3


def test_background_is_left_as_it_was_and_classes_are_blended_by_hand():
    label_map = np.zeros((50, 60), np.uint8)
    label_map[10:40, 10:40] = 1
    drawn = draw_label_map(picture(50, 60), label_map, CLASSES)
    assert drawn[0, 0].tolist() == [100, 100, 100]
    assert drawn[25, 25].tolist() == [165, 62, 88]
    assert drawn[25, 39].tolist() == [255, 255, 255], "outline"


def test_without_a_background_the_first_class_is_coloured_too():
    drawn = draw_label_map(picture(9, 9), np.zeros((9, 9), np.uint8), ("sky", "road"))
    assert drawn[4, 4].tolist() == [165, 62, 88]


def test_ignored_pixels_show_the_image_and_hatching():
    drawn = draw_label_map(picture(32, 32), np.full((32, 32), 255, np.uint8), CLASSES)[:, :32]
    assert set(np.unique(drawn)) == {100, 255}


def test_colours_of_the_first_twenty_classes_are_all_different():
    colours = class_colours(["a"] * 20)[:20]
    assert len({tuple(colour) for colour in colours.tolist()}) == 20
    assert not class_colours(CLASSES)[0].any()


def test_overview_is_the_reduced_image_and_every_nth_label_whatever_the_bands():
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (50, 70, 3), np.uint8), rng.integers(0, 5, (50, 70), np.uint8)
    source = SimpleNamespace(
        shape=image.shape, read=lambda row, column, h, w: image[row : row + h, column : column + w]
    )
    overviews = [Overview(source, longest=24) for _ in range(2)]
    for start in range(0, 50, 7):
        overviews[0].add(labels[start : start + 7])
    overviews[1].add(labels)
    np.testing.assert_array_equal(overviews[0].label_map, labels[::3, ::3])
    np.testing.assert_array_equal(overviews[0].image, overviews[1].image)
    assert overviews[0].image.shape == (17, 24, 3)
    np.testing.assert_allclose(overviews[0].image[0, 0], image[:3, :3].mean((0, 1)), atol=30)
