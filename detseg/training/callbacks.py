"""What happens around the steps and epochs of keras' fit. `training` is a `detseg.training.fit.Training` everywhere."""

import logging
import math
import time

import keras
from tqdm import tqdm

from detseg.errors import UserError
from detseg.tasks.scoring import score_dataset
from detseg.training.checkpoint import save_state
from detseg.training.weights import averaged_weights, save_weights

logger = logging.getLogger("detseg")


class _TrainingCallback(keras.callbacks.Callback):
    def __init__(self, training):
        super().__init__()
        self.training = training
        self.epochs = training.config.train.epochs


class StopOnNonFiniteLoss(_TrainingCallback):
    """Ends training at the first nan or infinite loss with the names of the batch's images."""

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if math.isfinite(logs["loss"]):
            return
        stream = self.training.stream
        start = (self._epoch * self.training.steps_per_epoch + batch) * stream.batch_size
        raise UserError(
            f"epoch {self._epoch + 1}, step {batch + 1}: the loss is {logs['loss']}. "
            f"Images of this batch: {', '.join(stream.names(start, stream.batch_size))}. "
            "Lower train.optimizer.learning_rate, set its clip_norm or use a warm-up; the last finished epoch is kept."
        )


class Validate(_TrainingCallback):
    """Scores the validation split after an epoch, keeps the best weights and stops when they no longer improve.

    With an average of the weights (EMA), that is what is scored and kept. Adds val_* figures to the epoch's logs.
    """

    def __init__(self, training):
        super().__init__(training)
        self._inference = training.task.create_inference(training.model)
        training.progress["best"] = training.progress["best"] or {"score": None, "epoch": 0}

    def on_epoch_end(self, epoch, logs=None):
        task, progress, settings = self.training.task, self.training.progress, self.training.config.train
        if (epoch + 1) % settings.validate_every and epoch + 1 != self.epochs:
            return
        with averaged_weights(self.model):
            val_set = self.training.val_set
            result = score_dataset(task, self._inference, val_set, settings.workers, progress="validation")
            figures = task.figures(result)
            logs |= {f"val_{name}": value for name, value in figures.items()}
            score, best = figures[task.score_name], progress["best"]["score"]
            if best is None or math.isnan(best) or score > best:
                progress["best"] = {"score": score, "epoch": epoch + 1}
                save_weights(self.model, self.training.folder.best_weights)
        patience = settings.early_stopping
        if patience is not None and epoch + 1 - progress["best"]["epoch"] >= patience:
            logger.info("early stopping: no better %s for %d epochs", task.score_name, patience)
            self.model.stop_training = True


class KeepLast(_TrainingCallback):
    """Keeps the weights of the last epoch as the best ones, where no validation split could choose."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.epochs:
            with averaged_weights(self.model):
                save_weights(self.model, self.training.folder.best_weights)


class Record(_TrainingCallback):
    """Writes each epoch to history.csv, the log and TensorBoard, and shows a progress bar over the whole run."""

    def __init__(self, training):
        super().__init__(training)
        self._shown_score = ""
        self._bar = self._board = None

    def on_train_begin(self, logs=None):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # does without TensorFlow

        self._board = EventFileWriter(str(self.training.folder.tensorboard))
        steps = self.training.steps_per_epoch
        total, done = steps * self.epochs, steps * self.training.progress["epoch"]
        # disable=None: no bar where nobody watches; a log gets one line an epoch.
        self._bar = tqdm(total=total, initial=done, unit="step", disable=None, dynamic_ncols=True)

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()
        self._bar.set_description(f"epoch {epoch + 1}/{self.epochs}")

    def on_train_batch_end(self, batch, logs=None):
        self._seconds = time.perf_counter() - self._start
        speed = (batch + 1) * self.training.stream.batch_size / self._seconds
        self._bar.update()
        self._bar.set_postfix_str(f"loss {logs['loss']:.4f}, {speed:.1f} images/s{self._shown_score}", refresh=False)

    def on_epoch_end(self, epoch, logs=None):
        task, images = self.training.task, self.training.steps_per_epoch * self.training.stream.batch_size
        row = {
            "epoch": epoch + 1,
            "loss": logs["loss"],
            **{key: value for key, value in logs.items() if key.endswith("_loss")},
            "learning_rate": float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)),
            **{key: value for key, value in logs.items() if key.startswith("val_") and "per_second" not in key},
            "train_images_per_second": round(images / self._seconds, 3),
            "seconds": round(time.perf_counter() - self._start, 3),
        }
        self.training.folder.append_history(row)
        self._write_events(row)
        score = row.get(f"val_{task.score_name}")
        self._shown_score = f", {task.score_label} {score:.4f}" if score is not None else self._shown_score
        scores = "" if score is None else f", val_{task.score_name} {score:.4f}"
        logger.info(
            "epoch %d/%d: loss %.4f%s, %.1f images/s, %.0f s",
            *(epoch + 1, self.epochs, row["loss"], scores, row["train_images_per_second"], row["seconds"]),
        )

    def _write_events(self, row):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=key, simple_value=value) for key, value in row.items() if key != "epoch"]
        self._board.add_event(Event(wall_time=time.time(), step=row["epoch"], summary=Summary(value=values)))
        self._board.flush()

    def close(self):
        """At the end of training, also of one that failed before it began."""
        for resource in (self._bar, self._board):
            if resource is not None:
                resource.close()


class SaveState(_TrainingCallback):
    """Saves the whole state after each epoch, last of all callbacks: the weights that belong to it are kept before."""

    def on_epoch_end(self, epoch, logs=None):
        progress = self.training.progress
        progress |= {"epoch": epoch + 1, "finished": epoch + 1 == self.epochs or self.model.stop_training}
        save_state(self.training.folder.state, self.model, progress)
