"""Runs side by side, in tables with one column a run."""

import itertools
import json
import math
import re
import statistics
from dataclasses import dataclass

ABSENT = "-"

_LABELS = {"miou": "mIoU", "frequency_weighted_iou": "frequency-weighted IoU"}  # others: "_" becomes a space
_LOWER_IS_BETTER = ("error", "loss")  # in the name of a figure; all others are scores
_SETTINGS = ("threshold", "tolerance")  # what a figure was made with: none is better
_ASKED_FOR = ("tta", "tile", "overrides")  # of a result: what it was made with
_CELL_WIDTH = 30  # characters, on a terminal
_MINUTES_SHOWN = 300.0  # longer trainings are given in hours


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of all runs.

    label:  str.
    cells:  list of str, one a run; `ABSENT` where a run doesn't have it.
    best:   list of bool, whether the cell is the row's best; all False where the runs don't differ.
    """

    label: str
    cells: list
    best: list


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a title. is_code: bool, whether labels and cells are keys and values of a file."""

    title: str
    rows: list
    is_code: bool = False


def compare(runs, split=None):
    """The tables that compare these Runs: training, scores, scores of each class, cost and what they were given.

    split:   None or a split; then the results of other splits are left out.
    Returns  list of Table, none of them empty.
    """
    evaluations = [key for key in merge_orders(run.evaluations for run in runs) if split in (None, key[0])]
    tables = [
        _training(runs),
        *(_scores(runs, key) for key in evaluations),
        *(_class_scores(runs, key) for key in evaluations),
        _cost(runs, evaluations),
        Table("config keys that differ", _differing([run.config for run in runs]), is_code=True),
        Table("environment that differs", _differing([run.environment for run in runs]), is_code=True),
    ]
    return [table for table in tables if table.rows]


def format_text(tables, names):
    """The tables for a terminal; * marks the best of a row.

    names:  list of str, the runs' names.
    """
    return "\n\n".join(_text_table(table, names) for table in tables)


def _text_table(table, names):
    lines = _wrapped(table.title, [f"{name} " for name in names])
    for row in table.rows:
        cells = [text + " *"[best] for text, best in zip(row.cells, row.best, strict=True)]
        lines += _wrapped(row.label, cells)
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
    rows = [_row("epochs", [_epochs(run) for run in runs], str)]
    for column in merge_orders([run.score_column] for run in runs if run.score_column):
        label = f"best validation {figure_label(column.removeprefix('val_'))}"
        scores = [run.best_epoch[column] if run.best_epoch and run.score_column == column else None for run in runs]
        rows.append(_row(label, scores, _score, max))
    best_epochs = [int(run.best_epoch["epoch"]) if run.best_epoch else None for run in runs]
    return Table("training", [*rows, _row("best epoch", best_epochs, str)])


def _epochs(run):
    done, planned = len(run.history), run.config["train"]["epochs"]
    return str(done) if done == planned else f"{done} of {planned}"


def _scores(runs, key):
    figures = [_without_classes(run.evaluations.get(key, {})) for run in runs]
    return Table(_title(key), _figure_rows(figures))


def _without_classes(figures):
    """Nested figures without those of each class and the speed, which have tables of their own."""
    return {
        name: _without_classes(value) if isinstance(value, dict) else value
        for name, value in figures.items()
        if name not in ("per_class", "images_per_second")
    }


def _class_scores(runs, key):
    figures = [run.evaluations.get(key, {}).get("per_class", {}) for run in runs]
    return Table(f"{_title(key)}, per class", _figure_rows(figures, class_names=1))


def _figure_rows(figures, class_names=0):
    """A row for each number in nested dicts, whatever the task calls it.

    class_names:  int, how many of the outer keys name classes, not figures.
    """
    numbers = [
        {path: value for path, value in leaves(figure) if _is_number(value) and path[0] not in _ASKED_FOR}
        for figure in figures
    ]
    rows = []
    for path in merge_orders(numbers):
        values = [None if value is None or math.isnan(value) else value for value in (run.get(path) for run in numbers)]
        names = path[class_names:]
        label = " ".join([*path[:class_names], *map(figure_label, names)])
        if any(isinstance(value, int) for value in values):  # counts: images
            rows.append(_row(label, values, _count))
        else:
            rows.append(_row(label, values, _score, _better(" ".join(names))))
    return rows


def _better(figure):
    """Which of two values of a figure is the better one: max, min, or None for what is no score."""
    if any(word in figure for word in _SETTINGS):
        return None
    return min if any(word in figure for word in _LOWER_IS_BETTER) else max


def _is_number(value):
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _title(key):
    split, name = key
    return name if name.startswith(split) else f"{name} ({split})"


def _cost(runs, evaluations):
    minutes = [sum(row["seconds"] for row in run.history) / 60 or None for run in runs]
    if max(filter(None, minutes), default=0) > _MINUTES_SHOWN:
        time = _row("training, hours", [value and value / 60 for value in minutes], "{:.1f}".format, min)
    else:
        time = _row("training, minutes", minutes, "{:.1f}".format, min)
    # The median: the first epoch also compiles.
    speeds = [
        statistics.median(row["images_per_second"] for row in run.history) if run.history else None for run in runs
    ]
    rows = [
        time,
        _row("training, images/s", speeds, "{:.1f}".format, max),
        _row("parameters", [run.parameters for run in runs], _count, min),
    ]
    for key in evaluations:
        speeds = [run.evaluations.get(key, {}).get("images_per_second") for run in runs]
        milliseconds = [speed and 1000 / speed for speed in speeds]
        rows.append(_row(f"{_title(key)}, ms an image", milliseconds, "{:.1f}".format, min))
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
    """A Row of values, None where there is none.

    show:    function of a value -> str.
    better:  max, min or None. Cells that read the same are equally good.
    """
    cells = [ABSENT if value is None else show(value) for value in values]
    present = [value for value in values if value is not None]
    differ = len({show(value) for value in present}) > 1
    best = show(better(present)) if better and differ else None
    return Row(label, cells, [cell == best for cell in cells])


def _score(value):
    return f"{value:.3f}"


def _count(value):
    return f"{value:,}"


def _escape(text):
    return re.sub(r"[\\`*|<\[]|\b_|_\b", r"\\\g<0>", text)  # _ within a word is text


def _code(text):
    return f"`{text}`".replace("|", "\\|")
