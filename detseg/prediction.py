"""From a run folder and images to masks and drawings."""

import glob
import logging
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from detseg.data.images import IMAGE_SUFFIXES, read_image
from detseg.errors import UserError
from detseg.files import make_folder
from detseg.inference import Prediction
from detseg.tasks import create_task
from detseg.training.fit import load_best_weights
from detseg.training.run_folder import RunFolder

__all__ = ["Prediction", "Predictor", "find_images", "load", "predict_files"]

logger = logging.getLogger("detseg")


def load(run, overrides=()):
    """The trained model of a run folder, ready to predict: `detseg.load("runs/NAME").predict(image)`.

    overrides:  sequence of "a.b=c" as for --set.
    """
    return Predictor(run, overrides)


class Predictor:
    """A run's model with its best weights.

    config, classes, task, model: as trained.
    """

    def __init__(self, run, overrides=()):
        self.folder = RunFolder(run)
        self.config = self.folder.read_config(overrides)
        self.classes = self.folder.read_classes()
        keras.config.set_dtype_policy(self.config.train.precision)
        self.task = create_task(self.config, self.classes)
        self.model, _ = self.task.create_model(pretrained=False)
        load_best_weights(self.model, self.folder)
        self._inference = {}

    def inference(self, probabilities=False, tta=False):
        """Function image -> Prediction, compiled once."""
        key = (probabilities, tta)
        if key not in self._inference:
            self._inference[key] = self.task.create_inference(self.model, probabilities, tta)
        return self._inference[key]

    def predict(self, image, probabilities=False, tta=False):
        """The Prediction of one image: a path, or uint8 (H, W, C) as `detseg` states it.

        probabilities:  bool, whether the result has them.
        tta:            bool, test-time augmentation as the config's `tta` has it.
        """
        if isinstance(image, (str, Path)):
            image = read_image(image, self.config.data.channels)
        channels = self.config.data.channels
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
            raise UserError(f"image is {image.dtype} {image.shape}, expected uint8 (height, width, {channels})")
        return self.inference(probabilities, tta)(image)


def predict_files(predictor, inputs, output, save_probabilities=False, tta=False):
    """Predicts images and writes masks and drawings into the folder `output`.

    inputs:   files, folders (their images, not those of subfolders) and glob patterns.
    tta:      bool, test-time augmentation.
    Returns   the paths of the images done. Raises UserError after the last image when some could not be read, naming
              them all; before the first when nothing matches or a result would overwrite an image or another result.
    """
    images = find_images(inputs)
    output = Path(output)
    _check_targets(images, output, predictor.task.output_suffixes(save_probabilities))
    make_folder(output, "--output")
    done, problems = [], []
    for path in tqdm(images, desc="predict", unit="img", disable=None):
        try:
            image = read_image(path, predictor.config.data.channels)
        except UserError as error:
            problems.append(str(error))
            continue
        try:
            prediction = predictor.predict(image, save_probabilities, tta)
        except UserError as error:
            problems.append(f"{path}: {error}")
            continue
        predictor.task.write_prediction(prediction, image, output, path.stem)
        done.append(path)
    logger.info("%d images predicted: %s", len(done), output)
    if problems:
        lines = "\n  ".join(problems)
        raise UserError(f"{len(problems)} of {len(images)} images could not be predicted:\n  {lines}")
    return done


def find_images(inputs):
    """The image files that files, folders and glob patterns name, in order, each once."""
    images = []
    for item in map(str, inputs):
        path = Path(item)
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if _is_image(file))
            if not found:
                raise UserError(f"{path}: no images in this folder; looked for {', '.join(IMAGE_SUFFIXES)}")
        elif path.is_file():
            found = [path]
        else:
            found = sorted(map(Path, glob.glob(item, recursive=True)))
            if not found:
                raise UserError(f"{item}: no such file, folder or match of a pattern")
        images.extend(found)
    return list({path.resolve(): path for path in reversed(images)}.values())[::-1]


def _is_image(path):
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")


def _check_targets(images, output, suffixes):
    """UserError if the file of a result is one of the images, or that of another image's result."""
    originals = {path.resolve() for path in images}
    owners = {}
    for path in images:
        for suffix in suffixes:
            target = output / f"{path.stem}{suffix}"
            if target.resolve() in originals:
                raise UserError(f"--output {output}: the result of {path} would overwrite the image {target}")
            other = owners.setdefault(target, path)
            if other != path:
                raise UserError(
                    f"{other} and {path}: the results of both would be {target.name}; predict them into two folders"
                )
