"""Scores of a run, or of anybody's detections, on a split, with the files that show them."""

import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from detseg.config import Config, load_data_config
from detseg.data.dataset import Dataset, check_classes
from detseg.data.readers.create import create_dataset
from detseg.data.scan import scan_split
from detseg.detection.truncated_svd import truncate_head
from detseg.errors import UserError
from detseg.files import make_folder, written_whole
from detseg.predictor import Predictor, load
from detseg.report.drawing import TruthDrawings
from detseg.tasks import create_task
from detseg.tasks.scoring import score_dataset, score_detections


class Evaluation(dict):
    """The contents of evaluation/NAME.json; undefined figures are nan. str() of it is what `evaluate` prints.

    paths:  list of Path, the files written.
    """

    def __init__(self, result, text, paths):
        super().__init__(result)
        self.text = text
        self.paths = paths

    def __str__(self):
        return self.text


def evaluate(
    run: str | os.PathLike | Predictor,
    split: str = "val",
    *,
    dataset: Dataset | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
    drawings: int | None = None,
    **options,
) -> Evaluation:
    """Scores a run's best weights on a split and writes evaluation/NAME.json into its folder.

    run:       the run folder, or what `detseg.load` made of it.
    split:     "train", "val" or "test" of the config's data; with `dataset` only its name.
    dataset:   None, or a Dataset of one's own with the run's classes.
    name:      of the result; default: the split, SPLIT_tta with tta, SPLIT_tiled with tile.
    overrides: "a.b=c" as for --set.
    drawings:  None, or of how many images ground truth is drawn beside prediction, into evaluation/NAME_drawings/.
    options:   as of `Predictor.predict`: tta, tile, ...; detections of all scores from model.score_threshold on count.
    Raises     UserError for a split that is not there, other classes, broken files.
    """
    predictor = run if isinstance(run, Predictor) else load(run, overrides)
    task = predictor.task
    options = {key: value for key, value in options.items() if value not in (None, False)}
    if dataset is None:
        dataset = create_dataset(predictor.config.data, split, predictor.config.task)
    if not isinstance(dataset, Dataset):
        raise UserError(f"dataset=: got {type(dataset).__name__}, expected a detseg.Dataset")
    check_classes(dataset, predictor.classes, predictor.folder.path)
    dataset = task.complete_data(dataset, scan_split(dataset, task.name))
    asked = task.evaluation_options(task.prediction_options(options))
    scores = task.create_scores(extra=True)
    name = name or split + ("_tta" if options.get("tta") else "") + ("_tiled" if options.get("tile") else "")
    folder = predictor.folder.evaluation
    drawn = None if drawings is None else TruthDrawings(task, folder / f"{name}_drawings", drawings)
    inference = functools.partial(predictor.inference, options=asked)
    result = score_dataset(task, inference, dataset, progress=split, scores=scores, drawings=drawn)
    result |= {"split": split, "tta": bool(options.get("tta")), "tile": options.get("tile")}
    return _written(task, result | {"overrides": list(overrides)}, scores, dataset, folder, name, drawn)


def evaluate_truncated_svd(
    run: str | os.PathLike | Predictor,
    ranks: Mapping[str, int],
    split: str = "val",
    *,
    dataset: Dataset | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Evaluation, Evaluation]:
    """Scores a Fast or Faster R-CNN as it is, and with dense layers compressed by truncated SVD.

    ranks:    {layer of the head: how many singular values are kept}, such as {"fc6": 1024, "fc7": 256}; see
              `detseg.detection.truncated_svd`.
    name:     of the results, evaluation/NAME.json and evaluation/NAME_svd.json; default: the split.
    The rest is as of `evaluate`. A Predictor that is given keeps its model as it was.
    Returns   both Evaluations. Raises UserError for a run without such layers.
    """
    predictor = run if isinstance(run, Predictor) else load(run, overrides)
    model, task = predictor.model, predictor.task
    if getattr(getattr(model, "options", None), "head", None) != "dense":
        path = predictor.folder.path
        raise UserError(f"--truncated-svd: {path} has no head of dense layers, as fast_rcnn's and faster_rcnn's")
    try:
        compressed = truncate_head(model.head, ranks)
    except ValueError as error:
        raise UserError(f"--truncated-svd: {error}") from error
    name, whole, inference = name or split, model.head, predictor.inference
    before = evaluate(predictor, split, dataset=dataset, name=name, overrides=overrides)
    try:
        model.head = compressed
        predictor.inference = task.create_inference(model)
        after = evaluate(predictor, split, dataset=dataset, name=f"{name}_svd", overrides=overrides)
    finally:
        model.head, predictor.inference = whole, inference
    return before, after


def format_truncated_svd(before: Evaluation, after: Evaluation) -> str:
    """What truncated SVD costs and saves, as a table."""
    lines = [f"{'':16}{'AP':>8}{'AP50':>8}{'mAP':>8}{'ms an image':>14}"]
    for title, result in (("as trained", before), ("truncated SVD", after)):
        values = (result["coco"]["AP"], result["coco"]["AP50"], result["voc"]["mAP"])
        figures = "".join(f"{value:8.4f}" for value in values)
        lines.append(f"{title:16}{figures}{1000 / result['images_per_second']:14.1f}")
    return "\n".join(lines)


def evaluate_detections(
    detections: str | os.PathLike,
    config: str | os.PathLike | Mapping | Config,
    split: str = "val",
    *,
    output: str | os.PathLike | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
    drawings: int | None = None,
) -> Evaluation:
    """Scores anybody's detections: a COCO results file, or a folder with the VOC devkit's comp4 files.

    config:    whose data section says where the ground truth is; other sections are not needed and not read.
    output:    folder for scores and drawings; None: nothing is written.
    name, overrides, drawings: as of `evaluate`.
    Raises     UserError for a file that isn't of the split.
    """
    if drawings is not None and output is None:
        raise UserError("--drawings: expected --output DIR too, the folder for them")
    config = load_data_config(config, overrides)
    if config.task != "detection":
        raise UserError(f"task: {config.task}; detections are scored by a config of task: detection")
    if output is not None:
        output = Path(output)
        make_folder(output, "--output")
    dataset = create_dataset(config.data, split, config.task)
    task = create_task(config, dataset.classes)
    sizes = scan_split(dataset, task.name).image_sizes
    name = name or split
    drawn = None if drawings is None else TruthDrawings(task, output / f"{name}_drawings", drawings)
    result, scores = score_detections(task, dataset, sizes, detections, drawn)
    return _written(task, result, scores, dataset, output, name, drawn)


def _written(task, result, scores, dataset, folder, name, drawings):
    """The Evaluation of a result, with its files in a folder; None: nothing is written."""
    paths = []
    if folder is not None:
        path = folder / f"{name}.json"
        make_folder(path.parent, "--run")
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(_nan_to_none(result), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        paths += [path, *task.write_scores(scores, dataset, folder, name)]
    if drawings is not None:
        paths.append(drawings.folder)
    return Evaluation(result, task.format_scores(result), paths)


def _nan_to_none(value):
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
