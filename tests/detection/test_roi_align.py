import math
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.detection.roi_align import assign_levels, roi_align, roi_pool

BOTH_WAYS = pytest.mark.parametrize("under_xla", [False, True], ids=["kernel", "gather"])
ALIGNED_OR_NOT = pytest.mark.parametrize("aligned", [False, True])
EDGE_CASES = [
    [0, 0, 64, 48],  # the whole image
    [-30, -20, 40, 30],
    [50, 40, 90, 90],
    [-100, -100, 300, 300],
    [200, 200, 240, 220],  # outside
    [10, 10, 10.5, 10.25],  # within a pixel of the map
    [0, 0, 0, 0],
    [63.9, 47.9, 64, 48],
]


def random_maps(rng, batch=2, channels=3, sizes=((12, 16), (6, 8), (3, 4))):
    """Maps of an image of 48 x 64 at strides 4, 8, 16."""
    return [rng.normal(size=(batch, *size, channels)).astype("float32") for size in sizes]


def random_boxes(rng, batch=2, count=20):
    corners = rng.uniform(-5, 50, (batch, count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 60, (batch, count, 2))], -1)
    return np.concatenate([boxes, np.tile(EDGE_CASES, (batch, 1, 1))], 1).astype("float32")


def with_gradients(maps, function):
    tensors = [tf.constant(x) for x in maps]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        pooled = function(tensors)
        total = tf.reduce_sum(pooled * tf.cos(tf.reshape(tf.range(tf.size(pooled), dtype="float32"), pooled.shape)))
    return pooled.numpy(), [np.array(tf.convert_to_tensor(x)) for x in tape.gradient(total, tensors)]


def reference(maps, boxes, stride, size, samples, aligned):
    """Sample by sample, in float64: (B, R, size, size, C)."""
    batch, height, width, channels = maps.shape

    def interpolate(pixels, y, x):
        if not (-1 <= y <= height and -1 <= x <= width):
            return np.zeros(channels)
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        upper = pixels[top, left] * (1 - x + left) + pixels[top, right] * (x - left)
        lower = pixels[bottom, left] * (1 - x + left) + pixels[bottom, right] * (x - left)
        return upper * (1 - y + top) + lower * (y - top)

    pooled = np.zeros((batch, boxes.shape[1], size, size, channels))
    for b, r, i, j in np.ndindex(pooled.shape[:4]):
        x1, y1, x2, y2 = boxes[b, r].astype("float64") / stride - (0.5 if aligned else 0)
        bin_width, bin_height = (x2 - x1) / size, (y2 - y1) / size
        if not aligned:
            bin_width, bin_height = max(bin_width, 1 / size), max(bin_height, 1 / size)
        for k, m in np.ndindex(samples, samples):
            y, x = y1 + (i + (k + 0.5) / samples) * bin_height, x1 + (j + (m + 0.5) / samples) * bin_width
            pooled[b, r, i, j] += interpolate(maps[b], y, x) / samples**2
    return pooled


@BOTH_WAYS
@ALIGNED_OR_NOT
@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
def test_roi_align_is_the_mean_of_bilinear_samples(under_xla, aligned, sampling_ratio):
    rng = np.random.default_rng(0)
    (maps,), boxes = random_maps(rng, sizes=((12, 16),)), random_boxes(rng, count=5)
    pooled = roi_align([maps], boxes, [4], 3, sampling_ratio, aligned, under_xla=under_xla)
    np.testing.assert_allclose(pooled, reference(maps, boxes, 4, 3, sampling_ratio, aligned), atol=2e-5)


