"""Whole models from published files: their layers, and their classifiers' rows by class."""

import logging

import numpy as np

from detseg.backbones.layer_copy import copy_layers
from detseg.backbones.tf_deeplab import NETS, is_tf_checkpoint, layers_of_checkpoint, read_tf_checkpoint
from detseg.backbones.torch_weights import (
    backbone_state,
    download,
    flattened_last,
    is_torch_file,
    is_whole_model,
    layers_of_state,
    read_torch_weights,
)
from detseg.errors import UserError
from detseg.pretrained.catalogue import PRESETS, VOC_CLASSES
from detseg.pretrained.class_rows import CLASS_LAYERS, same_classes, taken_over
from detseg.pretrained.torchvision import HEADS, WITHOUT_BACKGROUND, head_module, recognised_preset

logger = logging.getLogger("detseg")


def read_whole_model(options):
    """What `load_whole_model` takes, of a model section whose weights are those of a whole model; None of others', and
    of models that torchvision doesn't have: their backbones are taken out of it.

    Raises UserError for files that can't be read, and for weights: coco without a preset.
    """
    weights = getattr(options, "weights", None)
    if weights == "coco":
        if options.preset not in PRESETS:
            raise UserError(f"model.preset: {options.preset}, expected one of {', '.join(PRESETS)} for weights: coco")
        weights = download(PRESETS[options.preset].file)
    if weights is None:
        return None
    if is_torch_file(weights):
        state = read_torch_weights(weights)
        return (weights, state) if is_whole_model(state) and options.name in HEADS else None
    if is_tf_checkpoint(weights):
        variables = read_tf_checkpoint(weights)
        return (weights, variables) if any(name.split("/")[0] not in NETS for name in variables) else None
    return None


def load_whole_model(model, backbone, options, classes, source):
    """Copies a published model into ours, and logs what was kept, taken over by class, and is new.

    model, backbone:  ours and the Backbone inside it, as the options describe them.
    classes:          names, index = label; of segmentation with the background.
    source:           of `read_whole_model`: the file's path, and {name: array}.
    Raises UserError, with the first keys of the file and the preset that would fit, unless every layer fits; nothing is
    changed then.
    """
    path, state = source
    if is_torch_file(path) and backbone.torch_module is None:
        raise UserError(
            f"model.weights: {path} is a whole model of torchvision's, whose form this {options.backbone} doesn't "
            f"have; {_which_fits(state)}. Its first keys are {', '.join(list(state)[:5])}"
        )
    targets = list(dict.fromkeys(layer for layer in leaves(model) if layer.weights))
    if is_tf_checkpoint(path):
        found, _ = layers_of_checkpoint(state)
        names = VOC_CLASSES if len(found.get("logits_conv", [[]])[-1]) == len(VOC_CLASSES) else None
    else:
        found, names = _torch_layers(state, targets, backbone, options)
    names = classes if names is None and _class_count(found) == len(classes) else names
    rows = take_over_rows(targets, found, classes, names, getattr(options, "class_agnostic", False))
    hint = f"Its first keys are {', '.join(list(state)[:5])}; {_which_fits(state)}."
    copy_layers(targets, found, f"{path} does not fit {options.name} on {options.backbone}", hint)
    logger.info("%s: %s", path, describe(targets, found, backbone, rows))
    backbone.loaded_layers = loaded_layers(found, rows)


def leaves(model):
    """The layers of a model, in place of a model within it its layers."""
    for layer in model.layers:
        yield from leaves(layer) if hasattr(layer, "layers") else (layer,)


