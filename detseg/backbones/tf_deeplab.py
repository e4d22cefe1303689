"""Checkpoints of TensorFlow's DeepLab (tensorflow/models, research/deeplab), read into our layers by name.

They are files of TensorFlow 1, of variables by name: deeplabv3_mnv2_* and deeplabv3_* of PASCAL VOC, Cityscapes and
ADE20K, xception_65 of ImageNet, and slim's mobilenet_v2. Kernels have Keras' layout. docs/models.md says which models
of ours they are.
"""

import logging
import re
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from detseg.backbones.backbone import Backbone
from detseg.backbones.layer_copy import copy_layers
from detseg.errors import UserError

logger = logging.getLogger("detseg")

NETS = {"xception_65": "xception65", "MobilenetV2": "mobilenetv2"}  # the backbones' scopes and our names
LISTED_NAMES = 5  # of the variables that an error names

_AVERAGE = "/ExponentialMovingAverage"
_OF_OPTIMIZERS = re.compile(
    r"(.+/)?(Momentum|Adam(_\d)?|RMSProp(_\d)?|Adagrad|Ftrl(_\d)?|beta[12]_power|global_step|OptimizeLoss/.*)"
)


class Scope(NamedTuple):
    """A scope of variables and the layers of ours that they belong to.

    scope:  regular expression of its whole name; the layers' names take over its groups.
    layer:  the convolution: weights or depthwise_weights, and biases.
    norm:   the batch norm behind it: BatchNorm/gamma, beta, moving_mean and moving_variance; None: there is none.
    """

    scope: str
    layer: str
    norm: str | None


_MODULE = r"xception_module/(separable_conv[123]_(?:depthwise|pointwise)|shortcut)"

SCOPES = (
    Scope(r"xception_65/entry_flow/(conv1_[12])", r"entry_flow_\1", r"entry_flow_\1_BN"),
    Scope(rf"xception_65/(entry|exit)_flow/(block[123])/unit_1/{_MODULE}", r"\1_flow_\2_\3", r"\1_flow_\2_\3_BN"),
    Scope(rf"xception_65/middle_flow/block1/(unit_\d+)/{_MODULE}", r"middle_flow_\1_\2", r"middle_flow_\1_\2_BN"),
    Scope(r"MobilenetV2/Conv", r"Conv1", r"bn_Conv1"),
    Scope(r"MobilenetV2/(expanded_conv)/(depthwise|project)", r"\1_\2", r"\1_\2_BN"),
    Scope(r"MobilenetV2/expanded_conv_(\d+)/(expand|depthwise|project)", r"block_\1_\2", r"block_\1_\2_BN"),
    Scope(r"MobilenetV2/(Conv_1)", r"\1", r"\1_bn"),
    Scope(r"image_pooling", r"aspp_pooling", r"aspp_pooling_norm"),
    Scope(r"aspp0", r"aspp_1x1", r"aspp_1x1_norm"),
    Scope(r"aspp([1-9])_depthwise", r"aspp_atrous\1_depthwise", r"aspp_atrous\1_depthwise_norm"),
    Scope(r"aspp([1-9])(?:_pointwise)?", r"aspp_atrous\1", r"aspp_atrous\1_norm"),
    Scope(r"concat_projection", r"aspp_join", r"aspp_join_norm"),
    Scope(r"decoder/feature_projection0", r"decoder_low_level", r"decoder_low_level_norm"),
    Scope(r"decoder/decoder_conv0_depthwise", r"decoder_conv1_depthwise", r"decoder_conv1_depthwise_norm"),
    Scope(r"decoder/decoder_conv0_pointwise", r"decoder_conv1", r"decoder_conv1_norm"),
    Scope(r"decoder/decoder_conv1_depthwise", r"decoder_conv2_depthwise", r"decoder_conv2_depthwise_norm"),
    Scope(r"decoder/decoder_conv1_pointwise", r"decoder_conv2", r"decoder_conv2_norm"),
    Scope(r"decoder/decoder_conv0/decoder_conv0_([12])", r"decoder_conv\1", r"decoder_conv\1_norm"),
    Scope(r"logits/semantic", r"logits_conv", None),
)
# in the order of keras' layer.weights
_OF_LAYER = ("weights", "depthwise_weights", "biases")
_OF_NORM = ("BatchNorm/gamma", "BatchNorm/beta", "BatchNorm/moving_mean", "BatchNorm/moving_variance")


def is_tf_checkpoint(weights):
    """Whether `weights` is written as a checkpoint's prefix: it ends in .ckpt, or .ckpt- and a number."""
    return re.search(r"\.ckpt(-\d+)?$", weights) is not None


def load_tf_checkpoint(model, prefix):
    """Copies a checkpoint into a model's layers; nothing is changed unless every layer fits.

    model:   a `Backbone`, xception65 or mobilenetv2, which takes its part of the checkpoint; or a keras.Model, a
             DeepLab on one of them, which takes the head too, and leaves nothing of it over.
    prefix:  path of the checkpoint without .index and .data-00000-of-00001.
    Returns  tuple of str: what there is no use for, our layers' names or, of what has no place in any model of ours (a
             classifier of ImageNet's classes), the variables'.
    A first kernel of 3 channels is fitted to others as in `load_weights`.
    Raises UserError for files that can't be read (see `read_tf_checkpoint`), and naming layers that are missing, of
    another shape or, in the head, left over.
    """
    variables = read_tf_checkpoint(prefix)
    layers, others = layers_of_checkpoint(variables)
    is_backbone = isinstance(model, Backbone)
    targets = list(_leaves(model.model if is_backbone else model))
    nets = " and ".join(ours for scope, ours in NETS.items() if any(name.startswith(f"{scope}/") for name in variables))
    hint = f"The checkpoint is of {nets}; docs/models.md has the model section of each of DeepLab's."
    if not is_backbone:
        _refuse_left_over_head(variables, targets, f"{prefix} does not fit {model.name}", hint)
    return copy_layers(targets, layers, f"{prefix} does not fit {model.name}", hint) + others


