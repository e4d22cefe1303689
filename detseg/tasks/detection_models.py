"""The detectors that a config's model section can name."""

import logging

from detseg.backbones.weights import dense_weights
from detseg.detection.faster_rcnn import create_faster_rcnn
from detseg.detection.heads import load_dense_weights
from detseg.detection.retinanet import create_retinanet
from detseg.tasks.backbones import create_configured_backbone

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
    backbone = create_configured_backbone(settings, channels, weights)
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
    is_paper_s = settings.roi_size in (None, 7) and settings.head_channels in (None, 4096) and not settings.head_norm
    if not is_paper_s:
        logger.warning("model: fc6 and fc7 start at random: they fit roi_size 7, head_channels 4096 and no head_norm")
        return
    dense = dense_weights(weights, settings.backbone)
    if dense is None:
        logger.warning("model.weights: %s has no dense layers: fc6 and fc7 start at random", weights)
    else:
        load_dense_weights(model.head, dense)
