"""Matrices show every cell under its names, on a scale that the input of block 0 does not stretch."""

from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

from toastlib import plots
from toastlib.errors import InputError

NAMES = ("0", "1", "2")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def labels(ax) -> tuple[str, str]:
    return ax.get_xlabel(), ax.get_ylabel()


def ticks(ax, axis: str) -> list[str]:
    return [text.get_text() for text in getattr(ax, f"get_{axis}ticklabels")()]


@pytest.fixture
def blocks() -> pd.DataFrame:
    """As from `similarity`: blocks -1, 0 and 1."""
    rows = [(i, j, "cka", 1 - 0.1 * abs(i - j)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return pd.DataFrame(rows, columns=["first", "second", "metric", "value"])


def test_similarity_shows_the_matrix_with_its_blocks(blocks):
    ax = plots.similarity(blocks, title="digits")
    assert labels(ax) == ("block", "block")
    assert ax.get_title() == "digits"
    assert ticks(ax, "x") == ticks(ax, "y") == ["-1", "0", "1"]
    values = ax.collections[0].get_array().reshape(3, 3)
    assert np.allclose(values, [[1, 0.9, 0.8], [0.9, 1, 0.9], [0.8, 0.9, 1]])


@pytest.mark.parametrize(("metric", "name"), [("mse", "MSE"), ("cka", "linear CKA"), ("angle", "angle")])
def test_the_colour_bar_names_the_metric(blocks, metric, name):
    ax = plots.similarity(blocks.assign(metric=metric))
    assert ax.figure.axes[-1].get_ylabel() == name


def test_the_input_of_block_0_does_not_stretch_the_scale(blocks):
    unlike = blocks.assign(value=blocks["value"].where((blocks["first"] >= 0) & (blocks["second"] >= 0), 0.01))
    ax = plots.similarity(unlike)
    assert ax.collections[0].get_clim() == (0.9, 1)
    assert ax.collections[0].colorbar.extend == "min"
    assert plots.similarity(blocks, limits=(0.5, 0.95)).collections[0].get_clim() == (0.5, 0.95)


def test_bright_is_similar_for_similarities_and_for_distances(blocks):
    def brightness(ax, value):
        cells = ax.collections[0]
        return sum(cells.cmap(cells.norm(value))[:3])

    similar, distant = (
        plots.similarity(blocks),
        plots.similarity(blocks.assign(metric="mse", value=1 - blocks["value"])),
    )
    assert brightness(similar, 1) > brightness(similar, 0.9)
    assert brightness(distant, 0) > brightness(distant, 0.1)


def test_blocks_of_two_encoders_make_a_rectangle_and_no_diagonal_decides_what_is_bright():
    rows = [(i, j, "procrustes", 1 + 0.1 * (i == j)) for i in range(-1, 20) for j in range(9)]
    frame = pd.DataFrame(rows, columns=["first", "second", "metric", "value"])
    ax = plots.similarity(frame)
    cells = ax.collections[0]
    assert cells.get_array().shape == (21, 9)
    assert ticks(ax, "x") == [str(block) for block in range(9)]
    assert ticks(ax, "y") == [str(block) for block in range(-1, 20, 2)]
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[0, 1], [1, 1]]]  # below the input of block 0 alone
    assert sum(cells.cmap(cells.norm(1.0))[:3]) > sum(cells.cmap(cells.norm(1.1))[:3])


def test_a_matrix_frames_cells_of_one_name_and_puts_the_missing_name_last():
    rows = [(source, target, 50.0 + (source == target)) for source in ("", "a", "b") for target in ("a", "b")]
    frame = pd.DataFrame(rows, columns=["calibration", "dataset", "accuracy"])
    ax = plots.matrix(pd.concat([frame, frame]), row="calibration", column="dataset", value="accuracy")
    assert (ticks(ax, "y"), ticks(ax, "x")) == (["a", "b", "(none)"], ["a", "b"])
    assert labels(ax) == ("dataset", "calibration")
    assert ax.figure.axes[-1].get_ylabel() == "accuracy (%)"
    assert ax.collections[0].get_array().ravel().tolist() == [51, 50, 50, 51, 50, 50]
    assert [patch.get_xy() for patch in ax.patches] == [(0, 0), (1, 1)]