@pytest.mark.parametrize("deterministic", ["", "1"])
def test_gradients_of_many_regions_over_one_another_are_whole_and_the_same_each_time(deterministic, monkeypatch):
    """TensorFlow's own kernel loses what two threads add at once: up to a quarter of a pixel's gradient was missing."""
    monkeypatch.setenv("TF_DETERMINISTIC_OPS", deterministic)
    if deterministic:
        tf.config.experimental.enable_op_determinism()  # stays on, as after a training
    rng = np.random.default_rng(5)
    maps = [rng.normal(size=(1, 24, 24, 16)).astype("float32")]
    starts = rng.uniform(0, 60, (1, 300, 2))
    boxes = np.concatenate([starts, starts + rng.uniform(5, 36, (1, 300, 2))], -1).astype("float32")

    def slopes(under_xla):
        return with_gradients(maps, lambda maps: roi_align(maps, boxes, [4], 7, under_xla=under_xla))[1][0]

    first = slopes(under_xla=False)
    np.testing.assert_allclose(first, slopes(under_xla=True), atol=2e-4)
    for _ in range(5):
        np.testing.assert_array_equal(slopes(under_xla=False), first)


@ALIGNED_OR_NOT
def test_kernel_and_gather_agree_in_values_and_gradients_over_levels(aligned):
    rng = np.random.default_rng(1)
    maps, boxes = random_maps(rng), random_boxes(rng, count=40)
    levels = np.array(assign_levels(boxes, 2, 4, (32, 3)))
    assert set(levels.ravel()) == {0, 1, 2}
    results = [
        with_gradients(
            maps,
            lambda maps, under_xla=under_xla: roi_align(
                maps, boxes, [4, 8, 16], 7, 2, aligned, (32, 3), under_xla=under_xla
            ),
        )
        for under_xla in (False, True)
    ]
    np.testing.assert_allclose(results[0][0], results[1][0], atol=2e-5)
    for slope, expected in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(slope, expected, atol=2e-4)
        assert np.abs(slope).max() > 0.1


@BOTH_WAYS
def test_each_region_is_taken_from_its_level(under_xla):
    rng = np.random.default_rng(2)
    maps, boxes = random_maps(rng), random_boxes(rng)
    pooled = np.array(roi_align(maps, boxes, [4, 8, 16], 3, canonical=(32, 3), under_xla=under_xla))
    levels = np.array(assign_levels(boxes, 2, 4, (32, 3)))
    for level, stride in enumerate((4, 8, 16)):
        alone = np.array(roi_align([maps[level]], boxes, [stride], 3, under_xla=under_xla))
        np.testing.assert_allclose(pooled[levels == level], alone[levels == level], atol=1e-6)


@BOTH_WAYS
@pytest.mark.parametrize(("aligned", "offset"), [(True, 0.5), (False, 0.0)])
def test_a_ramp_gives_the_centres_of_the_bins(under_xla, aligned, offset):
    columns = np.broadcast_to((np.arange(16) + offset) * 4, (12, 16))  # where pixel i lies
    rows = np.broadcast_to(((np.arange(12) + offset) * 4)[:, None], (12, 16))
    maps = np.stack([columns, rows], -1)[None].astype("float32")
    pooled = roi_align([maps], [[[8, 4, 50, 40]]], [4], 3, aligned=aligned, under_xla=under_xla)[0, 0]
    np.testing.assert_allclose(pooled[..., 0], np.broadcast_to([15, 29, 43], (3, 3)), rtol=1e-5)
    np.testing.assert_allclose(pooled[..., 1], np.broadcast_to([[10], [22], [34]], (3, 3)), rtol=1e-5)


def test_levels_of_regions_by_hand():
    sizes = np.array([0, 1, 111.99, 112, 223.99, 224, 447, 448, 5000])
    boxes = np.stack([0 * sizes, 0 * sizes, sizes, sizes], -1)
    np.testing.assert_array_equal(assign_levels(boxes, 2, 5), np.array([2, 2, 2, 3, 3, 4, 4, 5, 5]) - 2)


@BOTH_WAYS
def test_half_precision_features_are_sampled_in_float32(under_xla):
    rng = np.random.default_rng(3)
    (maps,), boxes = random_maps(rng, sizes=((12, 16),)), random_boxes(rng)
    half = tf.cast(maps, tf.bfloat16)
    pooled = roi_align([half], boxes, [4], under_xla=under_xla)
    assert pooled.dtype == tf.bfloat16
    exact = roi_align([tf.cast(half, tf.float32)], boxes, [4], under_xla=under_xla)
    np.testing.assert_array_equal(pooled, tf.cast(exact, tf.bfloat16))


