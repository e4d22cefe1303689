"""A small Mask R-CNN and a batch with masks for it, for both backends."""

import faster_rcnn_cases
import keras
import numpy as np
from faster_rcnn_cases import SMALL, spread_outputs, step
from retinanet_cases import tiny_backbone

from detseg.data.masks import crop_masks
from detseg.detection.mask_head import CROP_SIZE
from detseg.detection.mask_rcnn import MaskRCNN
from detseg.detection.options import MaskRCNNOptions

__all__ = ["batch", "step", "tiny"]


def batch():
    """That of the Faster R-CNN, each object being the ellipse in its box."""
    images, objects = faster_rcnn_cases.batch()
    height, width = images.shape[1:3]
    rows, columns = np.indices((height, width)) + 0.5
    crops = np.zeros((2, 4, CROP_SIZE, CROP_SIZE), np.uint8)
    for i, (x1, y1, x2, y2) in enumerate(objects["boxes"][0, :3]):
        inside = (2 * (columns - x1) / (x2 - x1) - 1) ** 2 + (2 * (rows - y1) / (y2 - y1) - 1) ** 2 < 1
        crops[0, i] = crop_masks(inside[None].astype(np.uint8), objects["boxes"][:1, i], CROP_SIZE)[0]
    return images, objects | {"masks": crops}


def tiny(class_count=3, spread=False, **options):
    """As the Faster R-CNN's. spread: masks on both sides of 0.5 too."""
    keras.utils.set_random_seed(0)
    small = SMALL | {"mask_channels": 8, "mask_convolutions": 1, "mask_roi_size": 7}
    model = MaskRCNN(MaskRCNNOptions(**small | options), class_count, backbone=tiny_backbone())
    if spread:
        spread_outputs(model)
        layer = model.mask_head.get_layer("mask_logits")
        layer.kernel.assign(layer.kernel * 1000)
    return model
