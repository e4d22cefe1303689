"""Makes the segmentation model that a config's model section describes."""

import logging

from detseg.backbones.catalogue import CATALOGUE
from detseg.backbones.create import create_configured_backbone
from detseg.backbones.weights import dense_weights
from detseg.errors import UserError
from detseg.segmentation.deeplabv3 import create_deeplabv3, create_fcn_head
from detseg.segmentation.fcn import SCORED_STRIDES, create_fcn, load_dense_weights
from detseg.segmentation.options import FCNOptions
from detseg.segmentation.unet import create_encoder_unet, create_unet

logger = logging.getLogger("detseg")

# model.name -> factory(options, backbone, number of classes) -> model
FACTORIES = {
    **dict.fromkeys(SCORED_STRIDES, create_fcn),
    "fcn": create_fcn_head,
    **dict.fromkeys(("deeplabv3", "deeplabv3plus"), create_deeplabv3),
    "unet": create_encoder_unet,
}


def create_segmentation_model(options, class_count, channels=3, pretrained=True):
    """(model, its Backbone or None): raw pixels (B, H, W, channels) -> logits (B, H, W, class_count).

    options:     one of detseg.segmentation.options.SegmentationModel.
    pretrained:  False leaves options.weights unread, for a model whose weights are loaded afterwards.
    Raises UserError for options that don't go together, weights that don't fit, and the name custom.
    """
    if options.name == "custom":
        raise UserError("model.name: custom: the model is given from Python: detseg.train(config, run, model=...)")
    if options.backbone is None:
        return create_unet(options, class_count, channels), None
    backbone = create_configured_backbone(options, channels, pretrained)
    model = FACTORIES[options.name](options, backbone, class_count)
    channels = CATALOGUE[options.backbone].dense_channels  # of fc6 and fc7 in the paper
    is_papers = isinstance(options, FCNOptions) and channels and model.get_layer("fc6").filters == channels
    if pretrained and options.weights is not None and is_papers:
        dense = dense_weights(options.weights, options.backbone)
        if dense is None:
            logger.warning("model.weights: %s has no dense layers: fc6 and fc7 start at random", options.weights)
        else:
            load_dense_weights(model, dense)
    return model, backbone
