"""A small RetinaNet and a batch for it, for both backends."""

import keras
import numpy as np

from detseg.backbones.backbone import Backbone
from detseg.detection.options import RetinaNetOptions
from detseg.detection.retinanet import RetinaNet


def tiny_backbone(output_stride=32, width=16):
    """A 3x3 convolution for each stage."""
    images = x = keras.Input((None, None, 3))
    options = {"padding": "same", "activation": "relu", "kernel_initializer": "he_normal"}
    for native in (2, 4, 8, 16, 32):
        strides = 2 if native <= output_stride else 1
        x = keras.layers.Conv2D(width, 3, strides, name=f"stage{native}", **options)(x)
    levels = {native: (f"stage{native}", native) for native in (2, 4, 8, 16, 32)}
    return Backbone("tiny", keras.Model(images, x), levels, output_stride, "tf")


def tiny(class_count=3, output_stride=32, spread=False, **options):
    """Of the levels 8 to 128. spread: scores on both sides of 0.05 in `batch`, and boxes beside their anchors."""
    keras.utils.set_random_seed(0)
    small = {"backbone": "resnet18", "weights": None, "norm": "batch", "fpn_channels": 16, "head_convolutions": 1}
    model = RetinaNet(RetinaNetOptions(**small | options), class_count, backbone=tiny_backbone(output_stride))
    for name, output, deviation in (("class_output", "class_logits", 2.0), ("box_output", "box_deltas", 0.3)):
        if spread:
            levels = [np.array(x).ravel() for x in model(batch()[0])[output]]
            kernel = model.head.get_layer(name).kernel
            kernel.assign(kernel * (deviation / np.concatenate(levels).std()))
    return model


def batch():
    """Images (2, 96, 64, 3) and ground truth: two objects and a crowd; nothing."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 96, 64, 3), dtype="uint8")
    boxes = np.zeros((2, 4, 4), "float32")
    boxes[0, :3] = [[4, 6, 40, 38], [20, 50, 44, 90], [0, 60, 20, 96]]
    labels = np.full((2, 4), -1, "int32")
    labels[0, :3] = [2, 0, 1]
    is_crowd = np.zeros((2, 4), bool)
    is_crowd[0, 2] = True
    sizes = np.array([[96, 64], [80, 50]], "float32")
    return images, {"boxes": boxes, "labels": labels, "is_crowd": is_crowd, "image_sizes": sizes}
