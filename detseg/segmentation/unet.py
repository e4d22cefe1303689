"""U-Net (Ronneberger, Fischer, Brox: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015)."""

import keras

from detseg.backbones.backbone import Preprocess, features_of_pixels
from detseg.layers.conv import Conv2D
from detseg.layers.norm import conv_norm_relu
from detseg.layers.padding import CentreCropLike, CropLike, MirrorPad, PadToMultiple
from detseg.layers.resize import ResizeLike


def create_unet(options, class_count, channels=3):
    """A model that maps raw pixels (B, H, W, channels) to logits (B, H, W, class_count) float32, of any H and W.

    options:  UNetOptions without a backbone. With padding "valid" the model mirrors the image at its border by what the
              convolutions eat up, and crops skips to the size of what they join. Dropout is at the end of the
              contracting path (section 3.1): behind its last two levels.
    With padding "valid", norm "none" and the defaults this is the paper's network: 572x572 pixels give 388x388 scores,
    and it has 31.0 million parameters.
    """
    width, depth, padding, norm = options.width, options.depth, options.padding, options.norm
    images = keras.Input((None, None, channels), dtype="uint8", name="images")
    x = Preprocess("tf", channels, name="preprocess")(images)
    if padding == "valid":
        x = MirrorPad(unpadded_margin(depth), 2**depth, -4 * (2**depth - 1) % 2**depth, name="mirror")(x)
    else:
        x = PadToMultiple(2**depth, name="pad")(x)
    skips = []
    for level in range(depth):
        x = _level(x, width * 2**level, padding, norm, f"down{level + 1}")
        if level == depth - 1:
            x = keras.layers.Dropout(options.dropout, name=f"down{level + 1}_dropout")(x)
        skips.append(x)
        x = keras.layers.MaxPooling2D(2, name=f"pool{level + 1}")(x)
    x = _level(x, width * 2**depth, padding, norm, "bottom")
    x = keras.layers.Dropout(options.dropout, name="bottom_dropout")(x)
    for level in reversed(range(depth)):
        x = _up_convolution(x, width * 2**level, f"up{level + 1}")
        skip = skips[level]
        if padding == "valid":
            skip = CentreCropLike(name=f"up{level + 1}_crop")(skip, x)
        x = keras.layers.Concatenate(name=f"up{level + 1}_concat")([skip, x])
        x = _level(x, width * 2**level, padding, norm, f"up{level + 1}")
    return keras.Model(images, _classify(x, images, class_count), name="unet")


def create_encoder_unet(options, backbone, class_count):
    """A U-Net whose contracting path is a `Backbone`; maps pixels to logits as `create_unet` does.

    options:  UNetOptions with a backbone. Each level of the decoder takes the backbone's features of its native stride
              as skip; that of stride 1 has none where the backbone has none.
    """
    images, _, features = features_of_pixels(backbone, backbone.strides[32])
    shape = (1, 64, 64, images.shape[-1])
    sizes = dict(zip(backbone.keys, backbone.model.compute_output_shape(shape), strict=True))
    x, stride = features[32], backbone.strides[32]
    x = keras.layers.Dropout(options.dropout, name="dropout")(x)
    for native_stride, filters in zip((16, 8, 4, 2, 1), options.decoder_channels, strict=True):
        name = f"up{native_stride}"
        if stride > backbone.strides.get(native_stride, native_stride):  # else dilation has kept both at one stride
            x, stride = _up_convolution(x, filters, name), stride // 2
        if native_stride in features:
            skip = features[native_stride]
            if sizes[native_stride][1] * stride != 64:  # Xception's unpadded stem makes maps that are too small
                skip = ResizeLike(name=f"{name}_resize")(skip, x)
            x = keras.layers.Concatenate(name=f"{name}_concat")([skip, x])
        x = _level(x, filters, "same", options.head_norm, name)
    return keras.Model(images, _classify(x, images, class_count), name="unet")


def unpadded_margin(depth):
    """Pixels by which each side of an unpadded U-Net's scores is smaller than its image: 92 for depth 4.

    Two 3x3 convolutions take 2 pixels of a map's side, that is 2 * 2^level of the image's: on the way down, at the
    bottom and, but for that, on the way up.
    """
    return 2 * 2**depth + 2 * sum(2 * 2**level for level in range(depth))


def _level(x, filters, padding, norm, name):
    for index in (1, 2):
        x = conv_norm_relu(x, filters, 3, padding=padding, norm=norm, name=f"{name}_conv{index}")
    return x


def _up_convolution(x, filters, name):
    """The paper's 2x2 "up-convolution": each pixel becomes 2x2, so that no two overlap and no checkerboard appears."""
    name = f"{name}_transposed"
    return keras.layers.Conv2DTranspose(filters, 2, strides=2, kernel_initializer="he_normal", name=name)(x)


def _classify(x, images, class_count):
    logits = Conv2D(class_count, 1, name="logits_conv", dtype="float32")(x)
    return CropLike(name="logits", dtype="float32")(logits, images)
