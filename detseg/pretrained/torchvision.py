"""What the layers of our models are called in torchvision's state_dicts, and how their arrays lie there."""

import re

import numpy as np

# Spellings of older versions of torchvision, as in the published files -> today's.
_RENAMED = (
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
    (r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2"),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)$", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}"),
    (
        r"^(head\.(?:classification|regression)_head\.conv)\.(\d)\.(weight|bias)$",
        lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}",
    ),
)
_COUNTERS = "num_batches_tracked"

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
_HEADS = {
    "faster_rcnn": _REGIONS,
    "mask_rcnn": _REGIONS,
    "retinanet": _RETINANET,
    "fcn": _FCN,
    "deeplabv3": _DEEPLABV3,
}


def is_whole_model(state):
    """Whether a state_dict is that of a detector or segmenter, and not of a backbone with its classifier."""
    return any(key.startswith("backbone.") for key in state)


def with_todays_names(state):
    """A state_dict with today's spelling, without the counters of batches."""
    renamed = {}
    for key, array in state.items():
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        if not key.endswith(_COUNTERS):
            renamed[key] = array
    return renamed


def backbone_state(state):
    """The entries of a whole model's backbone as that alone has them; of a backbone's state_dict all."""
    if not is_whole_model(state):
        return state
    prefix = "backbone.body." if any(key.startswith("backbone.body.") for key in state) else "backbone."
    inner = {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}
    return {f"features.{key}" if key[0].isdigit() else key: array for key, array in inner.items()}


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
    for pattern, replacement in _HEADS.get(options.name, ()):
        if match := re.fullmatch(pattern, name):
            return replacement(match) if callable(replacement) else match.expand(replacement)
    return None


def module_arrays(state, module):
    """A module's arrays in the order of our layers' weights: kernel and bias, or gamma, beta, mean and variance."""
    names = ("weight", "bias", "running_mean", "running_var")
    return [state[f"{module}.{name}"] for name in names if f"{module}.{name}" in state]


def our_layout(array, shape):
    """An array of a state_dict as our layer of weights of this shape has it.

    Kernels are (out, in, height, width) there, of transposed convolutions (in, out, height, width), of depthwise ones
    (channels, 1, height, width); dense ones (out, in).
    """
    if array.ndim == 2:
        return array.T
    if array.ndim != 4:
        return array
    is_depthwise = array.shape[1] == 1 and len(shape) == 4 and shape[3] == 1 and shape[2] == array.shape[0]
    return array.transpose((2, 3, 0, 1) if is_depthwise else (2, 3, 1, 0))


def flattened_last(kernel, channels, side):
    """A dense kernel (out, channels * side * side) on features that were flattened channels first, for ours: last."""
    return kernel.reshape(-1, channels, side, side).transpose(0, 2, 3, 1).reshape(len(kernel), -1)


# What of the classifiers' rows (their first axis there) is not an object's: our layer -> function of the array.
WITHOUT_BACKGROUND = {
    "class_logits": lambda array: np.roll(array, -1, axis=0),  # ours is the last
    "class_boxes": lambda array: array[4:],
    "mask_logits": lambda array: array[1:],
}
