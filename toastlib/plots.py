"""Every figure of the study: tidy frames in, matplotlib Axes out."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from toastlib.plan import ORIGINAL

COLOURS = {"identity": "#d55e00", "linear": "#0072b2", ORIGINAL: "#000000"}
"""Okabe and Ito's palette: told apart by the colour-blind, and in grey."""
MARKERS = {"identity": "X", "linear": "o", ORIGINAL: "D"}
METRIC_NAMES = {"mse": "MSE", "cosine": "cosine similarity", "cka": "linear CKA"}


def set_style() -> None:
    """The study's look, for every figure that follows."""
    sns.set_theme(context="notebook", style="ticks", palette=list(COLOURS.values()))
    plt.rcParams.update(
        {
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": 90,
            "legend.frameon": False,
            "savefig.dpi": 200,
        }
    )


def similarity(frame: pd.DataFrame, ax: Axes | None = None, title: str = "", **heatmap) -> Axes:
    """Heatmap of one similarity matrix.

    Parameters
    ----------
    frame
        From `toastlib.similarities.similarity`, one metric only.
    ax
        Where to draw; the current axes if `None`.
    title
        Above the matrix.
    **heatmap
        Passed on to `seaborn.heatmap`, for example ``vmin`` and ``vmax`` that several matrices share.
    """
    metric = frame["metric"].iloc[0]
    matrix = frame.pivot(index="first", columns="second", values="value")
    colours = "rocket" if metric == "mse" else "rocket_r"
    scale = {} if metric == "mse" else {"vmax": 1}
    options = {"cmap": colours, "square": True, "cbar_kws": {"label": METRIC_NAMES[metric], "shrink": 0.8}} | scale
    ax = sns.heatmap(matrix, ax=ax, **(options | heatmap))
    ax.set(xlabel="block", ylabel="block", title=title)
    ax.tick_params(rotation=0)
    return ax


def accuracy_by_plan(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy of every plan, one dot per translator with the range of its seeds, the original as a line.

    Parameters
    ----------
    frame
        From `toastlib.sweeps.sweep`, one head only.
    """
    ax = ax or plt.subplots(figsize=(8, 0.5 + 0.3 * frame["plan"].nunique()))[1]
    plans = frame[frame["plan"] != ORIGINAL]
    _dots(plans, "accuracy", ax, errorbar=("pi", 100))
    original = frame.loc[frame["plan"] == ORIGINAL, "accuracy"].mean()
    ax.axvline(original, color=COLOURS[ORIGINAL], linestyle="--", linewidth=1, label=f"original, {original:.1f} %")
    ax.set(xlabel="accuracy (%)", ylabel="plan")
    ax.legend(title="translator", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def accuracy_lost(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Points that every plan loses against the original, with 95 % intervals.

    Parameters
    ----------
    frame
        From `toastlib.evaluation.accuracy_lost`, one head only.
    """
    ax = ax or plt.subplots(figsize=(8, 0.5 + 0.3 * frame["plan"].nunique()))[1]
    places = {plan: place for place, plan in enumerate(frame["plan"].unique())}
    translators = list(frame["translator"].unique())
    for number, translator in enumerate(translators):
        part = frame[frame["translator"] == translator]
        y = part["plan"].map(places) + 0.25 * (number - (len(translators) - 1) / 2)
        ends = np.abs(part[["lost_low", "lost_high"]].to_numpy().T - part["lost"].to_numpy())
        style = {"color": COLOURS.get(translator), "fmt": MARKERS.get(translator, "s"), "markersize": 5}
        ax.errorbar(part["lost"], y, xerr=ends, label=translator, elinewidth=1, **style)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(places)), list(places))
    ax.invert_yaxis()
    ax.set(xlabel="accuracy lost (points, 95 % interval)", ylabel="plan")
    ax.legend(title="translator")
    return ax


def accuracy_against_parameters(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Mean accuracy of every plan against the parameters that it removes.

    Parameters
    ----------
    frame
        From `toastlib.sweeps.sweep`, one head only.
    """
    ax = ax or plt.subplots(figsize=(7, 4))[1]
    means = frame.groupby(["translator", "plan"], sort=False)[["accuracy", "removed_parameters"]].mean().reset_index()
    means["removed"] = means["removed_parameters"] / 1e6
    sns.scatterplot(
        means,
        x="removed",
        y="accuracy",
        hue="translator",
        style="translator",
        palette=COLOURS,
        markers=MARKERS,
        s=60,
        ax=ax,
    )
    ax.set(xlabel="removed parameters (millions)", ylabel="accuracy (%)")
    return ax


def ours_against_theirs(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Our accuracies against the published ones; on the diagonal they agree.

    Parameters
    ----------
    frame
        From `toastlib.paper.beside`.
    """
    ax = ax or plt.subplots(figsize=(4.5, 4.5))[1]
    both = frame.dropna(subset="theirs")
    sns.scatterplot(
        both, x="theirs", y="ours", hue="translator", style="translator", palette=COLOURS, markers=MARKERS, ax=ax
    )
    ax.axline((50, 50), slope=1, color="grey", linewidth=1, zorder=0)
    ax.set(xlabel="published accuracy (%)", ylabel="our accuracy (%)")
    return ax


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
    _, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.2), sharex=True, sharey=True)
    for ax, panel in zip(np.atleast_1d(axes), panels, strict=True):
        last = panel == panels[-1]
        part = frame[frame["panel"] == panel]
        sns.scatterplot(part, x="x", y="y", hue="label", palette="tab10", s=12, linewidth=0, legend=last, ax=ax)
        ax.set(title=panel, xlabel="first component", ylabel="second component")
    sns.move_legend(ax, "center left", bbox_to_anchor=(1, 0.5), title="class", markerscale=2)
    return np.atleast_1d(axes)


def last_block(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Similarity of the last block's output, approximated against original, for every approximated block.

    Parameters
    ----------
    frame
        Columns ``block``, ``translator``, ``metric`` (one only) and ``value``.
    """
    ax = ax or plt.subplots(figsize=(6, 3.2))[1]
    sns.lineplot(
        frame,
        x="block",
        y="value",
        hue="translator",
        style="translator",
        palette=COLOURS,
        markers=MARKERS,
        dashes=False,
        ax=ax,
    )
    ax.set(xlabel="approximated block", ylabel=f"last block: {METRIC_NAMES[frame['metric'].iloc[0]]}")
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


def _dots(frame: pd.DataFrame, x: str, ax: Axes, **options) -> None:
    sns.pointplot(
        frame,
        x=x,
        y="plan",
        hue="translator",
        palette=COLOURS,
        markers=[MARKERS[t] for t in frame["translator"].unique()],
        linestyle="none",
        dodge=0.3,
        markersize=5,
        err_kws={"linewidth": 1},
        ax=ax,
        **options,
    )
