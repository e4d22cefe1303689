"""Models as a config's model section describes them."""

from collections.abc import Sequence

import keras

from detseg.config import Config
from detseg.process import model_settings
from detseg.tasks import create_task

__all__ = ["create_model"]


def create_model(config: Config, classes: Sequence[str], pretrained: bool = True) -> keras.Model:
    """The untrained model of a config: raw pixels (B, H, W, C) uint8 -> logits (B, H, W, K), or a detector.

    classes:     K class names, index = label.
    pretrained:  bool, whether its backbone gets the weights that model.weights names.
    """
    with model_settings(config.train.precision):
        return create_task(config, classes).create_model(pretrained)[0]
