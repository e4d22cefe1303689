import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.data.elastic import elastic_maps, move_boxes, move_image, move_labels, move_masks
from detseg.data.masks import boxes_of_masks

SEEDS = st.integers(0, 2**32 - 1)


def draw_maps(height, width, seed, **options):
    return elastic_maps(height, width, np.random.default_rng(seed), **options)


def draw_boxes(boxes, height, width):
    """Filled boxes of whole pixels as masks, uint8 (N, H, W)."""
    masks = np.zeros((len(boxes), height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = 1
    return masks


class FixedDraws:
    """Stands for a Generator whose draws are known."""

    def __init__(self, draws):
        self.draws = np.array(draws, float)

    def normal(self, mean, sigma, size):
        assert self.draws.shape == size
        return mean + sigma * self.draws


def test_displacements_at_the_nodes_are_the_ones_drawn():
    draws = np.random.default_rng(0).normal(size=(2, 3, 3))
    map_x, map_y = elastic_maps(201, 101, FixedDraws(draws), sigma=10.0)
    rows, columns = np.ix_([0, 100, 200], [0, 50, 100])
    np.testing.assert_allclose(map_x[rows, columns] - columns, 10 * draws[0], atol=1e-4)
    np.testing.assert_allclose(map_y[rows, columns] - rows, 10 * draws[1], atol=1e-4)


def test_displacement_between_two_nodes_by_hand():
    draws = np.zeros((2, 2, 2))
    draws[0, :, 1] = 1.0  # both nodes of the right side move by one pixel
    map_x, map_y = elastic_maps(3, 5, FixedDraws(draws), grid=2, sigma=1.0)
    # A quarter of the way: weights -9/128, 111/128, 29/128, -3/128 (Keys) of 0, 0, 1, 1.
    np.testing.assert_allclose(map_x[1], [0, 1 + 26 / 128, 2 + 1 / 2, 3 + 102 / 128, 5], atol=1e-6)
    np.testing.assert_array_equal(map_y, np.repeat([[0], [1], [2]], 5, axis=1))


def test_one_vector_at_all_nodes_is_a_shift_with_a_mirrored_border():
    draws = np.stack([np.full((4, 4), 2.0), np.full((4, 4), -1.0)])
    maps = elastic_maps(9, 12, FixedDraws(draws), grid=4, sigma=1.0)
    labels = np.arange(9 * 12, dtype=np.uint8).reshape(9, 12)
    np.testing.assert_array_equal(move_labels(labels, maps), np.pad(labels, 2, mode="reflect")[1:10, 4:16])


def test_displacements_have_the_standard_deviation_asked_for():
    rng = np.random.default_rng(0)
    corners = [elastic_maps(20, 30, rng, sigma=10.0)[0][-1, -1] - 29 for _ in range(2000)]
    assert np.std(corners) == pytest.approx(10, rel=0.05)
    assert abs(np.mean(corners)) < 1


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 5), st.integers(1, 6), SEEDS)
@settings(max_examples=50, deadline=None)
def test_sigma_zero_is_the_identity(height, width, grid, channels, seed):
    rng = np.random.default_rng(seed)
    maps = elastic_maps(height, width, rng, grid=grid, sigma=0.0)
    image = rng.integers(0, 256, (height, width, channels), np.uint8)
    np.testing.assert_array_equal(move_image(image, maps), image)
    np.testing.assert_array_equal(move_labels(image[..., 0], maps), image[..., 0])
    corner = rng.uniform(0, [width, height], (6, 2)).astype(np.float32)
    boxes = np.concatenate([corner, rng.uniform(corner, [width, height])], axis=1).astype(np.float32)
    np.testing.assert_allclose(move_boxes(boxes, maps), boxes, atol=1 / 32)  # cv2 4's grain of coordinates


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_maps_are_a_function_of_the_generators_state(seed):
    first = draw_maps(50, 70, seed)
    np.random.seed(0)  # noqa: NPY002 - the global state has no say
    np.testing.assert_array_equal(first, draw_maps(50, 70, seed))
    assert not np.array_equal(first, draw_maps(50, 70, seed + 1))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 6), SEEDS)
