import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from detseg.segmentation.weight_maps import (
    border_weights,
    instances_of_components,
    separate_touching,
)


def plain_border_weights(instance_ids, w0=10.0, sigma=5.0):
    """The definition: a distance transform of the whole image for each object, in double precision."""
    objects = [number for number in np.unique(instance_ids) if number > 0]
    if len(objects) < 2:
        return np.zeros(instance_ids.shape)
    distances = np.sort([ndimage.distance_transform_edt(instance_ids != number) for number in objects], axis=0)
    return w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2)) * (instance_ids == 0)


def draw_blobs(height, width, numbers, rng, dtype=np.int32, largest=12):
    """Ellipses with these instance ids; later ones lie over earlier ones, so that many touch."""
    ids = np.zeros((height, width), np.int32)
    for number in numbers:
        centre = rng.integers(0, [width, height]).tolist()
        axes = rng.integers(0, largest, 2).tolist()
        cv2.ellipse(ids, centre, axes, rng.uniform(0, 180), 0, 360, int(number), -1)
    return ids.astype(dtype)


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.lists(st.integers(1, 10_000), max_size=12),
    st.sampled_from([1.0, 5.0, 8.5]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_border_weights_equal_the_plain_definition(height, width, numbers, sigma, seed):
    ids = draw_blobs(height, width, numbers, np.random.default_rng(seed))
    weights = border_weights(ids, sigma=sigma)
    assert (weights.shape, weights.dtype) == (ids.shape, np.float32)
    np.testing.assert_allclose(weights, plain_border_weights(ids, sigma=sigma), atol=1e-5)


def test_border_weights_equal_the_plain_definition_for_a_hundred_objects():
    ids = draw_blobs(300, 280, range(1, 101), np.random.default_rng(0))
    np.testing.assert_allclose(border_weights(ids), plain_border_weights(ids), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_border_weights_take_ids_of_any_integer_dtype_with_gaps(dtype):
    rng = np.random.default_rng(1)
    ids = draw_blobs(60, 80, [5, 250, 17, 90], rng, dtype)
    np.testing.assert_allclose(border_weights(ids), plain_border_weights(ids), atol=1e-5)


def test_border_weights_do_not_depend_on_the_numbers():
    ids = draw_blobs(90, 90, range(1, 9), np.random.default_rng(2))
    renumbered = np.array([0, 900, 3, 77, 2**31 - 1, 5, 123456, 8, 1], np.int32)[ids]
    np.testing.assert_array_equal(border_weights(ids), border_weights(renumbered))


def test_border_weights_between_two_squares_by_hand():
    ids = np.zeros((20, 23), int)
    ids[5:15, 0:10] = 1
    ids[5:15, 13:23] = 2  # three pixels between them
    weights = border_weights(ids, w0=10.0, sigma=5.0)
    # d1 + d2 is 1 + 3, 2 + 2, 3 + 1 across the gap.
    np.testing.assert_allclose(weights[10, 10:13], 10 * np.exp(-16 / 50), rtol=1e-6)
    # Above the gap's middle column, two rows higher: both squares' corners are sqrt(2^2 + 2^2) away.
    assert weights[3, 11] == pytest.approx(10 * np.exp(-((2 * 8**0.5) ** 2) / 50), rel=1e-6)
    # Above the first square: one pixel to it, and a column and a row from the pixel to the second one's corner.
    assert weights[4, 9] == pytest.approx(10 * np.exp(-((1 + 17**0.5) ** 2) / 50), rel=1e-6)
    assert not weights[ids > 0].any()


def test_a_third_object_counts_only_where_it_is_among_the_nearest_two():
    row = np.array([[1, 0, 0, 2, 0, 0, 0, 0, 0, 3]])
    sums = np.array([0, 1 + 2, 2 + 1, 0, 1 + 4, 2 + 4, 3 + 3, 4 + 2, 5 + 1, 0])
    expected = 10 * np.exp(-(sums**2) / 50) * (row[0] == 0)
    np.testing.assert_allclose(border_weights(row)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("filled", [np.s_[:0], np.s_[3:9, 4:11], np.s_[:]], ids=["none", "one", "one that fills all"])
def test_fewer_than_two_objects_have_no_border(filled):
    ids = np.zeros((12, 15), np.int32)
    ids[filled] = 7
    np.testing.assert_array_equal(border_weights(ids), np.zeros((12, 15)))


def test_instances_of_components_by_hand():
    label_map = np.array(
        [
            [1, 1, 0, 2, 2],
            [0, 0, 1, 2, 255],
            [1, 255, 1, 0, 2],
        ],
        np.uint8,
    )
    expected = [
        [1, 1, 0, 4, 4],
        [0, 0, 2, 4, 0],
        [3, 0, 2, 0, 5],
    ]
    np.testing.assert_array_equal(instances_of_components(label_map), expected)
    expected = [
        [1, 1, 0, 3, 3],
        [0, 0, 1, 3, 0],
        [2, 0, 1, 0, 3],
    ]
    np.testing.assert_array_equal(instances_of_components(label_map, connectivity=8), expected)


def test_instances_of_components_with_another_background_and_ignore_label():
    label_map = np.array([[0, 3, 0, 1, 0, 0]], np.uint8)
    ids = instances_of_components(label_map, background=3, ignore_label=1)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, [[1, 0, 2, 0, 3, 3]])


def plain_separation(ids, gap):
    """Pixel by pixel: is another object in the square around it?"""
    result = np.zeros(ids.shape, bool)
    for y, x in np.argwhere(ids > 0):
        near = ids[max(y - gap, 0) : y + gap + 1, max(x - gap, 0) : x + gap + 1]
        result[y, x] = np.any((near > 0) & (near != ids[y, x]))
    return result


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_separate_touching_equals_looking_around_each_pixel(height, width, gap, seed):
    ids = draw_blobs(height, width, [5, 900, 2**31 - 1, 2, 40], np.random.default_rng(seed), largest=9)
    np.testing.assert_array_equal(separate_touching(ids, gap), plain_separation(ids, gap))


@pytest.mark.parametrize("gap", [1, 2])
def test_separated_objects_are_components_of_their_own(gap):
    ids = draw_blobs(120, 120, range(1, 30), np.random.default_rng(3))
    ids[separate_touching(ids, gap)] = 0
    components = instances_of_components((ids > 0).astype(np.uint8), connectivity=8)
    for component in range(1, components.max() + 1):
        assert len(np.unique(ids[components == component])) == 1
    touching = np.repeat([[1, 2]], 6, axis=1)
    np.testing.assert_array_equal(separate_touching(touching, gap).sum(), 2 * gap)
