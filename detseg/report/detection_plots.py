"""Precision-recall curves and confusion matrices of a detector as pictures."""

import numpy as np

from detseg.files import written_whole
from detseg.metrics.voc import area_average

_LINE_STYLES = ("-", "--", ":", "-.")
_CLASSES_PER_COLUMN = 20  # of the legend
_NUMBERED_CLASSES = 25  # up to so many, the cells of a confusion matrix hold their numbers


def draw_precision_recall(curves, path):
    """Draws the curves of all classes as a PNG, best class first in the legend.

    curves:  {name: PrecisionRecall}, `VocScores.curves()`. Classes without objects are named, but have no curve.
    Raises   UserError where the file can't be written.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and looks for a screen

    colours = colormaps["tab20"].colors if len(curves) > 10 else colormaps["tab10"].colors
    averages = {name: curve.average(area_average) for name, curve in curves.items()}
    order = sorted(curves, key=lambda name: -np.nan_to_num(averages[name], nan=-1.0))
    columns = -(-len(order) // _CLASSES_PER_COLUMN)
    figure = Figure(figsize=(6 + 2.6 * columns, 5.5), dpi=130, layout="constrained")
    axes = figure.subplots()
    for index, name in enumerate(order):
        curve = curves[name]
        is_drawn = curve.object_count > 0 and len(curve.recall) > 0
        axes.plot(
            [0.0, *curve.recall] if is_drawn else [],
            [curve.precision[0], *curve.precision] if is_drawn else [],
            color=colours[index % len(colours)],
            linestyle=_LINE_STYLES[index // len(colours) % len(_LINE_STYLES)],
        )
    axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel="recall", ylabel="precision")
    defined = [average for average in averages.values() if not np.isnan(average)]
    mean = f"{np.mean(defined):.3f}" if defined else "undefined"
    axes.set_title(f"IoU 0.5, mean AP {mean}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    labels = [f"{name} {averages[name]:.3f}" if curves[name].object_count else f"{name} (no objects)" for name in order]
    legend = figure.legend(
        axes.lines, labels, loc="outside right upper", ncols=columns, frameon=False, fontsize="small"
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may have dollar signs
    _save(figure, path)


def draw_confusion(matrix, classes, path, title=""):
    """Draws a confusion matrix as a PNG, each row coloured by the shares of what was found.

    matrix:  int (K + 1, K + 1), rows: what is there, columns: what was found, last of both: background.
    Raises   UserError where the file can't be written.
    """
    from matplotlib.figure import Figure

    names = [*classes, "background"]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 3.5 + (0.55 if len(names) <= _NUMBERED_CLASSES else 0.22) * len(names)
    figure = Figure(figsize=(side + 0.8, side), dpi=130, layout="constrained")
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


def _save(figure, path):
    with written_whole(path) as temporary:
        figure.savefig(temporary)
