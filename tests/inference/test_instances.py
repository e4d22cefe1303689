import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as rle

from detseg.data.masks import encode_instances, encode_masks, label_components
from detseg.inference.instances import find_class_instances, split_at_necks


def discs(*circles, size=(40, 60)):
    y, x = np.indices(size)
    return np.logical_or.reduce([(y - cy) ** 2 + (x - cx) ** 2 <= r**2 for cy, cx, r in circles])


def of_one_class(foreground, *arguments, **options):
    """The ids and scores of one class beside the background, from its probability (H, W)."""
    ids, labels, scores = find_class_instances(np.stack([1 - foreground, foreground], axis=-1), *arguments, **options)
    np.testing.assert_array_equal(labels, np.ones(len(scores)))
    return ids, scores


def test_components_and_their_scores_by_hand():
    probability = np.array([[0.9, 0.7, 0.1, 0.6], [0.1, 0.1, 0.8, 0.5], [0.2, 0.0, 0.9, 0.0]], np.float32)
    ids, scores = of_one_class(probability)
    # 0.5 is not above the threshold, and pixels that touch at a corner do not hang together.
    np.testing.assert_array_equal(ids, [[1, 1, 0, 2], [0, 0, 3, 0], [0, 0, 3, 0]])
    np.testing.assert_allclose(scores, [0.8, 0.6, 0.85])
    assert (ids.dtype, scores.dtype) == (np.int32, np.float32)
    ids, scores = of_one_class(probability, min_pixels=2)
    np.testing.assert_array_equal(ids, [[1, 1, 0, 0], [0, 0, 2, 0], [0, 0, 2, 0]])
    np.testing.assert_allclose(scores, [0.8, 0.85])
    ids, scores = of_one_class(probability, threshold=0.55, min_pixels=4)
    assert not ids.any()
    assert scores.shape == (0,)


def test_an_unknown_method_is_refused():
    with pytest.raises(KeyError):
        of_one_class(np.zeros((2, 2)), method="watersheds")


def test_watershed_parts_two_discs_that_touch_and_no_single_one():
    mask = discs((20, 20, 10), (20, 37, 10))
    parts = split_at_necks(mask)
    assert parts.max() == 2
    np.testing.assert_array_equal(parts > 0, mask)
    np.testing.assert_array_equal(parts[mask], np.where(np.indices(mask.shape)[1] <= 28, 1, 2)[mask])
    assert split_at_necks(discs((20, 20, 15))).max() == 1
    assert label_components(mask).max() == 1


def test_a_neck_parts_at_the_depth_it_has_and_not_beyond():
    # Two squares, 11 high, joined by a bar 5 high: distances are 6 in the squares and 3 in the bar.
    mask = np.zeros((20, 50), bool)
    mask[5:16, 5:16] = mask[5:16, 30:41] = mask[8:13, 16:30] = True
    assert split_at_necks(mask, min_depth=2.9).max() == 2
    assert split_at_necks(mask, min_depth=3.1).max() == 1


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 1), st.sampled_from([0.5, 1.0, 3.0]))
def test_watershed_only_divides_components_and_assigns_every_pixel(seed, share, min_depth):
    mask = np.random.default_rng(seed).random((10, 12)) < share
    parts, components = split_at_necks(mask, min_depth), label_components(mask)
    np.testing.assert_array_equal(parts > 0, mask)
    pairs = np.unique(np.stack([parts[mask], components[mask]]), axis=1)
    assert pairs.shape[1] == parts.max()  # each part lies in one component
    assert (split_at_necks(mask, min_depth) == parts).all()


def test_a_map_that_is_all_foreground_or_all_background_has_one_object_or_none():
    for method in ("components", "watershed"):
        ids, scores = of_one_class(np.ones((6, 7)), method=method)
        assert (ids == 1).all()
        np.testing.assert_array_equal(scores, [1])
        ids, scores = of_one_class(np.zeros((6, 7)), method=method)
        assert not ids.any()
        assert scores.shape == (0,)


def test_instances_of_two_classes_by_hand():
    background, first, second = [0.1, 0.1, 0.6, 0.1], [0.8, 0.3, 0.3, 0.2], [0.1, 0.6, 0.1, 0.7]
    probabilities = np.stack([background, first, second], axis=-1)[None]
    ids, labels, scores = find_class_instances(probabilities)
    np.testing.assert_array_equal(ids, [[1, 2, 0, 3]])
    np.testing.assert_array_equal(labels, [1, 2, 2])
    np.testing.assert_allclose(scores, [0.8, 0.6, 0.7])
    ids, labels, scores = find_class_instances(probabilities, threshold=0.3)  # foreground of the third: 0.4
    np.testing.assert_array_equal(ids, [[1, 3, 2, 4]])
    np.testing.assert_array_equal(labels, [1, 1, 2, 2])
    np.testing.assert_allclose(scores, [0.8, 0.3, 0.6, 0.7])


@pytest.mark.parametrize("method", ["components", "watershed"])
@pytest.mark.parametrize("order", [np.asfortranarray, lambda array: np.ascontiguousarray(array.T).T])
def test_instances_are_the_same_in_any_memory_order(method, order):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), (30, 40)).astype(np.float32)
    expected = find_class_instances(probabilities, 0.4, method, 3)
    assert expected[0].any()
    for found, one in zip(find_class_instances(order(probabilities), 0.4, method, 3), expected, strict=True):
        np.testing.assert_array_equal(found, one)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))
def test_codes_of_an_id_map_are_those_of_its_masks(seed, count, height, width):
    ids = np.random.default_rng(seed).integers(0, count + 1, (height, width))
    ids = np.searchsorted(np.union1d([0], ids), ids)  # 0..N without gaps
    masks = ids == np.arange(1, ids.max() + 1)[:, None, None]
    codes = encode_instances(ids)
    assert codes == encode_masks(masks)
    assert codes == [rle.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]


def test_a_map_without_instances_has_no_codes():
    assert encode_instances(np.zeros((4, 5), np.int32)) == []
    assert encode_masks(np.zeros((0, 4, 5), np.uint8)) == []
