"""Figures of maps that are fitted on one data set and used on another."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

DROPPED = "no map"
"""How the row of dropped blocks (identity) is called, which are fitted on no source."""


def source_by_target(frame: pd.DataFrame, value: str, ax: Axes | None = None, label: str = "", **heatmap) -> Axes:
    """One number for every source (row) and target (column); maps fitted on the target itself are framed.

    Parameters
    ----------
    frame
        Columns ``source``, ``dataset`` and `value`; rows of one cell are averaged. The source ``""`` stands for dropped
        blocks and comes last.
    value
        The column that is shown.
    label
        Of the colour bar; the column's name if empty.
    ax
        Where to draw; a new figure's axes if `None`.
    **heatmap
        Passed on to `seaborn.heatmap`.

    Returns
    -------
    Axes
        What was drawn on.
    """
    targets = list(frame["dataset"].unique())
    sources = sorted(frame["source"].unique(), key=lambda name: name == "")
    matrix = frame.pivot_table(index="source", columns="dataset", values=value).loc[sources, targets]
    matrix = matrix.rename(index={"": DROPPED})
    ax = ax or plt.subplots(figsize=(2.5 + 1.1 * len(targets), 1.2 + 0.6 * len(sources)))[1]
    options = {"annot": True, "fmt": ".1f", "cmap": "cividis", "linewidths": 1, "cbar_kws": {"label": label or value}}
    sns.heatmap(matrix, ax=ax, **(options | heatmap))
    for row, source in enumerate(sources):
        if source in targets:
            frame_ = Rectangle((targets.index(source), row), 1, 1, fill=False, edgecolor="black", linewidth=2.5)
            ax.add_patch(frame_)
    ax.set(xlabel="target (classified)", ylabel="source (maps fitted on)")
    ax.tick_params(axis="y", rotation=0)
    if max(map(len, targets)) > 8:
        ax.set_xticks(ax.get_xticks(), targets, rotation=25, ha="right", rotation_mode="anchor")
    return ax
