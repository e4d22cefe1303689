"""State_dicts of torchvision's models: where they are had from, which they are of, and their arrays as ours."""

import os
import re
from pathlib import Path

from detseg.backbones.torch_file import check_hash, read_state_dict
from detseg.errors import UserError

URL = "https://download.pytorch.org/models/"
SUFFIXES = (".pth", ".pt")

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

# What a state_dict is of: the first rule of which all modules are there, and none of the others.
_RESNETS = (
    ("resnet101", ("layer3.22.conv3", "layer4.2.conv3"), ("layer3.23.conv3",)),
    ("resnet152", ("layer3.35.conv3",), ()),
    ("resnet50", ("layer3.5.conv3",), ("layer3.6.conv3",)),
    ("resnet34", ("layer3.5.conv2",), ("layer3.5.conv3",)),
    ("resnet18", ("layer3.1.conv2",), ("layer3.2.conv2", "layer1.0.conv3")),
)
_BACKBONES = (
    *_RESNETS,
    ("mobilenetv2", ("features.1.conv.0.0", "features.18.0"), ()),
    ("mobilenetv3_large", ("features.1.block.0.0", "features.16.0"), ()),
    ("mobilenetv3_small", ("features.1.block.0.0", "features.12.0"), ("features.16.0",)),
    ("vgg19", ("features.34",), ("features.1.block.0.0",)),
    ("vgg16", ("features.28",), ("features.34",)),
)


def download(file):
    """The path of one of torchvision's files, which is downloaded once into Keras' cache.

    Raises UserError that says how to place it by hand where that isn't possible, and for an altered file.
    """
    import keras

    cache = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    try:
        path = keras.utils.get_file(file, URL + file, cache_dir=cache, cache_subdir="models")
    except Exception as error:  # the download raises bare Exception
        raise UserError(
            f"model.weights: {URL}{file} could not be downloaded: {error}. Without a network, download it elsewhere "
            f"and put it into {cache / 'models'}, or name its path: model.weights: PATH/{file}"
        ) from error
    check_hash(path)
    return path


def is_torch_file(weights):
    return weights.endswith(SUFFIXES)


def read_torch_weights(path):
    """The state_dict in a file in today's spelling, without the counters of batches: {name: array}.

    Raises UserError as `read_state_dict` and `check_hash`.
    """
    check_hash(path)
    renamed = {}
    for key, array in read_state_dict(path).items():
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        if not key.endswith("num_batches_tracked"):
            renamed[key] = array
    return renamed


def is_whole_model(state):
    """Whether a state_dict is that of a detector or segmenter, and not of a backbone with its classifier."""
    return any(key.startswith("backbone.") for key in state)


def backbone_state(state):
    """The entries of a whole model's backbone as that alone has them; of a backbone's state_dict all."""
    if not is_whole_model(state):
        return state
    prefix = "backbone.body." if any(key.startswith("backbone.body.") for key in state) else "backbone."
    inner = {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}
    return {f"features.{key}" if key[0].isdigit() else key: array for key, array in inner.items()}


def recognised_backbone(state):
    """The name of the backbone that a state_dict is of, or has; None for an unknown one."""
    modules = {key.rpartition(".")[0] for key in backbone_state(state)}
    for name, there, not_there in _BACKBONES:
        if modules.issuperset(there) and modules.isdisjoint(not_there):
            return name
    return None


def layers_of_state(state, layers, module_of):
    """{name: arrays} of Keras layers, in the order and the layout of their weights; those that are all there.

    layers:     with weights.
    module_of:  function of a layer's name -> its module in the state_dict, or None.
    """
    found = {}
    for layer in layers:
        module = module_of(layer.name)
        names = ("weight", "bias", "running_mean", "running_var")
        arrays = [state[f"{module}.{name}"] for name in names if f"{module}.{name}" in state]
        if arrays:
            shapes = [weight.shape for weight in layer.weights]
            found[layer.name] = [our_layout(a, s) for a, s in zip(arrays, shapes + [None] * 4, strict=False)]
    return found


def our_layout(array, shape=None):
    """An array of a state_dict as our layer has it, whose weight has this shape.

    Kernels are (out, in, height, width) there, of transposed convolutions (in, out, height, width), of depthwise ones
    (channels, 1, height, width); dense ones (out, in).
    """
    if array.ndim == 2:
        return array.T
    if array.ndim != 4:
        return array
    is_depthwise = array.shape[1] == 1 and shape is not None and tuple(shape[2:]) == (array.shape[0], 1)
    return array.transpose((2, 3, 0, 1) if is_depthwise else (2, 3, 1, 0))


def flattened_last(kernel, channels, side):
    """A dense kernel (out, channels * side * side) on features that were flattened channels first, for ours: last."""
    return kernel.reshape(-1, channels, side, side).transpose(0, 2, 3, 1).reshape(len(kernel), -1)
