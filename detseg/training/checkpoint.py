"""The state of a training run on disk, all that is needed to go on as if it had not stopped, and whether it can."""

import json
import logging
import zipfile

import numpy as np

from detseg.errors import UserError
from detseg.files import written_whole

logger = logging.getLogger("detseg")

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

    Raises UserError when the file is damaged or its variables are not the model's.
    """
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


def check_resumed(config, folder, own):
    """UserError if a run was started with another config, but for train.epochs, or with other parts from Python.

    own:  {name: what was given to `train`}.
    """
    saved = folder.read_config()
    given, expected = config.model_dump(), saved.model_dump()
    given["train"].pop("epochs")
    expected["train"].pop("epochs")
    differing = sorted(_differing_keys(given, expected))
    if differing:
        raise UserError(
            f"{folder.config}: --resume goes on with the run's own config, but these keys differ from the one given: "
            f"{', '.join(differing)}. Only train.epochs may change; start a new run for the rest"
        )
    parts = folder.read_model_facts().get("from_python", sorted(own))
    if parts != sorted(own):
        raise UserError(
            f"{folder.path}: the run was started with {_listed(parts)}, and is resumed with {_listed(own)}; go on by "
            "detseg.train(config, run, resume=True, ...) with the same"
        )
    if saved.train.epochs != config.train.epochs and config.train.schedule.name in ("poly", "cosine"):
        logger.warning(
            "train.epochs: %d instead of %d: the %s schedule now ends later, so the learning rate jumps",
            *(config.train.epochs, saved.train.epochs, config.train.schedule.name),
        )
    if not folder.state.is_file():
        logger.info("%s: the run was stopped before its first epoch ended; it starts from the beginning", folder.path)


def no_epoch_is_left(config, folder, progress):
    """Whether a run with this progress (of `restore_state`) has had its epochs, or early stopping ended it."""
    was_stopped = progress.get("finished") and config.train.epochs <= folder.read_config().train.epochs
    return progress["epoch"] >= config.train.epochs or bool(was_stopped)


def nothing_left_error(config, folder, progress):
    """The UserError for a run that has nothing left to do."""
    done, epochs = progress["epoch"], config.train.epochs
    reason = (
        f"early stopping ended the training after epoch {done}" if done < epochs else f"all {epochs} epochs are done"
    )
    return UserError(f"{folder.path}: {reason}; raise train.epochs to go on")


def _listed(names):
    return ", ".join(f"{name}=" for name in sorted(names)) or "nothing from Python"


def _differing_keys(first, second, prefix=""):
    for key in first.keys() | second.keys():
        a, b = first.get(key), second.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differing_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}"
