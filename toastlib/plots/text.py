"""Figures of language models: what removed blocks cost in bits."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from toastlib.plan import ORIGINAL
from toastlib.plots.accuracy import accuracy_lost

TICKS = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 1, 2, 5, 10)


def bits_lost(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Bits per token that every plan costs more than the original, with 95 % intervals.

    Proportional up to half a bit and logarithmic beyond: a block that all others build on costs many times the rest.

    Parameters
    ----------
    table
        From `perplexity_table`.
    ax
        Where to draw; a figure of its own if `None`.

    Returns
    -------
    Axes
        The drawn axes.
    """
    plans = table[table["plan"] != ORIGINAL]
    ax = accuracy_lost(plans, ax or plt.subplots(figsize=(8, 1 + 0.3 * plans["plan"].nunique()))[1])
    ax.set_xscale("symlog", linthresh=0.5, linscale=1.5)
    shown = [tick for tick in TICKS if tick <= 1.2 * plans["lost_high"].max()]
    ax.set_xticks(shown, [f"{tick:g}" for tick in shown])
    ax.set(xlabel="more bits per token than the original (95 % interval)")
    ax.legend(title="translator", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
