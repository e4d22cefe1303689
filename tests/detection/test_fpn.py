import keras
import numpy as np
import pytest

from detseg.backbones.create import create_backbone
from detseg.detection.fpn import UpsampleNearestLike, fpn


def create_pyramid(sizes, strides, extra=None, norm=None, channels=4):
    """Model of maps of these sizes to its levels, and their strides."""
    inputs = {stride: keras.Input((*size, 5)) for stride, size in zip(strides, sizes, strict=True)}
    levels, level_strides = fpn(inputs, {key: key for key in strides}, channels, extra, norm)
    return keras.Model(list(inputs.values()), list(levels.values())), level_strides


def random_maps(*sizes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, *size, 5)).astype("float32") for size in sizes]


def test_the_pyramid_is_that_of_figure_3():
    sizes = ((9, 13), (5, 7), (3, 4))  # as maps of odd sizes are rounded up
    model, strides = create_pyramid(sizes, (8, 16, 32))
    assert strides == {8: 8, 16: 16, 32: 32}
    maps = random_maps(*sizes)
    lateral = {key: model.get_layer(f"fpn_lateral{key}") for key in strides}
    output = {key: model.get_layer(f"fpn_output{key}") for key in strides}
    merged = {32: np.array(lateral[32](maps[2]))}
    for key, x in ((16, maps[1]), (8, maps[0])):
        rows, columns = (np.arange(n) // 2 for n in x.shape[1:3])
        merged[key] = np.array(lateral[key](x)) + merged[2 * key][:, rows][:, :, columns]
    for key, level in zip(strides, model(maps), strict=True):
        np.testing.assert_allclose(level, output[key](merged[key]), atol=1e-5)


@pytest.mark.parametrize("extra", ["pool", "conv_c5", "conv_p5"])
def test_extra_levels_halve_the_last_one(extra):
    model, strides = create_pyramid(((8, 6), (4, 3)), (16, 32), extra)
    assert strides == {16: 16, 32: 32, 64: 64} | ({} if extra == "pool" else {128: 128})
    maps = random_maps((8, 6), (4, 3))
    levels = dict(zip(strides, model(maps), strict=True))
    if extra == "pool":
        np.testing.assert_array_equal(levels[64], levels[32][:, ::2, ::2])
        return
    source = maps[1] if extra == "conv_c5" else np.array(levels[32])
    kernel, bias = model.get_layer("fpn_output64").get_weights()
    padded = np.pad(source, [(0, 0), (1, 1), (1, 1), (0, 0)])
    corner = np.einsum("bhwc,hwck->bk", padded[:, :3, :3], kernel) + bias
    np.testing.assert_allclose(levels[64][:, 0, 0], corner, atol=1e-5)
    assert levels[64].shape == (2, 2, 2, 4)
    expected = model.get_layer("fpn_output128")(np.pad(np.maximum(levels[64], 0), [(0, 0), (1, 1), (1, 1), (0, 0)]))
    np.testing.assert_allclose(levels[128], expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_norms_follow_the_convolutions_in_place_of_their_bias(norm):
    normed, _ = create_pyramid(((8, 6), (4, 3)), (16, 32), "pool", norm)
    assert not any(layer.use_bias for layer in normed.layers if isinstance(layer, keras.layers.Conv2D))
    norms = {layer.name for layer in normed.layers if layer.name.endswith("norm")}
    assert norms == {f"fpn_{part}{key}_norm" for part in ("lateral", "output") for key in (16, 32)}


@pytest.mark.parametrize(
    ("name", "output_stride", "height"), [("resnet18", 32, 70), ("vgg16", 32, 70), ("resnet18", 16, 64)]
)
def test_it_stands_on_the_features_of_a_backbone_of_any_size_and_stride(name, output_stride, height):
    backbone = create_backbone(name, output_stride=output_stride, alpha=0.125)
    images = keras.Input((None, None, 3))
    features = backbone(images)
    levels, strides = fpn({key: features[key] for key in (8, 16, 32)}, backbone.strides, 4, "conv_c5")
    assert list(strides.values()) == ([8, 16, 32, 64, 128] if output_stride == 32 else [8, 16, 16, 32, 64])
    model = keras.Model(images, [features, levels])
    features, levels = model(np.random.default_rng(0).normal(size=(1, height, 90, 3)).astype("float32"))
    for key, level in levels.items():
        if key in features:
            assert level.shape == (*features[key].shape[:3], 4)


@pytest.mark.parametrize("size", [4, 5, 6, 7])
def test_upsampling_takes_pixel_i_over_2_or_the_last_one(size):
    maps = np.arange(3, dtype="float32").reshape(1, 3, 1, 1)
    upsampled = UpsampleNearestLike(2)(maps, np.zeros((1, size, 2, 5), "float32"))
    np.testing.assert_array_equal(upsampled[0, :, 0, 0], [0, 0, 1, 1, 2, 2, 2][:size])
    assert upsampled.shape == (1, size, 2, 1)


def test_an_unknown_extra_level_is_refused():
    with pytest.raises(ValueError, match="'p6': expected None or one of pool, conv_c5, conv_p5"):
        create_pyramid(((4, 4),), (32,), "p6")
