"""Tiles put together equal the whole image; sizes that can't work are refused."""

import logging

import keras
import numpy as np
import pytest

from detseg.backbones.create import create_backbone
from detseg.errors import UserError
from detseg.inference.tiling import ImageSource, Tiler, mirrored_places
from detseg.layers.padding import MirrorPad, PadToMultiple
from detseg.segmentation.deeplabv3 import create_deeplabv3
from detseg.segmentation.fcn import create_fcn
from detseg.segmentation.options import DeepLabV3PlusOptions, FCNOptions, UNetOptions
from detseg.segmentation.unet import create_encoder_unet, create_unet

CLASSES = 3


def unet(class_count, channels=3, **options):
    return create_unet(UNetOptions(name="unet", **options), class_count, channels)


def encoder_unet(backbone, class_count, **options):
    return create_encoder_unet(UNetOptions(name="unet", backbone=backbone.name, **options), backbone, class_count)


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def with_random_weights(model, seed=0):
    """Norms with statistics of their own, and logits of about 0 to 1, which softmax doesn't saturate."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if len(shape) == 4:
            variable.assign(rng.normal(0, (2 / np.prod(shape[:3])) ** 0.5, shape))
        elif variable.path.endswith(("variance", "gamma")):
            variable.assign(rng.uniform(0.8, 1.25, shape))
        else:
            variable.assign(rng.normal(0, 0.1, shape))
    logits = np.array(model(picture(256, 256, model.input_shape[-1])[None]))
    mean, scale = logits.mean(axis=(0, 1, 2)), logits.std(axis=(0, 1, 2)).max()
    heads = [layer for layer in model.layers if layer.weights and layer.name.startswith(("score", "logits"))]
    for layer in heads:  # the logits are their sum
        layer.set_weights([weight / scale for weight in layer.get_weights()])
    heads[-1].bias.assign_sub(mean / scale)
    return model


def whole_image(model, image, tiler):
    """float32 (H, W, K): probabilities of the model on the mirrored whole image."""
    if not any(isinstance(layer, MirrorPad) for layer in model.layers):  # else it mirrors the image itself
        rows, columns = tiler.axes
        margins = [(axis.before, axis.overlap - axis.before) for axis in (rows, columns)]
        fill = [(0, -size % axis.alignment) for size, axis in zip(image.shape, tiler.axes, strict=False)]
        mirrored = np.pad(image, [*np.add(margins, fill), (0, 0)], mode="reflect")
        scores = keras.ops.softmax(model(mirrored[None]))[0]
        return np.array(scores)[rows.before :, columns.before :][: image.shape[0], : image.shape[1]]
    return np.array(keras.ops.softmax(model(image[None]))[0])


def check_equal(model, sizes, tile, tolerance=2e-6):
    with_random_weights(model)
    tiler = Tiler(model, tile)
    for size in sizes:
        image = picture(*size, model.input_shape[-1])
        expected = whole_image(model, image, tiler)
        assert expected.shape == (*size, CLASSES)
        actual = tiler.predict(image, probabilities=True)
        np.testing.assert_allclose(actual.probabilities, expected, atol=tolerance)
        np.testing.assert_array_equal(actual.label_map, actual.probabilities.argmax(-1))
        label_map = tiler.predict(image).label_map
        assert label_map.dtype == np.uint8
        two_best = np.sort(expected, axis=-1)[..., -2:]
        is_clear = two_best[..., 1] - two_best[..., 0] > 2 * tolerance
        np.testing.assert_array_equal(label_map[is_clear], expected.argmax(-1)[is_clear])
    assert expected.std(axis=(0, 1)).max() > 0.01, "the last image differs from pixel to pixel"
    assert np.median(expected.max(axis=-1)) < 0.9, "and softmax hides no errors"
    return tiler


# One more than a block, primes, smaller than the margin, a single pixel, a line, several tiles both ways.
SIZES = [(57, 57), (101, 97), (3, 50), (1, 1), (1, 130), (230, 113)]


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_tiles_of_the_papers_unet_equal_the_whole_image(norm):
    tiler = check_equal(unet(CLASSES, 1, width=4, depth=2, padding="valid", norm=norm), SIZES, tile=40 + 56)
    assert [tiler.tile_count(size) for size in SIZES] == [4, 4, 1, 1, 3, 15]


def test_tiles_of_a_padded_unet_equal_the_whole_image():
    tiler = check_equal(unet(CLASSES, 3, width=4, depth=2, padding="same"), SIZES, tile=48 + 56)
    assert [tiler.tile_count(size) for size in SIZES] == [4, 4, 1, 1, 3, 15]


@pytest.mark.parametrize(("name", "output_stride"), [("vgg16", 32), ("mobilenet", 16)])
def test_tiles_of_a_unet_with_an_encoder_equal_the_whole_image(name, output_stride):
    backbone = create_backbone(name, alpha=0.0625, output_stride=output_stride)
    model = encoder_unet(backbone, CLASSES, decoder_channels=(4,) * 5)
    overlap = Tiler(model).axes[0].overlap
    tiler = check_equal(model, [(101, 331)], tile=overlap + 160, tolerance=1e-5)
    assert tiler.tile_count((101, 331)) == 3


def test_tiles_of_an_fcn_equal_the_whole_image():
    options = FCNOptions(name="fcn8s", backbone="vgg16", head_channels=8)
    model = create_fcn(options, create_backbone("vgg16", alpha=0.0625), CLASSES)
    check_equal(model, [(101, 331)], tile=Tiler(model).axes[0].overlap + 160, tolerance=1e-5)


def test_tiles_of_deeplab_without_image_pooling_equal_the_whole_image():
    backbone = create_backbone("resnet18", alpha=0.0625, output_stride=16)
    heads = {"aspp_rates": (1, 2), "aspp_channels": 4, "decoder_channels": 4, "low_level_channels": 4}
    options = DeepLabV3PlusOptions(name="deeplabv3plus", backbone="resnet18", image_pooling=False, **heads)
    model = create_deeplabv3(options, backbone, CLASSES)
    check_equal(model, [(101, 331)], tile=Tiler(model).axes[0].overlap + 160, tolerance=1e-5)


def test_rows_and_columns_have_overlaps_of_their_own():
    images = keras.Input((None, None, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(CLASSES, (1, 9), padding="same", activation="relu")(x)
    model = keras.Model(images, keras.layers.Conv2D(CLASSES, (3, 1), padding="same", name="logits")(x))
    tiler = check_equal(model, [(31, 29)], tile=20)
    assert [axis.overlap for axis in tiler.axes] == [2, 8]


# ----- blending ------------------------------------------------------------------------------------------------------


def test_networks_that_see_whole_maps_say_so_once_and_blend_without_seams(caplog):
    model = unet(CLASSES, 3, width=4, depth=2, padding="same", norm="group")
    with caplog.at_level(logging.WARNING, logger="detseg"):
        tiler = Tiler(model, 64)
        tiler.predict(picture(100, 150))
    (message,) = [record.getMessage() for record in caplog.records]
    assert "down1_conv1_norm" in message
    model.get_layer("logits_conv").set_weights([np.zeros((1, 1, 4, CLASSES)), np.array([0.0, 2.0, 1.0])])
    bands = list(tiler.bands(ImageSource(picture(200, 150))))
    assert len(bands) > 1
    probabilities = np.concatenate([band.probabilities for band in bands])
    expected = np.exp([0, 2, 1]) / np.exp([0, 2, 1]).sum()
    np.testing.assert_allclose(probabilities, np.broadcast_to(expected, (200, 150, CLASSES)), atol=1e-6)
    assert (np.concatenate([band.label_map for band in bands]) == 1).all()


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_blended_tiles_are_near_the_whole_image_and_a_single_one_equals_it(padding):
    model = with_random_weights(unet(CLASSES, 3, width=4, depth=2, padding=padding, norm="group"))
    image = picture(97, 150)
    filled = np.pad(image, [(0, -97 % 4), (0, -150 % 4), (0, 0)], mode="reflect")
    image_or_filled = filled if padding == "same" else image  # the unpadded model mirrors the image itself
    expected = np.array(keras.ops.softmax(model(image_or_filled[None]))[0])[:97, :150]
    single, several = Tiler(model, 256 - 64 * (padding == "valid")), Tiler(model, 104)
    assert single.tile_count(image.shape) == 1
    assert several.tile_count(image.shape) >= 2
    np.testing.assert_allclose(single.predict(image, True).probabilities, expected, atol=1e-5)
    error = np.abs(several.predict(image, True).probabilities - expected)
    assert 1e-6 < error.mean() < 0.02


def test_weights_of_blended_tiles_sum_to_one():
    axis = Tiler(unet(CLASSES, 3, width=4, depth=2, padding="valid", norm="group"), 104).axes[0]
    for length in (1, 40, 64, 65, 500, 1001):
        for largest in (axis.smallest, 104, 200):
            starts, tile = axis.plan(length, largest)
            total = np.zeros(starts[-1] + tile - axis.overlap)
            for start, weights in zip(starts, axis.weights(starts, tile), strict=True):
                total[start : start + len(weights)] += weights
            assert len(total) >= length
            np.testing.assert_allclose(total, 1, atol=1e-6)


# ----- sizes ---------------------------------------------------------------------------------------------------------


def test_the_papers_tile_is_572_pixels():
    model = unet(2, 1, width=1, depth=4, padding="valid", norm="none")
    axis = Tiler(model, 572).axes[0]
    assert (axis.alignment, axis.residue, axis.before) == (16, 12, 92)
    assert axis.step(572) == 384, "388 down to a multiple of 16, where the next tile has to lie"
    for tile, nearest in ((570, 572), (576, 572), (581, 588), (1, 204), (-5, 204), (203, 204)):
        with pytest.raises(UserError, match=f"--tile: {tile} .* nearest that works is {nearest}"):
            Tiler(model, tile)


def test_tiles_that_do_not_fit_a_padded_network_are_refused():
    model = unet(2, 1, width=1, depth=2, padding="same")
    assert Tiler(model, 52).axes[0].smallest == 52
    for tile, nearest in ((20, 52), (55, 56), (101, 100), (1001, 1000)):
        with pytest.raises(UserError, match=f"--tile: {tile} .*multiple of 4, at least 52, .* works is {nearest}"):
            Tiler(model, tile)


def test_automatic_tiles_follow_the_memory():
    model = unet(2, 1, width=8, depth=2)
    sides = [Tiler(model, memory_bytes=2**20 * megabytes).tile for megabytes in (16, 64, 256)]
    assert sides[0] < sides[1] < sides[2]
    assert 1.9 < sides[2] / sides[1] < 2.1
    with pytest.raises(UserError, match=r"--tile auto: the smallest tile .* 52 pixels"):
        Tiler(model, memory_bytes=2**16)


def test_tiles_are_no_larger_than_the_image_needs():
    tiler = Tiler(unet(2, 1, width=2, depth=2), 1024)
    shapes = []
    tiler._label_map = lambda images, size: (shapes.append(images.shape) or np.zeros((1, 2000, 2000), np.uint8),)
    tiler.predict(picture(30, 1000, 1))
    assert shapes == [(1, 32 + 48, 500 + 48, 1)] * 2


def test_bands_follow_the_weights_of_the_model_and_count_tiles():
    model = unet(2, 1, width=2, depth=1)
    tiler = Tiler(model, 64)
    bias = model.get_layer("logits_conv").bias
    image, done = picture(100, 150, 1), []
    for label in (0, 1):
        bias.assign(np.eye(2)[label] * 1000)
        bands = list(tiler.bands(ImageSource(image), on_tile=lambda: done.append(1)))
        assert all((band.label_map == label).all() and band.probabilities is None for band in bands)
        assert sum(len(band.label_map) for band in bands) == 100
    assert len(done) == 2 * tiler.tile_count(image.shape)


def test_a_model_is_the_same_after_tiling(tmp_path):
    model = unet(2, 1, width=2, depth=1, padding="valid")
    image = picture(20, 30, 1)[None]
    before = np.array(model(image))
    Tiler(model).predict(image[0])
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.array(keras.models.load_model(tmp_path / "model.keras")(image)), before)


# ----- mirroring -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 7, 50])
def test_mirrored_places_are_those_of_numpy(length):
    expected = np.pad(np.arange(length), (20, 33), mode="reflect")
    np.testing.assert_array_equal(mirrored_places(-20, 53 + length, length), expected)


def test_only_what_tiles_see_is_read():
    images = keras.Input((None, None, 1), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(PadToMultiple(2)(images))
    tiler = Tiler(keras.Model(images, keras.layers.Conv2D(2, 3, padding="same")(x)), 8)
    asked = []

    class Source(ImageSource):
        def read(self, *window):
            asked.append(window)
            return super().read(*window)

    list(tiler.bands(Source(picture(7, 10, 1))))
    # Blocks of 4 and 2 more on each side; beyond the border there is only the mirror image.
    rows, columns = [(0, 6), (2, 5)], [(0, 6), (2, 8), (5, 5)]  # first, count
    assert asked == [(row, column, h, w) for row, h in rows for column, w in columns]
