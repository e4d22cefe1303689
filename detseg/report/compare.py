"""Runs side by side, in tables with one column a run."""

import itertools
import json
import math
import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from detseg.report.runs import Run, read_runs

ABSENT = "-"

_LABELS = {"miou": "mIoU", "frequency_weighted_iou": "frequency-weighted IoU"}  # others: "_" becomes a space
_ELSEWHERE = {"per_class", "images_per_second", "seconds"}  # of a result: what has tables of its own
_LOWER_IS_BETTER = ("error", "loss")  # in the name of a figure; all others are scores
_SETTINGS = ("threshold", "tolerance")  # what a figure was made with: none is better
_ASKED_FOR = ("tta", "tile", "overrides")  # of a result: what it was made with
_NUMBERS = (int, float, type(None))  # null stands for NaN
_CELL_WIDTH = 30  # characters, on a terminal
_MINUTES_SHOWN = 300.0  # longer trainings are given in hours
_score, _count, _tenths = "{:.3f}".format, "{:,}".format, "{:.1f}".format


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of all runs: each one's cell, or `ABSENT`, and whether it is the best; none is where they are equal."""

    label: str
    cells: list
    best: list


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a title. is_code: bool, whether labels and cells are keys and values of a file."""

    title: str
    rows: list
    is_code: bool = False


class Comparison(list):
    """Tables, none of them empty, with a column for each of the runs `names`; str() is what `detseg compare` prints."""

    def __init__(self, tables, names):
        super().__init__(table for table in tables if table.rows)
        self.names = names

    def __str__(self):
        return format_text(self, self.names)


def compare(runs: Sequence[str | os.PathLike | Run], split: str | None = None) -> Comparison:
    """Runs side by side: training, scores, scores of each class, cost and what they were given.

    runs:    run folders, also of runs that go on, or what `read_runs` has read.
    split:   None or a split; then the results of other splits are left out.
    Raises   UserError as `read_runs`.
    """
    if not all(isinstance(run, Run) for run in runs):
        runs = read_runs(runs)
    keys = [key for key in merge_orders(run.evaluations for run in runs) if split in (None, key[0])]
    results = {
        name if name.startswith(of) else f"{name} ({of})": [run.evaluations.get((of, name), {}) for run in runs]
        for of, name in keys
    }
    of_classes = {title: [result.get("per_class", {}) for result in of_runs] for title, of_runs in results.items()}
    tables = [
        _training(runs),
        *(Table(title, _figure_rows(of_runs, _ELSEWHERE)) for title, of_runs in results.items()),
        *(Table(f"{title}, per class", _figure_rows(rows, class_names=1)) for title, rows in of_classes.items()),
        _cost(runs, results),
        Table("config keys that differ", _differing([run.config for run in runs]), is_code=True),
        Table("environment that differs", _differing([run.environment for run in runs]), is_code=True),
    ]
    return Comparison(tables, [run.name for run in runs])


def format_text(tables, names):
    """The tables for a terminal, with the names of the runs; * marks the best of a row."""
    return "\n\n".join(_text_table(table, names) for table in tables)


def _text_table(table, names):
    lines = _wrapped(table.title, [f"{name} " for name in names])
    for row in table.rows:
        lines += _wrapped(row.label, [text + " *"[best] for text, best in zip(row.cells, row.best, strict=True)])
    label_width, *widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([label.ljust(label_width), *map(str.rjust, cells, widths)]).rstrip() for label, *cells in lines
    )


def _wrapped(label, cells):
    """A row's lines: (label, cells), with what is too long for its cell in the cells below."""
    parts = [[cell[i : i + _CELL_WIDTH] for i in range(0, len(cell), _CELL_WIDTH)] for cell in cells]
    return list(itertools.zip_longest([label], *parts, fillvalue=""))


def format_markdown(tables, names):
    """The tables in Markdown, the best of a row in bold."""
    blocks = []
    for table in tables:
        style = _code if table.is_code else _escape
        lines = [[_escape(table.title), *map(_escape, names)], ["---"] * (1 + len(names))]
        for row in table.rows:
            cells = [ABSENT if text == ABSENT else style(text) for text in row.cells]
            cells = [f"**{text}**" if best else text for text, best in zip(cells, row.best, strict=True)]
            lines.append([style(row.label), *cells])
        blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(blocks)


def figure_label(name):
    """A figure's name as it is written in tables and drawings: "miou" is mIoU."""
    return _LABELS.get(name, name.replace("_", " "))


