import numpy as np
import pytest

from detseg.data.masks import encode_masks
from detseg.report.drawing import class_colours, draw_detections, draw_side_by_side

CLASSES = ("cat", "a class with quite a long name")


def grey(height, width, channels=3):
    return np.full((height, width, channels), 100, np.uint8)


def boxes_of(height, width):
    """One over all of the image, one at each corner, one in the middle, one of no size, one partly outside."""
    relative = [[0, 0, 1, 1], [0, 0, 0.2, 0.3], [0.8, 0.7, 1, 1], [0.4, 0.4, 0.6, 0.7], [0.5, 0.5, 0.5, 0.5]]
    relative += [[0.9, -0.1, 1.2, 0.2]]
    return (np.array(relative) * [width, height, width, height]).astype(np.float32)


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (40, 300), (375, 500), (32, 2000)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_image_is_drawn_at_a_whole_multiple_of_its_size_and_left_as_it_was(size, channels):
    image, boxes = grey(*size, channels), boxes_of(*size)
    labels, scores = np.array([0, 1, 0, 1, 0, 1]), np.linspace(0, 1, 6)
    masks = encode_masks(np.ones((6, *size), np.uint8))
    drawn = draw_detections(image, boxes, labels, CLASSES, scores, masks)
    zoom = drawn.shape[0] // size[0]
    assert (drawn.dtype, drawn.shape) == (np.uint8, (zoom * size[0], zoom * size[1], 3))
    assert zoom == 1 or max(drawn.shape) <= 1024
    assert (image == 100).all()
    np.testing.assert_array_equal(boxes, boxes_of(*size))


def test_small_images_are_enlarged_until_names_have_room():
    assert draw_detections(grey(32, 43), [], [], CLASSES).shape == (256, 344, 3)
    assert draw_detections(grey(256, 256), [], [], CLASSES).shape == (256, 256, 3)


def test_without_boxes_the_image_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    np.testing.assert_array_equal(draw_detections(image, np.zeros((0, 4), np.float32), [], CLASSES), image)


def test_a_box_over_the_whole_image_shows_at_all_four_borders():
    drawn = draw_detections(grey(400, 600), [[0, 0, 600, 400]], [0], CLASSES)
    colour = class_colours(CLASSES)[0]
    for line in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
        assert (line == colour).all(-1).mean() > 0.7


def test_lines_and_letters_grow_with_the_image():
    shares = []
    for factor in (1, 4):
        box = np.array([[100, 200, 400, 400]]) * factor
        drawn = draw_detections(grey(600 * factor, 800 * factor), box, [0], CLASSES)
        shares.append((drawn != 100).any(-1).mean())
    assert shares[1] == pytest.approx(shares[0], rel=0.25)


@pytest.mark.parametrize("size", [(256, 256), (300, 2000), (1000, 700)])
def test_names_stay_inside_the_image(size):
    # A name's field is filled with the colour: at every corner all of it has to be seen.
    height, width = size

    def coloured(x, y):
        drawn = draw_detections(grey(height, width), [[x, y, x + 4, y + 4]], [1], CLASSES, [0.5])
        return (drawn == class_colours(CLASSES)[1]).all(-1).sum()

    middle = coloured(width // 2, height // 2)
    for corner in ((0, 0), (width - 4, 0), (0, height - 4), (width - 4, height - 4)):
        assert coloured(*corner) == pytest.approx(middle, rel=0.15)


def test_masks_are_blended_by_hand_and_outlined():
    mask = np.zeros((1, 300, 400), np.uint8)
    mask[0, 100:200, 150:250] = 1
    drawn = draw_detections(grey(300, 400), [[150, 100, 250, 200]], [0], CLASSES, masks=encode_masks(mask), opacity=0.5)
    red, green, blue = class_colours(CLASSES)[0].tolist()
    np.testing.assert_allclose(drawn[150, 200], [(100 + red) / 2, (100 + green) / 2, (100 + blue) / 2], atol=1)
    assert drawn[250, 200].tolist() == [100, 100, 100]


def test_the_best_detection_is_on_top():
    box = [[50, 50, 250, 250]]
    for scores, label in (([0.9, 0.1], 0), ([0.1, 0.9], 1)):
        drawn = draw_detections(grey(300, 400), box * 2, [0, 1], CLASSES, scores)
        assert drawn[150, 50].tolist() == class_colours(CLASSES)[label].tolist()


def test_names_are_black_or_white_whichever_stands_out():
    classes = ["a"] * 20
    for label, colour in enumerate(class_colours(classes)[:20].astype(int).tolist()):
        drawn = draw_detections(grey(300, 400), [[50, 50, 250, 250]], [label], classes)
        ink = 0 if (drawn == 0).all(-1).any() else 255
        assert abs(np.dot(colour, [0.299, 0.587, 0.114]) - ink) > 100


def test_side_by_side_keeps_both_pictures_whole():
    left, right = grey(300, 400), np.full((300, 500, 3), 50, np.uint8)
    both = draw_side_by_side([left, right], ["ground truth", "prediction with quite a long title" * 3])
    assert both.shape[0] > 300
    np.testing.assert_array_equal(both[-300:, :400], left)
    np.testing.assert_array_equal(both[-300:, -500:], right)
