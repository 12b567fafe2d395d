"""Figures of values: by name, against each other, and along an axis; and one panel for each value of a column."""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from toastlib.plan import ORIGINAL
from toastlib.plots.axes import Log, check_columns, finish_axis, finish_panel, interval_ends, levels, share_texts
from toastlib.plots.style import COLOURS, LABELS, NAMES, figure_size, looks


@share_texts
def intervals(
    data: pd.DataFrame,
    *,
    y: str,
    x: str = "lost",
    hue: str | None = None,
    label: str | None = None,
    sort: bool = False,
    log: Log = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw a value and its interval for every name, such as points lost by plan.

    Parameters
    ----------
    data
        One row per name and `hue`; several are pale. Intervals end at ``{x}_low``, ``{x}_high`` or ``low``, ``high``.
    y, x
        Columns of names, the first on top, and of values. Rows named ``"original"`` are a dashed line.
    $hue
    $label
    sort
        The smallest value stands on top.
    $log
    $ax
    """
    check_columns(data, x, y, hue)
    original, data = data.loc[data[y] == ORIGINAL, x], data[data[y] != ORIGINAL]
    names = [name for name in levels(data[y]) if name != ORIGINAL]
    if sort:
        names = data.groupby(y, sort=False, observed=True)[x].mean().sort_values(kind="stable").index.tolist()
    groups = _groups(data, hue)
    height = 1 + max(0.8, 0.33 * len(names), 0.26 * len(groups) * (hue != y))  # of names, of the legend
    ax = ax or plt.subplots(figsize=figure_size(8, height))[1]
    step = 0 if hue == y else min(0.25, 0.75 / max(1, len(groups)))  # between the colours of one name
    for number, (part, style) in enumerate(groups):
        style["label"] = None if hue == y else style["label"]
        place = part[y].astype(object).map(names.index).astype(float) + step * (number - (len(groups) - 1) / 2)
        pale = 0.4 if part.duplicated(y).any() else 1
        ends = interval_ends(part, x)
        ax.errorbar(part[x], place, xerr=ends, linestyle="none", elinewidth=1, alpha=pale, **style)
    if len(original):
        ax.axvline(original.mean(), color=COLOURS[ORIGINAL], linestyle="--", linewidth=1, label=ORIGINAL)
    ax.set_yticks(range(len(names)), [NAMES.get(name, name) for name in names])
    ax.set(ylim=(len(names) - 0.5, -0.5), ylabel=LABELS.get(y, y))
    finish_axis(ax.xaxis, data, x, label=label, interval=True, log=log)
    return finish_panel(ax, hue)


@share_texts
def accuracy_by_plan(data: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the accuracy of every plan and translator, the original as a dashed line.

    Parameters
    ----------
    data
        Columns ``translator``, ``plan``, ``accuracy``, such as `Evaluation.table` of one head. Several rows (seeds) are
        drawn as mean and range, one row with its interval ``accuracy_low`` to ``accuracy_high``.
    $ax
    """
    check_columns(data, "translator", "plan", "accuracy")
    kind = ["translator", "plan"]
    has_seeds = data.duplicated(kind).any()
    if has_seeds:
        accuracy = data.groupby(kind, sort=False, observed=True)["accuracy"]
        data = accuracy.agg(accuracy="mean", accuracy_low="min", accuracy_high="max").reset_index()
    ax = intervals(data, y="plan", x="accuracy", hue="translator", ax=ax)
    if has_seeds:
        ax.set_xlabel("accuracy (%, mean and range of the heads)")
    return ax


@share_texts
def scatter(
    data: pd.DataFrame,
    *,
    x: str,
    y: str,
    hue: str | None = None,
    front: str | None = None,
    diagonal: bool = False,
    log: tuple[Log, Log] = (False, False),
    ax: Axes | None = None,
) -> Axes:
    """Draw one value against another, such as accuracy against cost.

    Parameters
    ----------
    data
        One row per point. Columns ``{y}_low`` and ``{y}_high``, or ``low`` and ``high``, are the ends of intervals.
    x, y
        Columns of values.
    $hue
    front, diagonal
        bool column, from `pareto_front`, of rows that are joined and named by ``plan``; and whether to draw ``y = x``.
    $log
    $ax
    """
    check_columns(data, x, y, hue, front)
    ax = ax or plt.subplots(figsize=figure_size(6.5, 4.2))[1]
    for part, style in _groups(data, hue):
        style |= {"linestyle": "none", "markersize": 7 if len(data) < 200 else 4, "elinewidth": 1}
        pale = ~part[front] & (part["plan"] != ORIGINAL) if front else pd.Series(False, part.index)
        for points, look in ((part[pale], {"alpha": 0.35, "label": None}), (part[~pale], {"alpha": 0.9})):
            ax.errorbar(points[x], points[y], yerr=interval_ends(points, y), **style | look)
    if front:
        _join_front(data[data[front]].sort_values(x), x, y, ax)
    if diagonal:
        ax.axline((data[x].mean(), data[x].mean()), slope=1, color="grey", linewidth=1, zorder=0)
        ax.set_aspect("equal", adjustable="datalim")
    finish_axis(ax.xaxis, data, x, log=log[0])
    finish_axis(ax.yaxis, data, y, interval=True, log=log[1])
    return finish_panel(ax, hue)


@share_texts
def curve(
    data: pd.DataFrame,
    *,
    x: str,
    y: str,
    hue: str | None = None,
    units: str | None = None,
    label: str | None = None,
    log: tuple[Log, Log] = (False, False),
    ax: Axes | None = None,
) -> Axes:
    """Draw a value along an axis; of several rows the mean as a line, each as a point, and their range as a band.

    Parameters
    ----------
    data
        Rows without `x` (NaN) are dashed lines. Intervals end at ``{y}_low`` and ``{y}_high``, or ``low`` and ``high``.
    x, y
        Columns of values.
    $hue
    units
        Column whose rows are averaged first, such as ``"calibration_seed"`` where every draw has several heads.
    $label
    $log
    $ax
    """
    check_columns(data, x, y, hue, units)
    ax = ax or plt.subplots(figsize=figure_size(6, 3.8))[1]
    averaged = False
    for part, style in _groups(data, hue):
        constant, part = part[part[x].isna()], part.dropna(subset=x).sort_values(x)
        if len(constant):
            ax.axhline(constant[y].mean(), linestyle="--", linewidth=1, **style | {"marker": ""})
        if part.empty:
            continue
        if units:
            part = part.groupby([x, units], as_index=False)[y].mean()
        if part[x].duplicated().any():
            averaged, means = True, part.groupby(x)[y].agg(["mean", "min", "max"])
            ax.fill_between(means.index, means["min"], means["max"], color=style["color"], alpha=0.15, linewidth=0)
            ax.plot(part[x], part[y], linestyle="none", markersize=4, alpha=0.6, **style | {"label": None})
            ax.plot(means.index, means["mean"], **style)
        else:
            ax.errorbar(part[x], part[y], yerr=interval_ends(part, y), elinewidth=1, **style)
    finish_axis(ax.xaxis, data, x, log=log[0])
    finish_axis(ax.yaxis, data, y, label=label, interval=not averaged, log=log[1])
    set_whole_ticks(ax, levels(data[x]))
    return finish_panel(ax, hue)


def panels(
    plot: Callable[..., Axes],
    data: pd.DataFrame,
    *,
    by: str,
    columns: int = 3,
    size: tuple[float, float] | None = None,
    sharex: bool = True,
    sharey: bool = True,
    **options: Any,
) -> np.ndarray:
    """Draw one panel for each value of a column, with the same colours and order of names in all.

    Parameters
    ----------
    plot, data
        Function that draws a panel, such as `intervals`, and its data; by plan or translator each has the original.
    by, columns, size
        Column of the titles; panels in a row; width and height of one in inches, by default high enough for its names.
    sharex, sharey, **options
        Whether panels have a common axis; and what is passed on to `plot`.

    Returns
    -------
    ndarray
        The axes, shape (panels,).
    """
    check_columns(data, by, rows=True)
    names, hue = data.select_dtypes(exclude=["number", "bool"]), options.get("hue")
    if hue in data and hue not in (options.get("x"), options.get("y")):  # numbers have their colours in all panels too
        names[hue] = data[hue]
    data = data.assign(**{name: pd.Categorical(names[name], levels(names[name])) for name in names})
    is_shared = (data[by] == ORIGINAL) & (by in ("plan", "translator"))
    titles = levels(data.loc[~is_shared, by].astype(object))
    vertical = options.get("y", options.get("row", "plan"))
    height = max(2.4, 1 + 0.33 * len(levels(data[vertical]))) if vertical in names else 3.4
    width, height = size or (4.4, height)
    columns = max(1, min(columns, len(titles)))
    lines = max(1, -(-len(titles) // columns))
    figsize = figure_size(width * columns, height * lines)
    figure, grid = plt.subplots(lines, columns, figsize=figsize, sharex=sharex, sharey=sharey, squeeze=False)
    for ax in grid.flat[len(titles) :]:
        figure.delaxes(ax)
    axes = grid.flat[: len(titles)]
    for ax, title in zip(axes, titles, strict=True):
        plot(data[(data[by] == title) | is_shared], ax=ax, **options)
        ax.set_title(NAMES.get(title, title))
    for ax in axes[:-columns] if sharex else ():
        ax.set_xlabel("")
    if sharex and plot is curve:  # each panel has set the ticks of its own values
        set_whole_ticks(axes[0], levels(data[options["x"]]))
    for ax in axes[-columns:]:
        ax.tick_params(labelbottom=True)
    return axes


def set_whole_ticks(ax: Axes, values: list[float]) -> None:
    """Where all values are whole numbers, so are the horizontal ticks: one at each value if they are few."""
    if all(value % 1 == 0 for value in values):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(values) <= 12:
            ax.set_xticks(values, [f"{value:.0f}" for value in values])
            ax.xaxis.minorticks_off()


def _groups(data: pd.DataFrame, hue: str | None) -> list[tuple[pd.DataFrame, dict]]:
    """For each colour its rows, and color, marker and label for matplotlib."""
    if hue is None:
        return [(data, looks(["linear"])["linear"] | {"label": None})]
    groups = [(name, data[data[hue] == name], style) for name, style in looks(levels(data[hue])).items()]
    shown = [group for group in groups if group[0] != ORIGINAL or len(group[1])]
    return [(part, style | {"label": str(NAMES.get(name, name))}) for name, part, style in shown]


def _join_front(front: pd.DataFrame, x: str, y: str, ax: Axes) -> None:
    """Join the points of the front, and write their plans beside them; points that nearly coincide share a text."""
    ax.plot(front[x], front[y], color="grey", linewidth=1, zorder=0, label="Pareto front")
    reach = np.ptp(ax.dataLim.get_points(), axis=0)
    texts: list[tuple[np.ndarray, list[str]]] = []
    for *point, plan in front.loc[front["plan"] != ORIGINAL, [x, y, "plan"]].itertuples(index=False):
        if not texts or (np.abs(point - texts[-1][0]) >= 0.05 * reach).any():
            texts.append((np.array(point), []))
        texts[-1][1].append(plan)
    for place, plans in texts:
        plans, on_the_right = list(dict.fromkeys(plans)), place[0] > ax.dataLim.get_points()[:, 0].mean()
        text = ", ".join(plans[:2]) + (f" and {len(plans) - 2} more" if len(plans) > 2 else "")
        look = {"xytext": (-5 if on_the_right else 5, -5), "ha": "right" if on_the_right else "left", "va": "top"}
        ax.annotate(text, place, textcoords="offset points", fontsize="x-small", **look)
    ax.margins(x=0.15)
