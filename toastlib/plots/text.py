"""Figures of language models: what removed blocks cost in bits."""

import pandas as pd
from matplotlib.axes import Axes

from toastlib.plan import ORIGINAL
from toastlib.plots.accuracy import accuracy_lost


def bits_lost(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Bits per token that every plan costs more than the original, with 95 % intervals.

    Parameters
    ----------
    table
        From `toastlib.language.perplexity_table`.
    """
    ax = accuracy_lost(table[table["plan"] != ORIGINAL], ax)
    ax.set(xlabel="more bits per token than the original (95 % interval)")
    return ax
