"""Figures of accuracy against cost, the Pareto front marked."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from toastlib.plan import ORIGINAL
from toastlib.plots.style import COLOURS, MARKERS


def accuracy_against_cost(frame: pd.DataFrame, cost: str, front: str, label: str = "", ax: Axes | None = None) -> Axes:
    """Accuracy against one cost: what is on the front is joined by a line and named, the rest is pale.

    Parameters
    ----------
    frame
        One row per plan and translator: ``translator``, ``plan``, ``accuracy`` in percent, and the columns below.
    cost
        Column of the horizontal axis, which may also be a gain, such as throughput.
    front
        bool column, from `pareto_front`.
    label
        Of the horizontal axis; the column's name if empty.
    ax
        Where to draw; a new figure's axes if `None`.

    Returns
    -------
    Axes
        What was drawn on.
    """
    ax = ax or plt.subplots(figsize=(6, 4.5))[1]
    best = frame[frame[front]].sort_values(cost)
    style = {"hue": "translator", "style": "translator", "palette": COLOURS, "markers": MARKERS, "ax": ax}
    pale = frame[~frame[front] & (frame["plan"] != ORIGINAL)]
    shown = frame[frame[front] | (frame["plan"] == ORIGINAL)]
    sns.scatterplot(pale, x=cost, y="accuracy", alpha=0.35, s=40, legend=False, **style)
    ax.plot(best[cost], best["accuracy"], color="grey", linewidth=1, zorder=0, label="Pareto front")
    sns.scatterplot(shown, x=cost, y="accuracy", s=80, legend=False, **style)
    for translator in frame["translator"].unique():
        ax.scatter([], [], s=60, color=COLOURS.get(translator), marker=MARKERS.get(translator), label=translator)
    reach = frame[[cost, "accuracy"]].max() - frame[[cost, "accuracy"]].min()
    _name(best[best["plan"] != ORIGINAL], cost, reach, ax)
    ax.margins(x=0.12)
    ax.set(xlabel=label or cost, ylabel="accuracy (%)")
    ax.legend(fontsize="small")
    return ax


def _name(best: pd.DataFrame, cost: str, reach: pd.Series, ax: Axes) -> None:
    """Write the plans beside their points; points that all but coincide share a line."""
    groups: list[list] = []
    for row in best.itertuples(index=False):
        place = (getattr(row, cost), row.accuracy)
        near = groups and all(abs(a - b) < 0.05 * r for a, b, r in zip(place, groups[-1][0], reach))
        if near:
            groups[-1][1].append(row.plan)
        else:
            groups.append([place, [row.plan]])
    for place, names in groups:
        text = ", ".join(dict.fromkeys(names))
        ax.annotate(text, place, xytext=(5, -5), textcoords="offset points", fontsize="x-small", va="top")
