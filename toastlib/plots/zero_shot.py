"""Figures of zero-shot accuracy: a profile over the blocks of the vision tower."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from toastlib.plan import ORIGINAL, Plan
from toastlib.plots.style import COLOURS, MARKERS


def accuracy_by_block(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy when one block is gone, for each block and translator; the original as a line.

    Parameters
    ----------
    frame
        Columns ``translator``, ``plan`` and ``accuracy`` (percent), such as `accuracy_table` or
        `toastlib.paper.published` give. Plans that remove more than one block have no place here and are left out.
    ax
        Where to draw; a new figure's axes if `None`.

    Returns
    -------
    Axes
        What was drawn on.
    """
    ax = ax or plt.subplots(figsize=(6, 3.5))[1]
    removed = frame["plan"].map(lambda plan: sorted(Plan.parse(plan).removed))
    single = frame[removed.str.len() == 1].assign(block=removed.str[0])
    sns.lineplot(
        single,
        x="block",
        y="accuracy",
        hue="translator",
        style="translator",
        palette=COLOURS,
        markers=MARKERS,
        dashes=False,
        errorbar=None,
        ax=ax,
    )
    original = frame.loc[frame["plan"] == ORIGINAL, "accuracy"].mean()
    ax.axhline(original, color=COLOURS[ORIGINAL], linestyle="--", linewidth=1, label=f"original, {original:.1f} %")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="block that is gone", ylabel="accuracy (%)")
    ax.legend()
    return ax
