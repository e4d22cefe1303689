import keras
import numpy as np
import pytest

from detseg.layers.padding import CropLike, PadToMultiple
from detseg.layers.resize import BilinearInitializer, BilinearUpsample, ResizeLike, resize_bilinear


def ramp(height, width):
    """Maps (1, height, width, 2) whose values are the row's and the column's centre in [0, 1]."""
    rows, columns = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    return np.stack(np.broadcast_arrays(rows[:, None], columns[None]), -1)[None].astype("float32")


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("factor", [2, 4, 8, 16, 32])
def test_a_ramp_stays_the_same_ramp_up_to_the_border(factor, learned):
    upsampled = np.array(BilinearUpsample(factor, learned)(ramp(5, 7)))
    expected = ramp(5 * factor, 7 * factor)
    low, high = 0.5 / 5, 1 - 0.5 / 5  # beyond the outermost centres the border value holds
    np.testing.assert_allclose(upsampled[..., 0], expected[..., 0].clip(low, high), atol=1e-6)
    np.testing.assert_allclose(upsampled[..., 1], expected[..., 1].clip(0.5 / 7, 1 - 0.5 / 7), atol=1e-6)


@pytest.mark.parametrize("factor", [2, 8])
def test_an_impulse_stays_where_it_was(factor):
    maps = np.zeros((1, 5, 5, 1), "float32")
    maps[0, 1, 3] = 1
    upsampled = np.array(BilinearUpsample(factor, learned=True)(maps))[0, :, :, 0]
    centres = (np.arange(5 * factor) + 0.5) / factor - 0.5
    assert np.isclose((upsampled.sum(1) * centres).sum() / upsampled.sum(), 1, atol=1e-6)
    assert np.isclose((upsampled.sum(0) * centres).sum() / upsampled.sum(), 3, atol=1e-6)
    assert np.isclose(upsampled.sum(), factor**2)


def test_fixed_and_learned_upsampling_start_equal():
    maps = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype("float32")
    fixed, learned = (np.array(BilinearUpsample(8, learned)(maps)) for learned in (False, True))
    np.testing.assert_allclose(fixed, learned, atol=2e-6)


def test_bilinear_kernel_of_stride_2_by_hand():
    expected = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    kernel = np.asarray(BilinearInitializer()((4, 4, 2, 2)))
    np.testing.assert_allclose(kernel[:, :, 0, 0], expected)
    np.testing.assert_allclose(kernel[:, :, 1, 1], expected)
    assert not kernel[:, :, 0, 1].any()


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_kernel_copies_at_stride_distance_sum_to_one(factor):
    """What makes a checkerboard impossible: every output pixel gets the same total weight."""
    kernel = np.asarray(BilinearInitializer()((2 * factor, 2 * factor, 1, 1)))[:, :, 0, 0]
    folded = kernel.reshape(2, factor, 2, factor).sum((0, 2))
    np.testing.assert_allclose(folded, 1, atol=1e-6)


def test_odd_upsampling_factor_is_refused():
    with pytest.raises(ValueError, match="even"):
        BilinearUpsample(3)


