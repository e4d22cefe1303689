import numpy as np
import pytest
import tensorflow as tf

from detseg.detection.anchors import Anchors


def test_the_papers_anchors_by_hand():
    """py-faster-rcnn's anchor of size 128 and ratio 1 is -56 -56 71 71 in inclusive pixels: 128 wide around 8."""
    (anchors,) = Anchors(((128, 256, 512),), (16,))((32, 48), [(2, 3)])
    anchors = np.array(anchors).reshape(2, 3, 9, 4)
    np.testing.assert_allclose(anchors[0, 0, 3], [-56, -56, 72, 72])
    np.testing.assert_allclose(anchors[1, 2, 3] - anchors[0, 0, 3], [32, 16, 32, 16])
    width, height = (anchors[..., 2:] - anchors[..., :2]).transpose(3, 0, 1, 2)
    np.testing.assert_allclose(height / width, np.broadcast_to(np.repeat([0.5, 1, 2], 3), (2, 3, 9)), rtol=1e-5)
    np.testing.assert_allclose(width * height, np.broadcast_to(np.tile([128, 256, 512], 3) ** 2, (2, 3, 9)), rtol=1e-5)


def test_torchvisions_anchors_by_hand():
    fine, coarse = Anchors(((32,), (64,)), (4, 8), form="torchvision")((8, 10), [(2, 2), (1, 1)])
    np.testing.assert_array_equal(fine[:3], [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])
    np.testing.assert_array_equal(fine[3:6] - fine[:3], [[5, 0, 5, 0]] * 3)
    np.testing.assert_array_equal(fine[6:9] - fine[:3], [[0, 4, 0, 4]] * 3)
    np.testing.assert_array_equal(coarse, [[-45, -23, 45, 23], [-32, -32, 32, 32], [-23, -45, 23, 45]])


def test_scales_multiply_each_levels_size():
    scaled = Anchors((32, 64), (8, 16), ratios=(1.0,), scales=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)))
    listed = Anchors([[64 * 2 ** (i / 3) for i in range(3)]], (8,), ratios=(1.0,))
    assert scaled.count() == 3
    np.testing.assert_allclose(scaled.shapes(1), listed.shapes(0))


def test_sizes_of_maps_may_be_known_only_when_a_graph_runs():
    anchors = Anchors((32,), (8,))
    graph = tf.function(lambda maps: anchors((64, 64), [tf.unstack(tf.shape(maps))[1:3]]), [tf.TensorSpec([None] * 4)])
    for size in ((2, 3), (5, 1), (0, 4)):
        np.testing.assert_array_equal(graph(tf.zeros((1, *size, 1)))[0], anchors((64, 64), [size])[0])


def test_another_form_is_refused():
    with pytest.raises(ValueError, match="'middle': expected one of cell, torchvision"):
        Anchors((32,), (8,), form="middle")
