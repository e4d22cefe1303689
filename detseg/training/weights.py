"""A run's weights: kept, averaged, loaded, and taken over by another run."""

import contextlib
import logging
import warnings

import numpy as np

from detseg.errors import UserError
from detseg.files import written_whole
from detseg.process import model_settings
from detseg.tasks import create_task
from detseg.training.run_folder import RunFolder

logger = logging.getLogger("detseg")


def save_weights(model, path):
    """Writes the model's weights to a .weights.h5 file, whole or not at all."""
    with written_whole(path) as temporary:
        model.save_weights(temporary)


@contextlib.contextmanager
def averaged_weights(model):
    """While inside, the model has its optimizer's averaged weights (EMA), where it keeps some."""
    # mixed_float16: Keras wraps the optimizer in one that scales the loss and knows no averages.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    raw = [np.array(variable) for variable in model.trainable_variables]
    optimizer.finalize_variable_values(model.trainable_variables)
    try:
        yield
    finally:
        for variable, value in zip(model.trainable_variables, raw, strict=True):
            variable.assign(value)


def take_over_weights(model, run):
    """Copies the weights of another run into the layers of the same name and shapes, and says which got none."""
    folder = RunFolder(run)
    config = folder.read_config()
    with model_settings(config.train.precision):
        source, _ = create_task(config, folder.read_classes()).create_model(pretrained=False)
    load_best_weights(source, folder)
    values = {(variable.path, tuple(variable.shape)): variable for variable in source.weights}
    left = []
    for variable in model.weights:
        value = values.get((variable.path, tuple(variable.shape)))
        if value is None:
            left.append(variable.path)
        else:
            variable.assign(value)
    taken = len(model.weights) - len(left)
    if not taken:
        raise UserError(f"train.initial_weights: {run}: no layer of its model has a layer of this one's name and shape")
    logger.info("initial weights: %d variables from %s; left as they were: %s", taken, run, ", ".join(left) or "none")


def load_best_weights(model, folder):
    """Loads a run's best weights into a model of the run's config."""
    if not folder.best_weights.is_file():
        raise UserError(f"{folder.best_weights}: missing: the run has not finished its first validation")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Keras' words before the error that follows
            model.load_weights(folder.best_weights)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.best_weights}: does not fit the model of {folder.config}: {error}") from error
