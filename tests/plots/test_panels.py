"""Panels have one panel for each value, and the same colours and order of names in all of them."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex

from toastlib import plots


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def colours(ax) -> dict[str, str]:
    handles, names = ax.get_legend_handles_labels()
    return {name: to_hex(handle.lines[0].get_color()) for handle, name in zip(handles, names)}


def test_panels_share_order_and_colours_even_where_rows_differ():
    rows = [("a", "1->2", "mine", 1), ("a", "2->3", "yours", 2), ("b", "2->3", "yours", 3), ("b", "1->2", "yours", 4)]
    frame = pd.DataFrame(rows, columns=["head", "plan", "translator", "lost"])
    first, second = plots.panels(plots.intervals, frame, by="head", y="plan", hue="translator")
    assert [first.get_title(), second.get_title()] == ["a", "b"]
    assert [text.get_text() for text in first.get_yticklabels()] == ["1->2", "2->3"]
    assert colours(first) == colours(second)
    heights = dict(second.containers[1].lines[0].get_xydata())
    assert heights[4] < heights[3]
    assert first.get_legend() is None
    assert len(second.get_legend().get_texts()) == 2


def test_rows_of_the_original_belong_to_every_panel_of_a_plan():
    rows = [("original", np.nan, 90.0), ("1->2", 10, 80.0), ("1->2", 20, 82.0), ("2->3", 10, 70.0)]
    frame = pd.DataFrame(rows, columns=["plan", "size", "accuracy"]).assign(translator=["original", *["linear"] * 3])
    axes = plots.panels(plots.curve, frame, by="plan", x="size", y="accuracy", hue="translator")
    assert [ax.get_title() for ax in axes] == ["1->2", "2->3"]
    assert all(90 in line.get_ydata() for ax in axes for line in ax.lines[:1])


def test_a_panel_may_be_called_original_where_no_plan_is_meant():
    frame = pd.DataFrame({"model": ["original", "smaller"], "x": [0, 1], "y": [0, 1]})
    axes = plots.panels(plots.scatter, frame, by="model", x="x", y="y")
    assert [ax.get_title() for ax in axes] == ["original", "smaller"]


def test_every_panel_of_accuracies_has_its_own_original():
    rows = [
        (group, *kind, k) for k, group in enumerate("ab") for kind in (("original", "original"), ("linear", "1->2"))
    ]
    frame = pd.DataFrame(rows, columns=["group", "translator", "plan", "accuracy"])
    axes = plots.panels(plots.accuracy_by_plan, frame, by="group")
    assert [[text.get_text() for text in ax.get_yticklabels()] for ax in axes[:1]] == [["1->2"]]
    assert [ax.lines[-1].get_xdata() for ax in axes] == [[0, 0], [1, 1]]


@pytest.mark.parametrize(("count", "lines"), [(1, 1), (3, 1), (5, 2)])
def test_panels_fill_lines_and_the_lowest_of_each_column_has_tick_labels(count, lines):
    frame = pd.DataFrame({"criterion": [f"c{k}" for k in range(count)], "x": range(count), "y": range(count)})
    axes = plots.panels(plots.scatter, frame, by="criterion", x="x", y="y")
    assert len(axes) == count == len(axes[0].figure.axes)
    assert axes[0].get_subplotspec().get_gridspec().nrows == lines
    for ax in axes[max(0, count - 3) :]:
        assert ax.xaxis.get_tick_params()["labelbottom"]


def test_panels_of_matrices_with_limits_share_one_colour_bar():
    rows = [(name, i, j, "cka", 1 - abs(i - j) / 9) for name in "ab" for i in range(3) for j in range(3)]
    frame = pd.DataFrame(rows, columns=["dataset", "first", "second", "metric", "value"])
    axes = plots.panels(plots.similarity, frame, by="dataset", limits=(0.5, 1))
    assert len(axes[0].figure.axes) == 3
    assert len(plots.panels(plots.similarity, frame, by="dataset")[0].figure.axes) == 4


def test_curves_on_a_shared_axis_have_the_ticks_of_all_panels():
    frame = pd.DataFrame({"model": [*"aaab"], "removed": [1, 2, 3, 2], "lost": [0.5, 1, 2, 1]})
    axes = plots.panels(plots.curve, frame, by="model", x="removed", y="lost")
    assert [list(ax.get_xticks()) for ax in axes] == [[1, 2, 3]] * 2
    assert [[text.get_text() for text in ax.get_xticklabels()] for ax in axes] == [["1", "2", "3"]] * 2
    apart = plots.panels(plots.curve, frame, by="model", x="removed", y="lost", sharex=False)
    assert [list(ax.get_xticks()) for ax in apart] == [[1, 2, 3], [2]]


def test_matrices_in_panels_keep_the_names_of_their_rows():
    rows = [(panel, row, column, 1.0) for panel in "ab" for row in ("ridge", "linear") for column in ("1->2", "2->3")]
    frame = pd.DataFrame(rows, columns=["head", "translator", "plan", "lost"])
    first, second = plots.panels(
        plots.matrix, frame, by="head", row="translator", column="plan", value="lost", limits=(0, 1)
    )
    assert [text.get_text() for text in first.get_yticklabels()] == ["ridge", "linear"]
    assert first.yaxis.get_tick_params()["labelleft"]
    assert list(first.get_yticks()) == list(second.get_yticks()) == [0.5, 1.5]


def test_numbers_have_the_same_colours_where_a_panel_lacks_some():
    rows = [("a", 1, 0.1, 1), ("a", 2, 0.2, 2), ("a", 4, 0.3, 3), ("b", 2, 0.1, 1), ("b", 1, 0.2, 2)]
    frame = pd.DataFrame(rows, columns=["criterion", "removed", "predicted", "lost"])
    axes = plots.panels(plots.scatter, frame, by="criterion", x="predicted", y="lost", hue="removed")
    points = [
        {place: to_hex(line.get_color()) for line in ax.lines for place in map(tuple, line.get_xydata().tolist())}
        for ax in axes
    ]
    assert points[0][0.1, 1] == points[1][0.2, 2]
    assert points[0][0.2, 2] == points[1][0.1, 1]
    assert len({points[0][place] for place in ((0.1, 1), (0.2, 2), (0.3, 3))}) == 3


def test_one_column_of_panels_names_their_common_axis_once():
    frame = pd.DataFrame({"model": [*"abc"], "x": [0, 1, 2], "lost": [0, 1, 2]})
    axes = plots.panels(plots.scatter, frame, by="model", columns=1, x="x", y="lost")
    assert [ax.get_xlabel() for ax in axes] == ["", "", "x"]
    apart = plots.panels(plots.scatter, frame, by="model", columns=1, sharex=False, x="x", y="lost")
    assert [ax.get_xlabel() for ax in apart] == ["x"] * 3
