import keras
import numpy as np
import pytest

from detseg.backbones.create import create_backbone
from detseg.segmentation.fcn import SCORED_STRIDES, create_fcn, load_dense_weights
from detseg.segmentation.options import FCNOptions


def fcn(name, backbone, class_count, **options):
    return create_fcn(FCNOptions(name=name, backbone=backbone.name, **options), backbone, class_count)


class PoolingBackbone:
    """A backbone whose level at stride s is the mean of each s x s block: what a perfectly aligned one would give."""

    name = "mobilenet"  # it stands in for one
    preprocessing = "tf"
    keys = (8, 16, 32)
    strides = {8: 8, 16: 16, 32: 32}  # noqa: RUF012 - as in Backbone

    def __init__(self):
        self.model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Identity()])

    def __call__(self, images):
        return {key: keras.layers.AveragePooling2D(key, name=f"pool{key}")(images) for key in self.keys}


def ramp_image(height, width):
    """Red grows with the row, green with the column."""
    image = np.zeros((1, height, width, 3), np.uint8)
    image[..., 0] = np.arange(height)[:, None]
    image[..., 1] = np.arange(width)
    return image


@pytest.mark.parametrize("size", [(192, 160), (161, 255), (129, 131), (200, 97)])
@pytest.mark.parametrize("name", SCORED_STRIDES)
def test_a_ramp_stays_where_it_was_at_every_image_size(name, size):
    backbone = PoolingBackbone()
    model = fcn(name, backbone, 2, dropout=0.0)
    kernel = np.zeros((1, 1, 3, 2), "float32")
    kernel[0, 0, 0, 0] = kernel[0, 0, 1, 1] = 1  # class 0 scores red, class 1 green
    for stride in SCORED_STRIDES[name]:
        model.get_layer(f"score{stride}").set_weights([kernel, np.zeros(2, "float32")])
    image = ramp_image(*size)
    logits = np.array(model(image)) / len(SCORED_STRIDES[name])
    assert logits.shape == (1, *size, 2)
    expected = image[..., :2] / 127.5 - 1
    # Where no block reaches over the border or into the padding.
    rows, columns = (slice(32, length // 32 * 32 - 48) for length in size)
    np.testing.assert_allclose(logits[:, rows, columns], expected[:, rows, columns], atol=1e-5)


def test_an_impulse_on_the_finest_skip_stays_in_its_block():
    model = fcn("fcn8s", PoolingBackbone(), 1, dropout=0.0)
    model.get_layer("score8").set_weights([np.ones((1, 1, 3, 1), "float32"), np.zeros(1, "float32")])
    image = np.zeros((1, 99, 99, 3), np.uint8)
    image[0, 40:48, 64:72] = 255
    logits = np.array(model(image))[0, :, :, 0] - np.array(model(image * 0))[0, :, :, 0]
    rows, columns = np.nonzero(logits > logits.max() / 2)
    assert (rows.mean(), columns.mean()) == (43.5, 67.5)


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
@pytest.mark.parametrize("name", SCORED_STRIDES)
@pytest.mark.parametrize("backbone", ["mobilenet", "mobilenetv2"])
def test_logits_start_at_zero_at_input_size(name, backbone, upsampling):
    model = fcn(name, create_backbone(backbone, alpha=0.25), 4, upsampling=upsampling)
    logits = np.array(model(np.full((2, 65, 47, 3), 99, np.uint8)))
    assert logits.shape == (2, 65, 47, 4)
    assert logits.dtype == np.float32
    assert not logits.any()
    assert model.output.shape == (None, None, None, 4)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_dilated_backbones_need_less_upsampling(output_stride):
    model = fcn("fcn8s", create_backbone("mobilenetv2", output_stride, alpha=0.35), 3)
    names = [layer.name for layer in model.layers]
    assert ("upsample_to16" in names) == (output_stride == 32)
    assert ("upsample_to8" in names) == (output_stride > 8)
    assert model.get_layer("upsample_to_image").factor == 8
    assert model(np.zeros((1, 40, 72, 3), np.uint8)).shape == (1, 40, 72, 3)


def test_skips_of_vgg_leave_after_its_pools():
    model = fcn("fcn8s", create_backbone("vgg16"), 2, head_channels=8)
    assert model.get_layer("score16").input.shape[-1] == 512
    assert model.get_layer("score8").input.shape[-1] == 256


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_gives_finite_float32_logits(precision):
    old = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model = fcn("fcn8s", create_backbone("mobilenet", alpha=0.25), 3, upsampling="learned")
    finally:
        keras.config.set_dtype_policy(old)
    for stride in (32, 16, 8):
        layer = model.get_layer(f"score{stride}")
        layer.set_weights([np.random.default_rng(0).normal(size=w.shape) for w in layer.weights])
    logits = np.array(model(np.random.default_rng(0).integers(0, 256, (1, 45, 70, 3)).astype(np.uint8)))
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert logits.any()


def test_dense_weights_as_convolutions_score_a_7x7_map_as_the_dense_layers_do():
    rng = np.random.default_rng(0)
    features, width = rng.normal(size=(1, 7, 7, 6)).astype("float32"), 5
    dense = {
        "fc1": (rng.normal(size=(7 * 7 * 6, width)), rng.normal(size=width)),
        "fc2": (np.eye(width), np.ones(width)),
    }
    inputs = keras.Input((7, 7, 6))
    x = keras.layers.Conv2D(width, 7, name="fc6")(inputs)
    model = keras.Model(inputs, keras.layers.Conv2D(width, 1, name="fc7")(x))
    load_dense_weights(model, dense)
    expected = features.reshape(1, -1) @ dense["fc1"][0] + dense["fc1"][1] + 1
    np.testing.assert_allclose(np.array(model(features))[0, 0], expected, rtol=1e-4)


def test_saved_and_reloaded_model_gives_the_same_logits_to_the_bit(tmp_path):
    model = fcn("fcn8s", create_backbone("mobilenetv2", alpha=0.35), 3, upsampling="learned")
    for stride in (32, 16, 8):
        layer = model.get_layer(f"score{stride}")
        layer.set_weights([np.random.default_rng(stride).normal(size=w.shape) for w in layer.weights])
    image = np.random.default_rng(0).integers(0, 256, (1, 50, 61, 3)).astype(np.uint8)
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.array(model(image)), np.array(reloaded(image)))
