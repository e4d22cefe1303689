"""What run folders say, read without Keras."""

import csv
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from detseg.config import load_config
from detseg.errors import UserError

_SPLITS = ("train", "val", "test")
_COLUMNS = ("epoch", "loss", "learning_rate", "images_per_second", "seconds")  # of every row of history.csv


@dataclass(frozen=True, slots=True)
class Run:
    """What a run folder says at this moment; training may still go on.

    name:         str, the folder's name, with as many parents as tell it from the runs that were read with it.
    config:       dict, every key resolved.
    environment:  dict, of environment.json.
    parameters:   int, of the model, or None where the log doesn't say.
    history:      list of {column: float}, one of each finished epoch; empty cells are left out.
    evaluations:  {(split, NAME): the contents of evaluation/NAME.json}; val comes before test.
    """

    name: str
    config: dict
    environment: dict
    parameters: int | None
    history: list
    evaluations: dict

    @property
    def score_column(self):
        """The column of the validation score that chooses the best weights, or None before the first validation."""
        columns = (column for row in self.history for column in row if column.startswith("val_"))
        return next(columns, None)  # the score comes first of what a validation gives

    @property
    def best_epoch(self):
        """The row of the history with the best validation score, or None."""
        column = self.score_column
        scored = [row for row in self.history if not math.isnan(row.get(column, math.nan))]
        return max(scored, key=lambda row: row[column], default=None)


def read_runs(paths):
    """The Runs in these folders, in their order.

    Raises UserError for a folder that is no run folder, one that is given twice, and for a damaged file.
    """
    names = distinct_names(paths)
    return [_read_run(Path(path), name) for path, name in zip(paths, names, strict=True)]


def distinct_names(paths):
    """The folders' names; where several have the same, with the shortest end of their paths that tells them apart."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    for path, own in zip(paths, parts, strict=True):
        if parts.count(own) > 1:
            raise UserError(f"{path}: this run is given twice")
    return [_shortest_end(own, [other for other in parts if other != own]) for own in parts]


def _shortest_end(parts, others):
    length = next(n for n in range(1, len(parts) + 1) if all(other[-n:] != parts[-n:] for other in others))
    return Path(*parts[-length:]).as_posix()


def _read_run(folder, name):
    config = folder / "config.yaml"
    if not config.is_file():
        raise UserError(f"{folder}: not a run folder: it has no config.yaml")
    return Run(
        name,
        load_config(config).model_dump(mode="json"),
        _read_json(folder / "environment.json"),
        _read_parameters(folder / "log.txt"),
        _read_history(folder / "history.csv"),
        _read_evaluations(folder / "evaluation"),
    )


def _read_json(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: got {json.dumps(content)[:40]}, expected a JSON object")
    return content


def _read_parameters(path):
    """The number that training logs when it starts."""
    if not path.is_file():
        return None
    found = re.search(r", (\d+) parameters$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return int(found[1]) if found else None


def _read_history(path):
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
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