@settings(max_examples=60, deadline=None)
def test_any_size_keeps_shape_and_dtype_and_invents_no_label(height, width, channels, seed):
    rng = np.random.default_rng(seed)
    maps = elastic_maps(height, width, rng)
    assert [each.dtype for each in maps] == [np.float32] * 2
    assert [each.shape for each in maps] == [(height, width)] * 2
    image = rng.integers(0, 256, (height, width, channels), np.uint8)
    moved = move_image(image, maps)
    assert (moved.shape, moved.dtype) == (image.shape, image.dtype)
    for labels in (
        rng.choice(np.array([0, 7, 255], np.uint8), (height, width)),
        rng.choice(np.array([0, 300, 65535], np.uint16), (height, width)),
        rng.choice(np.array([0, 2**24 + 1, 2**31 - 1], np.int32), (height, width)),
    ):
        moved = move_labels(labels, maps)
        assert (moved.shape, moved.dtype) == (labels.shape, labels.dtype)
        assert np.isin(moved, labels).all()


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_image_labels_and_masks_move_together(channels):
    for seed in range(5):
        disk = cv2.circle(np.zeros((200, 180), np.uint8), (80, 110), 40, 1, -1)
        maps = draw_maps(200, 180, seed)
        moved = move_labels(disk, maps)
        assert (moved != disk).sum() > 100
        image = move_image(np.repeat(200 * disk[..., None], channels, axis=2), maps)
        for channel in np.moveaxis(image, 2, 0):
            assert ((channel > 100) != moved).mean() < 1e-3  # at the rim, where bilinear is about one half
        ids = move_labels(disk.astype(np.int32) * 100_000, maps)
        np.testing.assert_array_equal(ids, moved.astype(np.int32) * 100_000)
        np.testing.assert_array_equal(move_masks(np.stack([disk, 1 - disk]), maps), np.stack([moved, 1 - moved]))


@pytest.mark.parametrize("size", [(128, 160), (256, 256), (500, 375)])
def test_a_moved_box_is_tight_around_the_moved_rectangle(size):
    height, width = size
    for seed in range(30):
        rng = np.random.default_rng(seed)
        sides = rng.uniform(0.1, 0.3, (8, 2)) * [width, height]
        corners = rng.uniform([0.2 * width, 0.2 * height], [0.8 * width, 0.8 * height] - sides)
        boxes = np.rint(np.concatenate([corners, corners + sides], axis=1)).astype(np.float32)
        maps = elastic_maps(height, width, rng, sigma=size[0] / 25)
        expected = boxes_of_masks(move_masks(draw_boxes(boxes, height, width), maps))
        moved = move_boxes(boxes, maps)
        assert moved.dtype == np.float32
        np.testing.assert_allclose(moved, expected, atol=1.5)


def test_boxes_are_clipped_and_lose_their_area_where_they_leave_the_image():
    draws = np.stack([np.full((3, 3), 30.0), np.zeros((3, 3))])
    maps = elastic_maps(50, 80, FixedDraws(draws), sigma=1.0)  # 30 pixels to the left
    boxes = np.array([[40, 5, 60, 20], [20, 10, 40, 30], [5, 10, 25, 30]], np.float32)
    moved = move_boxes(boxes, maps)
    np.testing.assert_allclose(moved, [[10, 5, 30, 20], [0, 10, 10, 30], [0, 10, 0, 30]], atol=1 / 32)


def test_nothing_labelled_stays_nothing():
    maps = draw_maps(20, 30, 0)
    assert move_boxes(np.zeros((0, 4), np.float32), maps).shape == (0, 4)
    assert move_masks(np.zeros((0, 20, 30), np.uint8), maps).shape == (0, 20, 30)
    assert boxes_of_masks(np.zeros((0, 20, 30), np.uint8)).shape == (0, 4)


def test_boxes_of_masks_by_hand():
    masks = np.zeros((3, 5, 6), np.uint8)
    masks[0, 1:3, 2:6] = 1
    masks[1, 4, 0] = masks[1, 2, 3] = 1
    np.testing.assert_array_equal(boxes_of_masks(masks), [[2, 1, 6, 3], [0, 2, 4, 5], [0, 0, 0, 0]])
