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
        bool column, from `toastlib.trade_off.pareto_front`.
    label
        Of the horizontal axis; the column's name if empty.
    """
    ax = ax or plt.subplots(figsize=(6, 4.5))[1]
    best = frame[frame[front]].sort_values(cost)
    style = {"hue": "translator", "style": "translator", "palette": COLOURS, "markers": MARKERS, "ax": ax}
    sns.scatterplot(frame[~frame[front]], x=cost, y="accuracy", alpha=0.35, s=40, legend=False, **style)
    ax.plot(best[cost], best["accuracy"], color="grey", linewidth=1, zorder=0, label="Pareto front")
    sns.scatterplot(best, x=cost, y="accuracy", s=80, **style)
    for place, plan, accuracy in best[best["plan"] != ORIGINAL][[cost, "plan", "accuracy"]].itertuples(index=False):
        ax.annotate(plan, (place, accuracy), xytext=(6, -4), textcoords="offset points", fontsize="x-small", va="top")
    ax.set(xlabel=label or cost, ylabel="accuracy (%)")
    ax.legend(fontsize="small")
    return ax
