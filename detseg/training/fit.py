"""Training a config: from its data to a run folder."""

import contextlib
import logging
import logging.handlers
import warnings

import keras

from detseg.data.datasets import check_classes, create_dataset
from detseg.data.loader import SampleStream, load_for_fit
from detseg.data.sampling import describe_repeats, image_repeat_factors
from detseg.data.scan import scan_split
from detseg.errors import UserError
from detseg.tasks import create_task
from detseg.training.callbacks import Record, SaveState, StopOnNonFiniteLoss, Validate, averaged_weights, save_weights
from detseg.training.checkpoint import restore_state
from detseg.training.determinism import make_deterministic
from detseg.training.optimizers import create_optimizer
from detseg.training.run_folder import RunFolder, accelerators
from detseg.training.schedules import create_schedule

logger = logging.getLogger("detseg")


def train(config, run, resume=False):
    """Trains a config into a run folder.

    config:  a Config.
    run:     path of the run folder: new or empty, or one that an equal config has started, with resume.
    Returns  the RunFolder. Raises UserError for everything in config and data that cannot work, before the first step.
    """
    with _run_log() as write_log_to:
        return _train(config, RunFolder(run), resume, write_log_to)


def _train(config, folder, resume, write_log_to):
    if resume:
        _check_resumed_config(config, folder)
    else:
        folder.check_new()
    if config.train.early_stopping is not None and config.data.val is None:
        raise UserError("train.early_stopping: needs a validation split, but data.val is not set")
    make_deterministic()
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.train.precision)

    train_set = create_dataset(config.data, "train", config.task)
    val_set = create_dataset(config.data, "val", config.task) if config.data.val is not None else None
    task = create_task(config, train_set.classes)
    if resume:
        check_classes(train_set, folder.read_classes(), folder.path)
    if val_set is not None:
        check_classes(val_set, train_set.classes, "data.train")
    scan = scan_split(train_set)
    task.check_training_data(scan, train_set)
    prepare = task.create_preparation(scan)
    if val_set is not None:
        task.check_validation_data(scan_split(val_set))

    class_weights = folder.read_class_weights() if resume else None
    class_weights = class_weights or task.count_class_weights(scan)
    loss = task.create_loss(class_weights)
    model, backbone = task.create_model(pretrained=not resume)
    if config.train.initial_weights is not None and not resume:
        _take_over_weights(model, config.train.initial_weights)
    batch_size, sampling = config.train.batch_size, config.train.sampling
    repeat_factors = image_repeat_factors(scan.class_presence, sampling.threshold if sampling else 0.0)
    steps_per_epoch = config.train.steps_per_epoch or max(1, int(repeat_factors.sum()) // batch_size)
    length = config.train.epochs * steps_per_epoch * batch_size
    stream = SampleStream(
        train_set, prepare, config.seed, length, repeat_factors, task.one_size, task.image_groups(scan), batch_size
    )
    compile_model(model, backbone, loss, config, steps_per_epoch)
    progress = {"epoch": 0, "best": None}
    if resume:
        progress = restore_state(folder.state, model)
        folder.continue_from(progress["epoch"], config)
    else:
        folder.create(config, task.classes, class_weights, getattr(train_set, "category_ids", None))
    write_log_to(folder.log)
    logger.info(
        "%s: %d training images, %s validation images, %d classes, %d parameters",
        *(folder.path, len(train_set), len(val_set) if val_set else "no", len(task.classes), model.count_params()),
    )
    if sampling is not None:
        logger.info(describe_repeats(scan.class_presence, sampling.threshold, task.classes))
    task.describe_training(model, scan, train_set)
    collate = task.create_collation(scan)
    _fit(task, model, config, folder, stream, collate, val_set, steps_per_epoch, progress)
    return folder


def _fit(task, model, config, folder, stream, collate, val_set, steps_per_epoch, progress):
    settings = config.train
    start = progress["epoch"] * steps_per_epoch * settings.batch_size
    if start >= len(stream):
        raise UserError(f"{folder.path}: all {settings.epochs} epochs are done; raise train.epochs to go on")
    validate = None
    if val_set is not None:
        validate = Validate(task, model, val_set, folder.best_weights, settings, settings.epochs, best=progress["best"])
    counts = (settings.batch_size, steps_per_epoch)
    record = Record(folder, task, *counts, settings.epochs, progress["epoch"])
    callbacks = [StopOnNonFiniteLoss(stream, *counts), validate, record, SaveState(folder.state, validate)]
    try:
        model.fit(
            load_for_fit(stream, settings.batch_size, settings.workers, start, collate),
            steps_per_epoch=steps_per_epoch,
            epochs=settings.epochs,
            initial_epoch=progress["epoch"],
            callbacks=[callback for callback in callbacks if callback is not None],
            shuffle=False,  # the stream's order is random already
            verbose=0,
        )
    except Exception:
        if stream.error is not None:
            raise stream.error from None
        raise
    finally:
        record.close()
    if validate is None:
        with averaged_weights(model):
            save_weights(model, folder.best_weights)
        logger.info("no validation split: the last weights are kept in %s", folder.best_weights)
    else:
        best = validate.best
        logger.info(
            "best val %s %.4f, epoch %d: %s", task.score_name, best["score"], best["epoch"], folder.best_weights
        )


def compile_model(model, backbone, loss, config, steps_per_epoch):
    """Compiles a model of `create_task(config, ...)` with the loss, optimizer and schedule of its config.

    backbone:  the Backbone inside it, or None.
    """
    settings = config.train
    pretrained = backbone.model.trainable_variables if backbone is not None else ()
    backbone_variables = {id(variable) for variable in pretrained}

    def learning_rate_factor(variable):
        factor = settings.backbone_learning_rate_factor if id(variable) in backbone_variables else 1.0
        return factor * (settings.bias_learning_rate_factor if variable.name == "bias" else 1.0)

    schedule = create_schedule(settings.schedule, settings.optimizer.learning_rate, steps_per_epoch, settings.epochs)
    optimizer = create_optimizer(settings.optimizer, schedule, settings.ema, learning_rate_factor)
    # XLA makes these models ten times slower on CPUs; the JAX backend knows nothing else.
    jit_compile = bool(accelerators()) or keras.backend.backend() == "jax"
    model.compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile)
    # Left to the first step, TensorFlow traces it twice: once to create these variables, once without creating any.
    model.optimizer.build(model.trainable_variables)


