"""Pretrained weights for backbones, copied layer by layer by name, from keras.applications or from a file."""

import collections
import contextlib
import inspect
import io
import os
import pkgutil
import re
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np

from detseg.backbones.catalogue import CATALOGUE
from detseg.backbones.layer_copy import copy_layers
from detseg.backbones.tf_deeplab import is_tf_checkpoint, load_tf_checkpoint
from detseg.backbones.torch_weights import (
    backbone_state,
    download,
    flattened_last,
    is_torch_file,
    layers_of_state,
    our_layout,
    read_torch_weights,
    recognised_backbone,
)
from detseg.errors import UserError


def load_weights(backbone, weights, alpha=1.0, variant=None):
    """Copies pretrained weights into `backbone.model` by layer name; nothing is changed unless every layer fits.

    weights:  "imagenet" (downloaded and checked by keras.applications; of torchvision's forms, its file) or the path of
              a file: legacy Keras .h5, also of a whole model; Keras 3 .weights.h5 or .keras, of a backbone or of a
              model that contains its layers; .pth or .pt, torchvision's state_dict of the backbone or of a model on it,
              read without torch; the prefix of a checkpoint of TensorFlow's DeepLab.
    alpha, variant:  of the backbone; they pick the ImageNet file.
    Returns   tuple of str: layers with weights that the backbone has no use for (a classifier top, a decoder).

    A first kernel for 3 channels is fitted to C != 3 channels: its mean over the input channels is repeated C times and
    multiplied by 3 / C, so that an image of C equal channels gives what it gives as RGB (1 channel: the sum).
    Raises UserError naming the layers that are missing or of another shape, an unreadable file, a failed download.
    """
    net = CATALOGUE[backbone.name].variants.get(variant, CATALOGUE[backbone.name])
    weights = os.fspath(weights)
    if weights == "imagenet" and net.torch_file is not None:
        if alpha != 1:
            raise _other_width(backbone.name, alpha)
        weights = download(net.torch_file)
    if is_torch_file(weights):
        return _load_torch_weights(backbone, weights)
    if is_tf_checkpoint(weights):
        return load_tf_checkpoint(backbone, weights)
    with _open(weights, backbone.name, alpha, variant) as layers:
        layers = _name_shortcuts(layers, CATALOGUE[backbone.name].unnamed_shortcuts)
        hint = "Are model.backbone, model.alpha, model.norm and model.variant those the file was made with?"
        return copy_layers(backbone.model.layers, layers, f"{weights} does not fit {backbone.name}", hint)


def _load_torch_weights(backbone, path):
    state = read_torch_weights(path)
    name, keys = recognised_backbone(state), ", ".join(list(state)[:5])
    if backbone.torch_module is None or name not in (None, backbone.name):
        forms = [form for form, row in CATALOGUE[backbone.name].variants.items() if row.torch_names is not None]
        wanted = f"model.variant: {forms[0]}" if forms else "another backbone"
        if name not in (None, backbone.name):
            wanted = f"model.backbone: {name}"
        raise UserError(
            f"model.weights: {path} is a state_dict of torchvision's {name or '(an unknown net)'}, which does not fit "
            f"this form of {backbone.name}; expected {wanted}. Its first keys are {keys}"
        )
    state = backbone_state(state)
    module_of = backbone.torch_module
    targets = [layer for layer in backbone.model.layers if layer.weights]
    layers = layers_of_state(state, targets, module_of)
    copy_layers(
        targets, layers, f"{path} does not fit {backbone.name}", f"Its first keys are {', '.join(list(state)[:5])}."
    )
    used = {module_of(layer.name) for layer in targets}
    return tuple(dict.fromkeys(key.rpartition(".")[0] for key in state if key.rpartition(".")[0] not in used))


def dense_weights(weights, name):
    """The dense layers of a backbone's classifier (the catalogue's dense_layers), for FCN's fc6 and fc7.

    weights:  "imagenet" (downloads the model with its top), the path of a weight file, or None.
    name:     the backbone's name.
    Returns   of a VGG {"fc1": (kernel (25088, 4096), bias (4096,)), "fc2": (kernel (4096, 4096), bias (4096,))} of
              float arrays, or None if the backbone has none or the source lacks these layers at these shapes. Rows of
              fc1's kernel are the flattened (7, 7, 512) map: kernel.reshape(7, 7, 512, 4096) is the convolution.
    Raises UserError for an unreadable file or a failed download.
    """
    dense = CATALOGUE[name].dense_layers
    if weights is None or not dense:
        return None
    expected = [[shape, shape[1:]] for shape in dense.values()]  # of kernel and bias
    if is_torch_file(os.fspath(weights)):
        return _torch_dense_weights(weights, name)
    with _open(weights, name, include_top=True) as layers:
        if [[tuple(array.shape) for array in layers.get(layer, ())] for layer in dense] != expected:
            return None
        return {layer: tuple(np.asarray(array) for array in layers[layer]) for layer in dense}


