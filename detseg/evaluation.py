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
    name:      of the result; default: the split, SPLIT_tta with tta, SPLIT_tiled with tile, SPLIT_svd with
               model.truncated_svd, where the scores without it come along.
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
    is_compressed = getattr(predictor.config.model, "truncated_svd", None) is not None
    named = {"_tta": options.get("tta"), "_tiled": options.get("tile"), "_svd": is_compressed}
    name = name or split + "".join(suffix for suffix, is_asked in named.items() if is_asked)
    folder = predictor.folder.evaluation
    drawn = None if drawings is None else TruthDrawings(task, folder / f"{name}_drawings", drawings)
    inference = functools.partial(predictor.inference, options=asked)
    result = score_dataset(task, inference, dataset, progress=split, scores=scores, drawings=drawn)
    result |= {"split": split, "tta": bool(options.get("tta")), "tile": options.get("tile")}
    if is_compressed:
        whole = load(predictor.folder.path, [*predictor.overrides, "model.truncated_svd=null"])
        plain = score_dataset(task, functools.partial(whole.inference, options=asked), dataset, progress="as trained")
        result["without_truncated_svd"] = {key: plain[key] for key in ("coco", "voc", "images_per_second")}
    return _written(task, result | {"overrides": list(overrides)}, scores, dataset, folder, name, drawn)


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
