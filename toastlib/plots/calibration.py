"""Figures of the calibration set's size: accuracy and residual against the number of images."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from toastlib.plan import ORIGINAL
from toastlib.plots.style import COLOURS, MARKERS


def sample_size(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy against the number of calibration images, one dot per draw, mean and range of the draws.

    Parameters
    ----------
    frame
        From `sample_size_curve`, one plan and the original. Each draw counts with the mean of its
        heads; the identity and the original, which need no calibration, are drawn as lines.
    ax
        Where to draw; a new figure's axes if `None`.

    Returns
    -------
    Axes
        What was drawn on.
    """
    ax = ax or plt.subplots(figsize=(6, 3.8))[1]
    maps = frame[frame["calibration_size"] > 0]
    draws = maps.groupby(["calibration_size", "calibration_seed"])["accuracy"].mean().reset_index()
    style = {"x": "calibration_size", "y": "accuracy", "color": COLOURS["linear"], "ax": ax}
    sns.lineplot(draws, errorbar=("pi", 100), label="linear, range of draws", **style)
    sns.scatterplot(draws, marker=MARKERS["linear"], s=22, alpha=0.7, label="one draw", **style)
    for translator, dashes in ((ORIGINAL, "--"), ("identity", "-.")):
        level = frame.loc[frame["translator"] == translator, "accuracy"].mean()
        line = {"color": COLOURS[translator], "linestyle": dashes, "linewidth": 1}
        ax.axhline(level, label=f"{translator}, {level:.1f} %", **line)
    ax.set(ylabel="accuracy (%)")
    return _size_axis(ax, draws["calibration_size"])


def sample_size_residual(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What the maps leave unexplained, on the images that they were fitted on and on the test images.

    Parameters
    ----------
    frame
        From `sample_size_curve`, one plan.
    ax
        Where to draw; a new figure's axes if `None`.

    Returns
    -------
    Axes
        What was drawn on.
    """
    ax = ax or plt.subplots(figsize=(6, 3.8))[1]
    maps = frame[frame["calibration_size"] > 0].drop_duplicates(["calibration_size", "calibration_seed"])
    kinds = {"residual": ("calibration images", ":"), "residual_test": ("test images", "-")}
    for column, (name, dashes) in kinds.items():
        sns.lineplot(
            maps,
            x="calibration_size",
            y=column,
            color=COLOURS["linear"],
            linestyle=dashes,
            marker=MARKERS["linear"],
            markersize=5,
            errorbar=("pi", 100),
            label=f"linear, {name}",
            ax=ax,
        )
    dropped = frame.loc[frame["translator"] == "identity", "residual_test"].mean()
    ax.axhline(dropped, color=COLOURS["identity"], linestyle="-.", linewidth=1, label="identity, test images")
    ax.set(ylabel="residual (share of |h[e]|²)", ylim=(0, None))
    return _size_axis(ax, maps["calibration_size"])


def _size_axis(ax: Axes, sizes: pd.Series) -> Axes:
    ax.set_xscale("log", base=2)
    ticks = sorted(sizes.unique())
    ax.set_xticks(ticks, list(map(str, ticks)))
    ax.minorticks_off()
    ax.set(xlabel="calibration images")
    ax.legend(fontsize="small")
    return ax