def _torch_dense_weights(path, name):
    """`dense_weights` in torchvision's state_dict of a VGG, where they follow the map flattened channels first."""
    state, dense = read_torch_weights(path), CATALOGUE[name].dense_layers
    module_of = pkgutil.resolve_name(f"detseg.backbones.{CATALOGUE[name].variants['torchvision'].torch_names}")
    found = {}
    for index, (layer, shape) in enumerate(dense.items()):
        kernel, bias = (state.get(f"{module_of(layer)}.{part}") for part in ("weight", "bias"))
        if kernel is None or bias is None or kernel.shape != shape[::-1]:
            return None
        kernel = flattened_last(kernel, kernel.shape[1] // 49, 7) if index == 0 else kernel
        found[layer] = (our_layout(kernel), bias)
    return found


def _name_shortcuts(layers, shortcuts):
    """`layers` with our names for the shortcuts, convolutions and norms, to which keras.applications gives none.

    Keras then calls them conv2d_3 or batch_normalization_5, counting on from all layers that its process made before.
    """
    names = {}
    for kind, suffix in (("conv2d", ""), ("batch_normalization", "_bn")):
        numbered = [name for name in layers if re.fullmatch(rf"{kind}(_\d+)?", name)]
        if len(numbered) == len(shortcuts):
            numbered.sort(key=lambda name: (len(name), name))
            names |= {name: ours + suffix for name, ours in zip(numbered, shortcuts, strict=True)}
    return {names.get(name, name): arrays for name, arrays in layers.items()}


# ----- sources: each gives {layer name: [arrays]}, in the order of keras' layer.weights ------------------------------


@contextlib.contextmanager
def _open(weights, name, alpha=1.0, variant=None, include_top=False):
    """The layers of "imagenet" or of a file; arrays may be h5py datasets, read when used."""
    if weights == "imagenet":
        twin = _imagenet_twin(name, alpha, variant, include_top)
        yield {layer.name: layer.get_weights() for layer in twin.layers}
        return
    path = Path(weights)
    if not path.is_file():
        raise UserError(
            f"model.weights: {weights} is not a file; expected imagenet, null, or the path of a .h5, .weights.h5, "
            ".keras or .pth file"
        )
    try:
        with contextlib.ExitStack() as stack:
            yield _read_layers(path, stack)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"model.weights: {weights} cannot be read: {error}. Is the file complete?") from error


def _other_width(name, alpha):
    return UserError(f"model.weights: {name} has ImageNet weights at model.alpha 1 only, not {alpha}; expected null")


def _imagenet_twin(name, alpha, variant, include_top):
    net = CATALOGUE[name].variants.get(variant, CATALOGUE[name])
    if net.twin is None:
        form = name if variant is None else f"{name}'s variant {variant}"
        raise UserError(
            f"model.weights: keras.applications has no ImageNet weights of {form}; expected null, or the path of a "
            "file with weights of this very form"
        )
    create_twin = getattr(keras.applications, net.twin)
    options = net.twin_options if alpha == 1 else {**net.twin_options, "alpha": alpha}
    if "alpha" in options and "alpha" not in inspect.signature(create_twin).parameters:
        raise _other_width(name, alpha)
    try:
        return create_twin(weights="imagenet", include_top=include_top, input_shape=(224, 224, 3), **options)
    except Exception as error:  # the download raises bare Exception, a width without weights ValueError
        raise UserError(
            f"model.weights: the ImageNet weights of {name} (alpha {alpha}) could not be had from keras.applications: "
            f"{error}. Give the path of a weight file instead (model.weights: PATH), or null for random weights"
        ) from error


def _read_layers(path, stack):
    file = path
    if zipfile.is_zipfile(path):
        archive = stack.enter_context(zipfile.ZipFile(path))
        if "model.weights.h5" not in archive.namelist():
            raise UserError(f"model.weights: {path} is a zip file without model.weights.h5; expected a .keras model")
        file = io.BytesIO(archive.read("model.weights.h5"))
    elif not h5py.is_hdf5(path):
        raise UserError(f"model.weights: {path} is neither HDF5 (.h5, .weights.h5) nor a .keras model; is it complete?")
    root = stack.enter_context(h5py.File(file, "r"))
    group = root.get("model_weights", root)
    is_legacy = any(attribute.startswith("layer_names") for attribute in group.attrs)
    layers = _legacy_layers(group) if is_legacy else _keras3_layers(root)
    if not layers:
        raise UserError(
            f"model.weights: {path} has no named layers. Early Keras 3 versions wrote no names: load the model with a "
            "recent Keras and save it again"
        )
    return layers


def _legacy_layers(group):
    """Layers of a legacy file; a layer that is a model itself is split into its own layers."""
    layers = collections.defaultdict(list)
    for name in _text_attribute(group, "layer_names"):
        weights = _text_attribute(group[name], "weight_names")
        is_model = len({weight.split("/")[-2] for weight in weights if "/" in weight}) > 1
        for weight in weights:
            layers[weight.split("/")[-2] if is_model else name].append(group[name][weight])
    return layers


def _text_attribute(group, name):
    """A list of str that Keras splits into name0, name1, ... when it is too long for one HDF5 attribute."""
    parts = (part for part in (name, *(f"{name}{i}" for i in range(len(group.attrs)))) if part in group.attrs)
    return [text.decode() if isinstance(text, bytes) else str(text) for part in parts for text in group.attrs[part]]


def _keras3_layers(root):
    """Layers of a .weights.h5 file: every group "vars" holds one layer's weights 0, 1, ... and carries its name."""
    layers = collections.defaultdict(list)

    def visit(path, group):
        if path.split("/")[-1] == "vars" and "name" in group.attrs:
            # Two layers of one name come out as one with too many weights, which no layer of ours fits.
            layers[str(group.attrs["name"])].extend(group[str(i)] for i in range(len(group)))

    root.visititems(visit)
    return layers
