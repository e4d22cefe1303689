"""Training a config: from its data to a run folder."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras

from detseg.config import Config, load_config
from detseg.data.dataset import Dataset, check_classes
from detseg.data.loader import SampleStream, load_for_fit
from detseg.data.readers.create import create_dataset
from detseg.data.sampling import describe_repeats, image_repeat_factors
from detseg.data.scan import ObjectScan, SplitScan, scan_split
from detseg.errors import UserError
from detseg.process import accelerators, loader_threads, make_deterministic, model_settings
from detseg.tasks import create_task
from detseg.tasks.base import Task
from detseg.training.callbacks import KeepLast, Record, SaveState, StopOnNonFiniteLoss, Validate
from detseg.training.checkpoint import check_resumed, no_epoch_is_left, nothing_left_error, restore_state
from detseg.training.optimizers import create_optimizer
from detseg.training.run_folder import RunFolder
from detseg.training.run_log import run_log
from detseg.training.schedules import create_schedule
from detseg.training.weights import averaged_weights, save_weights, take_over_weights

logger = logging.getLogger("detseg")

# What may be given to `train` in place of the config's -> its type.
_OWN = {"train_set": Dataset, "val_set": Dataset, "model": keras.Model, "loss": Callable, "augment": Callable}


@dataclass
class Training:
    """A training that is about to begin: what `Task.fit` works on."""

    config: Config
    folder: RunFolder
    task: Task
    model: keras.Model  # compiled
    train_set: Dataset
    val_set: Dataset | None
    scan: SplitScan | ObjectScan  # of the training split
    stream: SampleStream  # of the whole training, from its first epoch on
    steps_per_epoch: int
    progress: dict  # kept in the state. epoch: int, how many are done; best: {"score", "epoch"} or None; finished: bool
    is_fitted: bool = False  # whether no epoch is left
    callbacks: Sequence[keras.callbacks.Callback] = ()  # loss check, validation, record, state

    def batches(self):
        """What Model.fit takes: the batches from the first epoch on that isn't done."""
        start = self.progress["epoch"] * self.steps_per_epoch * self.stream.batch_size
        return load_for_fit(self.stream, self.config.train.workers, start)


def train(
    config: Config | Mapping | str | os.PathLike,
    run: str | os.PathLike,
    resume: bool = False,
    *,
    train_set: Dataset | None = None,
    val_set: Dataset | None = None,
    model: keras.Model | None = None,
    loss: Callable | None = None,
    augment: Callable | None = None,
) -> RunFolder:
    """Trains a config into a run folder.

    config:     a Config, or what `load_config` reads one from.
    run:        path of the run folder: new or empty, or one that an equal config has started, with resume.
    train_set, val_set:  Datasets of one's own, in place of those of the config's data section.
    model:      segmentation: a keras.Model of one's own, raw pixels (B, H, W, C) -> logits (B, H, W, K), for a config
                that says model.name: custom.
    loss:       segmentation: a function (labels (B, H, W), logits (B, H, W, K)) -> scalar or loss of each pixel, or a
                keras loss, in place of the config's.
    augment:    a function (Sample, numpy Generator) -> Sample that follows the config's augmentation.
    Returns     the RunFolder. Raises UserError for everything in config and data that cannot work, before the first
                step.
    """
    config = config if isinstance(config, Config) else load_config(config)
    own = {"train_set": train_set, "val_set": val_set, "model": model, "loss": loss, "augment": augment}
    own = {name: part for name, part in own.items() if part is not None}
    for name, part in own.items():
        if not isinstance(part, _OWN[name]):
            expected = f"{_OWN[name].__module__.split('.')[0]}.{_OWN[name].__name__}"
            raise UserError(f"{name}=: got {type(part).__name__}, expected a {expected}")
    folder = RunFolder(run)
    with run_log() as write_log_to, model_settings(config.train.precision), loader_threads():
        if resume:
            check_resumed(config, folder, own)
        else:
            folder.check_new()
        make_deterministic()
        keras.utils.set_random_seed(config.seed)
        training = _prepare(config, folder, resume and folder.state.is_file(), own)
        write_log_to(folder.log)
        _describe(training)
        _fit(training)
        training.task.finish(training)
    return folder


