"""DeepLabv3 (Chen et al.: Rethinking Atrous Convolution for Semantic Image Segmentation, 2017) and DeepLabv3+
(Chen et al.: Encoder-Decoder with Atrous Separable Convolution, ECCV 2018) on every backbone."""

import keras

from detseg.backbones.backbone import features_of_pixels
from detseg.layers.conv import Conv2D
from detseg.layers.norm import conv_norm_relu
from detseg.layers.padding import CropLike
from detseg.layers.resize import ResizeLike

RATES_STRIDE = 16  # the output stride for which atrous rates are given; at 8 they double (DeepLabv3, section 3.3)


def create_deeplabv3(options, backbone, class_count):
    """A model that maps raw pixels (B, H, W, C) to logits (B, H, W, class_count) float32, of any H and W.

    options:   DeepLabV3Options (table 3: image pooling brings 76.43 to 77.21), or DeepLabV3PlusOptions for the decoder
               (figure 2 of DeepLabv3+; its tables 1 and 2: 48 low-level channels, two 3x3 of 256). With an
               auxiliary_weight there is a second classifier on native stride 16, for training only; see
               `ModelWithAuxiliary`.
    backbone:  a `Backbone`; its output stride scales the rates, so the same weights fit every output stride (trained at
               16, evaluated at 8: DeepLabv3, table 5).
    """
    images, padded, features = _padded_features(options, backbone)
    head = _aspp(options, features[32], backbone.strides[32])
    offset = _offset(options, backbone.strides[32])
    if options.name == "deeplabv3plus":
        offset = _offset(options, backbone.strides[32], backbone.strides[4])
        head = _decode(options, head, features[4], offset)
        offset = 0.0  # the decoder has put the features where those of stride 4 are
    elif options.head_convolutions:
        head = conv_norm_relu(head, options.aspp_channels, 3, norm=options.head_norm, name="head_conv")
    return _with_classifiers(options, backbone, images, padded, head, features[16], offset, class_count)


