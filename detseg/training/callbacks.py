"""What happens around the steps and epochs of keras' fit."""

import contextlib
import logging
import math
import time

import keras
import numpy as np
from tqdm import tqdm

from detseg.errors import UserError
from detseg.evaluation import evaluate
from detseg.files import written_whole
from detseg.training.checkpoint import save_state

logger = logging.getLogger("detseg")


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Ends training at the first nan or infinite loss with the names of the batch's images."""

    def __init__(self, stream, batch_size, steps_per_epoch):
        super().__init__()
        self._stream = stream
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if math.isfinite(logs["loss"]):
            return
        start = (self._epoch * self._steps_per_epoch + batch) * self._batch_size
        names = ", ".join(self._stream.names(start, self._batch_size))
        raise UserError(
            f"epoch {self._epoch + 1}, step {batch + 1}: the loss is {logs['loss']}. Images of this batch: {names}. "
            "Lower train.optimizer.learning_rate, set its clip_norm or use a warm-up; the last finished epoch is kept."
        )


class Validate(keras.callbacks.Callback):
    """Scores the validation split after an epoch, keeps the best weights and stops when they no longer improve.

    With an average of the weights (EMA), that is what is scored and kept. Adds val_* figures to the epoch's logs.
    """

    def __init__(self, task, model, dataset, best_weights, config, epochs, best=None):
        """best: {"score", "epoch"} of a run that is resumed."""
        super().__init__()
        self._task = task
        self._inference = task.create_inference(model)
        self._dataset = dataset
        self._best_weights = best_weights
        self._config = config
        self._epochs = epochs
        self.best = best or {"score": None, "epoch": 0}

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self._config.validate_every and epoch + 1 != self._epochs:
            return
        with averaged_weights(self.model):
            result = evaluate(self._task, self._inference, self._dataset, self._config.workers, progress="validation")
            figures = self._task.figures(result)
            logs |= {f"val_{name}": value for name, value in figures.items()}
            score = figures[self._task.score_name]
            best = self.best["score"]
            if best is None or math.isnan(best) or score > best:
                self.best = {"score": score, "epoch": epoch + 1}
                save_weights(self.model, self._best_weights)
        patience = self._config.early_stopping
        if patience is not None and epoch + 1 - self.best["epoch"] >= patience:
            logger.info("early stopping: no better %s for %d epochs", self._task.score_name, patience)
            self.model.stop_training = True


class Record(keras.callbacks.Callback):
    """Writes each epoch to history.csv, the log and TensorBoard, and shows a progress bar over the whole run."""

    def __init__(self, folder, task, batch_size, steps_per_epoch, epochs, initial_epoch=0):
        super().__init__()
        self._folder = folder
        self._score_key = f"val_{task.score_name}"
        self._score_label = task.score_label
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._epochs = epochs
        self._initial_epoch = initial_epoch
        self._score = ""
        self._bar = self._board = None

    def on_train_begin(self, logs=None):
        self._board = EventWriter(self._folder.tensorboard)
        total = self._steps_per_epoch * self._epochs
        done = self._steps_per_epoch * self._initial_epoch
        # disable=None: no bar where nobody watches; a log gets one line an epoch.
        self._bar = tqdm(total=total, initial=done, unit="step", disable=None, dynamic_ncols=True)

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()
        self._bar.set_description(f"epoch {epoch + 1}/{self._epochs}")

    def on_train_batch_end(self, batch, logs=None):
        self._seconds = time.perf_counter() - self._start
        images_per_second = (batch + 1) * self._batch_size / self._seconds
        self._bar.update()
        self._bar.set_postfix_str(
            f"loss {logs['loss']:.4f}, {images_per_second:.1f} images/s{self._score}", refresh=False
        )

    def on_epoch_end(self, epoch, logs=None):
        row = {
            "epoch": epoch + 1,
            "loss": logs["loss"],
            **{key: value for key, value in logs.items() if key.endswith("_loss")},
            "learning_rate": float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)),
            **{key: value for key, value in logs.items() if key.startswith("val_") and "per_second" not in key},
            "images_per_second": round(self._steps_per_epoch * self._batch_size / self._seconds, 3),
            "seconds": round(time.perf_counter() - self._start, 3),
        }
        self._folder.append_history(row)
        self._board.write(epoch + 1, {key: value for key, value in row.items() if key != "epoch"})
        score = row.get(self._score_key)
        self._score = f", {self._score_label} {score:.4f}" if score is not None else self._score
        scores = "" if score is None else f", {self._score_key} {score:.4f}"
        logger.info(
            "epoch %d/%d: loss %.4f%s, %.1f images/s, %.0f s",
            *(epoch + 1, self._epochs, row["loss"], scores, row["images_per_second"], row["seconds"]),
        )

    def on_train_end(self, logs=None):
        self.close()

    def close(self):
        """Also after training that failed before it began."""
        for resource in (self._bar, self._board):
            if resource is not None:
                resource.close()


class SaveState(keras.callbacks.Callback):
    """Saves the whole state after each epoch, last of all callbacks."""

    def __init__(self, path, validate):
        super().__init__()
        self._path = path
        self._validate = validate

    def on_epoch_end(self, epoch, logs=None):
        best = self._validate.best if self._validate else None
        save_state(self._path, self.model, {"epoch": epoch + 1, "best": best})


class EventWriter:
    """Scalars for TensorBoard, written without TensorFlow."""

    def __init__(self, folder):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder))

    def write(self, step, scalars):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self):
        self._writer.close()


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
