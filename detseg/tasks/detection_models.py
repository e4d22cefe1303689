"""The detectors that a config's model section can name."""

import logging

from detseg.backbones import create_backbone
from detseg.backbones.weights import dense_weights
from detseg.detection.faster_rcnn import create_faster_rcnn
from detseg.detection.region_heads import load_dense_weights
from detseg.detection.retinanet import create_retinanet

logger = logging.getLogger("detseg")

# Keys of the model section that aren't arguments of the detectors' factories.
_NO_OPTIONS = {
    *("name", "backbone", "variant", "alpha", "output_stride", "weights", "norm", "activation", "freeze_stages"),
    "max_objects",
}


def create_detector(settings, channels, class_count, weights, seed=0):
    """(detector, backbone) of a config's model section.

    weights:  its `weights`, or None for a model whose weights are loaded afterwards.
    seed:     of the random choice of anchors and proposals to train on.
    """
    backbone = create_backbone(
        settings.backbone,
        output_stride=settings.output_stride,
        in_channels=channels,
        weights=weights,
        norm=settings.norm,
        alpha=settings.alpha,
        activation=settings.activation,
        variant=settings.variant,
    )
    if backbone.unused_layers:
        logger.info("model.weights: no use here for its layers %s", ", ".join(backbone.unused_layers))
    backbone.freeze(settings.freeze_stages)
    if settings.name == "retinanet":
        options = settings.model_dump(exclude=_NO_OPTIONS)
        return create_retinanet(backbone, class_count, channels=channels, **options), backbone
    options = settings.model_dump(exclude=_NO_OPTIONS)
    model = create_faster_rcnn(backbone, class_count, channels=channels, seed=seed, **options)
    if weights is not None and settings.backbone.startswith("vgg") and settings.neck == "none":
        _load_dense_weights(model, settings, weights)
    return model, backbone


def _load_dense_weights(model, settings, weights):
    """The dense layers of a VGG's weights as fc6 and fc7, where the head has these as in the paper."""
    if (settings.roi_size, settings.head_channels, settings.head_norm) != (None, None, None):
        return
    dense = dense_weights(weights, settings.backbone)
    if dense is None:
        logger.warning("model.weights: %s has no dense layers: fc6 and fc7 start at random", weights)
    else:
        load_dense_weights(model.head, dense)
