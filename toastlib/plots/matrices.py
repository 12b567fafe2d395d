"""Figures of matrices: similarity of blocks, and one value for each row and column; and the same as a LaTeX table."""

import re
import warnings
from collections.abc import Sequence
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from toastlib.errors import InputError
from toastlib.plots.axes import check_columns, finish_panel, interval_ends, levels, share_texts
from toastlib.plots.style import LABELS, NAMES, figure_size

SCALES = {"delta": "RdBu", "gain": "RdBu", "lost": "cividis_r"}
"""Column -> colours: red is a loss, blue a gain; bright is a good value."""
DISTANCES = ("mse", "angular", "procrustes")
SIGNS = {"->": r"$\to$", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SIGNS |= {sign: rf"\{sign}" for sign in "&%$#_{}"}
WRITTEN = 20  # up to this number of columns, cells and names are written out


@share_texts
def similarity(
    data: pd.DataFrame, *, limits: tuple[float, float] | None = None, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw the similarity of the outputs of all blocks as a matrix; bright is similar.

    Parameters
    ----------
    data
        From `similarity` or `similarity_between`, one metric. The input of block 0 (-1) does not stretch the scale.
    $limits
    title
        Title above the matrix.
    $ax

    Raises
    ------
    InputError
        If it has several metrics, or no rows.
    """
    if not {"first", "second"} & set(data):
        raise InputError(
            "similarity draws the table of toast.similarity, a row for each pair of blocks: do not pivot it."
        )
    check_columns(data, "first", "second", "metric", "value", rows=True)
    metric, *others = data["metric"].unique()
    if others:
        raise InputError(
            f"One matrix shows one metric, not {metric}, {', '.join(others)}: draw them with "
            "panels(similarity, data, by='metric')."
        )
    values = data.pivot(index="first", columns="second", values="value")
    blocks = values.loc[values.index >= 0, values.columns >= 0].to_numpy()
    low, high = limits or (np.nanmin(blocks), np.nanmax(blocks))
    is_distance = metric in DISTANCES or (metric not in NAMES and np.nanmean(blocks.diagonal()) < np.nanmean(blocks))
    ax = ax or plt.subplots(figsize=figure_size(5.2, 4.2))[1]
    cmap = sns.color_palette("rocket_r" if is_distance else "rocket", as_cmap=True)
    sns.heatmap(values, vmin=low, vmax=high, cmap=cmap, square=True, cbar=False, ax=ax)
    _colour_bar(ax, NAMES.get(metric, metric), shared=limits is not None)
    for axis, numbers, draw in ((ax.yaxis, values.index, ax.axhline), (ax.xaxis, values.columns, ax.axvline)):
        if -1 in numbers:
            draw(1, color="white", linewidth=3)
        step = 1 + len(numbers) // 14 if axis is ax.yaxis else _step(len(numbers), ax)
        places = np.arange(0, len(numbers), step)
        axis.set_ticks(places + 0.5, numbers[places])
    ax.set(xlabel="block", ylabel="block", title=title, facecolor="lightgrey")
    ax.tick_params(rotation=0, labelsize="small")
    return finish_panel(ax)


@share_texts
def matrix(
    data: pd.DataFrame,
    *,
    row: str,
    column: str,
    value: str,
    limits: tuple[float, float] | None = None,
    label: str | None = None,
    cmap: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a value for every row and column, such as source by target or plan by class.

    Cells whose row and column have the same name are framed. The name ``""`` stands last, as "(none)".

    Parameters
    ----------
    data, row, column, value
        A frame, and its columns; values of one cell are averaged. ``delta`` and ``gain`` have zero in the middle.
    $limits
    $label
    cmap
        Colours, a name of matplotlib; by default by `value`.
    $ax
    """
    check_columns(data, row, column, value, rows=True)
    rows, columns = (sorted(levels(data[name]), key=lambda name: name == "") for name in (row, column))
    cells = data.pivot_table(value, row, column, observed=True).reindex(index=rows, columns=columns)
    end = np.nanmax(np.abs(cells.to_numpy())) or 1.0
    vmin, vmax = limits or ((-end, end) if SCALES.get(value) == "RdBu" else (None, None))
    figsize = figure_size(2.5 + 0.55 * min(len(columns), WRITTEN), max(3.2, 1.4 + 0.35 * min(len(rows), 40)))
    ax = ax or plt.subplots(figsize=figsize)[1]
    form = "z.1f" if len(columns) <= 8 else "z.0f"
    written = cells.map(lambda number: "" if np.isnan(number) else format(number, form))
    text = {"annot": written if len(columns) <= WRITTEN else None, "fmt": "", "annot_kws": {"fontsize": "x-small"}}
    text |= {"cmap": cmap or SCALES.get(value, "cividis"), "cbar": False, "linewidths": 0.5}
    sns.heatmap(cells, vmin=vmin, vmax=vmax, yticklabels=1, ax=ax, **text)
    _colour_bar(ax, label or LABELS.get(value, value), shared=limits is not None)
    for place, name in enumerate(rows):
        if name in columns:
            ax.add_patch(Rectangle((columns.index(name), place), 1, 1, fill=False, edgecolor="black", linewidth=2))
    ax.set(xlabel=column, ylabel=row, facecolor="lightgrey")
    ax.set_yticks(ax.get_yticks(), [str(name) or "(none)" for name in rows], rotation=0)
    if max(len(str(name)) for name in columns) > 3:
        angle = 30 if len(columns) <= 8 else 90
        plt.setp(ax.get_xticklabels(), rotation=angle, ha="right", rotation_mode="anchor")
    return finish_panel(ax)


def _colour_bar(ax: Axes, label: str, *, shared: bool) -> None:
    """Draw the colour bar, with an arrow where values lie beyond its end; one per line of panels that share limits."""
    spec = ax.get_subplotspec()
    if shared and spec is not None and not spec.is_last_col():
        return
    cells = ax.collections[0]
    (low, high), values = cells.get_clim(), cells.get_array()
    extend = ("neither", "min", "max", "both")[int(values.min() < low - 1e-9) + 2 * int(values.max() > high + 1e-9)]
    ax.figure.colorbar(cells, ax=ax, label=label, extend=extend)


def _step(numbers: int, ax: Axes) -> int:
    """Every how many numbers one has room for its two digits below a matrix, which takes 0.7 of its panel's width."""
    spec = ax.get_subplotspec()
    room = 0.7 * ax.figure.get_figwidth() / (spec.get_gridspec().ncols if spec else 1)
    return 1 + int(numbers * 1.6 * 0.833 * plt.rcParams["font.size"] / 72 / room)


def to_latex(
    data: pd.DataFrame, *, rows: str | Sequence[str], columns: str, value: str = "lost", digits: int = 1
) -> str:
    r"""Typeset a value and its interval for every row and column, such as points lost by plan and translator.

    Parameters
    ----------
    data
        Rows of one cell are averaged, and a warning names the columns in which they differ. Intervals end at
        ``{value}_low`` and ``{value}_high``, or ``low`` and ``high``.
    rows, columns, value, digits
        Columns of names, of which rows may have several, and of values; digits behind the point.

    Returns
    -------
    str
        A ``tabular`` for booktabs. Cells are ``1.2 \pm 0.9``, or ``1.2^{+0.9}_{-0.7}`` where the two arms differ.
    """
    rows = [rows] if isinstance(rows, str) else list(rows)
    check_columns(data, *rows, columns, value, rows=True)
    ends = interval_ends(data, value)
    down, up = (np.nan, np.nan) if ends is None else ends
    groups = data.assign(down=down, up=up).groupby([*rows, columns], observed=True)
    differing = [name for name in data.select_dtypes(exclude="float") if groups[name].nunique().max() > 1]
    if differing := [name for name in differing if name not in (*rows, columns)]:
        warnings.warn(f"Cells are means over {', '.join(differing)}, and so are their intervals.", stacklevel=2)
    cells = groups[[value, "down", "up"]].mean()
    texts = {key: _cell(*numbers, digits) for key, numbers in zip(cells.index, cells.to_numpy(), strict=True)}
    names, body, above = levels(data[columns]), [], ()
    for row in product(*(levels(data[name]) for name in rows)):
        if any((*row, name) in texts for name in names):
            shown = ["" if row[: k + 1] == above[: k + 1] else _name(part) for k, part in enumerate(row)]  # not again
            body.append(" & ".join([*shown, *(texts.get((*row, name), "") for name in names)]) + r" \\")
            above = row
    head = " & ".join(map(_name, [*rows, *names])) + r" \\"
    begin = rf"\begin{{tabular}}{{{'l' * len(rows)}{'r' * len(names)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def _cell(value: float, down: float, up: float, digits: int) -> str:
    number, down, up = (f"{x:z.{digits}f}" for x in (value, down, up))
    if "nan" in (down, up):
        return f"${number}$"
    return rf"${number} \pm {up}$" if up == down else f"${number}^{{+{up}}}_{{-{down}}}$"


def _name(name: object) -> str:
    """A name with LaTeX's own signs escaped."""
    return re.sub("|".join(map(re.escape, SIGNS)), lambda sign: SIGNS[sign[0]], str(NAMES.get(name, name)))
