"""What run folders say, read without Keras."""

import csv
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from detseg.config import load_config
from detseg.errors import UserError

_SPLITS = ("train", "val", "test")
_COLUMNS = ("epoch", "loss", "learning_rate", "train_images_per_second", "seconds")  # of every row of history.csv
_SCORE_NAMES = {"segmentation": "miou", "detection": "AP"}  # of runs without model.json


@dataclass(frozen=True, slots=True)
class Run:
    """What a run folder says at this moment; training may still go on.

    name:         str, the folder's name, with as many parents as tell it from the runs that were read with it.
    config:       dict, every key resolved.
    environment:  dict, of environment.json.
    parameters:   int, of the model, or None for a run without model.json.
    score_column: str, the history's column of the validation score that chooses the best weights.
    history:      list of {column: float}, one of each finished epoch; empty cells are left out.
    evaluations:  {(split, NAME): the contents of evaluation/NAME.json}; val comes before test.
    """

    name: str
    config: dict
    environment: dict
    parameters: int | None
    score_column: str
    history: list
    evaluations: dict

    @property
    def best_epoch(self):
        """The row of the history with the best validation score, or None."""
        scored = [row for row in self.history if not math.isnan(row.get(self.score_column, math.nan))]
        return max(scored, key=lambda row: row[self.score_column], default=None)


def read_runs(paths):
    """The Runs in these folders. UserError for a folder that is no run folder or given twice and for a damaged file."""
    return [_read_run(Path(path), name) for path, name in zip(paths, distinct_names(paths), strict=True)]


def distinct_names(paths):
    """The folders' names; where several have the same, with the shortest end of their paths that tells them apart."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    for path, own in zip(paths, parts, strict=True):
        if parts.count(own) > 1:
            raise UserError(f"{path}: this run is given twice")
    ends = ([own[-length:] for length in range(1, len(own) + 1)] for own in parts)
    return [
        Path(*next(end for end in own if [other[-len(end) :] for other in parts].count(end) == 1)).as_posix()
        for own in ends
    ]


def _read_run(folder, name):
    config = folder / "config.yaml"
    if not config.is_file():
        raise UserError(f"{folder}: not a run folder: it has no config.yaml")
    settings = load_config(config).model_dump(mode="json")
    environment = _read_json(folder / "environment.json")
    parameters, score_name = _read_model(folder / "model.json", _SCORE_NAMES[settings["task"]])
    history, evaluations = _read_history(folder / "history.csv"), _read_evaluations(folder / "evaluation")
    return Run(name, settings, environment, parameters, f"val_{score_name}", history, evaluations)


def _read_json(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: got {json.dumps(content)[:40]}, expected a JSON object")
    return content


def _read_model(path, default_score):
    """(parameters, score name) that training wrote when it started; (None, default_score) without the file."""
    if not path.is_file():
        return None, default_score
    model = _read_json(path)
    for key, kind in (("parameters", int), ("score_name", str)):
        if type(model.get(key)) is not kind:
            raise UserError(f"{path}: {key}: got {json.dumps(model.get(key))}, expected {kind.__name__}")
    return model["parameters"], model["score_name"]


def _read_history(path):
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            old = {"images_per_second": "train_images_per_second"}  # as runs of 0.1.0 have it
            reader.fieldnames = [old.get(column, column) for column in reader.fieldnames or ()]
            missing = [column for column in _COLUMNS if column not in reader.fieldnames]
            if missing:
                raise UserError(f"{path}: has no column {missing[0]}; expected the history of a run")
            return [_read_epoch(row, f"{path}:{reader.line_num}") for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: can't be read: {error}") from error


def _read_epoch(row, place):
    if None in row or None in row.values():
        raise UserError(f"{place}: the line has not as many values as there are columns")
    values = {}
    for column, text in row.items():
        try:
            if text or column in _COLUMNS:
                values[column] = float(text)
        except ValueError:
            raise UserError(f"{place}: {column}: got {text!r}, expected a number") from None
    return values


def _read_evaluations(folder):
    results = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem.endswith("_detections"):  # of a detector: what was scored
            continue
        result = _read_json(path)
        if result.get("split") not in _SPLITS:
            raise UserError(f"{path}: split: got {result.get('split')!r}, expected one of {', '.join(_SPLITS)}")
        results[result["split"], path.stem] = result
    return dict(sorted(results.items(), key=lambda item: (_SPLITS.index(item[0][0]), item[0][1])))