def _check_resumed_config(config, folder):
    """UserError if a config differs from the run's own in more than train.epochs."""
    saved = folder.read_config()
    given = config.model_dump()
    expected = saved.model_dump()
    given["train"].pop("epochs")
    expected["train"].pop("epochs")
    differing = sorted(_differing_keys(given, expected))
    if differing:
        raise UserError(
            f"{folder.config}: --resume goes on with the run's own config, but these keys differ from the one given: "
            f"{', '.join(differing)}. Only train.epochs may change; start a new run for the rest"
        )
    if saved.train.epochs != config.train.epochs and config.train.schedule.name in ("poly", "cosine"):
        logger.warning(
            "train.epochs: %d instead of %d: the %s schedule now ends later, so the learning rate jumps",
            *(config.train.epochs, saved.train.epochs, config.train.schedule.name),
        )


def _differing_keys(first, second, prefix=""):
    for key in first.keys() | second.keys():
        a, b = first.get(key), second.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differing_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}"


def _take_over_weights(model, run):
    """Copies the weights of another run into the layers of the same name and shapes, and says which got none."""
    folder = RunFolder(run)
    config = folder.read_config()
    source, _ = create_task(config, folder.read_classes()).create_model(pretrained=False)
    load_best_weights(source, folder)
    values = {variable.path: variable for variable in source.weights}
    taken, left = [], []
    for variable in model.weights:
        value = values.get(variable.path)
        if value is not None and value.shape == variable.shape:
            variable.assign(value)
            taken.append(variable.path)
        else:
            left.append(variable.path)
    if not taken:
        raise UserError(f"train.initial_weights: {run}: no layer of its model has a layer of this one's name and shape")
    logger.info(
        "initial weights: %d variables from %s; left as they were: %s", len(taken), run, ", ".join(left) or "none"
    )


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


@contextlib.contextmanager
def _run_log():
    """Gives a function of a path; what detseg logs while inside is written to that file, with times, also what came
    before the call: warnings about the data come before there is a run folder.
    """
    held = logging.handlers.MemoryHandler(capacity=0)  # without a target it keeps all; with one it hands on at once
    level = logger.level
    logger.addHandler(held)
    logger.setLevel(logging.INFO)

    def write_to(path):
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        held.setTarget(file)
        held.flush()

    try:
        yield write_to
    finally:
        logger.setLevel(level)
        logger.removeHandler(held)
        if held.target is not None:
            held.target.close()