def merge_orders(sequences):
    """The items of all sequences, each once, at their place among those that they stand beside in their sequence."""
    merged = []
    for sequence in sequences:
        position = next((merged.index(item) for item in sequence if item in merged), len(merged))
        for item in sequence:
            if item in merged:
                position = merged.index(item) + 1
            else:
                merged.insert(position, item)
                position += 1
    return merged


def _training(runs):
    epochs = [(len(run.history), run.config["train"]["epochs"]) for run in runs]
    rows = [_row("epochs", epochs, lambda of: str(of[0]) if of[0] == of[1] else f"{of[0]} of {of[1]}")]
    for column in merge_orders([run.score_column] for run in runs if run.best_epoch):
        label = f"best validation {figure_label(column.removeprefix('val_'))}"
        scores = [run.best_epoch[column] if run.best_epoch and run.score_column == column else None for run in runs]
        rows.append(_row(label, scores, _score, max))
    best_epochs = [int(run.best_epoch["epoch"]) if run.best_epoch else None for run in runs]
    return Table("training", [*rows, _row("best epoch", best_epochs, str)])


def _figure_rows(figures, left_out=frozenset(), class_names=0):
    """A row for each number in nested dicts, whatever the task calls it; the first `class_names` keys are classes."""
    numbers = [
        {
            path: None if value is None or math.isnan(value) else value
            for path, value in leaves(figure)
            if type(value) in _NUMBERS and path[0] not in _ASKED_FOR and not left_out & set(path)
        }
        for figure in figures
    ]
    rows = []
    for path in merge_orders(numbers):
        values = [run.get(path) for run in numbers]
        names = path[class_names:]
        label = " ".join([*path[:class_names], *map(figure_label, names)])
        is_count = any(isinstance(value, int) for value in values)  # of images
        show = (_count,) if is_count else (_score, _better(" ".join(names)))
        rows.append(_row(label, values, *show))
    return rows


def _better(figure):
    """Which of two values of a figure is the better one: max, min, or None for what is no score."""
    if any(word in figure for word in _SETTINGS):
        return None
    return min if any(word in figure for word in _LOWER_IS_BETTER) else max


def _cost(runs, results):
    time, unit = [sum(row["seconds"] for row in run.history) / 60 or None for run in runs], "minutes"
    if max(filter(None, time), default=0) > _MINUTES_SHOWN:
        time, unit = [minutes and minutes / 60 for minutes in time], "hours"
    speeds = [[row["train_images_per_second"] for row in run.history] for run in runs]
    medians = [statistics.median(speed) if speed else None for speed in speeds]  # the first epoch also compiles
    rows = [
        _row(f"training, {unit}", time, _tenths, min),
        _row("training, images/s", medians, _tenths, max),
        _row("parameters", [run.parameters for run in runs], _count, min),
    ]
    for title, of_runs in results.items():
        speeds = [result.get("images_per_second") for result in of_runs]
        rows.append(_row(f"{title}, ms an image", [speed and 1000 / speed for speed in speeds], _tenths, min))
    return Table("cost", rows)


def _differing(trees):
    """A row for each leaf that isn't the same in all trees."""
    trees = [{".".join(map(str, path)): _written(value) for path, value in leaves(tree)} for tree in trees]
    rows = [_row(key, [tree.get(key) for tree in trees], str) for key in merge_orders(trees)]
    return [row for row in rows if len(set(row.cells)) > 1]


def _written(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def leaves(tree, path=()):
    """(path, value) of all that is no mapping or list of mappings, in order; a path is a tuple of keys and indices."""
    if isinstance(tree, dict) and tree:
        items = tree.items()
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        items = enumerate(tree)
    else:
        yield path, tree
        return
    for key, value in items:
        yield from leaves(value, (*path, key))


def _row(label, values, show, better=None):
    """A Row of values or None. better: max, min or None; cells that read the same are equally good."""
    cells = [ABSENT if value is None else show(value) for value in values]
    present = [value for value in values if value is not None]
    differ = len({show(value) for value in present}) > 1
    best = show(better(present)) if better and differ else None
    return Row(label, cells, [cell == best for cell in cells])


def _escape(text):
    return re.sub(r"[\\`*|<\[]|\b_|_\b", r"\\\g<0>", text)  # _ within a word is text


def _code(text):
    return f"`{text}`".replace("|", "\\|")
