"""How objects follow the geometry of their image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.config.augmentation import ObjectCrop
from detseg.data.elastic import elastic_maps, move_labels
from detseg.data.masks import boxes_of_masks
from detseg.data.objects import MIN_VISIBILITY, Objects

SIZE = (24, 32)
SEEDS = st.integers(0, 2**32 - 1)


def objects_at(boxes, masks=None, crowds=()):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    is_crowd = np.zeros(count, bool)
    is_crowd[list(crowds)] = True
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).astype(np.float64)
    return Objects(boxes, np.arange(count), is_crowd, np.zeros(count, bool), areas, masks)


def filled(boxes, size=SIZE):
    """Masks of the pixels that boxes touch."""
    masks = np.zeros((len(boxes), *size), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, np.asarray(boxes), strict=True):
        mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = 1
    return masks


def random_objects(rng, with_masks, size=SIZE):
    """With boxes of whole pixels."""
    count = rng.integers(0, 6)
    corners = rng.integers(0, np.array(size[::-1]), (count, 2))
    boxes = np.concatenate([corners, rng.integers(corners + 1, np.array(size[::-1]) + 1)], axis=1)
    return with_crowds(boxes, rng, with_masks, size)


def fractional_objects(rng, with_masks, size=SIZE):
    """With boxes of any place and of sides from a 10,000th of a pixel on, some of them at the border."""
    count, limits = rng.integers(0, 6), np.array(size[::-1])
    sides = np.minimum(10 ** rng.uniform(-4, 1.6, (count, 2)), limits)
    corners = (limits - sides) * rng.uniform(-0.2, 1.2, (count, 2)).clip(0, 1)
    boxes = np.concatenate([corners, np.minimum(corners + sides, limits)], axis=1).astype(np.float32)
    return with_crowds(boxes, rng, with_masks, size)


def with_crowds(boxes, rng, with_masks, size):
    count = len(boxes)
    return objects_at(boxes, filled(boxes, size) if with_masks else None, np.flatnonzero(rng.random(count) < 0.2))


def check_well_formed(objects, size):
    height, width = size
    x1, y1, x2, y2 = objects.boxes.T
    assert objects.boxes.dtype == np.float32
    assert objects.boxes.shape == (len(objects), 4)
    assert (x1 >= 0).all()
    assert (y1 >= 0).all()
    assert (x2 <= width).all()
    assert (y2 <= height).all()
    assert (x2 > x1).all()
    assert (y2 > y1).all()
    assert (objects.labels.dtype, objects.is_crowd.dtype, objects.difficult.dtype) == (np.int64, bool, bool)
    assert {len(getattr(objects, name)) for name in ("labels", "is_crowd", "difficult", "areas")} == {len(objects)}
    assert objects.areas.dtype == np.float64
    assert (objects.areas > 0).all()
    if objects.masks is not None:
        assert objects.masks.shape == (len(objects), *size)
        assert (objects.masks.dtype, objects.masks.flags.c_contiguous) == (np.uint8, True)
        assert objects.masks.any(axis=(1, 2)).all()


GEOMETRY = {
    "resized": lambda objects, rng, new: (objects.resized(SIZE, new), new),
    "cropped": lambda objects, rng, new: (objects.cropped(rng.integers(-20, 24, 2).tolist(), new, 0.0), new),
    "flipped": lambda objects, rng, new: (objects.flipped([int(rng.integers(2))], SIZE), SIZE),
    "turned": lambda objects, rng, new: (objects.turned(1, SIZE), SIZE[::-1]),
    "turned thrice": lambda objects, rng, new: (objects.turned(3, SIZE), SIZE[::-1]),
    "deformed": lambda objects, rng, new: (objects.deformed(elastic_maps(*SIZE, rng, sigma=8.0)), SIZE),
}


@pytest.mark.parametrize("draw", [random_objects, fractional_objects])
@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("name", GEOMETRY)
@given(SEEDS, st.tuples(st.integers(1, 50), st.integers(1, 50)))
@settings(max_examples=40, deadline=None)
def test_no_box_is_ever_empty_or_outside(name, with_masks, draw, seed, new):
    rng = np.random.default_rng(seed)
    objects = draw(rng, with_masks)
    check_well_formed(objects, SIZE)
    check_well_formed(*GEOMETRY[name](objects, rng, new))


@pytest.mark.parametrize("name", GEOMETRY)
def test_no_objects_stay_no_objects(name):
    for masks in (None, filled([])):
        result, size = GEOMETRY[name](objects_at([], masks), np.random.default_rng(0), (10, 12))
        assert len(result) == 0
        check_well_formed(result, size)


@given(SEEDS, st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_boxes_stay_around_their_masks_when_turned_and_flipped(seed, turns):
    rng = np.random.default_rng(seed)
    objects = random_objects(rng, with_masks=True)
    turned = objects.turned(turns, SIZE)
    np.testing.assert_array_equal(turned.masks, np.rot90(objects.masks, turns, axes=(1, 2)))
    np.testing.assert_array_equal(turned.boxes, boxes_of_masks(turned.masks))
    for axes in ([0], [1], [1, 0]):
        flipped = objects.flipped(axes, SIZE)
        np.testing.assert_array_equal(flipped.masks, np.flip(objects.masks, [axis + 1 for axis in axes]))
        np.testing.assert_array_equal(flipped.boxes, boxes_of_masks(flipped.masks))
        np.testing.assert_array_equal(flipped.areas, objects.areas)
        np.testing.assert_array_equal(flipped.flipped(axes, SIZE).boxes, objects.boxes)


def points_in(boxes, rng):
    """float (N, 50, 2): x and y of points in each box, its corners among them."""
    share = np.concatenate([[[0, 0], [0, 1], [1, 0], [1, 1]], rng.random((46, 2))])
    return boxes[:, None, :2] + share * (boxes[:, None, 2:] - boxes[:, None, :2])


def boxes_around(points):
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_fractional_boxes_are_around_their_points_when_turned_flipped_and_scaled(seed):
    rng = np.random.default_rng(seed)
    objects, (height, width) = fractional_objects(rng, with_masks=False), SIZE
    x, y = np.moveaxis(points_in(objects.boxes.astype(np.float64), rng), 2, 0)
    cases = [
        (objects.turned(1, SIZE), (y, width - x)),
        (objects.turned(2, SIZE), (width - x, height - y)),
        (objects.turned(3, SIZE), (height - y, x)),
        (objects.turned(4, SIZE), (x, y)),
        (objects.flipped([0], SIZE), (x, height - y)),
        (objects.flipped([1], SIZE), (width - x, y)),
        (objects.flipped([1, 0], SIZE), (width - x, height - y)),
        (objects.resized(SIZE, (17, 51)), (x * 51 / width, y * 17 / height)),
    ]
    for changed, points in cases:
        expected = boxes_around(np.stack(points, axis=2))
        np.testing.assert_allclose(changed.boxes, expected[changed.labels], atol=2e-5)  # labels: who is left
        left_out = np.delete(objects.boxes, changed.labels, axis=0)
        assert (left_out[:, 2:] - left_out[:, :2] < 1e-3).any(axis=1).all()  # to float32, nothing is left of them


@given(SEEDS, st.integers(-10, 20), st.integers(-10, 20), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_a_crop_of_fractional_boxes_is_their_part_in_the_window(seed, row, column, height, width):
    objects = fractional_objects(np.random.default_rng(seed), with_masks=False)
    cropped = objects.cropped((row, column), (height, width), 0.0)
    window = np.array([column, row, column + width, row + height], np.float64)
    expected = np.concatenate(
        [np.maximum(objects.boxes[:, :2], window[:2]), np.minimum(objects.boxes[:, 2:], window[2:])], axis=1
    )
    sides = expected[:, 2:] - expected[:, :2]
    np.testing.assert_allclose(cropped.boxes, (expected - window[[0, 1, 0, 1]])[cropped.labels], atol=1e-5)
    assert set(np.flatnonzero((sides > 1e-4).all(axis=1))) <= set(cropped.labels)
    assert set(cropped.labels) <= set(np.flatnonzero((sides > -1e-5).all(axis=1)))


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_deformed_fractional_boxes_are_around_the_points_that_come_from_them(seed):
    rng, (height, width) = np.random.default_rng(seed), (96, 128)
    maps = elastic_maps(height, width, rng, sigma=4.0)
    objects = fractional_objects(rng, with_masks=False, size=(height, width))
    deformed = objects.deformed(maps, min_visibility=0.0)
    check_well_formed(deformed, (height, width))
    for label, box in enumerate(objects.boxes):
        x1, y1, x2, y2 = box
        source_x, source_y = maps[0] + 0.5, maps[1] + 0.5  # of each pixel's centre
        rows, columns = np.nonzero((source_x > x1) & (source_x < x2) & (source_y > y1) & (source_y < y2))
        if not len(rows):
            continue  # thinner than a pixel, or moved out
        (k,) = np.flatnonzero(deformed.labels == label)
        around = np.array([columns.min(), rows.min(), columns.max(), rows.max()]) + 0.5
        assert (deformed.boxes[k, :2] <= around[:2] + 0.25).all()
        assert (deformed.boxes[k, 2:] >= around[2:] - 0.25).all()
        if min(x2 - x1, y2 - y1) > 4:  # else the centres of pixels don't tell where the sides are
            np.testing.assert_allclose(deformed.boxes[k], around, atol=3.5)


@given(SEEDS, st.integers(-30, 30), st.integers(-30, 30), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_a_crop_of_boxes_is_the_crop_of_their_masks(seed, row, column, height, width):
    rng = np.random.default_rng(seed)
    objects = random_objects(rng, with_masks=True)
    padded = np.pad(objects.masks, [(0, 0), (60, 60), (60, 60)])
    window = padded[:, 60 + row : 60 + row + height, 60 + column : 60 + column + width]
    cropped = objects.cropped((row, column), (height, width), 0.0)
    is_there = window.any(axis=(1, 2))
    np.testing.assert_array_equal(cropped.masks, window[is_there])
    np.testing.assert_array_equal(cropped.boxes, boxes_of_masks(window[is_there]))
    np.testing.assert_array_equal(cropped.labels, objects.labels[is_there])
    without_masks = objects_at(objects.boxes).cropped((row, column), (height, width), 0.0)
    np.testing.assert_array_equal(without_masks.boxes, cropped.boxes)
    np.testing.assert_allclose(without_masks.areas, window[is_there].sum(axis=(1, 2)), rtol=1e-6)


def test_an_object_stays_while_its_share_in_the_window_is_large_enough():
    boxes = [[0, 0, 10, 10], [4, 0, 14, 10], [9, 0, 19, 10], [10, 0, 20, 10]]  # 10 / 10, 6 / 10, 1 / 10 and 0 are in
    for masks in (None, filled(boxes)):
        objects = objects_at(boxes, masks)
        window = ((0, 0), (24, 10))
        assert objects.cropped(*window, 0.0).labels.tolist() == [0, 1, 2]
        assert objects.cropped(*window, 0.1).labels.tolist() == [0, 1, 2]
        assert objects.cropped(*window, 0.11).labels.tolist() == [0, 1]
        assert objects.cropped(*window, 0.6).labels.tolist() == [0, 1]
        assert objects.cropped(*window, 1.0).labels.tolist() == [0]
        assert objects.cropped(*window, 0.6).boxes.tolist() == [[0, 0, 10, 10], [4, 0, 10, 10]]
        assert objects.cropped(*window, 0.6).areas.tolist() == [100, 60]


def test_the_default_share_is_the_configs():
    assert ObjectCrop(size=(1, 1)).min_visibility == MIN_VISIBILITY


def test_the_share_is_that_of_the_mask_where_there_is_one():
    mask = np.zeros((1, *SIZE), np.uint8)
    mask[0, 0:10, 0:2] = 1  # a thin upright part,
    mask[0, 0:2, 0:10] = 1  # and a lying one: 36 pixels
    objects = objects_at([[0, 0, 10, 10]], mask)
    cropped = objects.cropped((0, 2), (24, 30), 0.4)  # 80 of 100 of the box, 16 of 36 of the mask
    assert cropped.boxes.tolist() == [[0, 0, 8, 2]]  # around what is left of the mask
    assert len(objects.cropped((0, 2), (24, 30), 0.45)) == 0


def test_a_box_that_the_window_does_not_cut_stays_exactly():
    box = [[3.25, 4.5, 9.75, 8.125]]
    objects = objects_at(box, filled([[4, 5, 9, 8]]))
    assert objects.cropped((1, 2), (20, 20)).boxes.tolist() == [[1.25, 3.5, 7.75, 7.125]]


def test_crowds_stay_while_any_of_them_is_there():
    boxes = [[0, 0, 20, 10], [0, 0, 20, 10]]
    for masks in (None, filled(boxes)):
        cropped = objects_at(boxes, masks, crowds=[1]).cropped((0, 19), (10, 10), 0.5)
        assert (cropped.labels.tolist(), cropped.is_crowd.tolist()) == ([1], [True])


def test_resizing_by_hand():
    objects = objects_at([[2, 4, 8, 12]], filled([[2, 4, 8, 12]])).resized(SIZE, (48, 16))
    assert objects.boxes.tolist() == [[1, 8, 4, 24]]
    assert objects.areas.tolist() == [48]
    np.testing.assert_array_equal(objects.masks, filled([[1, 8, 4, 24]], (48, 16)))


def test_a_mask_that_loses_its_last_pixel_takes_its_object_along():
    boxes = [[0, 0, 1, 1], [8, 8, 16, 16]]
    objects = objects_at(boxes, filled(boxes)).resized(SIZE, (6, 8))
    assert objects.labels.tolist() == [1]


def test_deformed_boxes_are_around_the_moved_masks_and_leave_mirrored_copies_out():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        maps = elastic_maps(96, 128, rng, sigma=6.0)
        boxes = [[1, 2, 30, 40], [50, 40, 90, 80], [100, 60, 128, 96]]
        masks = filled(boxes, (96, 128))
        with_masks = objects_at(boxes, masks).deformed(maps)
        without = objects_at(boxes).deformed(maps)
        np.testing.assert_array_equal(with_masks.boxes, boxes_of_masks(with_masks.masks))
        np.testing.assert_allclose(without.boxes, with_masks.boxes, atol=2.5)
        moved = np.stack([move_labels(mask, maps) for mask in masks])
        assert (with_masks.masks <= moved).all()
        np.testing.assert_array_equal(with_masks.masks[1], moved[1])  # away from the border
        np.testing.assert_allclose(with_masks.areas, with_masks.masks.sum(axis=(1, 2)))


def test_what_an_elastic_deformation_pushes_out_is_left_out():
    maps = elastic_maps(50, 80, np.random.default_rng(0), sigma=0.0)
    maps = maps[0] + 30, maps[1]  # everything moves 30 pixels to the left
    boxes = [[40, 5, 60, 20], [5, 10, 25, 30], [12, 10, 31, 30]]
    for masks in (None, filled(boxes, (50, 80))):
        moved = objects_at(boxes, masks).deformed(maps)
        assert moved.labels.tolist() == [0]  # of the last one, one of 19 columns is left
        np.testing.assert_allclose(moved.boxes, [[10, 5, 30, 20]], atol=1 / 32)


def test_several_places_of_one_object_share_its_mask():
    masks = filled([[0, 0, 4, 4], [10, 10, 20, 20]])
    copied = masks.copy()
    copied[0, :4, 28:] = 1
    objects = objects_at([[0, 0, 4, 4], [10, 10, 20, 20]], masks)
    boxes = np.array([[0, 0, 4, 4], [27.9, 0, 32, 4]], np.float32)
    placed = objects.placed(np.array([0, 0]), boxes, copied)
    assert placed.boxes.tolist() == [[0, 0, 4, 4], [28, 0, 32, 4]]
    assert placed.labels.tolist() == [0, 0]
    assert placed.areas.tolist() == [16, 16]
    assert objects.placed(np.array([], int), boxes[:0], copied).masks.shape == (0, *SIZE)


def test_selecting_keeps_everything_together():
    objects = objects_at([[0, 0, 4, 4], [1, 1, 3, 3], [2, 2, 9, 9]], filled([[0, 0, 4, 4]] * 3), crowds=[2])
    for chosen in ([2, 0], np.array([True, False, True]), slice(0, 2)):
        selected = objects.select(chosen)
        np.testing.assert_array_equal(selected.labels, np.arange(3)[chosen])
        np.testing.assert_array_equal(selected.boxes, objects.boxes[chosen])
        np.testing.assert_array_equal(selected.is_crowd, np.array([False, False, True])[chosen])
        assert len(selected) == len(selected.masks) == 2
