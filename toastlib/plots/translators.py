"""Figures of translators: how close their maps come, and what they cost."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from toastlib.plots.style import COLOURS, MARKERS
from toastlib.translators.base import split_align


def residuals(frame: pd.DataFrame) -> np.ndarray:
    """Share of the span's end that each map leaves unexplained, on a logarithmic scale, one panel per set of rows.

    Parameters
    ----------
    frame
        Columns ``plan``, ``translator``, ``rows`` (which rows: the panel) and ``residual``.

    Returns
    -------
    ndarray
        The axes, one per set of rows.
    """
    panels, plans = frame["rows"].unique(), frame["plan"].nunique()
    size = (5.5 * len(panels), 1 + 0.35 * plans)
    _, axes = plt.subplots(1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, panel in zip(axes[0], panels, strict=True):
        last = panel == panels[-1]
        style = {"palette": COLOURS, "markers": MARKERS, "s": 55, "legend": last}
        part = frame[frame["rows"] == panel]
        sns.scatterplot(part, x="residual", y="plan", hue="translator", style="translator", ax=ax, **style)
        ax.set(title=panel, xlabel="unexplained share", ylabel="plan", xscale="log", ylim=(plans - 0.5, -0.5))
        ax.grid(axis="y", linewidth=0.5, alpha=0.5)
    axes[0, -1].legend(title="translator", loc="center left", bbox_to_anchor=(1, 0.5))
    return axes[0]


def accuracy_against_map_cost(frame: pd.DataFrame, costs: dict[str, str]) -> np.ndarray:
    """Accuracy lost, averaged over plans, against what a map costs; one panel per kind of cost.

    Parameters
    ----------
    frame
        One row per translator: ``translator``, ``lost``, ``low``, ``high`` in points, and a column for each cost.
    costs
        Column -> its axis label. The axis is logarithmic where no cost is zero.

    Returns
    -------
    ndarray
        The axes, one per cost.
    """
    _, axes = plt.subplots(1, len(costs), figsize=(4.5 * len(costs), 3.6), sharey=True, squeeze=False)
    for ax, (column, label) in zip(axes[0], costs.items(), strict=True):
        for row in frame.to_dict("records"):
            ends = [[row["lost"] - row["low"]], [row["high"] - row["lost"]]]
            style = {"color": COLOURS[row["translator"]], "fmt": MARKERS[row["translator"]], "markersize": 8}
            ax.errorbar(row[column], row["lost"], yerr=ends, label=row["translator"], elinewidth=1, **style)
        if frame[column].min() > 0:
            ax.set_xscale("log")
        ax.axhline(0, color="grey", linewidth=1, zorder=0)
        ax.set_xlabel(label)
    axes[0, 0].set_ylabel("accuracy lost (points, 95 % interval)")
    axes[0, -1].legend(title="translator", loc="center left", bbox_to_anchor=(1, 0.5))
    return axes[0]


def lost_by_translator(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy lost, averaged over plans, the best translator on top; dashed what the paper's linear map loses.

    Parameters
    ----------
    frame
        One row per translator: ``translator``, ``lost``, ``low``, ``high`` in points.
    ax
        Where to draw; a new figure's axes if `None`.

    Returns
    -------
    Axes
        What was drawn on.
    """
    ax = ax or plt.subplots(figsize=(7, 0.8 + 0.32 * len(frame)))[1]
    frame = frame.sort_values("lost", kind="stable")
    for place, row in enumerate(frame.to_dict("records")):
        ends = [[row["lost"] - row["low"]], [row["high"] - row["lost"]]]
        fmt = "D" if split_align(row["translator"])[1] else "o"
        ax.errorbar(row["lost"], place, xerr=ends, color=COLOURS.get(row["translator"]), fmt=fmt, elinewidth=1)
    ax.axvline(0, color="black", linewidth=1)
    for linear in frame.loc[frame["translator"] == "linear", "lost"]:
        ax.axvline(linear, color=COLOURS["linear"], linestyle="--", linewidth=1, zorder=0)
    ax.set_yticks(range(len(frame)), frame["translator"])
    ax.set_ylim(len(frame) - 0.5, -0.5)
    ax.set(xlabel="accuracy lost (points, 95 % interval)", ylabel="translator")
    return ax
