"""Computed receptive fields against what a lit line of the image really reaches."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from detseg.analysis.receptive_field import inexact_layers, peak_bytes, receptive_field
from detseg.backbones.create import create_backbone
from detseg.backbones.mobilenet import squeeze_excite
from detseg.inference.tiling import without_mirror
from detseg.layers.conv import Conv2D, DepthwiseConv2D, SeparableConv2D
from detseg.layers.norm import create_norm
from detseg.layers.padding import PadToMultiple
from detseg.layers.pooling import DilatedMaxPool
from detseg.layers.resize import BilinearUpsample, ResizeLike
from detseg.segmentation.deeplabv3 import create_deeplabv3
from detseg.segmentation.fcn import create_fcn
from detseg.segmentation.options import DeepLabV3Options, DeepLabV3PlusOptions, FCNOptions, UNetOptions
from detseg.segmentation.unet import create_encoder_unet, create_unet

AXES = pytest.mark.parametrize("axis", [0, 1])


def unet(class_count, channels=3, **options):
    return create_unet(UNetOptions(name="unet", **options), class_count, channels)


def encoder_unet(backbone, class_count, **options):
    return create_encoder_unet(UNetOptions(name="unet", backbone=backbone.name, **options), backbone, class_count)


def let_all_light_through(model):
    """Positive weights and no offsets: a result is 0 if and only if it sees nothing but zeros."""
    for variable in model.weights:
        if len(variable.shape) == 4:
            taps = np.prod(variable.shape[: 2 if "depthwise" in variable.path else 3])
            variable.assign(np.full(variable.shape, 3 / taps))  # far pixels neither vanish nor overflow
    for layer in model.layers:
        if layer.name == "preprocess":
            layer.call = lambda images: ops.cast(images, "float32")
        if isinstance(layer, keras.Model):
            let_all_light_through(layer)


def reached(model, axis, lit, across):
    """bool (N, results): which results see something of images whose lit lines are bool (N, lines)."""
    images = np.repeat(lit[:, :, None, None], across, axis=2).repeat(model.input_shape[-1], axis=3)
    images = images if axis == 0 else images.swapaxes(1, 2)
    return np.array(model(images.astype("uint8"))).sum(axis=(3, 2 - axis)) > 0


def check_field(model, axis=0, residue=0):
    """In the middle of an image, results see the first and the last line of the field and nothing beyond."""
    let_all_light_through(model)
    field = receptive_field(model, axis, residue)
    assert field.stride == 1
    alignment = field.alignment
    steps = -(-max(-field.first.min(), field.last.max()) // alignment)
    lines = np.arange(residue + (2 * steps + 2) * alignment)
    across = residue + max(1, 1 - field.extra // alignment) * alignment
    places = np.arange(alignment) + steps * alignment
    for edges, is_beyond in ((field.first, np.less), (field.last, np.greater)):
        edges, which = np.unique(edges + steps * alignment, return_inverse=True)
        at = reached(model, axis, lines == edges[:, None], across)
        beyond = reached(model, axis, is_beyond(lines, edges[:, None]), across)
        assert at[which, places].all()
        assert not beyond[which, places].any()
        assert at.shape[1] == len(lines) - residue + field.extra
    return field


def stack(*steps):
    images = keras.Input((None, None, 1), dtype="uint8")
    x = layers.Rescaling(1.0)(images)
    for step in steps:
        x = step(x)
    return keras.Model(images, x)


def resize_back(offset):
    return lambda x: ResizeLike(offset)(layers.MaxPooling2D(4)(x), x)


def resize_corners_back(x):
    return ResizeLike(align_corners=True)(Conv2D(2, 3, strides=4, padding="same")(x), x)


def skip(x):
    deep = layers.Conv2DTranspose(2, 2, strides=2)(Conv2D(2, 3, padding="same")(layers.MaxPooling2D(2)(x)))
    return layers.Concatenate()([x, deep])


def shortcut(x):
    return layers.Add()([Conv2D(1, 5, padding="same")(x), DepthwiseConv2D(3, padding="same", dilation_rate=4)(x)])


SMALL = {
    "same convolutions": [Conv2D(2, 5, padding="same"), SeparableConv2D(2, 3, padding="same", dilation_rate=3)],
    "even kernel": [Conv2D(2, 4, padding="same")],
    "valid convolutions": [Conv2D(2, 3), Conv2D(2, 3, dilation_rate=2)],
    "one axis": [Conv2D(2, (1, 7), padding="same"), Conv2D(2, (3, 1), padding="same")],
    "strided same": [Conv2D(2, 3, strides=2, padding="same"), layers.Conv2DTranspose(2, 2, strides=2)],
    "strided same of odd maps": [
        layers.ZeroPadding2D(((0, 1), (0, 1))),
        Conv2D(2, 3, strides=2, padding="same"),
        layers.Conv2DTranspose(2, 2, strides=2),
    ],
    "strided valid": [
        layers.ZeroPadding2D(((0, 1), (0, 1))),
        Conv2D(2, 3, strides=2),
        layers.Conv2DTranspose(2, 4, strides=2, padding="same"),
    ],
    "pools": [
        layers.MaxPooling2D(3, 2, padding="same"),
        layers.AveragePooling2D(2),
        layers.Conv2DTranspose(2, 7, strides=4, padding="same"),
    ],
    "overlapping transposed": [layers.MaxPooling2D(3), layers.Conv2DTranspose(2, 5, strides=3)],
    "dilated pool": [layers.MaxPooling2D(2), DilatedMaxPool(3, 2), BilinearUpsample(2)],
    "dilated pool of odd maps": [
        layers.ZeroPadding2D(((0, 2), (0, 2))),
        layers.MaxPooling2D(2),
        DilatedMaxPool(3, 1),
        BilinearUpsample(2),
    ],
    "bilinear": [layers.AveragePooling2D(4), BilinearUpsample(4)],
    "learned bilinear": [layers.AveragePooling2D(4), BilinearUpsample(4, learned=True)],
    "resized": [resize_back(0.0)],
    "resized and moved": [resize_back(1.5)],
    "corners aligned": [PadToMultiple(4, remainder=1), resize_corners_back],
    "padded": [PadToMultiple(6), layers.MaxPooling2D(2), BilinearUpsample(2)],
    "skip": [skip],
    "shortcut": [shortcut, create_norm("batch", 1), layers.ReLU(), layers.Dropout(0.5)],
}


@AXES
@pytest.mark.parametrize("name", SMALL)
def test_field_is_what_the_network_sees(name, axis):
    check_field(stack(*SMALL[name]), axis)


def test_windows_by_hand():
    field = receptive_field(stack(Conv2D(1, 3, padding="same"), layers.MaxPooling2D(2)), axis=0)
    assert (field.stride, field.extra) == (2, 0)
    assert (field.first.tolist(), field.last.tolist()) == ([-1], [2])
    field = receptive_field(stack(layers.MaxPooling2D(2), layers.Conv2DTranspose(1, 2, strides=2)), axis=0)
    assert (field.first.tolist(), field.last.tolist()) == ([0, 0], [1, 1]), "both pixels look at the same two"


@AXES
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_field_of_unets(axis, depth):
    check_field(unet(2, 1, width=2, depth=depth, padding="same"), axis)
    network, margin, residue = without_mirror(unet(2, 1, width=2, depth=depth, padding="valid", norm="none"))
    field = check_field(network, axis, residue)
    assert field.first.min() == 0, "unpadded convolutions see nothing beyond the image"
    assert field.extra - residue == -2 * margin


def test_field_of_the_papers_unet():
    network, margin, residue = without_mirror(unet(2, 1, width=1, depth=4, padding="valid", norm="none"))
    field = receptive_field(network, 0, residue)
    assert (field.alignment, margin, residue) == (16, 92, 572 % 16)
    assert 572 - residue + field.extra == 388


@pytest.mark.parametrize(
    ("name", "output_stride"), [("vgg16", 32), ("resnet18", 16), ("mobilenetv2", 8), ("resnet50v2", 32)]
)
def test_field_of_backbones(name, output_stride):
    backbone = create_backbone(name, alpha=0.0625, output_stride=output_stride)
    check_field(encoder_unet(backbone, 1, decoder_channels=(1,) * 5))


def test_field_of_fcn_on_unpadded_xception():
    xception = create_backbone("xception", alpha=0.0625, output_stride=16)
    check_field(create_fcn(FCNOptions(name="fcn16s", backbone="xception"), xception, 1))


def test_field_of_deeplab():
    backbone = create_backbone("resnet18", alpha=0.0625, output_stride=16)
    heads = {"aspp_rates": (1, 2), "aspp_channels": 1, "decoder_channels": 1, "low_level_channels": 1}
    heads |= {"image_pooling": False, "separable": True}
    options = DeepLabV3PlusOptions(name="deeplabv3plus", backbone="resnet18", **heads)
    check_field(create_deeplabv3(options, backbone, 1))


def test_field_of_deeplab_with_aligned_corners():
    backbone = create_backbone("resnet18", alpha=0.0625, output_stride=16)
    heads = {"aspp_rates": (1,), "aspp_channels": 1, "image_pooling": False, "resize": "align_corners"}
    options = DeepLabV3Options(name="deeplabv3", backbone="resnet18", **heads)
    model = create_deeplabv3(options, backbone, 1)
    check_field(model)
    assert inexact_layers(model) == []


def test_layers_that_look_at_whole_maps_are_named():
    assert inexact_layers(stack(*SMALL["skip"])) == []
    pooled = stack(Conv2D(8, 3, padding="same"), lambda x: squeeze_excite(x, 2, "relu", "sigmoid", "se"))
    assert inexact_layers(pooled) == ["se_avg_pool"]
    assert receptive_field(pooled, 0).first.tolist() == [-1], "the rest is as it is"
    assert inexact_layers(stack(Conv2D(8, 1), create_norm("group", 8, name="norm"))) == ["norm"]
    backbone = create_backbone("resnet18", alpha=0.0625, output_stride=16)
    options = DeepLabV3Options(name="deeplabv3", backbone="resnet18", aspp_rates=(1,), aspp_channels=1)
    assert inexact_layers(create_deeplabv3(options, backbone, 1)) == ["aspp_mean"]
    xception = create_backbone("xception", alpha=0.0625)
    assert inexact_layers(encoder_unet(xception, 1, decoder_channels=(1,) * 5)) == ["up4_resize", "up2_resize"]


def test_layers_without_a_rule_are_named():
    with pytest.raises(NotImplementedError, match=r"'flip'.*Permute"):
        receptive_field(stack(layers.Permute((2, 1, 3), name="flip")), axis=0)
    with pytest.raises(NotImplementedError, match="'wide'"):
        receptive_field(stack(layers.Conv2DTranspose(1, 3, dilation_rate=2, name="wide")), axis=0)


def test_bytes_alive_by_hand():
    """rescaled 1, convolved 8: 9 floats; pooled 8 / 4: 10 beside the convolved; upsampled 4: 6."""
    model = stack(Conv2D(8, 3, padding="same"), layers.MaxPooling2D(2), layers.Conv2DTranspose(4, 2, strides=2))
    assert peak_bytes(model) == 4 * 10
    # Beside the 9, the skip lives on through 2 and 2 of stride 2 and 2 transposed ones, until they are joined.
    assert peak_bytes(stack(Conv2D(9, 1), skip)) == 4 * (9 + 2 + 11)
