"""Figures of the choice of spans: what was predicted against what was lost, and choices against chance."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from toastlib.plots.style import COLOURS, MARKERS

PREDICTOR_NAMES = {
    "mse": "MSE",
    "cosine": "1 - cosine",
    "cka": "1 - CKA",
    "fit": "fit",
    "held-out": "fit, held-out",
    "by-token": "fit, held-out, by token",
    "features": "run: features",
    "divergence": "run: answers",
    "loss": "run: answers and labels",
}


def predicted_against_lost(frame: pd.DataFrame) -> np.ndarray:
    """Points that each plan loses against what it was predicted to cost, one panel per criterion.

    Parameters
    ----------
    frame
        One row per plan and criterion: ``criterion``, ``removed`` (blocks), ``predicted`` and ``lost`` (points).

    Returns
    -------
    ndarray
        The axes, one per criterion, in rows of at most three.
    """
    criteria, sizes = frame["criterion"].unique(), sorted(frame["removed"].unique())
    columns = min(3, len(criteria))
    rows = -(-len(criteria) // columns)
    size = (3.8 * columns, 2.9 * rows)
    _, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    colours = dict(zip(sizes, sns.color_palette("viridis_r", len(sizes) + 1)[1:], strict=True))
    markers = dict(zip(sizes, "osD^vP*X", strict=False))
    for ax in axes.flat[len(criteria) :]:
        ax.set_axis_off()
    for ax, criterion in zip(axes.flat, criteria):
        part = frame[frame["criterion"] == criterion]
        style = {"hue": "removed", "style": "removed", "palette": colours, "markers": markers, "s": 30, "alpha": 0.8}
        sns.scatterplot(part, x="predicted", y="lost", legend=ax is axes.flat[0], ax=ax, **style)
        ax.axhline(0, color="grey", linewidth=1, zorder=0)
        ax.set(xscale="log", title=PREDICTOR_NAMES.get(criterion, criterion), xlabel="predicted cost", ylabel="")
        decades = np.log10(part["predicted"].max() / part["predicted"].min())
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3) if decades < 2.5 else (1,)))  # as many labels as have room
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        _points_axis(ax)
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy lost (points)")
    axes.flat[0].legend(title="removed blocks", fontsize="small")
    return axes


def rank_correlations(frame: pd.DataFrame) -> np.ndarray:
    """Rank correlation of predicted cost and measured loss, with its interval; one panel per group of plans.

    Parameters
    ----------
    frame
        One row per criterion and group: ``criterion``, ``removed`` (how many blocks, or which plans), ``correlation``,
        ``low`` and ``high``.

    Returns
    -------
    ndarray
        The axes, one per group of plans.
    """
    sizes, criteria = list(frame["removed"].unique()), list(frame["criterion"].unique())
    size = (3.7 * len(sizes), 1 + 0.35 * len(criteria))
    _, axes = plt.subplots(1, len(sizes), figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, removed in zip(axes[0], sizes, strict=True):
        part = frame[frame["removed"] == removed].set_index("criterion").loc[criteria]
        ends = np.abs(part[["low", "high"]].to_numpy().T - part["correlation"].to_numpy())
        style = {"color": COLOURS["linear"], "fmt": MARKERS["linear"], "markersize": 6, "elinewidth": 1}
        ax.errorbar(part["correlation"], range(len(criteria)), xerr=ends, **style)
        ax.axvline(0, color="black", linewidth=1)
        ax.set_yticks(range(len(criteria)), [PREDICTOR_NAMES.get(name, name) for name in criteria])
        ax.set(title=f"removed blocks: {removed}", xlabel="rank correlation", ylim=(len(criteria) - 0.5, -0.5))
    return axes[0]


def choices_against_chance(drawn: pd.DataFrame, chosen: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Points that plans lose, by the number of removed blocks: any plan, dropped or mapped, beside the chosen one.

    Parameters
    ----------
    drawn
        One row per plan and translator: ``removed``, ``translator``, ``lost`` (points).
    chosen
        One row per number of blocks: ``removed``, ``lost``, ``low``, ``high``.
    ax
        Where to draw; a new figure's axes if `None`.

    Returns
    -------
    Axes
        What was drawn on.
    """
    ax = ax or plt.subplots(figsize=(8, 4.2))[1]
    sizes, translators = sorted(drawn["removed"].unique()), list(drawn["translator"].unique())
    draw = np.random.default_rng(0)
    for number, translator in enumerate(translators):
        part = drawn[drawn["translator"] == translator]
        x = part["removed"].map(sizes.index) + 0.25 * (number - len(translators) / 2)
        style = {"color": COLOURS.get(translator), "marker": MARKERS.get(translator), "s": 22, "alpha": 0.45}
        jitter = draw.uniform(-0.07, 0.07, len(x))
        ax.scatter(x + jitter, part["lost"], label=f"any plan, {translator}", linewidth=0, **style)
    x = chosen["removed"].map(sizes.index) + 0.25 * len(translators) / 2
    ends = np.abs(chosen[["low", "high"]].to_numpy().T - chosen["lost"].to_numpy())
    style = {"color": "black", "fmt": "*", "markersize": 12, "elinewidth": 1}
    ax.errorbar(x, chosen["lost"], yerr=ends, label="chosen", **style)
    ax.axhline(0, color="grey", linewidth=1, zorder=0)
    ax.set_xticks(range(len(sizes)), sizes)
    ax.set(xlabel="removed blocks", ylabel="accuracy lost (points)")
    _points_axis(ax)
    ax.set_ylim(bottom=min(drawn["lost"].min(), chosen["low"].min()) - 0.5)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def _points_axis(ax: Axes) -> None:
    """Proportional up to 5 points and logarithmic beyond: a few plans lose nearly everything."""
    ax.set_yscale("symlog", linthresh=5)
    ax.set_yticks([0, 2, 5, 10, 20, 50], ["0", "2", "5", "10", "20", "50"])
    ax.yaxis.set_minor_formatter(NullFormatter())
