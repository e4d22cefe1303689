"""A run's weights: kept, averaged, loaded, and taken over by another run."""

import contextlib
import logging
import warnings

import numpy as np

from detseg.errors import UserError
from detseg.files import written_whole
from detseg.pretrained.load import describe, leaves, loaded_layers, take_over_rows
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


def take_over_weights(model, backbone, classes, run):
    """Copies the weights of another run into the layers of the same name and shapes, classifiers' rows into those of
    classes of the same name, and says what got none.

    Returns  the names of the layers whose weights are the run's.
    """
    folder = RunFolder(run)
    config, source_classes = folder.read_config(), folder.read_classes()
    with model_settings(config.train.precision):
        source, _ = create_task(config, source_classes).create_model(pretrained=False)
    load_best_weights(source, folder)
    theirs = {layer.name: [np.asarray(weight) for weight in layer.weights] for layer in leaves(source)}
    targets = list(dict.fromkeys(layer for layer in leaves(model) if layer.weights))
    found = {layer.name: theirs[layer.name] for layer in targets if theirs.get(layer.name)}
    is_agnostic = getattr(config.model, "class_agnostic", False)
    rows = take_over_rows(targets, found, classes, source_classes, is_agnostic)
    shapes = {layer.name: [tuple(weight.shape) for weight in layer.weights] for layer in targets}
    found = {name: arrays for name, arrays in found.items() if [array.shape for array in arrays] == shapes[name]}
    if not found:
        raise UserError(f"train.initial_weights: {run}: no layer of its model has a layer of this one's name and shape")
    for layer in targets:
        if layer.name in found:
            layer.set_weights(found[layer.name])
    left = [layer.name for layer in targets if layer.name not in found]
    logger.info("initial weights: %s: %s", run, describe(targets, found, backbone, rows))
    logger.info("initial weights: left as they were: %s", ", ".join(left) or "none")
    return loaded_layers(found, rows)


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