def _prepare(config, folder, has_state, own):
    """The Training of a config; the run folder is made, or made ready to go on."""
    train_set, val_set, task, scan = _read_data(config, folder, has_state, own)
    batches = task.create_batches(scan, own.get("augment"))
    class_weights = (folder.read_class_weights() if has_state else None) or task.count_class_weights(scan)
    loss = task.create_loss(class_weights)
    if "loss" in own and loss is None:
        raise UserError(f"loss=: a loss of one's own is for task: segmentation; this config's task is {task.name}")
    if "model" in own:
        task.check_given_model(own["model"])
        model, backbone = own["model"], None
    else:
        model, backbone = task.create_model(pretrained=not has_state)
    loaded = () if backbone is None else backbone.loaded_layers
    if has_state:
        loaded = folder.read_model_facts().get("loaded_layers", ())
    elif config.train.initial_weights is not None:
        loaded = take_over_weights(model, backbone, task.classes, config.train.initial_weights)

    sampling = config.train.sampling
    repeat_factors = image_repeat_factors(scan.class_presence, sampling.threshold if sampling else 0.0)
    batch_size = config.train.batch_size
    steps_per_epoch = config.train.steps_per_epoch or max(1, int(repeat_factors.sum()) // batch_size)
    length = config.train.epochs * steps_per_epoch * batch_size
    stream = SampleStream(train_set, batches, config.seed, length, batch_size, repeat_factors)
    compile_model(model, backbone, own.get("loss", loss), config, steps_per_epoch, loaded)

    if has_state:
        progress = restore_state(folder.state, model)
        is_fitted = no_epoch_is_left(config, folder, progress)
        if is_fitted and folder.best_weights.is_file() and task.is_finished(folder):
            raise nothing_left_error(config, folder, progress)
        folder.continue_from(progress["epoch"], config)
    else:
        progress, is_fitted = {"epoch": 0, "best": None, "finished": False}, False
        model_facts = {"parameters": model.count_params(), "score_name": task.score_name, "from_python": sorted(own)}
        model_facts["loaded_layers"] = list(loaded)
        folder.create(config, task.classes, class_weights, train_set.category_ids, model_facts)
    sets = (train_set, val_set, scan, stream, steps_per_epoch)
    return Training(config, folder, task, model, *sets, progress, is_fitted)


def _read_data(config, folder, has_state, own):
    """(train_set, val_set or None, task, scan of the training split), checked."""
    train_set, val_set = own.get("train_set"), own.get("val_set")
    if train_set is None:
        train_set = create_dataset(config.data, "train", config.task)
    if val_set is None and config.data.val is not None:
        val_set = create_dataset(config.data, "val", config.task)
    if config.train.early_stopping is not None and val_set is None:
        raise UserError("train.early_stopping: needs a validation split, but data.val is not set")
    task = create_task(config, train_set.classes)
    if has_state:
        check_classes(train_set, folder.read_classes(), folder.path)
    if val_set is not None:
        check_classes(val_set, train_set.classes, "data.train")
    scan = scan_split(train_set, task.name)
    task.check_training_data(scan, train_set)
    train_set = task.complete_data(train_set, scan)
    if val_set is not None:
        val_scan = scan_split(val_set, task.name)
        task.check_validation_data(val_scan)
        val_set = task.complete_data(val_set, val_scan)
    return train_set, val_set, task, scan


def _describe(training):
    task, scan, sampling = training.task, training.scan, training.config.train.sampling
    val_count = len(training.val_set) if training.val_set is not None else "no"
    logger.info(
        "%s: %d training images, %s validation images, %d classes, %d parameters",
        *(training.folder.path, len(training.train_set), val_count),
        *(len(task.classes), training.model.count_params()),
    )
    if sampling is not None:
        logger.info(describe_repeats(scan.class_presence, sampling.threshold, task.classes))
    task.describe_training(training.model, scan, training.train_set)


def _fit(training):
    task, best_weights = training.task, training.folder.best_weights
    if training.is_fitted:
        if best_weights.is_file():
            return
        with averaged_weights(training.model):
            save_weights(training.model, best_weights)
    else:
        keeper, record = (KeepLast if training.val_set is None else Validate)(training), Record(training)
        training.callbacks = [StopOnNonFiniteLoss(training), keeper, record, SaveState(training)]
        try:
            task.fit(training)
        except Exception:
            if training.stream.error is not None:
                raise training.stream.error from None
            raise
        finally:
            record.close()
        best = training.progress["best"]
        if best is not None:
            logger.info("best val %s %.4f, epoch %d: %s", task.score_name, best["score"], best["epoch"], best_weights)
            return
    reason = "no validation split" if training.val_set is None else "the best weights are lost"
    logger.info("%s: the last weights are kept in %s", reason, best_weights)


def compile_model(model, backbone, loss, config, steps_per_epoch, loaded_layers=()):
    """Compiles a model of `create_task(config, ...)` with the loss, optimizer and schedule of its config.

    backbone:       the Backbone inside it, or None.
    loaded_layers:  names of the layers whose weights were loaded, which train.freeze and a factor are about.
    """
    settings, loaded_layers = config.train, set(loaded_layers)
    backbone_variables = set() if backbone is None else set(map(id, backbone.model.trainable_variables))
    if settings.freeze is not None and settings.freeze.layers == "loaded" and not loaded_layers:
        raise UserError("train.freeze: no layer's weights were loaded; expected model.weights or train.initial_weights")

    def is_loaded(variable):
        return variable.path.split("/")[-2] in loaded_layers

    def learning_rate_factor(variable):
        factor = settings.backbone_learning_rate_factor if id(variable) in backbone_variables else 1.0
        if loaded_layers and not is_loaded(variable):
            factor *= settings.new_layers_learning_rate_factor
        return factor * (settings.bias_learning_rate_factor if variable.name == "bias" else 1.0)

    def frozen_steps(variable):
        freeze = settings.freeze
        if freeze is None:
            return 0
        is_frozen = id(variable) in backbone_variables if freeze.layers == "backbone" else is_loaded(variable)
        return freeze.until_epoch * steps_per_epoch if is_frozen else 0

    schedule = create_schedule(settings.schedule, settings.optimizer.learning_rate, steps_per_epoch, settings.epochs)
    optimizer = create_optimizer(settings.optimizer, schedule, settings.ema, learning_rate_factor, frozen_steps)
    # XLA makes these models ten times slower on CPUs; the JAX backend knows nothing else.
    jit_compile = bool(accelerators()) or keras.backend.backend() == "jax"
    model.compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile)
    # Left to the first step, TensorFlow traces it twice: once to create these variables, once without creating any.
    model.optimizer.build(model.trainable_variables)
