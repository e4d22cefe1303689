"""The segmentation models that a config's model section can name."""

import logging

from detseg import config as schema
from detseg.backbones.weights import dense_weights
from detseg.segmentation.deeplabv3 import create_deeplabv3
from detseg.segmentation.fcn import create_fcn, load_dense_weights
from detseg.segmentation.unet import create_encoder_unet, create_unet
from detseg.tasks.backbones import create_configured_backbone

logger = logging.getLogger("detseg")

VGG_HEAD_CHANNELS = 4096  # of fc6 and fc7, as in the paper


def create_segmentation_model(settings, channels, class_count, weights):
    """(model, backbone): raw pixels (B, H, W, channels) -> logits (B, H, W, class_count), and the Backbone inside it
    or None.

    settings:  the config's model section.
    weights:   its `weights`, or None for a model whose weights are loaded afterwards.
    """
    if settings.backbone is None:
        return _create_plain_unet(settings, channels, class_count), None
    backbone = create_configured_backbone(settings, channels, weights)
    model = MODELS[settings.name](settings, backbone, class_count)
    if weights is not None and isinstance(settings, schema.FCNModel):
        _load_dense_weights(model, settings.backbone, weights)
    return model, backbone


def minimum_size(settings):
    """Pixels that no side of an image should fall below: the model's stride."""
    is_plain_unet = settings.backbone is None
    return 2**settings.depth if is_plain_unet else settings.output_stride


def _create_fcn(settings, backbone, class_count):
    head_channels = settings.head_channels
    if head_channels is None and settings.backbone.startswith("vgg"):
        head_channels = VGG_HEAD_CHANNELS
    return create_fcn(settings.name, backbone, class_count, settings.upsampling, settings.dropout, head_channels)


def _create_deeplabv3(settings, backbone, class_count):
    decoder = None
    if isinstance(settings, schema.DeepLabV3PlusModel):
        decoder = (settings.decoder_channels, settings.low_level_channels)
    return create_deeplabv3(
        backbone,
        class_count,
        aspp_rates=settings.aspp_rates,
        aspp_channels=settings.aspp_channels,
        image_pooling=settings.image_pooling,
        separable=settings.separable,
        dropout=settings.dropout,
        norm=_head_norm(settings.norm),
        decoder=decoder,
        auxiliary_weight=settings.auxiliary_weight,
    )


def _create_encoder_unet(settings, backbone, class_count):
    return create_encoder_unet(
        backbone, class_count, settings.decoder_channels, _head_norm(settings.norm), settings.dropout
    )


def _create_plain_unet(settings, channels, class_count):
    return create_unet(
        class_count, channels, settings.width, settings.depth, settings.padding, settings.norm, settings.dropout
    )


def _head_norm(norm):
    return "group" if norm == "group" else "batch"  # frozen is for layers that have learned something


# model.name -> factory(the config's model section, backbone, number of classes) -> model
MODELS = {
    "fcn32s": _create_fcn,
    "fcn16s": _create_fcn,
    "fcn8s": _create_fcn,
    "unet": _create_encoder_unet,
    "deeplabv3": _create_deeplabv3,
    "deeplabv3plus": _create_deeplabv3,
}


def _load_dense_weights(model, backbone, weights):
    """The dense layers of a VGG's weights as fc6 and fc7, where the model has these as in the paper."""
    if not backbone.startswith("vgg") or model.get_layer("fc6").filters != VGG_HEAD_CHANNELS:
        return
    dense = dense_weights(weights, backbone)
    if dense is None:
        logger.warning("model.weights: %s has no dense layers: fc6 and fc7 start at random", weights)
    else:
        load_dense_weights(model, dense)