def test_changes_are_symmetric_around_zero_and_keep_their_order():
    values = [-3.0, 1, 0, 2, -6, 4]
    rows = [(plan, name) for plan in ("2->3", "1->2") for name in NAMES]
    frame = pd.DataFrame(rows, columns=["plan", "class"]).assign(delta=values)
    ax = plots.matrix(frame, row="plan", column="class", value="delta")
    assert (ticks(ax, "y"), ticks(ax, "x")) == (["2->3", "1->2"], list(NAMES))
    assert ax.collections[0].get_array().ravel().tolist() == values
    assert ax.collections[0].get_clim() == (-6, 6)
    assert plots.matrix(frame, row="plan", column="class", value="delta", limits=(0, 2)).collections[0].get_clim() == (
        0,
        2,
    )


def test_a_plan_that_changes_nothing_can_be_drawn():
    frame = pd.DataFrame({"true": ["a", "b"], "predicted": ["a", "b"], "delta": 0.0})
    ax = plots.matrix(frame, row="true", column="predicted", value="delta", cmap="PuOr_r")
    ax.figure.canvas.draw()
    assert ax.collections[0].get_clim() == (-1, 1)


def test_many_columns_are_drawn_without_numbers():
    frame = pd.DataFrame(
        {"plan": "1->2", "class": [f"class {k:02}" for k in range(30)], "delta": np.linspace(-5, 5, 30)}
    )
    assert plots.matrix(frame.iloc[:20], row="plan", column="class", value="delta").texts
    assert not plots.matrix(frame, row="plan", column="class", value="delta").texts


def test_a_pivoted_table_is_named(blocks):
    with pytest.raises(InputError, match="do not pivot it"):
        plots.similarity(blocks.pivot(index="first", columns="second", values="value"))


@pytest.mark.parametrize(("width", "columns"), [(None, 3), ("column", 1), ("page", 3), ("slide", 2)])
def test_numbers_of_blocks_have_room(width, columns):
    plots.set_style(width)
    pairs = [(i, j, 1 - 0.05 * abs(i - j)) for i in range(-1, 12) for j in range(-1, 12)]
    frame = pd.DataFrame(pairs, columns=["first", "second", "value"]).assign(metric="cka")
    frame = pd.concat([frame.assign(dataset=f"set {k}") for k in range(columns)])
    axes = plots.panels(plots.similarity, frame, by="dataset", columns=columns, limits=(0, 1), sharey=False)
    axes[0].figure.canvas.draw()
    for ax in axes:
        boxes = [text.get_window_extent() for text in ax.get_xticklabels()]
        assert all(one.x1 < other.x0 for one, other in pairwise(boxes)), width
    plots.set_style()


def test_a_matrix_of_two_metrics_is_refused(blocks):
    with pytest.raises(InputError, match="One matrix shows one metric, not cka, mse"):
        plots.similarity(pd.concat([blocks.assign(metric="cka"), blocks.assign(metric="mse")]))


def test_a_missing_column_is_named():
    with pytest.raises(InputError, match="'clas'"):
        plots.matrix(pd.DataFrame({"plan": [], "class": []}), row="plan", column="clas", value="delta")


@pytest.mark.parametrize(("columns", "written"), [(2, ["-0.5", "0.0"]), (9, ["-2", "0"])])
def test_a_loss_is_written_with_its_sign_and_zero_without(columns, written):
    value = -0.5 if columns == 2 else -1.6
    rows = [("a", f"c{k}", (value, -0.01)[k % 2]) for k in range(columns)]
    ax = plots.matrix(pd.DataFrame(rows, columns=["row", "column", "delta"]), row="row", column="column", value="delta")
    assert [text.get_text() for text in ax.texts[:2]] == written
