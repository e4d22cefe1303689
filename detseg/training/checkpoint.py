"""The state of a training run on disk: all that is needed to go on as if it had not stopped."""

import json
import zipfile

import numpy as np

from detseg.errors import UserError
from detseg.files import written_whole

_PROGRESS = "progress.json"


def save_state(path, model, progress):
    """Writes a compiled model's variables (weights, seeds, optimizer) and a progress dict to one .npz file."""
    arrays = {str(index): np.array(variable) for index, variable in enumerate(_variables(model))}
    arrays[_PROGRESS] = np.frombuffer(json.dumps(progress).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        np.savez(temporary, **arrays)


def restore_state(path, model):
    """Loads what `save_state` wrote into a compiled model of the same config and returns the progress dict.

    Raises UserError when the file is missing or its variables are not the model's.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing: the run stopped before its first epoch ended. Start it anew")
    try:
        with np.load(path) as file:
            arrays = dict(file)
        progress = json.loads(arrays.pop(_PROGRESS).tobytes())
        saved = [arrays[str(index)] for index in range(len(arrays))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); start the run anew") from error
    model.optimizer.build(model.trainable_variables)
    variables = _variables(model)
    if [array.shape for array in saved] != [tuple(variable.shape) for variable in variables]:
        raise UserError(f"{path}: its {len(saved)} variables are not the {len(variables)} of this model and optimizer")
    for variable, array in zip(variables, saved, strict=True):
        variable.assign(array)
    return progress


def _variables(model):
    """All that a training step changes, in an order that the model's structure decides.

    Not by path, as model.get_state_tree has it: seed generators get other names when a process builds another model.
    """
    return [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]
