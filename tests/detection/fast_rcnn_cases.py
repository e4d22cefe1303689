"""A small Fast R-CNN, a batch for it, and one step of training, for both backends."""

import keras
import numpy as np
from retinanet_cases import batch as image_batch
from retinanet_cases import tiny_backbone

from detseg.detection.fast_rcnn import FastRCNN
from detseg.detection.options import FastRCNNOptions

SMALL = {
    "backbone": "resnet18",
    "weights": None,
    "norm": "batch",
    "head": "dense",
    "head_channels": 32,
    "train_proposals": 20,
    "test_proposals": 20,
    "roi_samples": 64,
    "roi_background_iou": (0.0, 0.5),
    "score_threshold": 0.0,
}


def tiny(class_count=3, **options):
    keras.utils.set_random_seed(0)
    return FastRCNN(FastRCNNOptions(**SMALL | options), class_count, backbone=tiny_backbone(32))


def batch():
    """Images and ground truth, with 20 proposals for each image: its objects, shifted, and padding."""
    images, objects = image_batch()
    rng = np.random.default_rng(0)
    proposals = np.zeros((len(images), 20, 4), np.float32)
    for own, boxes, labels in zip(proposals, objects["boxes"], objects["labels"], strict=True):
        there = np.repeat(boxes[labels >= 0], 4, axis=0)[:15]
        own[: len(there)] = np.maximum(there + rng.uniform(-6, 6, there.shape), 0)
    return images, objects | {"proposals": proposals}


def step(model):
    """What one epoch of stock fit logs, the kernels and biases after it, and what is detected then, by name."""
    model.compile(keras.optimizers.SGD(0.01), run_eagerly=keras.backend.backend() == "tensorflow")
    images, objects = batch()
    history = model.fit(images, objects, batch_size=len(images), verbose=0).history
    logs = {f"log {key}": np.array(values) for key, values in history.items()}
    found = model.detect(images, objects["image_sizes"], objects["proposals"])
    names = ("boxes", "labels", "scores", "valid", "sources")
    logs |= {f"weight {x.path}": np.array(x) for x in model.trainable_variables}
    return logs | {f"found {name}": np.array(x) for name, x in zip(names, found, strict=True)}
