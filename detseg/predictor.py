"""The model of a run folder, ready to predict images in memory."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from detseg.data.images import read_image
from detseg.data.pixels import as_image, say_conversions
from detseg.errors import UserError
from detseg.inference.prediction import Prediction
from detseg.process import model_settings
from detseg.tasks import create_task
from detseg.training.run_folder import RunFolder
from detseg.training.weights import load_best_weights

_PIL_MODES = ("L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # whose numbers are the pixels
BATCH_SIZE = 8  # images of one size that go through the model together


class Predictor:
    """A run's model with its best weights; made by `detseg.load`.

    config, classes, task, model: as trained.
    folder:   its RunFolder.
    """

    def __init__(self, run: str | os.PathLike, overrides: Sequence[str] = (), model: keras.Model | None = None):
        """overrides: "a.b=c" as for --set. model: the keras.Model of a run whose config says model.name: custom."""
        self.folder, self.overrides = RunFolder(run), tuple(overrides)
        self.config = self.folder.read_config(overrides)
        self.classes = self.folder.read_classes()
        self.category_ids = self.folder.read_category_ids()
        self.task = create_task(self.config, self.classes)
        with model_settings(self.config.train.precision):
            if model is None:
                self.model, _ = self.task.create_model(pretrained=False)
            else:
                self.task.check_given_model(model)
                self.model = model
            load_best_weights(self.model, self.folder)
            self.task.load_rest(self.model, self.folder)
            self.inference = self.task.create_inference(self.model)

    def predict(self, image, **options) -> Prediction | list[Prediction]:
        """The Prediction of an image, or a list of them for a list of images; those of one size share a batch.

        image:  a path; a PIL image, read as a file of its mode is, but for the EXIF orientation; an array (H, W, C), or
                (H, W) where C is 1, of uint8 or, with data.value_range, of the files' numbers; or a list of these.

        Segmentation:
        probabilities:    bool, whether the result has them.
        tta:              bool, test-time augmentation as the config's `tta` has it.
        tile:             None, or "auto" or the side in pixels of the tiles in which the image goes through the model;
        tile_memory:      bytes for one tile, where tile is "auto".

        Detection:
        score_threshold:  only detections of a score above it; default: 0.5, or the config's where that is higher.
        max_detections:   of an image; default: model.max_detections.
        """
        options = self.task.prediction_options(self.task.shown_options() | options)
        is_list = isinstance(image, list | tuple)
        images = [self.as_array(each) for each in (image if is_list else [image])]
        of_size = {}
        for index, array in enumerate(images):
            of_size.setdefault(array.shape, []).append(index)
        predictions = [None] * len(images)
        for indices in of_size.values():
            for start in range(0, len(indices), BATCH_SIZE):
                group = indices[start : start + BATCH_SIZE]
                found = self.inference.batch([images[index] for index in group], options)
                for index, prediction in zip(group, found, strict=True):
                    predictions[index] = dataclasses.replace(
                        prediction, classes=self.classes, image=images[index], category_ids=self.category_ids
                    )
        return predictions if is_list else predictions[0]

    def as_array(self, image) -> np.ndarray:
        """uint8 (H, W, C) of a path, an array or a PIL image; UserError for anything else."""
        channels, value_range = self.config.data.channels, self.config.data.value_range
        if isinstance(image, str | os.PathLike):
            return read_image(Path(image), channels, value_range)
        if isinstance(image, Image.Image) and all(image.size):
            say_conversions(image.mode, image.has_transparency_data, channels)
            if image.mode not in _PIL_MODES:
                image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            array = np.asarray(image)
            return as_image("image", array.reshape(*array.shape[:2], -1), channels, value_range, image.mode == "LA")
        array = np.asarray(image)
        shape = array.shape if array.ndim == 3 else (*array.shape, 1)
        is_image = len(shape) == 3 and shape[2] == channels and array.size
        if not is_image or not (array.dtype == np.uint8 or (value_range and array.dtype.kind in "uif")):
            scaled = " or numbers in data.value_range" if value_range else ""
            raise UserError(
                f"image: {type(image).__name__} of {array.dtype} {array.shape}, expected a path, a PIL image or uint8"
                f"{scaled} (height, width, {channels})"
            )
        if array.dtype == np.uint8:
            return np.ascontiguousarray(array.reshape(shape))
        return as_image("image", array.reshape(shape), channels, value_range)


def load(run: str | os.PathLike, overrides: Sequence[str] = (), model: keras.Model | None = None) -> Predictor:
    """The trained model of a run folder: `detseg.load("runs/NAME").predict(image)`.

    overrides:  "a.b=c" as for --set.
    model:      the keras.Model of one's own that the run was trained with, where its config says model.name: custom.
    Raises UserError for what is no run folder and for weights that don't fit.
    """
    return Predictor(run, overrides, model)
