"""Figures of block outputs: how alike they are, and what they look like."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from toastlib.plots.style import CLASS_COLOURS, CLASS_MARKERS, COLOURS, MARKERS, METRIC_NAMES


def similarity(frame: pd.DataFrame, ax: Axes | None = None, title: str = "", **heatmap) -> Axes:
    """Heatmap of one similarity matrix.

    Parameters
    ----------
    frame
        From `similarity`, one metric only.
    ax
        Where to draw; the current axes if `None`.
    title
        Above the matrix.
    **heatmap
        Passed on to `seaborn.heatmap`, for example ``vmin`` and ``vmax`` that several matrices share.

    Returns
    -------
    Axes
        What was drawn on.
    """
    metric = frame["metric"].iloc[0]
    matrix = frame.pivot(index="first", columns="second", values="value")
    colours = "rocket" if metric == "mse" else "rocket_r"
    scale = {"vmax": 1} if metric in ("cosine", "cka") else {}
    label = METRIC_NAMES.get(metric, metric)
    options = {"cmap": colours, "square": True, "cbar_kws": {"label": label, "shrink": 0.8}} | scale
    ax = sns.heatmap(matrix, ax=ax, **(options | heatmap))
    ax.set(xlabel="block", ylabel="block", title=title)
    ax.tick_params(rotation=0, labelsize="small")
    return ax


def last_block(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How far the features are from the original's, for every approximated block, on a logarithmic scale.

    Parameters
    ----------
    frame
        Columns ``block``, ``translator``, ``metric`` (one only) and ``value``; similarities are drawn as 1 - value.
    ax
        Where to draw; a new figure's axes if `None`.

    Returns
    -------
    Axes
        What was drawn on.
    """
    ax = ax or plt.subplots(figsize=(6, 3.2))[1]
    metric = frame["metric"].iloc[0]
    distance = frame if metric == "mse" else frame.assign(value=1 - frame["value"])
    style = {"palette": COLOURS, "markers": MARKERS, "dashes": False}
    sns.lineplot(distance, x="block", y="value", hue="translator", style="translator", ax=ax, **style)
    name = METRIC_NAMES[metric] if metric == "mse" else f"1 - {METRIC_NAMES[metric]}"
    ax.set(xlabel="approximated block", ylabel=f"{name} of the features", yscale="log")
    ax.xaxis.get_major_locator().set_params(integer=True)
    return ax


def metric_against_accuracy(frame: pd.DataFrame) -> np.ndarray:
    """Accuracy lost by removing a block against the similarity of its input and output, one panel per metric.

    Parameters
    ----------
    frame
        Columns ``metric``, ``value``, ``translator``, ``lost``.

    Returns
    -------
    ndarray
        The axes, one per metric.
    """
    metrics = list(frame["metric"].unique())
    _, axes = plt.subplots(1, len(metrics), figsize=(3.6 * len(metrics), 3.2), sharey=True)
    for ax, metric in zip(np.atleast_1d(axes), metrics, strict=True):
        part = frame[frame["metric"] == metric]
        sns.scatterplot(
            part,
            x="value",
            y="lost",
            hue="translator",
            style="translator",
            palette=COLOURS,
            markers=MARKERS,
            legend=metric == metrics[-1],
            ax=ax,
        )
        ax.axhline(0, color="grey", linewidth=1, zorder=0)
        ax.set(xlabel=METRIC_NAMES[metric], ylabel="accuracy lost (points)")
    return np.atleast_1d(axes)


def pca(frame: pd.DataFrame, titles: Iterable[str] | None = None) -> np.ndarray:
    """Scatter plots of features in the plane of two principal components, one panel for each model.

    Parameters
    ----------
    frame
        Columns ``panel``, ``x``, ``y``, ``label``.
    titles
        Order of the panels; as they come if `None`.

    Returns
    -------
    ndarray
        The axes, one per panel.
    """
    panels = list(titles or frame["panel"].unique())
    classes = frame["label"].unique()
    looks = {
        "palette": {name: CLASS_COLOURS[k % 10] for k, name in enumerate(classes)},
        "markers": {name: CLASS_MARKERS[(k + k // 10) % 10] for k, name in enumerate(classes)},
    }
    _, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.2), sharex=True, sharey=True)
    for ax, panel in zip(np.atleast_1d(axes), panels, strict=True):
        last = panel == panels[-1]
        part = frame[frame["panel"] == panel]
        sns.scatterplot(part, x="x", y="y", hue="label", style="label", s=14, linewidth=0, legend=last, ax=ax, **looks)
        ax.set(title=panel, xlabel="first component", ylabel="second component")
    sns.move_legend(ax, "center left", bbox_to_anchor=(1, 0.5), title="class", markerscale=2)
    return np.atleast_1d(axes)