@pytest.mark.parametrize("size", [(7, 9), (3, 20), (13, 5), (6, 8)])
def test_resize_equals_opencv(size):
    import cv2

    maps = np.random.default_rng(1).random((1, 6, 8, 2)).astype("float32")
    expected = cv2.resize(maps[0], size[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(np.array(resize_bilinear(maps, *size))[0], expected, atol=2e-6)


@pytest.mark.parametrize("size", [(7, 9), (81, 113), (3, 20), (13, 5), (6, 8), (1, 1)])
def test_resize_with_aligned_corners_equals_tensorflow_1(size):
    import tensorflow as tf

    maps = np.random.default_rng(1).random((2, 6, 8, 2)).astype("float32")
    expected = tf.compat.v1.image.resize_bilinear(maps, size, align_corners=True)
    np.testing.assert_allclose(np.array(resize_bilinear(maps, *size, align_corners=True)), expected, atol=2e-6)
    np.testing.assert_allclose(resizer(align_corners=True)([maps, np.zeros((2, *size, 3))]), expected, atol=2e-6)
    single = maps[:, :1, :1]
    expected = np.broadcast_to(single, (2, *size, 2))
    np.testing.assert_array_equal(resize_bilinear(single, *size, align_corners=True), expected)


def test_aligned_corners_by_hand():
    line = np.array([0.0, 4.0, 8.0], "float32").reshape(1, 1, 3, 1)
    assert np.ravel(resize_bilinear(line, 1, 9, align_corners=True)).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert np.ravel(resize_bilinear(line, 1, 2, align_corners=True)).tolist() == [0, 8]
    moved = resize_bilinear(line, 1, 9, offset=2.0, align_corners=True)
    assert np.ravel(moved).tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6]


def resizer(align_corners=False):
    maps, reference = keras.Input((None, None, 2)), keras.Input((None, None, 3))
    return keras.Model([maps, reference], ResizeLike(align_corners=align_corners, name="resize")(maps, reference))


@pytest.mark.parametrize(
    ("policy", "tolerance"), [("float32", 2e-6), ("mixed_float16", 2e-3), ("mixed_bfloat16", 2e-2)]
)
def test_resize_layer_works_compiled_at_every_precision(policy, tolerance):
    import tensorflow as tf

    keras.config.set_dtype_policy(policy)
    model = resizer()
    maps, reference = (
        np.random.default_rng(1).random((2, 6, 8, 2)).astype("float32"),
        np.zeros((2, 13, 5, 3), "float32"),
    )
    expected = np.array(resize_bilinear(maps, 13, 5))
    for jit_compile in (False, True):
        compiled = tf.function(model, jit_compile=jit_compile)
        resized = compiled([tf.constant(maps), tf.constant(reference)])
        assert keras.backend.standardize_dtype(resized.dtype) == model.compute_dtype
        np.testing.assert_allclose(np.array(keras.ops.cast(resized, "float32")), expected, atol=tolerance)


def test_resize_layer_is_exported_with_dynamic_sizes(tmp_path):
    import tensorflow as tf

    model = resizer()
    model.export(tmp_path / "saved", verbose=False)
    served = tf.saved_model.load(tmp_path / "saved")
    maps = np.random.default_rng(1).random((1, 6, 8, 2)).astype("float32")
    for size in ((7, 9), (3, 20)):
        resized = served.serve([tf.constant(maps), tf.zeros((1, *size, 3))])
        np.testing.assert_allclose(np.array(resized), np.array(resize_bilinear(maps, *size)), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 95), (1, 1), (31, 32)])
def test_padding_then_cropping_gives_the_image_back(height, width):
    images = np.random.default_rng(2).random((2, height, width, 3)).astype("float32")
    padded = PadToMultiple(32)(images)
    assert padded.shape[1] % 32 == 0
    assert padded.shape[2] % 32 == 0
    np.testing.assert_array_equal(np.array(CropLike()(padded, images)), images)


@pytest.mark.parametrize(("size", "padded"), [(1, 1), (2, 17), (16, 17), (17, 17), (18, 33), (513, 513)])
def test_padding_to_a_multiple_and_one(size, padded):
    layer, images = PadToMultiple(16, remainder=1), np.ones((1, size, 3, 1), "float32")
    outputs = np.array(layer(images))
    assert outputs.shape == (1, padded, 17, 1) == layer.compute_output_shape(images.shape)
    assert outputs[:, :size, :3].all()
    assert outputs.sum() == images.sum()


def test_layers_work_with_unknown_sizes_and_reload_to_the_bit(tmp_path):
    images = keras.Input((None, None, 3))
    x = PadToMultiple(8)(images)
    x = BilinearUpsample(2, learned=True)(BilinearUpsample(4)(x))
    x = CropLike()(x, images)
    model = keras.Model(images, x)
    assert x.shape == (None, None, None, 3)
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    values = np.random.default_rng(3).random((1, 21, 13, 3)).astype("float32")
    np.testing.assert_array_equal(np.array(model(values)), np.array(reloaded(values)))
    assert model(values).shape == values.shape
