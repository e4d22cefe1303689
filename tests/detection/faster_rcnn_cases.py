"""A small Faster R-CNN, a batch for it, and one step of training, for both backends."""

import keras
import numpy as np
from retinanet_cases import batch, tiny_backbone

from detseg.detection.faster_rcnn import FasterRCNN
from detseg.detection.options import FasterRCNNOptions

__all__ = ["SMALL", "batch", "spread_outputs", "step", "tiny"]

# So many samples that all anchors and proposals which are not ignored are trained on, whatever the draw.
SMALL = {
    "backbone": "resnet18",
    "weights": None,
    "norm": "batch",
    "finest_stride": 8,
    "fpn_channels": 16,
    "head_channels": 32,
    "anchor_sizes": [16, 32, 64, 64],
    "train_candidates": 60,
    "train_proposals": 40,
    "test_candidates": 60,
    "test_proposals": 40,
    "rpn_samples": 800,
    "roi_samples": 64,
}


def tiny(class_count=3, output_stride=32, spread=False, **options):
    """Of the levels 8 to 64. spread: scores on both sides of 0.05 in `batch`, and boxes beside their proposals."""
    keras.utils.set_random_seed(0)
    model = FasterRCNN(FasterRCNNOptions(**SMALL | options), class_count, backbone=tiny_backbone(output_stride))
    if spread:
        spread_outputs(model)
    return model


def spread_outputs(model):
    images, objects = batch()
    outputs = model(images)
    _scale(model.rpn.get_layer("rpn_objectness"), outputs["objectness"], 1.0)
    _scale(model.rpn.get_layer("rpn_boxes"), outputs["deltas"], 0.2)
    regions = np.stack([objects["boxes"][0, :3]] * 2)
    logits, deltas = model._classify(outputs["features"], regions, False, False)
    _scale(model.head.get_layer("class_logits"), [logits], 1.5)
    _scale(model.head.get_layer("class_boxes"), [deltas], 1.0)


def _scale(layer, outputs, deviation):
    values = np.concatenate([np.array(x).ravel() for x in outputs])
    layer.kernel.assign(layer.kernel * (deviation / values.std()))


def step(model, **fit_arguments):
    """What one epoch of stock fit logs, and the kernels and biases after it, by name."""
    model.compile(keras.optimizers.SGD(0.01), run_eagerly=keras.backend.backend() == "tensorflow")
    history = model.fit(**fit_arguments, verbose=0).history
    logs = {f"log {key}": np.array(values) for key, values in history.items()}
    return logs | {f"weight {x.path}": np.array(x) for x in model.trainable_variables}
