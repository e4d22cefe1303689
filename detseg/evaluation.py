"""Scoring a model on a split: one path for validation in training and for tools/evaluate.py."""

import functools
import json
import math
import time
from pathlib import Path

from tqdm import tqdm

from detseg.data.loader import read_in_order
from detseg.detection.results_files import read_coco_results, read_voc_results
from detseg.errors import UserError
from detseg.files import make_folder, written_whole


def evaluate(task, inference, dataset, workers=2, progress=None, scores=None, drawings=None):
    """Runs every image of a dataset through `inference` and scores the results at the images' original sizes.

    inference:  function image -> Prediction, of `task.create_inference`.
    scores:     what collects them; by default `task.create_scores()`. `task.create_scores(extra=True)` has the scores
                of the config's evaluation section too, and may need more of predictions (`task.evaluation_options`).
    progress:   None, or a text to show beside a progress bar (where somebody watches: on a terminal).
    drawings:   None, or the `detseg.report.truth_drawings.TruthDrawings` to be made.
    Returns     the contents of evaluation/SPLIT.json as a dict; undefined figures are nan.
    """
    scores = task.create_scores() if scores is None else scores
    start = time.perf_counter()
    samples = read_in_order(dataset, workers)
    true_instances = getattr(dataset, "true_instances", None)
    image_ids = getattr(dataset, "image_ids", None) or [None] * len(dataset)
    hidden = True if progress is None else None
    samples = tqdm(samples, total=len(dataset), desc=progress, unit="img", disable=hidden, leave=False)
    for index, sample in enumerate(samples):
        try:
            prediction = inference(sample.image)
        except UserError as error:
            raise UserError(f"{sample.path}: {error}") from error
        truth = true_instances and functools.partial(true_instances, index)
        scores.update(sample, prediction, truth, image_ids[index])
        if drawings is not None and index < drawings.count:
            begin = time.perf_counter()
            drawings.add(sample, prediction)
            start += time.perf_counter() - begin  # images_per_second is of the model
    seconds = time.perf_counter() - start
    return {
        "task": task.config.task,
        "split": dataset.split,
        **scores.result(),
        "images": len(dataset),
        "images_per_second": len(dataset) / seconds,
    }


def evaluate_results_file(task, dataset, image_sizes, path, drawings=None):
    """Scores anybody's detections: a COCO results file, or a folder with the VOC devkit's comp4 files.

    task:         DetectionTask of the config that `dataset` is of.
    image_sizes:  (H, W) of each image.
    drawings:     as of `evaluate`.
    Returns       (result, scores): the contents of evaluation/SPLIT.json without images_per_second, and what collected
                  them. Raises UserError for a file that isn't of the split.
    """
    if Path(path).is_dir():
        if task.voc_list(dataset) is None:
            raise UserError(f"{path}: a folder; comp4 files are for data.format: voc, expected a COCO results file")
        found = read_voc_results(path, task.voc_list(dataset), dataset.names, dataset.classes)
    else:
        found = read_coco_results(path, dict(zip(dataset.image_ids, image_sizes, strict=True)), dataset.category_ids)
    found = list(found.values())
    has_masks = (
        dataset.has_masks and any(len(item.boxes) for item in found) and all(item.masks is not None for item in found)
    )
    scores = task.create_scores(extra=True, masks=has_masks)
    for index, item in enumerate(found):
        truth = functools.partial(dataset.true_instances, index)
        scores.add(dataset.objects(index), item, truth, dataset.image_ids[index])
        if drawings is not None and index < drawings.count:
            drawings.add(dataset[index], item)
    return {"task": task.config.task, "split": dataset.split, **scores.result(), "images": len(dataset)}, scores


def write_evaluation(path, result):
    """Writes a result of `evaluate` as JSON, nan as null."""
    make_folder(path.parent, "--run")
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(_nan_to_none(result), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _nan_to_none(value):
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