def _torch_layers(state, targets, backbone, options):
    """({layer: arrays}, names of the classifier's classes or None) of torchvision's state_dict of a whole model."""
    in_backbone = {id(layer) for layer in backbone.model.layers}
    of_backbone = [layer for layer in targets if id(layer) in in_backbone]
    heads = [layer for layer in targets if id(layer) not in in_backbone]
    state = dict(state)
    if options.name in ("faster_rcnn", "mask_rcnn"):
        for layer, change in WITHOUT_BACKGROUND.items():
            for part in ("weight", "bias"):
                key = f"{head_module(options, layer)}.{part}"
                if key in state:
                    state[key] = change(state[key])
        key = "roi_heads.box_head.fc6.weight"
        if key in state and state[key].shape[1] == options.fpn_channels * options.roi_size**2:
            state[key] = flattened_last(state[key], options.fpn_channels, options.roi_size)
    found = layers_of_state(state, heads, lambda name: head_module(options, name))
    found |= layers_of_state(backbone_state(state), of_backbone, backbone.torch_module)
    names = next((p.names for p in PRESETS.values() if p.model["name"] == options.name), None)
    if options.name == "retinanet" and names is not None:
        names = (None, *names)  # its first output, background's, was never right
    return found, names if names is not None and _class_count(found, len(names)) == len(names) else None


def _class_count(found, expected=None):
    """Classes of the classifier among the layers found; of RetinaNet's anchors `expected` if they divide by it."""
    for layer, numbers in (("class_logits", -1), ("logits_conv", 0), ("class_output", 0)):
        if layer in found:
            count = found[layer][-1].shape[-1] + numbers
            divides = layer == "class_output" and expected and count % expected == 0
            return expected if divides else count
    return None


def take_over_rows(targets, found, classes, source_classes, class_agnostic=False):
    """Puts arrays of our own size in the place of the classifying layers' in `found`.

    targets:         our layers; found: {layer name: arrays}, which is changed.
    source_classes:  names, None for outputs of no class; None: nobody knows, all rows are new.
    class_agnostic:  bool, whether boxes are moved alike for every class.
    Returns          (names of the classes that were taken over, names of the new ones).
    """
    own = {layer.name: [np.asarray(weight) for weight in layer.weights] for layer in targets}
    names = source_classes or ()
    places = same_classes(classes, names)
    for layer, outputs in CLASS_LAYERS.items():
        if layer not in own or layer not in found or (layer == "class_boxes" and class_agnostic):
            continue
        rows = taken_over(own[layer], found[layer], outputs, places, len(names)) if names else own[layer]
        found[layer] = own[layer] if rows is None and not (places >= 0).any() else (rows or found[layer])
    kept = [name for name, place in zip(classes, places, strict=True) if place >= 0]
    return kept, [name for name in classes if name not in kept]


def loaded_layers(found, rows):
    """Names of the layers that have their weights from elsewhere: classifying ones only if all of their rows are."""
    return tuple(name for name in found if name not in CLASS_LAYERS or not rows[1])


def describe(targets, found, backbone, rows):
    """What became of our layers, as a table: kept, rows by class, new."""
    kept_classes, new_classes = rows
    in_backbone = set() if backbone is None else {id(layer) for layer in backbone.model.layers}
    lines = [f"{'layers':<28}{'kept':>6}{'by class':>10}{'new':>6}"]
    for title, group in (
        ("backbone", [layer for layer in targets if id(layer) in in_backbone]),
        ("other layers", [layer for layer in targets if id(layer) not in in_backbone]),
    ):
        by_class = sum(layer.name in found and layer.name in CLASS_LAYERS for layer in group)
        kept = sum(layer.name in found for layer in group) - by_class
        lines.append(f"{title:<28}{kept:>6}{by_class:>10}{len(group) - kept - by_class:>6}")
    kept, new = (", ".join(names) or "none" for names in (kept_classes, new_classes))
    lines.append(f"classes taken over: {kept}; new: {new}")
    return "what was taken over\n" + "\n".join(f"  {line}" for line in lines)


def _which_fits(state):
    preset = recognised_preset(state)
    if preset is None:
        return f"no preset is known that it is of; presets are {', '.join(PRESETS)}"
    return f"model.preset: {preset} would fit"
