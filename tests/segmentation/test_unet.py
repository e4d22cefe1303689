"""U-Net: the paper's sizes and parameters, mirrored borders, every width, depth and backbone, every image size."""

import keras
import numpy as np
import pytest

from detseg.backbones.create import create_backbone
from detseg.layers.padding import CentreCropLike, MirrorPad
from detseg.segmentation.options import UNetOptions
from detseg.segmentation.unet import create_encoder_unet, create_unet, unpadded_margin


def unet(class_count, channels=3, **options):
    return create_unet(UNetOptions(name="unet", **options), class_count, channels)


def encoder_unet(backbone, class_count, **options):
    return create_encoder_unet(UNetOptions(name="unet", backbone=backbone.name, **options), backbone, class_count)


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype("uint8")


def test_paper_form_has_31_million_parameters_and_maps_572_to_388_pixels():
    model = unet(2, channels=1, padding="valid", norm="none")
    widths = (64, 128, 256, 512, 1024)
    levels = sum(9 * (a * b + b * b) + 2 * b for a, b in zip((1, *widths), widths, strict=False))
    up_levels = sum(9 * (2 * b * b + b * b) + 2 * b for b in widths[:-1])
    up_convolutions = sum(4 * 2 * b * b + b for b in widths[:-1])
    assert model.count_params() == levels + up_levels + up_convolutions + 64 * 2 + 2 == 31_030_658
    mirrored, scores = model.get_layer("mirror").output, model.get_layer("logits_conv").output
    assert keras.Model(mirrored, scores).compute_output_shape((None, 572, 572, 1)) == (None, 388, 388, 2)
    assert unpadded_margin(4) == (572 - 388) // 2


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("depth", "channels"), [(1, 1), (2, 3), (3, 5)])
def test_logits_have_the_images_size(padding, depth, channels):
    model = unet(3, channels, width=2, depth=depth, padding=padding, norm="none")
    for size in ((1, 1), (2, 37), (40, 23)):
        logits = model(pictures(2, *size, channels))
        assert logits.shape == (2, *size, 3)
        assert np.isfinite(logits).all()


def test_unpadded_net_sees_the_image_mirrored_at_its_border():
    """A mirrored image of the right size, put through the net behind the mirror, gives the same scores."""
    model = unet(2, 1, width=4, depth=2, padding="valid")
    image = pictures(1, 28, 20, 1)  # both 4 modulo 4, so that nothing but the margin is added
    margin = unpadded_margin(2)
    mirrored = np.pad(image, [(0, 0), (margin, margin), (margin, margin), (0, 0)], mode="reflect")
    net = keras.Model(model.get_layer("mirror").output, model.get_layer("logits_conv").output)
    np.testing.assert_allclose(net(mirrored / 127.5 - 1.0), model(image), atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 50])
def test_mirror_repeats_itself_where_the_image_is_smaller_than_the_margin(size):
    line = np.arange(size, dtype="float32")
    images = np.broadcast_to(line[None, :, None, None], (1, size, size, 1))
    mirrored = np.array(MirrorPad(margin=12, multiple=8, remainder=4)(images))[0, :, 0, 0]
    fitting = next(n for n in range(size, size + 8) if n % 8 == 4)
    expected = np.pad(line, (12, 12 + fitting - size), mode="reflect") if size > 1 else np.zeros(fitting + 24)
    np.testing.assert_array_equal(mirrored, expected)


def test_centre_crop_takes_the_same_margin_on_all_sides():
    maps = np.arange(49, dtype="float32").reshape(1, 7, 7, 1)
    cropped = np.array(CentreCropLike()(maps, np.zeros((1, 3, 5, 2))))
    np.testing.assert_array_equal(cropped, maps[:, 2:5, 1:6])


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [("vgg16", 32), ("resnet50v2", 32), ("mobilenetv2", 8), ("mobilenetv3_small", 16), ("xception", 32)],
)
def test_one_backbone_of_each_family_is_an_encoder(name, output_stride):
    backbone = create_backbone(name, output_stride=output_stride, alpha=0.1)
    model = encoder_unet(backbone, 3, decoder_channels=(8, 8, 4, 4, 4))
    assert model(pictures(1, 33, 50, 3)).shape == (1, 33, 50, 3)


def test_decoder_takes_the_skip_of_every_stride():
    backbone = create_backbone("vgg16", alpha=0.1)
    model = encoder_unet(backbone, 3)
    joined = {layer.name: [x.shape[-1] for x in layer.input] for layer in model.layers if "concat" in layer.name}
    channels = {stride: backbone.channels[stride] for stride in (16, 8, 4, 2, 1)}
    decoder = dict(zip(channels, (256, 128, 64, 32, 16), strict=True))
    assert joined == {f"up{stride}_concat": [channels[stride], decoder[stride]] for stride in channels}


def test_logits_are_float32_under_mixed_precision():
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        for padding in ("same", "valid"):
            model = unet(2, 1, width=2, depth=1, padding=padding)
            assert keras.backend.standardize_dtype(model(pictures(1, 9, 9, 1)).dtype) == "float32"
    finally:
        keras.config.set_dtype_policy(previous)


def test_saved_model_gives_the_same_logits(tmp_path):
    model = unet(2, 1, width=2, depth=2, padding="valid")
    model.save(tmp_path / "unet.keras")
    image = pictures(1, 21, 30, 1)
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "unet.keras")(image), model(image))
