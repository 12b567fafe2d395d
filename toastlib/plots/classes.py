"""Figures of single classes and images: who pays for an approximation."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from torch import Tensor

from toastlib.plots.style import COLOURS

DIVERGING = "RdBu"
"""Red where accuracy is lost, blue where it is gained; told apart by the colour-blind."""
FEW_CLASSES = 20  # up to here every cell and class is written out


def class_delta(frame: pd.DataFrame, ax: Axes | None = None, limit: float | None = None) -> Axes:
    """Points that each class gains or loses under each plan, as a heatmap.

    Parameters
    ----------
    frame
        From `class_accuracy`, one head and one translator only, without the original.
    limit
        End of the colour scale, in points; the largest change if `None`.
    ax
        Where to draw; a new figure's axes if `None`.

    Returns
    -------
    Axes
        What was drawn on.
    """
    matrix = frame.pivot(index="plan", columns="class", values="delta")
    matrix = matrix.loc[frame["plan"].unique(), frame["class"].unique()]
    ax = ax or plt.subplots(figsize=(2 + 0.5 * min(matrix.shape[1], FEW_CLASSES), 1 + 0.33 * len(matrix)))[1]
    ax = _heatmap(matrix, ax, limit, "accuracy, change (points)", DIVERGING)
    ax.set(xlabel="class", ylabel="plan")
    return ax


def confusion_delta(frame: pd.DataFrame, ax: Axes | None = None, limit: float | None = None) -> Axes:
    """What a plan changes in the confusion matrix, in points of the true class.

    Parameters
    ----------
    frame
        From `confusion`.
    limit
        End of the colour scale, in points; the largest change if `None`.
    ax
        Where to draw; a new figure's axes if `None`.

    Returns
    -------
    Axes
        What was drawn on.
    """
    names = frame["true"].unique()
    matrix = frame.pivot(index="true", columns="predicted", values="delta").loc[names, names]
    size = 2 + 0.45 * min(len(names), FEW_CLASSES)
    ax = ax or plt.subplots(figsize=(size + 1, size))[1]
    # More of a confusion is worse, but more on the diagonal is better: the sign of a cell does not say which.
    ax = _heatmap(matrix, ax, limit, "share of the true class, change (points)", "PuOr_r", square=True)
    ax.set(xlabel="predicted class", ylabel="true class")
    return ax


def flip_counts(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Images that turn wrong, to the left, and right, to the right, under each plan; a star where the test is clear.

    Parameters
    ----------
    frame
        From `mcnemar`, one head only.
    ax
        Where to draw; a new figure's axes if `None`.

    Returns
    -------
    Axes
        What was drawn on.
    """
    ax = ax or plt.subplots(figsize=(7, 0.8 + 0.33 * frame["plan"].nunique()))[1]
    places = {plan: place for place, plan in enumerate(frame["plan"].unique())}
    translators = list(frame["translator"].unique())
    height = 0.8 / len(translators)
    for number, translator in enumerate(translators):
        part = frame[frame["translator"] == translator]
        y = part["plan"].map(places) + height * (number - (len(translators) - 1) / 2)
        colour = {"color": COLOURS.get(translator), "height": 0.9 * height}
        ax.barh(y, -part["right_to_wrong"], label=translator, **colour)
        ax.barh(y, part["wrong_to_right"], alpha=0.5, **colour)
        clear = part["p_holm"] < 0.05
        ax.plot(
            -part.loc[clear, "right_to_wrong"], y[clear], linestyle="none", marker="$*$", markersize=7, color="black"
        )
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(places)), list(places))
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
    ax.set(xlabel="test images: right to wrong (left), wrong to right (right)", ylabel="plan")
    ax.legend(title="translator", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def flipped_images(pixels: Tensor, frame: pd.DataFrame, count: int = 16, columns: int = 8) -> np.ndarray:
    """Images whose label flips from right to wrong, each under its true and its predicted class.

    Parameters
    ----------
    pixels
        uint8, shape (n, 3, height, width): the test images, `Images.pixels`.
    frame
        From `flips`.
    count, columns
        The first `count` images are shown, in rows of `columns`.

    Returns
    -------
    ndarray
        The axes, one per image and place.
    """
    shown = frame.head(count)
    rows = max(1, -(-len(shown) // columns))
    _, axes = plt.subplots(rows, columns, figsize=(1.4 * columns, 1.75 * rows), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (image, true, predicted) in zip(axes.flat, shown[["image", "true", "predicted"]].itertuples(index=False)):
        ax.imshow(pixels[image].permute(1, 2, 0).numpy())
        ax.set_title(f"{true}\n→ {predicted}", fontsize="small")
    return axes


def _heatmap(matrix: pd.DataFrame, ax: Axes, limit: float | None, label: str, colours: str, **options) -> Axes:
    limit = limit or float(matrix.abs().max(axis=None)) or 1.0
    few = matrix.shape[1] <= FEW_CLASSES
    options |= {"annot": matrix.round(0).astype(int).astype(str).replace("0", "") if few else None, "fmt": ""}
    options |= {"cbar_kws": {"label": label}, "annot_kws": {"fontsize": 8}}
    sns.heatmap(matrix, ax=ax, cmap=colours, vmin=-limit, vmax=limit, **options)
    ax.tick_params(axis="y", rotation=0)
    if max(map(len, map(str, matrix.columns))) > 3:
        ax.tick_params(axis="x", rotation=90)
    return ax
