"""One figure with a panel for each value of a column."""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from toastlib.plan import ORIGINAL
from toastlib.plots.axes import check_columns, levels
from toastlib.plots.points import curve, set_whole_ticks
from toastlib.plots.style import NAMES


def panels(
    plot: Callable[..., Axes],
    data: pd.DataFrame,
    *,
    by: str,
    columns: int = 3,
    size: tuple[float, float] | None = None,
    sharex: bool = True,
    sharey: bool = True,
    **options: Any,
) -> np.ndarray:
    """Draw one panel for each value of a column, with the same colours and order of names in all.

    Parameters
    ----------
    plot, data
        Function that draws one panel, such as `intervals`, and its data. By plan or translator, rows of the original
        belong to every panel.
    by, columns
        Column whose values are the titles, and number of panels in a row.
    size
        Width and height of one panel in inches; by default high enough for the names on the vertical axis.
    sharex, sharey, **options
        Whether panels have a common axis; and what is passed on to `plot`.

    Returns
    -------
    ndarray
        The axes, shape (panels,).
    """
    check_columns(data, by)
    names, hue = data.select_dtypes(exclude=["number", "bool"]), options.get("hue")
    if hue in data and hue not in (options.get("x"), options.get("y")):  # numbers have their colours in all panels too
        names[hue] = data[hue]
    data = data.assign(**{name: pd.Categorical(names[name], levels(names[name])) for name in names})
    is_shared = (data[by] == ORIGINAL) & (by in ("plan", "translator"))
    titles = levels(data.loc[~is_shared, by].astype(object))
    vertical = options.get("y", options.get("row", "plan"))
    height = max(2.4, 1 + 0.33 * len(levels(data[vertical]))) if vertical in names else 3.4
    width, height = size or (4.4, height)
    columns = max(1, min(columns, len(titles)))
    lines = max(1, -(-len(titles) // columns))
    figsize = (width * columns, height * lines)
    figure, grid = plt.subplots(lines, columns, figsize=figsize, sharex=sharex, sharey=sharey, squeeze=False)
    for ax in grid.flat[len(titles) :]:
        figure.delaxes(ax)
    axes = grid.flat[: len(titles)]
    for ax, title in zip(axes, titles, strict=True):
        plot(data[(data[by] == title) | is_shared], ax=ax, **options)
        ax.set_title(NAMES.get(title, title))
    if sharex and plot is curve:  # each panel has set the ticks of its own values
        set_whole_ticks(axes[0], levels(data[options["x"]]))
    for ax in axes[-columns:]:
        ax.tick_params(labelbottom=True)
    return axes
