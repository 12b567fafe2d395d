"""What figures share: texts of docstrings, order of names, scales, intervals, labels and legends."""

import inspect
from collections.abc import Callable
from string import Template
from typing import TypeVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullFormatter

from toastlib.errors import InputError, need, unknown
from toastlib.plots.style import DIFFERENCES, LABELS, TEXT

F = TypeVar("F", bound=Callable)
Log = bool | float
NARROW = 5  # inches; a legend beside the axes would leave them too little
TEXTS = {
    "ax": "ax\n    Axes to draw on; a new figure's if `None`.\n\nReturns\n-------\nAxes\n    The axes drawn on.",
    "hue": "hue\n    Column that colours and markers follow; a translator has the same in every figure.",
    "label": "label\n    Text of the value's axis or colour bar; by default that of its column, with the unit.",
    "limits": "limits\n    Ends of the colour scale, by default of the values; panels with given ones share a bar.",
    "log": "log\n    `True` for a logarithmic axis, a number for one proportional up to it; a pair for x and y.",
}


def share_texts(function: F) -> F:
    """Replace ``$name`` in a docstring by the text of that name; ``$ax``, the last, says what is returned too."""
    if function.__doc__:  # none under python -OO
        function.__doc__ = Template(inspect.cleandoc(function.__doc__)).substitute(TEXTS)
    return function


def check_columns(data: pd.DataFrame, *columns: str | None, rows: bool = False) -> None:
    """Raise an `InputError` if it is no frame, a column is missing, or, where `rows` are needed, it has none."""
    need(data, "columns", "A tidy pandas.DataFrame")
    for column in columns:
        if column is not None and column not in data:
            raise unknown("column", column, [str(name) for name in data])
    if rows and not len(data):
        raise InputError("The table has no rows to draw: was it filtered by a value that does not occur?")


def levels(column: pd.Series) -> list:
    """The values of a column: its categories, numbers in ascending order, other names as they first appear."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return list(column.cat.categories)
    values = column.dropna().unique().tolist()
    return sorted(values) if pd.api.types.is_numeric_dtype(column) else values


def interval_ends(data: pd.DataFrame, value: str) -> np.ndarray | None:
    """Lengths of both arms of the intervals, shape (2, rows); `None` where there are no columns of their ends.

    An `InputError` if the column ``interval`` of collected runs names several kinds of them.
    """
    if "interval" in data and len(kinds := data["interval"].unique()) > 1:
        raise InputError(
            f"The intervals are over {', '.join(kinds)}: take one kind, query(\"interval == '{kinds[0]}'\")."
        )
    for low, high in ((f"{value}_low", f"{value}_high"), ("low", "high")):
        if {low, high} <= set(data):
            return np.abs(data[[low, high]].to_numpy().T - data[value].to_numpy())
    return None


def finish_axis(
    axis: Axis, data: pd.DataFrame, column: str, *, label: str | None = None, interval: bool = False, log: Log = False
) -> None:
    """Label an axis of values and set its scale; differences get a line at zero."""
    label = label or LABELS.get(column, column)
    if interval and interval_ends(data, column) is not None:
        label = f"{label[:-1]}, 95 % interval)" if label.endswith(")") else f"{label} (95 % interval)"
    axis.set_label_text(_broken(label, axis))
    if column in DIFFERENCES:
        draw_line = axis.axes.axvline if axis.axis_name == "x" else axis.axes.axhline
        draw_line(0, color="grey", linewidth=1, zorder=0)
    if log and (data[column] > 0).any():
        _set_log(axis, data[column].dropna(), log)
    if data[column].max() >= 1e5:
        axis.set_major_formatter(EngFormatter(sep=" "))


def _broken(label: str, axis: Axis) -> str:
    """A label in as many lines as its axis needs, which shares the figure with those of other panels."""
    spec, place = axis.axes.get_subplotspec(), 0 if axis.axis_name == "x" else 1
    panels = spec.get_gridspec().get_geometry()[1 - place] if spec else 1
    room = axis.axes.figure.get_size_inches()[place] / panels * TEXT / axis.label.get_size()
    for space, broken in ((" (", "\n("), (", ", ",\n")):
        if max(map(len, label.splitlines())) > 10 * room:  # letters of 12 points in an inch
            label = label.replace(space, broken)
    return label


def _set_log(axis: Axis, values: pd.Series, log: Log) -> None:
    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
    least, steps = values[values > 0].min(), np.array([0.4, 1, 2, 4, 10, 20, 40, 100])
    if log is True and values.min() <= 0:
        log, steps = 10 ** np.floor(np.log10(least)), 10.0 ** np.arange(9)  # zero keeps its place
    if log is True:
        set_scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 3) if values.max() < 300 * least else (1,)))  # labels need room
    else:
        set_scale("symlog", linthresh=log, linscale=1.5)
        axis.set_major_locator(FixedLocator([*(-log * steps[::-1]), 0, *(log * steps)]))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def finish_panel(ax: Axes, hue: str | None = None) -> Axes:
    """Put the legend right of the last column of axes, above them in narrow figures; label shared axes once."""
    spec = ax.get_subplotspec()
    handles, names = ax.get_legend_handles_labels()
    if names and (spec is None or (spec.is_last_col() and spec.is_first_row())):
        if ax.figure.get_figwidth() < NARROW:
            ax.figure.legend(handles, names, loc="outside upper center", ncols=min(3, len(names)))
        else:
            beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "ncols": 1 + len(names) // 20}
            ax.legend(handles, names, title=LABELS.get(hue, hue), **beside)
    if spec is not None and not spec.is_first_col() and len(ax.get_shared_y_axes().get_siblings(ax)) > 1:
        ax.set_ylabel("")
    return ax