def create_fcn_head(options, backbone, class_count):
    """As `create_deeplabv3`, of FCNHeadOptions: a 3x3 convolution of a quarter of the channels, and the scores."""
    images, padded, features = _padded_features(options, backbone)
    head = conv_norm_relu(features[32], backbone.channels[32] // 4, 3, norm=options.head_norm, name="head_conv")
    offset = _offset(options, backbone.strides[32])
    return _with_classifiers(options, backbone, images, padded, head, features[16], offset, class_count)


def _padded_features(options, backbone):
    """`features_of_pixels`, padded as the options say."""
    if options.padding == "none":
        return features_of_pixels(backbone, 1)
    return features_of_pixels(backbone, backbone.strides[32], remainder=int(options.aligns_corners))


def _offset(options, stride, new_stride=1):
    """`resize_offset` where the options ask for it."""
    if options.resize == "half_pixel":
        return 0.0
    return resize_offset(stride, new_stride, options.aligns_corners)


def _with_classifiers(options, backbone, images, padded, head, middle, offset, class_count):
    """The model of the features `head` and, where there is an auxiliary classifier, `middle` of native stride 16."""
    head = keras.layers.Dropout(options.dropout, name="dropout")(head)
    logits = _classify(options, head, offset, padded, images, class_count, "logits")
    if not options.auxiliary_weight:
        return keras.Model(images, logits, name=options.name)

    channels = backbone.channels[16] // 4
    auxiliary = conv_norm_relu(middle, channels, 3, norm=options.head_norm, name="auxiliary")
    auxiliary = keras.layers.Dropout(options.dropout, name="auxiliary_dropout")(auxiliary)
    offset = _offset(options, backbone.strides[16])
    auxiliary = _classify(options, auxiliary, offset, padded, images, class_count, "auxiliary_logits")
    outputs = {"logits": logits, "auxiliary_logits": auxiliary}
    model = ModelWithAuxiliary(images, outputs, name=options.name)
    model.auxiliary_weight = options.auxiliary_weight
    return model


def effective_rates(aspp_rates, output_stride):
    """The dilations, in pixels of the map at this output stride, of rates given for output stride 16."""
    return [max(1, rate * RATES_STRIDE // output_stride) for rate in aspp_rates]


def resize_offset(stride, new_stride=1, align_corners=False):
    """The offset, in pixels of stride `new_stride`, by which resized maps of `stride` lie as those of stride 16 do.

    Atrous convolution puts new features between the old ones, which stay at multiples of the larger stride. With
    aligned areas the first would move from pixel 7.5 to 3.5 as the output stride goes from 16 to 8, and masks by half
    a feature; the paper's own resizing aligns the corners of 16 n + 1 pixels to the same end: `align_corners` needs no
    offset.
    """
    return 0.0 if align_corners else (RATES_STRIDE - stride) / (2 * new_stride)


def _aspp(options, features, output_stride):
    """Atrous spatial pyramid pooling (section 3.3, figure 5): features (B, h, w, C) -> (B, h, w, aspp_channels).

    Image pooling sees a single value in training on a batch of one image: batch norm then gives its offset, no NaN.
    """
    channels, norm, separable = options.aspp_channels, options.head_norm, _separable(options)
    rates = effective_rates(options.aspp_rates, output_stride)
    branches = [conv_norm_relu(features, channels, 1, norm=norm, name="aspp_1x1")]
    for index, rate in enumerate(rates, start=1):  # named by place: the rate changes with the output stride
        branches.append(conv_norm_relu(features, channels, 3, rate, separable, norm, f"aspp_atrous{index}"))
    if options.image_pooling:
        mean = keras.layers.GlobalAveragePooling2D(keepdims=True, name="aspp_mean")(features)  # (B, 1, 1, C)
        mean = conv_norm_relu(mean, channels, 1, norm=norm, name="aspp_pooling")
        branches.append(ResizeLike(name="aspp_pooling_resize")(mean, features))
    x = keras.layers.Concatenate(name="aspp_concat")(branches) if len(branches) > 1 else branches[0]
    return conv_norm_relu(x, channels, 1, norm=norm, name="aspp_join")


def _decode(options, x, low_level, offset):
    """The decoder of DeepLabv3+ (section 3.1): few low-level channels, so that they don't outweigh ASPP's."""
    norm, separable = options.head_norm, _separable(options)
    low_level = conv_norm_relu(low_level, options.low_level_channels, 1, norm=norm, name="decoder_low_level")
    x = ResizeLike(offset, options.aligns_corners, name="decoder_resize")(x, low_level)
    x = keras.layers.Concatenate(name="decoder_concat")([x, low_level])
    for index in (1, 2):
        x = conv_norm_relu(x, options.decoder_channels, 3, separable=separable, norm=norm, name=f"decoder_conv{index}")
    return x


def _separable(options):
    """The argument `separable` of `conv_norm_relu`."""
    return "norm" if options.separable_norm else options.separable


def _classify(options, x, offset, padded, images, class_count, name):
    """Logits of the padded images' size, cut to the images'."""
    x = Conv2D(class_count, 1, name=f"{name}_conv")(x)
    x = ResizeLike(offset, options.aligns_corners, name=f"{name}_resize", dtype="float32")(x, padded)
    return CropLike(name=name, dtype="float32")(x, images)


@keras.saving.register_keras_serializable("detseg")
class ModelWithAuxiliary(keras.Model):
    """images -> {"logits": .., "auxiliary_logits": ..}: the second, of an earlier stage, helps training only.

    loss = loss(logits) + auxiliary_weight * loss(auxiliary_logits), of the same labels (PSPNet, section 4.2). The
    weight is an attribute since Keras saves functional models only if their constructor is the stock one.
    """

    auxiliary_weight = 0.4

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred["logits"], sample_weight, training)
        # Not compute_loss again, which would add the layers' own losses a second time.
        auxiliary = self._compile_loss(y, y_pred["auxiliary_logits"], sample_weight)
        return loss + self.auxiliary_weight * auxiliary

    def without_auxiliary(self):
        """The keras.Model images -> logits of the same weights."""
        return keras.Model(self.input, self.output["logits"], name=self.name)

    def get_config(self):
        return {**super().get_config(), "auxiliary_weight": self.auxiliary_weight}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        stock = {key: value for key, value in config.items() if key != "auxiliary_weight"}
        model = super().from_config(stock, custom_objects)
        model.auxiliary_weight = config["auxiliary_weight"]
        return model
