"""What the layers of our models, behind their backbones, are called in torchvision's state_dicts."""

import re

import numpy as np

from detseg.backbones.torch_weights import recognised_backbone
from detseg.pretrained.catalogue import PRESETS

# Our layer -> module, of the heads: a pattern of the layer's whole name and what becomes of it.
_REGIONS = (
    (r"rpn_conv", "rpn.head.conv.0.0"),
    (r"rpn_objectness", "rpn.head.cls_logits"),
    (r"rpn_boxes", "rpn.head.bbox_pred"),
    (r"(fc[67])", r"roi_heads.box_head.\1"),
    (r"class_logits", "roi_heads.box_predictor.cls_score"),
    (r"class_boxes", "roi_heads.box_predictor.bbox_pred"),
    (r"mask_conv(\d)", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0"),
    (r"mask_upsample", "roi_heads.mask_predictor.conv5_mask"),
    (r"mask_logits", "roi_heads.mask_predictor.mask_fcn_logits"),
)
_RETINANET = (
    (r"fpn_output64", "backbone.fpn.extra_blocks.p6"),
    (r"fpn_output128", "backbone.fpn.extra_blocks.p7"),
    (r"class_conv(\d)", lambda m: f"head.classification_head.conv.{int(m[1]) - 1}.0"),
    (r"class_output", "head.classification_head.cls_logits"),
    (r"box_conv(\d)", lambda m: f"head.regression_head.conv.{int(m[1]) - 1}.0"),
    (r"box_output", "head.regression_head.bbox_reg"),
)
_AUXILIARY = (
    (r"auxiliary", "aux_classifier.0"),
    (r"auxiliary_norm", "aux_classifier.1"),
    (r"auxiliary_logits_conv", "aux_classifier.4"),
)
_FCN = (
    (r"head_conv", "classifier.0"),
    (r"head_conv_norm", "classifier.1"),
    (r"logits_conv", "classifier.4"),
    *_AUXILIARY,
)
_DEEPLABV3 = (
    (r"aspp_1x1", "classifier.0.convs.0.0"),
    (r"aspp_1x1_norm", "classifier.0.convs.0.1"),
    (r"aspp_atrous(\d)", r"classifier.0.convs.\1.0"),
    (r"aspp_atrous(\d)_norm", r"classifier.0.convs.\1.1"),
    (r"aspp_pooling", "classifier.0.convs.4.1"),
    (r"aspp_pooling_norm", "classifier.0.convs.4.2"),
    (r"aspp_join", "classifier.0.project.0"),
    (r"aspp_join_norm", "classifier.0.project.1"),
    (r"head_conv", "classifier.1"),
    (r"head_conv_norm", "classifier.2"),
    (r"logits_conv", "classifier.4"),
    *_AUXILIARY,
)
HEADS = {
    "faster_rcnn": _REGIONS,
    "mask_rcnn": _REGIONS,
    "retinanet": _RETINANET,
    "fcn": _FCN,
    "deeplabv3": _DEEPLABV3,
}


def head_module(options, name):
    """The module of a whole model that our layer of this name is, behind the backbone; None where it has none.

    options:  the model's.
    """
    if part := re.fullmatch(r"fpn_(lateral|output)(\w+)", name):
        levels = [str(key) for key in options.level_keys]
        backbone_levels = [key for key in levels if not key.isdigit() or int(key) <= 32]
        if part[2] in backbone_levels:
            kind = {"lateral": "inner", "output": "layer"}[part[1]]
            return f"backbone.fpn.{kind}_blocks.{backbone_levels.index(part[2])}.0"
    for pattern, replacement in HEADS.get(options.name, ()):
        if match := re.fullmatch(pattern, name):
            return replacement(match) if callable(replacement) else match.expand(replacement)
    return None


# What of the classifiers' rows (their first axis there) is not an object's: our layer -> function of the array.
WITHOUT_BACKGROUND = {
    "class_logits": lambda array: np.roll(array, -1, axis=0),  # ours is the last
    "class_boxes": lambda array: array[4:],
    "mask_logits": lambda array: array[1:],
}

_KINDS = (
    ("maskrcnn", "roi_heads.mask_predictor"),
    ("fasterrcnn", "roi_heads.box_predictor"),
    ("retinanet", "head.classification_head"),
    ("deeplabv3", "classifier.0.convs"),
    ("fcn", "classifier.4"),
)
_NAMES = {"mobilenetv3_large": "mobilenet_v3_large"}


def recognised_preset(state):
    """The first of our presets that a whole model's state_dict can be of; None: none is known."""
    backbone = recognised_backbone(state)
    for kind, module in _KINDS:
        if any(key.startswith(module) for key in state):
            start = f"{kind}_{_NAMES.get(backbone, backbone)}"
            return next((name for name in PRESETS if name.startswith(start)), None)
    return None
