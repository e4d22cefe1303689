"""Pretrained weights for backbones, copied layer by layer by name, from keras.applications or from a file."""

import collections
import contextlib
import inspect
import io
import re
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np

from detseg.backbones.catalogue import CATALOGUE
from detseg.errors import UserError

LISTED_LAYERS = 12  # of the differing layers that an error names


def load_weights(backbone, weights, alpha=1.0, variant=None):
    """Copies pretrained weights into `backbone.model` by layer name; nothing is changed unless every layer fits.

    weights:  "imagenet" (downloaded and checked by keras.applications) or the path of a file: legacy Keras .h5, also of
              a whole model; Keras 3 .weights.h5 or .keras, of a backbone or of a model that contains its layers.
    alpha, variant:  of the backbone; they pick the ImageNet file.
    Returns   tuple of str: layers with weights that the backbone has no use for (a classifier top, a decoder).

    A first kernel for 3 channels is fitted to C != 3 channels: its mean over the input channels is repeated C times and
    multiplied by 3 / C, so that an image of C equal channels gives what it gives as RGB (1 channel: the sum).
    Raises UserError naming the layers that are missing or of another shape, an unreadable file, a failed download.
    """
    with _open(weights, backbone.name, alpha, variant) as layers:
        layers = _name_shortcuts(layers, CATALOGUE[backbone.name].unnamed_shortcuts)
        hint = "Are model.backbone, model.alpha, model.norm and model.variant those the file was made with?"
        return copy_layers(backbone.model.layers, layers, f"{weights} does not fit {backbone.name}", hint)


def copy_layers(targets, layers, misfit, hint):
    """Copies arrays into Keras layers of the same names; nothing is changed unless every layer with weights fits.

    targets:       the layers, of which the first with weights may see other than 3 channels: see `load_weights`.
    layers:        {layer name: [arrays]} in the order of keras' layer.weights.
    misfit, hint:  what the error says before and after the number of layers that differ.
    Returns        tuple of str: the names in `layers` that no layer has.
    Raises UserError naming the layers that are missing or of another shape.
    """
    targets = [layer for layer in targets if layer.weights]
    values, problems = {}, []
    for layer in targets:
        arrays = layers.get(layer.name)
        if not arrays and isinstance(layer, keras.layers.PReLU):
            continue  # put in place of the relus that the weights were trained with: starts at its own slope
        if arrays is None:
            problems.append(f"{layer.name}: missing in the file")
            continue
        if layer is targets[0]:
            arrays = [_fit_channels(arrays[0], layer.weights[0].shape), *arrays[1:]]
        expected, found = [tuple(w.shape) for w in layer.weights], [tuple(a.shape) for a in arrays]
        if expected != found:
            problems.append(f"{layer.name}: file {' '.join(map(str, found))}, model {' '.join(map(str, expected))}")
        values[layer.name] = arrays
    if problems:
        more = [f"and {len(problems) - LISTED_LAYERS} more"] if len(problems) > LISTED_LAYERS else []
        raise UserError(
            f"model.weights: {misfit}: {len(problems)} of {len(targets)} layers differ. {hint}"
            + "".join(f"\n  {problem}" for problem in problems[:LISTED_LAYERS] + more)
        )
    values = {name: [np.asarray(array) for array in arrays] for name, arrays in values.items()}
    for layer in targets:
        if layer.name in values:
            layer.set_weights(values[layer.name])
    return tuple(name for name, arrays in layers.items() if arrays and name not in values)


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
    with _open(weights, name, include_top=True) as layers:
        if [[tuple(array.shape) for array in layers.get(layer, ())] for layer in dense] != expected:
            return None
        return {layer: tuple(np.asarray(array) for array in layers[layer]) for layer in dense}


def _fit_channels(kernel, shape):
    """A (k, k, 3, F) kernel for the model's kernel shape (k, k, C, F), C != 3; any other kernel as it is."""
    if len(kernel.shape) != 4 or len(shape) != 4 or kernel.shape[2] != 3 or shape[2] == 3:
        return kernel
    mean = np.mean(np.asarray(kernel), axis=2, keepdims=True)
    return np.repeat(mean * (3 / shape[2]), shape[2], axis=2)


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
            f"model.weights: {weights} is not a file; expected imagenet, null, or the path of a .h5, .weights.h5 or "
            ".keras file"
        )
    try:
        with contextlib.ExitStack() as stack:
            yield _read_layers(path, stack)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"model.weights: {weights} cannot be read: {error}. Is the file complete?") from error


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
        raise UserError(f"model.weights: {name} has ImageNet weights at model.alpha 1 only, not {alpha}; expected null")
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
