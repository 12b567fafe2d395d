"""Tables for LaTeX, read back by a parser of its own."""

import re

import numpy as np
import pandas as pd
import pytest

from toastlib import plots
from toastlib.errors import InputError

FRAME = pd.DataFrame(
    {
        "plan": ["2->5", "2->5", "1->2 4->5"],
        "translator": ["identity", "my_map & 5 %", "identity"],
        "lost": [8.25, -0.04, 1.0],
        "lost_low": [6.25, -1.04, 0.5],
        "lost_high": [10.25, 0.96, 2.0],
    }
)


def read(text: str) -> tuple[str, list[list[str]]]:
    """Alignment and cells of a booktabs table."""
    lines = text.splitlines()
    assert (lines[1], lines[3]) == (r"\toprule", r"\midrule")
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    rows = [lines[2], *lines[4:-2]]
    assert all(row.endswith(r" \\") for row in rows)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)&", row[:-3])] for row in rows]
    return re.fullmatch(r"\\begin\{tabular\}\{(.+)\}", lines[0])[1], cells


def test_a_cell_has_its_mean_and_its_interval():
    alignment, (head, first, second) = read(plots.to_latex(FRAME, rows="plan", columns="translator"))
    assert alignment == "lrr"
    assert head == ["plan", "identity", r"my\_map \& 5 \%"]
    assert first == [r"2$\to$5", r"$8.2 \pm 2.0$", r"$0.0 \pm 1.0$"]  # no minus before a zero
    assert second == [r"1$\to$2 4$\to$5", "$1.0^{+1.0}_{-0.5}$", ""]


def test_rows_may_have_several_names_and_a_repeated_one_is_written_once():
    frame = pd.concat([FRAME.assign(model="a"), FRAME.iloc[:1].assign(model="b")])
    alignment, cells = read(plots.to_latex(frame, rows=["model", "plan"], columns="translator"))
    assert alignment == "llrr"
    names = [row[:2] for row in cells]
    assert names == [["model", "plan"], ["a", r"2$\to$5"], ["", r"1$\to$2 4$\to$5"], ["b", r"2$\to$5"]]
    assert cells[3][2:] == [r"$8.2 \pm 2.0$", ""]


def test_intervals_of_several_kinds_are_not_mixed():
    frame = pd.concat([FRAME.assign(interval=kind) for kind in ("images", "draws")])
    for draw in (
        lambda table: plots.to_latex(table, rows="plan", columns="translator"),
        lambda table: plots.intervals(table, y="plan", hue="translator"),
    ):
        with pytest.raises(InputError, match="intervals are over images, draws: take one"):
            draw(frame)
        draw(frame.query("interval == 'images'"))


def test_rows_of_a_cell_are_averaged_and_values_need_no_interval():
    frame = pd.DataFrame({"plan": "1->2", "head": ["a", "a", "b"], "accuracy": [80.0, 83.0, np.nan]})
    _, (_, row) = read(plots.to_latex(frame, rows="plan", columns="head", value="accuracy", digits=2))
    assert row == [r"1$\to$2", "$81.50$", "$nan$"]


def test_what_cells_are_averaged_over_is_told():
    frame = pd.DataFrame({"plan": "1->2", "head": ["a", "a", "b"], "model": ["x", "y", "x"], "seed": [0, 1, 0]})
    with pytest.warns(UserWarning, match="Cells are means over model, seed, and so are their intervals"):
        plots.to_latex(frame.assign(lost=[80.0, 83.0, 1.0]), rows="plan", columns="head")


def test_a_column_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="Unknown column 'plans': did you mean 'plan'"):
        plots.to_latex(FRAME, rows="plans", columns="translator")
