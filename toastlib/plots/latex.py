"""Tables for LaTeX: a value with its interval for each row and column."""

import re

import numpy as np
import pandas as pd

from toastlib.plots.axes import check_columns, interval_ends, levels
from toastlib.plots.style import NAMES

SIGNS = {"->": r"$\to$", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SIGNS |= {sign: rf"\{sign}" for sign in "&%$#_{}"}


def to_latex(data: pd.DataFrame, *, rows: str, columns: str, value: str = "lost", digits: int = 1) -> str:
    r"""Typeset a value and its interval for every row and column, such as points lost by plan and translator.

    Parameters
    ----------
    data
        Rows of one cell are averaged. Intervals end at ``{value}_low`` and ``{value}_high``, or ``low`` and ``high``.
    rows, columns, value
        Columns of names, and of values.
    digits
        Digits behind the point.

    Returns
    -------
    str
        A ``tabular`` for booktabs. Cells are ``1.2 \pm 0.9``, or ``1.2^{+0.9}_{-0.7}`` where the two arms differ.
    """
    check_columns(data, rows, columns, value)
    ends = interval_ends(data, value)
    down, up = (np.nan, np.nan) if ends is None else ends
    cells = data.assign(down=down, up=up).groupby([rows, columns], observed=True)[[value, "down", "up"]].mean()
    texts = {key: _cell(*numbers, digits) for key, numbers in zip(cells.index, cells.to_numpy(), strict=True)}
    names = levels(data[columns])
    lines = [[row, *(texts.get((row, name), "") for name in names)] for row in levels(data[rows])]
    body = [" & ".join([_name(row), *line]) + r" \\" for row, *line in lines]
    head = " & ".join(["", *map(_name, names)]).strip() + r" \\"
    begin = rf"\begin{{tabular}}{{l{'r' * len(names)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def _cell(value: float, down: float, up: float, digits: int) -> str:
    number, down, up = (f"{x:z.{digits}f}" for x in (value, down, up))
    if "nan" in (down, up):
        return f"${number}$"
    return rf"${number} \pm {up}$" if up == down else f"${number}^{{+{up}}}_{{-{down}}}$"


def _name(name: object) -> str:
    """A name with LaTeX's own signs escaped."""
    return re.sub("|".join(map(re.escape, SIGNS)), lambda sign: SIGNS[sign[0]], str(NAMES.get(name, name)))
