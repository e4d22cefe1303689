"""Plots as PNG files: curves of training, precision and recall, confusion matrices.

Figures are made without pyplot, which keeps them and looks for a screen. UserError where a file can't be written.
"""

import numpy as np

from detseg.files import written_whole
from detseg.metrics.arrays import mean_of_defined
from detseg.metrics.proposals import OVERLAPS
from detseg.metrics.voc import MIN_OVERLAP, area_average
from detseg.report.compare import figure_label, merge_orders

_LINE_STYLES = ("-", "--", ":", "-.")
_LOG_FROM = {"loss": 5, "learning_rate": 50}  # ratio of largest to smallest value; scores are always linear
_MARKED = 40  # up to so many epochs each has its point
_DASH = 4  # points, of lines that lie on each other
_CLASSES_PER_COLUMN = 20  # of the legend
_NUMBERED_CLASSES = 25  # up to so many, the cells of a confusion matrix hold their numbers


def draw_curves(runs, path):
    """Draws loss, validation score and learning rate over epochs, of all Runs with a finished epoch: at least one."""
    runs = [run for run in runs if run.history]
    scores = merge_orders([run.score_column] for run in runs if any(run.score_column in row for row in run.history))
    columns = ["loss", *scores, "learning_rate"]
    width = 5 * len(columns)
    legend_columns = max(1, int(12 * width / (8 + max(len(run.name) for run in runs))))
    figure = _figure(width, 4 + 0.22 * -(-len(runs) // legend_columns))
    panels = figure.subplots(1, len(columns), sharex=True)
    for panel, column in zip(panels, columns, strict=True):
        _draw_panel(panel, runs, column)
    names = [run.name for run in runs]
    _save(figure, path, panels[0].lines, names, loc="outside lower center", ncols=legend_columns)


def _draw_panel(panel, runs, column):
    from matplotlib import colormaps
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    colours = colormaps["tab10"].colors
    curves = [[(row["epoch"], row[column]) for row in run.history if column in row] for run in runs]
    for index, (run, curve) in enumerate(zip(runs, curves, strict=True)):
        if not curve:
            continue
        colour, style = colours[index % len(colours)], _line_style(index, curves, len(colours))
        (line,) = panel.plot(*zip(*curve, strict=True), color=colour, linestyle=style)
        line.set_zorder(2 + 1 / len(curve))  # the end of a longer one is seen anyway
        if len(curve) == 1 or (len(curve) <= _MARKED and column != "learning_rate"):
            line.set(marker="o", markersize=3)
        best = run.best_epoch
        if column == run.score_column and best:
            panel.plot(best["epoch"], best[column], "*", markersize=13, color=colour, markeredgecolor="white", zorder=4)
    title = figure_label(column)
    if column.startswith("val_"):
        title = f"validation {figure_label(column.removeprefix('val_'))} (★ best epoch)"
    panel.set(title=title, xlabel="epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    values = [value for curve in curves for _, value in curve]
    if column in _LOG_FROM and min(values) > 0 and max(values) / min(values) >= _LOG_FROM[column]:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter("{x:g}")
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _line_style(index, curves, colours):
    """The style of a run's line: one of a few, by turns; equal curves share a line, each with its own dashes of it."""
    same = [other for other, curve in enumerate(curves) if curve == curves[index]]
    if len(same) == 1:
        return _LINE_STYLES[index // colours % len(_LINE_STYLES)]
    return (-_DASH * same.index(index), (_DASH, _DASH * (len(same) - 1)))


def draw_precision_recall(curves, path, min_overlap=MIN_OVERLAP):
    """Draws the curves of all classes, best class first in the legend.

    curves:       {name: PrecisionRecall}, `VocScores.curves()`. Classes without objects are named, but have no curve.
    min_overlap:  the IoU that they are at, for the title.
    """
    from matplotlib import colormaps

    colours = colormaps["tab20"].colors if len(curves) > 10 else colormaps["tab10"].colors
    averages = {name: curve.average(area_average) for name, curve in curves.items()}
    order = sorted(curves, key=lambda name: -np.nan_to_num(averages[name], nan=-1.0))
    columns = -(-len(order) // _CLASSES_PER_COLUMN)
    figure = _figure(6 + 2.6 * columns, 5.5)
    axes = figure.subplots()
    for index, curve in enumerate(curves[name] for name in order):
        colour, style = colours[index % len(colours)], _LINE_STYLES[index // len(colours) % len(_LINE_STYLES)]
        is_drawn = curve.object_count > 0 and len(curve.recall) > 0
        points = ([0.0, *curve.recall], [curve.precision[0], *curve.precision]) if is_drawn else ([], [])
        axes.plot(*points, color=colour, linestyle=style)
    mean = mean_of_defined(list(averages.values()))
    title = f"IoU {min_overlap:g}, mean AP " + ("undefined" if np.isnan(mean) else f"{mean:.3f}")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel="recall", ylabel="precision", title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    labels = [f"{name} {averages[name]:.3f}" if curves[name].object_count else f"{name} (no objects)" for name in order]
    _save(figure, path, axes.lines, labels, loc="outside right upper", ncols=columns, fontsize="small")


def draw_recall(scores, path):
    """Draws the share of objects that the first proposals cover over their number, of `ProposalScores`."""
    figure = _figure(6, 4.5)
    axes = figure.subplots()
    for iou, style in zip(OVERLAPS, _LINE_STYLES, strict=False):
        counts, recall = scores.recall_curve(iou)
        axes.plot(counts, recall, linestyle=style, color="black", label=f"IoU {iou:g}")
    axes.set(xscale="log", ylim=(0, 1.03), xlabel="first proposals", ylabel="share of the objects found")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    _save(figure, path)


def draw_confusion(matrix, classes, path, title=""):
    """Draws a confusion matrix, each row coloured by the shares of what was found.

    matrix:  int (K + 1, K + 1), rows: what is there, columns: what was found, last of both: background.
    """
    names = [*classes, "background"]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 3.5 + (0.55 if len(names) <= _NUMBERED_CLASSES else 0.22) * len(names)
    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the row", fraction=0.04)
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="found", ylabel="ground truth")
    axes.set_title(title, parse_math=False)
    if len(names) <= _NUMBERED_CLASSES:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize="small")
    _save(figure, path)


def _figure(width, height):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _save(figure, path, lines=(), names=(), **legend_options):
    if names:
        for text in figure.legend(lines, names, frameon=False, **legend_options).get_texts():
            text.set_parse_math(False)  # a name may have dollar signs
    with written_whole(path) as temporary:
        figure.savefig(temporary)
