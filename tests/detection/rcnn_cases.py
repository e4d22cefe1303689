"""A small R-CNN and squares for it, for both backends."""

import keras
import numpy as np

from detseg.detection.rcnn import RCNN
from detseg.detection.rcnn_options import RCNNOptions

SMALL = {"backbone": "vgg16", "alpha": 0.0625, "weights": None, "crop_size": 64, "context": 8, "head_channels": 16}


def tiny(class_count=3, **options):
    keras.utils.set_random_seed(0)
    return RCNN(RCNNOptions(**SMALL | options), class_count)


def batch():
    """(squares uint8 (8, 64, 64, 3), {"labels": (8,)})."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (8, 64, 64, 3), np.uint8), {"labels": np.arange(8, dtype=np.int32) % 4}


def step(model):
    """What one step of stock fit logs, the kernels and biases after it, and what the network says then, by name."""
    model.compile(keras.optimizers.SGD(0.01), run_eagerly=keras.backend.backend() == "tensorflow")
    squares, truth = batch()
    history = model.fit(squares, truth, batch_size=8, verbose=0).history
    logs = {f"log {key}": np.array(values) for key, values in history.items()}
    said = dict(zip(("maps", "features", "logits"), map(np.array, model.describe(squares)), strict=True))
    return logs | {f"weight {x.path}": np.array(x) for x in model.trainable_variables} | said
