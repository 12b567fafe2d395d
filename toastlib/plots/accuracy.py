"""Figures of accuracy: by plan, against cost, and beside the published numbers."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from toastlib.plan import ORIGINAL
from toastlib.plots.style import COLOURS, MARKERS


def accuracy_by_plan(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy of every plan, one dot per translator with the range of its seeds, the original as a line.

    Parameters
    ----------
    frame
        From `sweep`, one head only.
    ax
        Where to draw; a new figure's axes if `None`.

    Returns
    -------
    Axes
        What was drawn on.
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
        From `accuracy_lost`, one head only.
    ax
        Where to draw; a new figure's axes if `None`.

    Returns
    -------
    Axes
        What was drawn on.
    """
    ax = ax or plt.subplots(figsize=(8, 0.5 + 0.3 * frame["plan"].nunique()))[1]
    places = {plan: place for place, plan in enumerate(frame["plan"].unique())}
    translators = list(frame["translator"].unique())
    for number, translator in enumerate(translators):
        part = frame[frame["translator"] == translator]
        y = part["plan"].map(places) + min(0.25, 0.75 / len(translators)) * (number - (len(translators) - 1) / 2)
        ends = np.abs(part[["lost_low", "lost_high"]].to_numpy().T - part["lost"].to_numpy())
        style = {"color": COLOURS.get(translator), "fmt": MARKERS.get(translator, "s"), "markersize": 5}
        ax.errorbar(part["lost"], y, xerr=ends, label=translator, elinewidth=1, **style)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(places)), list(places))
    ax.set_ylim(len(places) - 0.5, -0.5)  # the first plan on top, on shared axes too
    ax.set(xlabel="accuracy lost (points, 95 % interval)", ylabel="plan")
    ax.legend(title="translator")
    return ax


def accuracy_against_parameters(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Mean accuracy of every plan against the parameters that it removes.

    Parameters
    ----------
    frame
        From `sweep`, one head only.
    ax
        Where to draw; a new figure's axes if `None`.

    Returns
    -------
    Axes
        What was drawn on.
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
        From `toastlib.paper.beside`; what the paper does not print is left out.
    ax
        Where to draw; a new figure's axes if `None`.

    Returns
    -------
    Axes
        What was drawn on.
    """
    ax = ax or plt.subplots(figsize=(4.5, 4.5))[1]
    sns.scatterplot(
        frame, x="theirs", y="ours", hue="translator", style="translator", palette=COLOURS, markers=MARKERS, ax=ax
    )
    ax.axline((50, 50), slope=1, color="grey", linewidth=1, zorder=0)
    ax.set(xlabel="published accuracy (%)", ylabel="our accuracy (%)")
    return ax


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
