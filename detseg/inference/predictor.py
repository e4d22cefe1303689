"""From a run folder and images to masks, boxes and drawings."""

import glob
import logging
from pathlib import Path

import keras
import numpy as np
import tifffile
from tqdm import tqdm

from detseg.data.images import IMAGE_SUFFIXES, read_image
from detseg.data.windows import TiffReader
from detseg.errors import UserError
from detseg.files import make_folder
from detseg.inference.prediction import PLAIN, Prediction, PredictionOptions
from detseg.tasks import create_task
from detseg.training.fit import load_best_weights
from detseg.training.run_folder import RunFolder

__all__ = ["Prediction", "Predictor", "find_images", "load", "predict_files"]

logger = logging.getLogger("detseg")

WINDOWED_PIXELS = 2**26  # 8192 x 8192; drawing it takes about 2 GB


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
        self._inference, self._tilers = {}, {}

    def tiler(self, options):
        """The model's Tiler for these PredictionOptions, made once; None where they name no tile."""
        key = (options.tile, options.tile_memory)
        if options.tile is not None and key not in self._tilers:
            self._tilers[key] = self.task.create_tiler(self.model, *key)
        return self._tilers.get(key)

    def inference(self, options=PLAIN):
        """Function image -> Prediction, compiled once."""
        if options not in self._inference:
            self.task.check_options(options)
            self._inference[options] = self.task.create_inference(self.model, options, self.tiler(options))
        return self._inference[options]

    def predict(self, image, probabilities=False, tta=False, tile=None, score_threshold=None, max_detections=None):
        """The Prediction of one image: a path, or uint8 (H, W, C) as `detseg` states it.

        Segmentation:
        probabilities:    bool, whether the result has them.
        tta:              bool, test-time augmentation as the config's `tta` has it.
        tile:             None, or "auto" or the side in pixels of the tiles in which the image goes through the model.

        Detection:
        score_threshold:  only detections of a score above it; None: model.score_threshold.
        max_detections:   None: model.max_detections.
        """
        if isinstance(image, (str, Path)):
            image = read_image(image, self.config.data.channels)
        channels = self.config.data.channels
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
            raise UserError(f"image is {image.dtype} {image.shape}, expected uint8 (height, width, {channels})")
        options = PredictionOptions(
            probabilities=probabilities,
            tta=tta,
            tile=tile,
            score_threshold=score_threshold,
            max_detections=max_detections,
        )
        return self.inference(options)(image)


def predict_files(predictor, inputs, output, options=PLAIN):
    """Predicts images and writes results and drawings into the folder `output`.

    inputs:   files, folders (their images, not those of subfolders) and glob patterns.
    options:  PredictionOptions. With a tile, TIFF files of more than `WINDOWED_PIXELS` pixels are read and written by
              windows, as STEM.tif and a reduced drawing.
    Returns   the paths of the images done. Raises UserError after the last image when some could not be read, naming
              them all; before the first when nothing matches or a result would overwrite an image or another result.
    """
    images = find_images(inputs)
    output = Path(output)
    writer = predictor.task.create_writer(output, options, predictor.folder.read_category_ids())
    is_tiled = options.tile is not None
    _check_targets(images, output, (*writer.suffixes, ".tif") if is_tiled else writer.suffixes)
    make_folder(output, "--output")
    done, problems = [], []
    for path in tqdm(images, desc="predict", unit="img", disable=None):
        try:
            if is_tiled and _is_windowed(path):
                _predict_by_windows(predictor, path, writer, options)
            else:
                image = read_image(path, predictor.config.data.channels)
                writer.write(predictor.inference(options)(image), image, path)
        except UserError as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        done.append(path)
    if done:
        writer.finish()
    logger.info("%d images predicted: %s", len(done), output)
    if problems:
        lines = "\n  ".join(problems)
        raise UserError(f"{len(problems)} of {len(images)} images could not be predicted:\n  {lines}")
    return done


def _is_windowed(path):
    """Whether an image is a TIFF file that is too large to be held in memory."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        with tifffile.TiffFile(path) as file:
            return file.pages.first.imagelength * file.pages.first.imagewidth > WINDOWED_PIXELS
    except (OSError, tifffile.TiffFileError):
        return False  # whoever reads it says what is wrong


def _predict_by_windows(predictor, path, writer, options):
    config = predictor.config
    wanted = {
        "--save-probabilities": options.probabilities,
        "--tta": options.tta,
        "data.resize": config.data.resize is not None,
    }
    if any(wanted.values()):
        names = " and ".join(name for name, is_wanted in wanted.items() if is_wanted)
        raise UserError(f"{path}: too large to be held in memory, as {names} would need; leave that out")
    tiler = predictor.tiler(options)
    with TiffReader(path, config.data.channels) as source:
        count = tiler.tile_count(source.shape)
        with tqdm(total=count, desc=path.name, unit="tile", disable=None, leave=False) as progress:
            writer.write_large(tiler.bands(source, on_tile=progress.update), source, path)


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
