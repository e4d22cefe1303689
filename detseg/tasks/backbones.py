"""The backbone that a config's model section describes."""

import logging

from detseg.backbones.create import create_backbone

logger = logging.getLogger("detseg")


def create_configured_backbone(settings, channels, weights):
    """A Backbone by the keys of a model section, with its first stages frozen as it says.

    channels:  of the images.
    weights:   the section's `weights`, or None for a model whose weights are loaded afterwards.
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
        multi_grid=getattr(settings, "multi_grid", None),  # detectors have none
    )
    if backbone.unused_layers:
        logger.info("model.weights: no use here for its layers %s", ", ".join(backbone.unused_layers))
    backbone.freeze(settings.freeze_stages)
    return backbone
