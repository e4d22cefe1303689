"""A split through a model, or beside a file of detections, scored image by image."""

import functools
import logging
import time
from pathlib import Path

from tqdm import tqdm

from detseg.data.loader import read_in_order
from detseg.data.sample import Sample
from detseg.errors import UserError
from detseg.inference.results_files import read_coco_results, read_voc_results

logger = logging.getLogger("detseg")


def score_dataset(task, inference, dataset, workers=2, progress=None, scores=None, drawings=None):
    """Runs every image of a Dataset through `inference` and scores the results at the images' original sizes.

    inference:  function image -> Prediction, of `task.create_inference`.
    progress:   None, or a text to show beside a progress bar (where somebody watches: on a terminal).
    scores:     what collects them; by default `task.create_scores()`. With `extra=True` it may need more of predictions
                (`task.evaluation_options`).
    drawings:   None, or the `detseg.report.drawing.TruthDrawings` to be made.
    Returns     the contents of evaluation/SPLIT.json as a dict; undefined figures are nan. images_per_second is of the
                model from array to result, without the first image, which compiles; seconds is of all, with reading
                and scoring.
    """
    scores = task.create_scores() if scores is None else scores
    start = time.perf_counter()
    samples = read_in_order(dataset, workers)
    hidden = True if progress is None else None
    samples = tqdm(samples, total=len(dataset), desc=progress, unit="img", disable=hidden, leave=False)
    model_seconds = []
    for index, sample in enumerate(samples):
        begin = time.perf_counter()
        try:
            is_given = task.name == "detection" and sample.proposals is not None
            given = {"proposals": sample.proposals} if is_given else {}
            prediction = inference(sample.image, **given)
        except UserError as error:
            raise UserError(f"{sample.path or dataset.names[index]}: {error}") from error
        model_seconds.append(time.perf_counter() - begin)
        truth = functools.partial(dataset.true_instances, index)
        scores.update(sample, prediction, truth, dataset.image_ids[index])
        if drawings is not None and index < drawings.count:
            drawings.add(sample, prediction)
    counted = model_seconds[1:] or model_seconds
    return {
        "task": task.name,
        "split": dataset.split,
        **scores.result(),
        "images": len(dataset),
        "images_per_second": len(counted) / sum(counted),
        "seconds": time.perf_counter() - start,
    }


def score_detections(task, dataset, image_sizes, path, drawings=None):
    """Scores a file or folder of detections of the images of sizes (H, W); see `evaluate_detections`.

    Returns  (result, scores): the contents of evaluation/SPLIT.json without times, and what collected them.
    """
    if Path(path).is_dir():
        if task.voc_list(dataset) is None:
            raise UserError(f"{path}: a folder; comp4 files are for data.format: voc, expected a COCO results file")
        found = read_voc_results(path, task.voc_list(dataset), dataset.names, dataset.classes)
    else:
        found = read_coco_results(path, dict(zip(dataset.image_ids, image_sizes, strict=True)), dataset.category_ids)
    found = list(found.values())
    with_masks = any(len(item.boxes) for item in found) and all(item.masks is not None for item in found)
    if with_masks and not dataset.has_masks:
        logger.warning("%s: its masks are not scored: the data are read without any; set data.masks: true", path)
    scores = task.create_scores(extra=True, masks=dataset.has_masks and with_masks)
    for index, item in enumerate(found):
        truth = functools.partial(dataset.true_instances, index)
        scores.update(Sample(image=None, objects=dataset.objects(index)), item, truth, dataset.image_ids[index])
        if drawings is not None and index < drawings.count:
            drawings.add(dataset[index], item)
    return {"task": task.name, "split": dataset.split, **scores.result(), "images": len(dataset)}, scores