def pool_reference(maps, boxes, stride, size):
    """Bin by bin."""
    batch, height, width, channels = maps.shape
    pooled = np.zeros((batch, boxes.shape[1], size, size, channels), "float32")
    for b, r, i, j in np.ndindex(pooled.shape[:4]):
        x1, y1, x2, y2 = (math.copysign(math.floor(abs(x) / stride + 0.5), x) for x in boxes[b, r].tolist())
        bin_height, bin_width = (Fraction(int(max(n, 1)), size) for n in (y2 - y1 + 1, x2 - x1 + 1))
        top, bottom = (
            np.clip(n + y1, 0, height) for n in (math.floor(i * bin_height), math.ceil((i + 1) * bin_height))
        )
        left, right = (np.clip(n + x1, 0, width) for n in (math.floor(j * bin_width), math.ceil((j + 1) * bin_width)))
        pixels = maps[b, int(top) : int(bottom), int(left) : int(right)]
        if pixels.size:
            pooled[b, r, i, j] = pixels.max((0, 1))
    return pooled


@pytest.mark.parametrize(("shape", "stride"), [((12, 16), 4), ((1, 5), 16), ((33, 8), 2)])
def test_roi_pool_takes_the_maximum_of_each_bin(shape, stride):
    rng = np.random.default_rng(4)
    (maps,), boxes = random_maps(rng, sizes=(shape,)), random_boxes(rng, count=10)
    np.testing.assert_array_equal(roi_pool(maps, boxes, stride, 4), pool_reference(maps, boxes, stride, 4))


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 4, 16]), st.integers(0, 2**32 - 1)
)
@settings(max_examples=25, deadline=None)
def test_roi_pool_of_regions_inside_needs_fewer_windows(height, width, size, stride, seed):
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(1, height, width, 2)).astype("float32")
    corners = rng.uniform(0, 1, (2, 8, 2)) ** 0.3  # large ones
    whole = np.array([[[0, 0, 1, 1]]])
    boxes = np.concatenate([whole, np.concatenate([corners.min(0) ** 3, corners.max(0)], -1)[None]], axis=1)
    boxes = (boxes * stride * np.array([width, height, width, height])).astype("float32")
    expected = pool_reference(maps, boxes, stride, size)
    np.testing.assert_array_equal(roi_pool(maps, boxes, stride, size, inside=True), expected)


def test_the_gradient_of_roi_pool_goes_to_the_maxima():
    rng = np.random.default_rng(5)
    (maps,), boxes = random_maps(rng, sizes=((9, 11),)), random_boxes(rng, count=10)
    pooled, (slopes,) = with_gradients([maps], lambda maps: roi_pool(maps[0], boxes, 4, 3))
    expected, weights = np.zeros_like(maps), np.cos(np.arange(pooled.size)).reshape(pooled.shape)
    for index in np.ndindex(pooled.shape):
        if pooled[index] != 0:
            expected[index[0], ..., index[-1]][maps[index[0], ..., index[-1]] == pooled[index]] += weights[index]
    np.testing.assert_allclose(slopes, expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["kernel", "gather", "roi_pool"])
def test_no_regions_and_sizes_known_only_when_a_graph_runs(pooling, monkeypatch):
    monkeypatch.setattr("detseg.detection.roi_align._LARGEST_MAP", 15)  # a smaller graph

    def pool(maps, boxes):
        if pooling == "roi_pool":
            return roi_pool(maps, boxes, 4, 3)
        return roi_align([maps, maps[:, ::2, ::2]], boxes, [4, 8], 3, under_xla=pooling == "gather")

    rng = np.random.default_rng(6)
    graph = tf.function(pool, [tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, None, 4])])
    for batch, count in ((1, 3), (2, 0)):
        (maps,), boxes = random_maps(rng, batch, sizes=((8, 10 + batch),)), random_boxes(rng, batch)[:, :count]
        pooled = graph(maps, boxes)
        assert pooled.shape == (batch, count, 3, 3, 3)
        np.testing.assert_allclose(pooled, pool(maps, boxes), atol=1e-5)
    _, (slope,) = with_gradients([maps], lambda maps: pool(maps[0], boxes))
    np.testing.assert_array_equal(slope, 0)