def layers_of_checkpoint(variables):
    """({layer name: [arrays]}, names of variables without a place) of a checkpoint's {variable name: array}.

    The layers are those of our backbones xception65 and mobilenetv2 and of DeepLabv3 and v3+ on them, the arrays in the
    order of keras' layer.weights. TensorFlow's DeepLab joins image pooling before the other branches of ASPP, ours
    behind them: the channels that `aspp_join` reads are put into our order.
    """
    layers, others = {}, []
    for name, array in variables.items():
        place = _place(name)
        if place is None:
            others.append(name)
            continue
        layer, position = place
        if layer == "aspp_join" and "image_pooling/weights" in variables:
            array = np.roll(array, -variables["image_pooling/weights"].shape[-1], axis=2)  # (1, 1, C, F)
        layers.setdefault(layer, {})[position] = array
    ordered = {layer: [arrays[position] for position in sorted(arrays)] for layer, arrays in layers.items()}
    return ordered, tuple(others)


def _place(variable):
    """(our layer's name, position among its weights) of a variable, or None."""
    scope, _, last = variable.rpartition("/")
    scope, is_norm = scope.removesuffix("/BatchNorm"), scope.endswith("/BatchNorm")
    names = _OF_NORM if is_norm else _OF_LAYER
    last = f"BatchNorm/{last}" if is_norm else last
    for rule in SCOPES:
        match = re.fullmatch(rule.scope, scope)
        layer = rule.norm if is_norm else rule.layer
        if match and layer is not None and last in names:
            return match.expand(layer), names.index(last)
    return None


def _leaves(model):
    """The layers of a model, in place of a model within it its layers."""
    for layer in model.layers:
        yield from _leaves(layer) if isinstance(layer, keras.Model) else (layer,)


def _refuse_left_over_head(variables, targets, misfit, hint):
    """UserError for variables outside of the backbone that have no layer in the model: it would be another model."""
    have = {layer.name for layer in targets}
    heads = [name for name in variables if name.split("/")[0] not in NETS]
    left = [name for name in heads if (_place(name) or (None,))[0] not in have]
    if left:
        raise UserError(f"model.weights: {misfit}, which has no layers for {_listed(left)}. {hint}")


# ----- files ---------------------------------------------------------------------------------------------------------


def read_tf_checkpoint(prefix):
    """{name: array} of the variables of a DeepLab checkpoint, a TensorFlow-only path.

    prefix:  path without .index and .data-00000-of-00001.
    Where a checkpoint also keeps a variable's moving average (slim's mobilenet_v2 does), that is the array: it is more
    accurate by 1.5 to 2 points, as its authors say. An optimizer's variables are left out and counted in the log.
    Raises UserError for a missing or unreadable file, and for a checkpoint without one of NETS.
    """
    _check_files(prefix)
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(prefix))
        names = reader.get_variable_to_shape_map().keys()
        kept = sorted(name for name in names if not _OF_OPTIMIZERS.fullmatch(name))
        if not any(name.split("/")[0] in NETS for name in kept):
            raise UserError(
                f"model.weights: {prefix} is not a checkpoint of TensorFlow's DeepLab: it has {_listed(kept)}; "
                f"expected variables in {' or '.join(f'{scope}/' for scope in NETS)}"
            )
        variables = {name: reader.get_tensor(name) for name in kept if name + _AVERAGE not in names}
    except (tf.errors.OpError, LookupError, ValueError, RuntimeError, MemoryError) as error:
        raise UserError(
            f"model.weights: {prefix}: this checkpoint can't be read: {error}. Is it complete? Download it again"
        ) from error
    logger.info("%s: %d variables of an optimizer are ignored", prefix, len(names) - len(kept))
    return {name.removesuffix(_AVERAGE): array for name, array in variables.items()}


def _check_files(prefix):
    """UserError unless the index and all the data files are there."""
    folder, name = Path(prefix).parent, Path(prefix).name
    expected = "expected a checkpoint's prefix: DIR/model.ckpt for model.ckpt.index and model.ckpt.data-00000-of-00001"
    if not Path(f"{prefix}.index").is_file():
        raise UserError(f"model.weights: {prefix}.index: missing; {expected}")
    parts = (re.fullmatch(re.escape(name) + r"\.data-\d{5}-of-(\d{5})", file.name) for file in folder.iterdir())
    count = max((int(part[1]) for part in parts if part), default=1)
    for index in range(count):
        path = Path(f"{prefix}.data-{index:05}-of-{count:05}")
        if not path.is_file():
            raise UserError(f"model.weights: {path}: missing beside {name}.index; {expected}")


def _listed(names):
    """The first names, and how many more there are."""
    more = f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    return (", ".join(names[:LISTED_NAMES]) or "no variables") + more
