"""Figures of values show every row, its interval, labels with units, a zero line and a legend beside the axes."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex

from toastlib import plots
from toastlib.errors import InputError
from toastlib.plots.style import COLOURS
from toastlib.translators.base import ALIGN, TRANSLATORS


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def labels(ax) -> tuple[str, str]:
    return ax.get_xlabel(), ax.get_ylabel()


def legend_texts(ax) -> set[str]:
    return {text.get_text() for text in ax.get_legend().get_texts()}


def names(ax) -> list[str]:
    return [text.get_text() for text in ax.get_yticklabels()]


def ends(ax, axis: int) -> list[tuple[float, float]]:
    """Both ends of every interval along an axis."""
    bars = (bars for bars in ax.containers if bars.has_xerr or bars.has_yerr)
    segments = [segment for one in bars for segment in one.lines[2][0].get_segments()]
    return [tuple(segment[:, axis]) for segment in segments if segment.ndim == 2 and not np.isnan(segment).any()]


def points(ax) -> set[tuple[float, float]]:
    return {tuple(point) for bars in ax.containers for point in bars.lines[0].get_xydata().tolist()}


@pytest.fixture
def lost() -> pd.DataFrame:
    """As `Evaluation.lost` of one head."""
    rows = [("identity", "1->2", 5, 4, 6), ("linear", "1->2", 1, 0.5, 1.5), ("linear", "3->5", -0.5, -1.5, 0.5)]
    return pd.DataFrame(rows, columns=["translator", "plan", "lost", "lost_low", "lost_high"])


@pytest.fixture
def swept() -> pd.DataFrame:
    """As `Evaluation.table`: two plans, two translators, two seeds, and the original."""
    rows = [("original", "original", seed, 90.0 + seed, 0) for seed in (0, 1)] + [
        (translator, plan, seed, accuracy + seed, removed)
        for translator, accuracy in (("identity", 60.0), ("linear", 80.0))
        for plan, removed in (("1->2", 1_000_000), ("3->5", 2_500_000))
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows, columns=["translator", "plan", "seed", "accuracy", "removed_parameters"])


def test_intervals_show_every_interval_a_zero_line_and_units(lost):
    ax = plots.intervals(lost, y="plan", hue="translator")
    assert labels(ax) == ("accuracy lost (points, 95 % interval)", "plan")
    assert names(ax) == ["1->2", "3->5"]
    assert legend_texts(ax) == {"identity", "linear"}
    assert sorted(ends(ax, 0)) == sorted(zip(lost["lost_low"], lost["lost_high"]))
    assert [0, 0] in [list(line.get_xdata()) for line in ax.get_lines()]
    assert ax.get_ylim() == (1.5, -0.5)  # the first plan on top


def test_intervals_take_a_label_of_another_unit(lost):
    ax = plots.intervals(lost, y="plan", hue="translator", label="more bits per token")
    assert ax.get_xlabel() == "more bits per token (95 % interval)"
    assert plots.intervals(lost[["plan", "lost"]], y="plan").get_xlabel() == "accuracy lost (points)"


def test_sorted_intervals_have_the_smallest_value_on_top_and_need_no_legend():
    rows = [("linear", 2, 1, 3), ("identity", 7, 6, 8), ("separate+align", 0.5, 0, 1)]
    frame = pd.DataFrame(rows, columns=["translator", "lost", "low", "high"])
    ax = plots.intervals(frame, y="translator", hue="translator", sort=True)
    assert names(ax) == ["separate+align", "linear", "identity"]
    assert ax.get_legend() is None
    assert {tuple(np.round(point, 9)) for point in points(ax)} == {(0.5, 0), (2, 1), (7, 2)}  # each on its own line
    assert sorted(ends(ax, 0)) == [(0, 1), (1, 3), (6, 8)]


def test_intervals_of_criteria_have_names_in_words():
    frame = pd.DataFrame({"criterion": ["mse", "mine"], "correlation": 0.5, "low": 0.4, "high": 0.8})
    ax = plots.intervals(frame, y="criterion", x="correlation")
    assert names(ax) == ["MSE", "mine"]
    assert ax.get_xlabel() == "rank correlation (95 % interval)"


def test_several_rows_of_a_name_are_pale_and_rows_without_interval_have_none():
    drawn = pd.DataFrame({"removed": [1, 1, 2], "lost": [0.0, 60, 5], "choice": "any plan"})
    chosen = pd.DataFrame({"removed": [1, 2], "lost": [0.5, 1], "low": [0, 0.5], "high": [1, 1.5], "choice": "chosen"})
    ax = plots.intervals(pd.concat([drawn, chosen]), y="removed", hue="choice", log=5)
    assert labels(ax) == ("accuracy lost (points, 95 % interval)", "removed blocks")
    assert {x for x, _ in points(ax)} == {0, 60, 5, 0.5, 1}
    assert ends(ax, 0) == [(0, 1), (0.5, 1.5)]
    assert [bars.lines[0].get_alpha() for bars in ax.containers] == [0.4, 1]
    assert (ax.get_xscale(), ax.xaxis.get_transform().linthresh) == ("symlog", 5)


def test_accuracy_by_plan_shows_mean_and_range_of_seeds_and_the_original_as_a_line(swept):
    ax = plots.accuracy_by_plan(swept)
    assert labels(ax) == ("accuracy (%, mean and range of the heads)", "plan")
    assert names(ax) == ["1->2", "3->5"]
    assert legend_texts(ax) == {"identity", "linear", "original"}
    assert {x for x, _ in points(ax)} == {60.5, 80.5}
    assert set(ends(ax, 0)) == {(60, 61), (80, 81)}
    assert [90.5, 90.5] in [list(line.get_xdata()) for line in ax.get_lines()]


def test_accuracy_by_plan_shows_the_interval_of_a_single_row(swept):
    single = swept[swept["seed"] == 0].assign(accuracy_low=50.0, accuracy_high=95.0)
    ax = plots.accuracy_by_plan(single)
    assert ax.get_xlabel() == "accuracy (%, 95 % interval)"
    assert set(ends(ax, 0)) == {(50, 95)}
    assert legend_texts(plots.accuracy_by_plan(single[single["plan"] != "original"])) == {"identity", "linear"}


def test_scatter_shows_every_point_with_its_interval(lost):
    ax = plots.scatter(lost.assign(seconds=[0.1, 1, 10]), x="seconds", y="lost", hue="translator", log=(True, False))
    assert labels(ax) == ("seconds", "accuracy lost (points, 95 % interval)")
    assert points(ax) == {(0.1, 5), (1, 1), (10, -0.5)}
    assert sorted(ends(ax, 1)) == [(-1.5, 0.5), (0.5, 1.5), (4, 6)]
    assert ax.get_xscale() == "log"


def test_a_cost_of_zero_keeps_its_place_on_a_logarithmic_axis(lost):
    ax = plots.scatter(lost.assign(parameters=[0, 9000, 200_000]), x="parameters", y="lost", log=(True, False))
    left, right = ax.get_xlim()
    assert left < 0 < 200_000 < right
    assert ax.xaxis.get_transform().linthresh == 1000


def test_scatter_joins_and_names_the_front():
    rows = [("original", "original", 95.0, 4.0), ("linear", "1->5", 93.0, 2.0), ("identity", "1->5", 80.0, 1.9)]
    frame = pd.DataFrame([*rows, ("identity", "2->4", 70.0, 3.0)], columns=["translator", "plan", "accuracy", "gflops"])
    frame["front"] = [True, True, True, False]
    ax = plots.scatter(frame, x="gflops", y="accuracy", hue="translator", front="front")
    assert labels(ax) == ("GFLOPs per image", "accuracy (%)")
    line = next(line for line in ax.get_lines() if line.get_label() == "Pareto front")
    assert np.allclose(line.get_xydata(), [(1.9, 80), (2, 93), (4, 95)])
    assert [text.get_text() for text in ax.texts] == ["1->5", "1->5"]  # the marker names the original
    pale = [bars.lines[0] for bars in ax.containers if bars.lines[0].get_alpha() == 0.35]
    assert np.allclose(np.vstack([line.get_xydata() for line in pale]), [(3, 70)])
    assert legend_texts(ax) == {"original", "linear", "identity", "Pareto front"}


def test_neighbours_on_the_front_share_their_names():
    frame = pd.DataFrame({"plan": ["a", "b", "c"], "gflops": [1, 1.01, 3], "accuracy": [80, 80.1, 90], "front": True})
    ax = plots.scatter(frame, x="gflops", y="accuracy", front="front")
    assert [text.get_text() for text in ax.texts] == ["a, b", "c"]


def test_on_the_diagonal_both_values_are_the_same():
    frame = pd.DataFrame(
        {"translator": ["linear", "identity", "linear"], "ours": [80.0, 70, 60], "theirs": [81, 72, np.nan]}
    )
    ax = plots.scatter(frame, x="theirs", y="ours", hue="translator", diagonal=True)
    assert labels(ax) == ("published accuracy (%)", "our accuracy (%)")
    assert {(81, 80), (72, 70)} <= points(ax)
    assert any(getattr(line, "_slope", None) == 1 for line in ax.lines)


@pytest.fixture
def draws() -> pd.DataFrame:
    """Two sizes, three draws, two heads; original and identity need no calibration images."""
    accuracy = {1: [(69, 71), (59, 61), (79, 81)], 2: [(84, 86), (83, 85), (85, 87)]}
    rows = [("original", np.nan, 0, 90.0), ("identity", np.nan, 0, 10.0)] + [
        ("linear", size, draw, value)
        for size, sets in accuracy.items()
        for draw, two in enumerate(sets)
        for value in two
    ]
    return pd.DataFrame(rows, columns=["translator", "calibration_size", "calibration_seed", "accuracy"])


def test_curve_shows_draws_their_mean_their_range_and_what_needs_no_calibration_as_lines(draws):
    options = {"hue": "translator", "units": "calibration_seed", "log": (True, False)}
    ax = plots.curve(draws, x="calibration_size", y="accuracy", **options)
    assert labels(ax) == ("calibration images", "accuracy (%)")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2"]
    original, identity, dots, mean = (np.asarray(line.get_ydata(), dtype=float) for line in ax.lines)
    assert np.allclose(mean, [70, 85])  # over draws, each the mean of its heads
    assert (original[0], identity[0]) == (90, 10)
    assert dots.tolist() == [70, 60, 80, 85, 84, 86]
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (60, 86)
    assert legend_texts(ax) == {"original", "identity", "linear"}


def test_curve_has_intervals_and_ticks_at_whole_numbers(lost):
    ax = plots.curve(lost.assign(block=[1, 1, 2]), x="block", y="lost", hue="translator", label="points")
    assert labels(ax) == ("block", "points (95 % interval)")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2"]
    assert sorted(ends(ax, 1)) == [(-1.5, 0.5), (0.5, 1.5), (4, 6)]


def test_curve_over_decades():
    frame = pd.DataFrame({"block": range(20), "distance": np.logspace(-4, 0, 20)})
    ax = plots.curve(frame, x="block", y="distance", log=(False, True))
    assert ax.get_yscale() == "log"
    assert all(tick == int(tick) for tick in ax.get_xticks())


def test_a_figure_is_drawn_on_the_given_axes(swept, lost):
    for draw in (
        lambda ax: plots.accuracy_by_plan(swept, ax=ax),
        lambda ax: plots.intervals(lost, y="plan", ax=ax),
        lambda ax: plots.scatter(swept, x="removed_parameters", y="accuracy", ax=ax),
        lambda ax: plots.curve(swept, x="seed", y="accuracy", ax=ax),
    ):
        _, (left, right) = plt.subplots(1, 2)
        assert draw(left) is left
        assert not right.has_data()


def test_only_the_last_column_has_a_legend_and_the_first_a_label(lost):
    _, axes = plt.subplots(1, 2, sharey=True)
    for ax in axes:
        plots.intervals(lost, y="plan", hue="translator", ax=ax)
    assert [ax.get_legend() is None for ax in axes] == [True, False]
    assert [ax.get_ylabel() for ax in axes] == ["plan", ""]


def test_the_legend_stands_beside_the_axes(lost):
    ax = plots.intervals(lost, y="plan", hue="translator")
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1


def test_a_missing_column_is_named(lost):
    with pytest.raises(InputError, match="'plann'"):
        plots.intervals(lost, y="plann")
    with pytest.raises(InputError, match="'translater'"):
        plots.scatter(lost, x="lost", y="lost", hue="translater")


def test_a_translator_has_one_colour_in_every_figure(swept):
    ax = plots.accuracy_by_plan(swept)
    colours = {to_hex(line.get_color()) for line in ax.lines}
    assert colours == {COLOURS[name] for name in ("identity", "linear", "original")}


def test_every_translator_has_a_colour_and_a_marker_of_its_own():
    known, aligned = {*TRANSLATORS, "original"}, {name + ALIGN for name in TRANSLATORS}
    markers = plots.style.MARKERS
    assert set(COLOURS) == set(markers) == known | aligned
    assert len({COLOURS[name] for name in known}) == len(known)
    assert len(set(markers.values())) == len(markers)
    assert all(COLOURS[name + ALIGN] == COLOURS[name] for name in TRANSLATORS)


def test_a_table_without_rows_is_named_where_it_makes_no_axes():
    empty = pd.DataFrame({"plan": [], "lost": []})
    draws = (
        lambda: plots.matrix(empty, row="plan", column="plan", value="lost"),
        lambda: plots.to_latex(empty, rows="plan", columns="plan"),
        lambda: plots.panels(plots.curve, empty, by="plan", x="plan", y="lost"),
    )
    for draw in draws:
        with pytest.raises(InputError, match="no rows"):
            draw()
    assert plots.curve(empty, x="plan", y="lost").get_xlabel() == "plan"  # an empty figure, as seaborn draws it
