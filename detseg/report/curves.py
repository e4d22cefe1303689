"""Drawing the curves of training."""

from detseg.files import written_whole
from detseg.report.compare import figure_label, merge_orders

_LINE_STYLES = ("-", "--", ":", "-.")
_LOG_FROM = {"loss": 5, "learning_rate": 50}  # ratio of largest to smallest value; scores are always linear
_MARKED = 40  # up to so many epochs each has its point
_DASH = 4  # points, of lines that lie on each other


def draw_curves(runs, path):
    """Draws loss, validation score and learning rate over epochs as a PNG, all Runs together.

    Runs without a finished epoch are left out; at least one has to have some.
    Raises UserError where the file can't be written.
    """
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and looks for a screen

    runs = [run for run in runs if run.history]
    scores = merge_orders([run.score_column] for run in runs if run.score_column)
    panels = ["loss", *scores, "learning_rate"]
    width = 5 * len(panels)
    legend_columns = max(1, int(12 * width / (8 + max(len(run.name) for run in runs))))
    height = 4 + 0.22 * -(-len(runs) // legend_columns)
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True)
    for panel, column in zip(axes, panels, strict=True):
        _draw_panel(panel, runs, column)
    legend = figure.legend(
        axes[0].lines, [run.name for run in runs], loc="outside lower center", ncols=legend_columns, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may have dollar signs
    with written_whole(path) as temporary:
        figure.savefig(temporary)


def _draw_panel(panel, runs, column):
    from matplotlib import colormaps

    colours = colormaps["tab10"].colors
    curves = [[(row["epoch"], row[column]) for row in run.history if column in row] for run in runs]
    for index, (run, curve) in enumerate(zip(runs, curves, strict=True)):
        if not curve:
            continue
        colour = colours[index % len(colours)]
        style = _line_style(index, curves, len(colours))
        line = panel.plot(*zip(*curve, strict=True), color=colour, linestyle=style)[0]
        line.set_zorder(2 + 1 / len(curve))  # the end of a longer one is seen anyway
        if len(curve) == 1 or (len(curve) <= _MARKED and column != "learning_rate"):
            line.set(marker="o", markersize=3)
        best = run.best_epoch
        if column == run.score_column and best:
            panel.plot(best["epoch"], best[column], "*", markersize=13, color=colour, markeredgecolor="white", zorder=4)
    _dress(panel, column, [value for curve in curves for _, value in curve])


def _dress(panel, column, values):
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    title = figure_label(column)
    if column.startswith("val_"):
        title = f"validation {figure_label(column.removeprefix('val_'))} (★ best epoch)"
    panel.set_title(title)
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
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
    place = same.index(index)
    return (-_DASH * place, (_DASH, _DASH * (len(same) - 1)))
