"""The state of a training run on disk: all that is needed to go on as if it had not stopped."""

import json

import numpy as np

from detseg.errors import UserError
from detseg.files import written_whole

_PROGRESS = "progress.json"


def save_state(path, model, progress):
    """Writes the model's variables (weights, optimizer, seeds) and a progress dict to one .npz file."""
    arrays = _flatten(model.get_state_tree(value_format="numpy_array"))
    arrays[_PROGRESS] = np.frombuffer(json.dumps(progress).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def restore_state(path, model):
    """Loads what `save_state` wrote into a compiled model of the same config and returns the progress dict.

    Raises UserError when the file is missing or its variables are not the model's.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no saved state to resume from; the run stopped before its first epoch ended. Start anew"
        )
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    progress = json.loads(arrays.pop(_PROGRESS).tobytes())
    model.optimizer.build(model.trainable_variables)
    expected = _flatten(model.get_state_tree(value_format="numpy_array"))
    expected = {key: value for key, value in expected.items() if not key.startswith("metrics_variables")}
    arrays = {key: value for key, value in arrays.items() if not key.startswith("metrics_variables")}
    differing = sorted(
        key
        for key in expected.keys() | arrays.keys()
        if key not in arrays or key not in expected or arrays[key].shape != expected[key].shape
    )
    if differing:
        raise UserError(f"{path}: was saved by another model or optimizer; first difference: {differing[0]}")
    model.set_state_tree(_unflatten(arrays))
    return progress


def _flatten(tree, prefix=""):
    """Nested dicts of arrays to one dict whose keys are joined by '|', which occurs in no variable's name."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}|")
        else:
            flat[f"{prefix}{key}"] = np.asarray(value)
    return flat


def _unflatten(flat):
    tree = {}
    for path, value in flat.items():
        *parents, key = path.split("|")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = value
    return tree
