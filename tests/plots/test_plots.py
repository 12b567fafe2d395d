"""Every figure takes a tidy frame and comes back as labelled axes that show its numbers."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from toastlib import plots
from toastlib.translators.base import ALIGN, TRANSLATORS


@pytest.fixture(autouse=True)
def closed_figures():
    """No figure of one test is the current one of the next."""
    yield
    plt.close("all")


def labels(ax: Axes) -> tuple[str, str]:
    return ax.get_xlabel(), ax.get_ylabel()


def legend_texts(ax: Axes) -> set[str]:
    return {text.get_text() for text in ax.get_legend().get_texts()}


@pytest.fixture
def swept() -> pd.DataFrame:
    """As from `sweep`: two plans, two translators, two seeds, and the original."""
    rows = [("original", "original", seed, 90.0 + seed, 0) for seed in (0, 1)] + [
        (translator, plan, seed, accuracy + seed, removed)
        for translator, accuracy in (("identity", 60.0), ("linear", 80.0))
        for plan, removed in (("1->2", 1_000_000), ("3->5", 2_500_000))
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows, columns=["translator", "plan", "seed", "accuracy", "removed_parameters"])


@pytest.fixture
def matrix() -> pd.DataFrame:
    """As from `similarity`: blocks -1, 0 and 1."""
    rows = [(i, j, "cka", 1 - 0.1 * abs(i - j)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return pd.DataFrame(rows, columns=["first", "second", "metric", "value"])


def test_similarity_shows_the_matrix_with_its_blocks(matrix):
    ax = plots.similarity(matrix, title="digits")
    assert labels(ax) == ("block", "block")
    assert ax.get_title() == "digits"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["-1", "0", "1"]
    values = ax.collections[0].get_array().reshape(3, 3)
    assert np.allclose(values, [[1, 0.9, 0.8], [0.9, 1, 0.9], [0.8, 0.9, 1]])


@pytest.mark.parametrize(("metric", "name"), plots.style.METRIC_NAMES.items())
def test_the_colour_bar_names_the_metric(matrix, metric, name):
    ax = plots.similarity(matrix.assign(metric=metric))
    assert ax.figure.axes[-1].get_ylabel() == name


def test_matrices_can_share_a_scale(matrix):
    ax = plots.similarity(matrix, vmin=0.5, vmax=0.95)
    assert ax.collections[0].get_clim() == (0.5, 0.95)


def test_accuracy_by_plan_shows_every_plan_and_the_original_as_a_line(swept):
    ax = plots.accuracy_by_plan(swept)
    assert labels(ax) == ("accuracy (%)", "plan")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["1->2", "3->5"]
    assert legend_texts(ax) == {"identity", "linear", "original, 90.5 %"}


def test_accuracy_lost_shows_the_interval_of_every_plan():
    frame = pd.DataFrame(
        {
            "translator": ["identity", "linear", "linear"],
            "plan": ["1->2", "1->2", "3->5"],
            "lost": [5.0, 1.0, -0.5],
            "lost_low": [4.0, 0.5, -1.5],
            "lost_high": [6.0, 1.5, 0.5],
        }
    )
    ax = plots.accuracy_lost(frame)
    assert labels(ax) == ("accuracy lost (points, 95 % interval)", "plan")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["1->2", "3->5"]
    assert legend_texts(ax) == {"identity", "linear"}
    ends = [tuple(segment[:, 0]) for bars in ax.containers for segment in bars.lines[2][0].get_segments()]
    assert sorted(ends) == sorted(zip(frame["lost_low"], frame["lost_high"]))


def test_accuracy_against_parameters_shows_means_over_seeds_in_millions(swept):
    ax = plots.accuracy_against_parameters(swept)
    assert labels(ax) == ("removed parameters (millions)", "accuracy (%)")
    shown = {tuple(point) for point in ax.collections[0].get_offsets().tolist()}
    assert shown == {(0.0, 90.5), (1.0, 60.5), (2.5, 60.5), (1.0, 80.5), (2.5, 80.5)}


def test_ours_against_theirs_leaves_out_what_the_paper_does_not_print():
    frame = pd.DataFrame(
        {"translator": ["linear", "identity", "linear"], "ours": [80.0, 70.0, 60.0], "theirs": [81.0, 72.0, np.nan]}
    )
    ax = plots.ours_against_theirs(frame)
    assert labels(ax) == ("published accuracy (%)", "our accuracy (%)")
    assert {tuple(point) for point in ax.collections[0].get_offsets().tolist()} == {(81.0, 80.0), (72.0, 70.0)}


def test_ours_against_theirs_is_empty_where_the_paper_prints_nothing():
    frame = pd.DataFrame({"translator": ["linear"], "ours": [80.0], "theirs": [np.nan]})
    assert labels(plots.ours_against_theirs(frame)) == ("published accuracy (%)", "our accuracy (%)")


@pytest.mark.parametrize("panels", [["original"], ["original", "linear", "identity"]])
def test_pca_gives_a_panel_to_each_model(panels):
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(
        [(panel, *draw.normal(size=2), label) for panel in panels for label in "abab"],
        columns=["panel", "x", "y", "label"],
    )
    axes = plots.pca(frame)
    assert [ax.get_title() for ax in axes] == panels
    assert labels(axes[0]) == ("first component", "second component")
    assert legend_texts(axes[-1]) == {"a", "b"}


def test_pca_panels_follow_the_titles():
    frame = pd.DataFrame({"panel": ["b", "a"], "x": [0, 1], "y": [0, 1], "label": ["one", "two"]})
    assert [ax.get_title() for ax in plots.pca(frame, titles=["a", "b"])] == ["a", "b"]


def test_last_block_names_the_metric_and_counts_blocks_in_integers():
    frame = pd.DataFrame(
        [(block, name, "cosine", 1 - 0.1**block) for block in (1, 2, 3) for name in ("identity", "linear")],
        columns=["block", "translator", "metric", "value"],
    )
    ax = plots.last_block(frame)
    assert labels(ax) == ("approximated block", "1 - cosine similarity of the features")
    assert legend_texts(ax) == {"identity", "linear"}
    assert all(tick == int(tick) for tick in ax.get_xticks())


@pytest.mark.parametrize("metrics", [["cka"], ["mse", "cosine", "cka"]])
def test_metric_against_accuracy_gives_a_panel_to_each_metric(metrics):
    frame = pd.DataFrame(
        [(metric, 0.5, name, 2.0) for metric in metrics for name in ("identity", "linear")],
        columns=["metric", "value", "translator", "lost"],
    )
    axes = plots.metric_against_accuracy(frame)
    assert [ax.get_xlabel() for ax in axes] == [plots.style.METRIC_NAMES[metric] for metric in metrics]
    assert axes[0].get_ylabel() == "accuracy lost (points)"


@pytest.mark.parametrize("plot", [plots.accuracy_by_plan, plots.accuracy_against_parameters])
def test_a_figure_is_drawn_where_it_is_asked_to(swept, plot):
    _, (left, right) = plt.subplots(1, 2)
    assert plot(swept, ax=left) is left
    assert not right.has_data()


def test_a_translator_has_one_colour_in_every_figure(swept):
    colours = {to_hex(line.get_color()) for line in plots.accuracy_by_plan(swept).lines}
    assert colours == {plots.style.COLOURS[name] for name in ("identity", "linear", "original")}


def test_every_translator_has_a_colour_and_a_marker_of_its_own():
    names, aligned = {*TRANSLATORS, "original"}, {name + ALIGN for name in TRANSLATORS}
    colours, markers = plots.style.COLOURS, plots.style.MARKERS
    assert set(colours) == set(markers) == names | aligned
    assert len({colours[name] for name in names}) == len(names)
    assert len(set(markers.values())) == len(markers)
    assert all(colours[name + ALIGN] == colours[name] for name in TRANSLATORS)


def test_the_style_hides_the_upper_and_right_spines():
    with mpl.rc_context():
        plots.set_style()
        _, ax = plt.subplots()
        assert not ax.spines["top"].get_visible()
        assert not ax.spines["right"].get_visible()


def test_residuals_gives_a_panel_to_each_set_of_rows():
    frame = pd.DataFrame(
        [
            (plan, name, rows, len(name) / 10)
            for plan in ("1->2", "3->5")
            for name in ("linear", "mlp")
            for rows in ("one", "two")
        ],
        columns=["plan", "translator", "rows", "residual"],
    )
    axes = plots.residuals(frame)
    assert [ax.get_title() for ax in axes] == ["one", "two"]
    assert labels(axes[0]) == ("unexplained share", "plan")
    assert legend_texts(axes[-1]) == {"linear", "mlp"}
    assert [len(ax.collections[0].get_offsets()) for ax in axes] == [4, 4]


def test_map_costs_show_every_translator_even_a_free_one():
    frame = pd.DataFrame(
        {
            "translator": ["identity", "linear", "mlp"],
            "lost": [5.0, 1.0, 2.0],
            "low": [4.0, 0.5, 1.0],
            "high": [6.0, 1.5, 3.0],
            "seconds": [0.0, 0.1, 10.0],
            "parameters": [0, 100, 1000],
        }
    )
    axes = plots.accuracy_against_map_cost(frame, {"seconds": "fit (s)", "parameters": "parameters"})
    assert [ax.get_xlabel() for ax in axes] == ["fit (s)", "parameters"]
    assert axes[0].get_ylabel() == "accuracy lost (points, 95 % interval)"
    assert legend_texts(axes[-1]) == {"identity", "linear", "mlp"}
    for ax, column in zip(axes, ("seconds", "parameters"), strict=True):
        left, right = ax.get_xlim()
        assert left < 0
        assert right > frame[column].max()


def test_lost_by_translator_puts_the_best_on_top_and_the_linear_map_as_a_line():
    frame = pd.DataFrame(
        {
            "translator": ["linear", "identity", "separate+align"],
            "lost": [2.0, 7.0, 0.5],
            "low": [1.0, 6.0, 0.0],
            "high": [3.0, 8.0, 1.0],
        }
    )
    ax = plots.lost_by_translator(frame)
    assert labels(ax) == ("accuracy lost (points, 95 % interval)", "translator")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["separate+align", "linear", "identity"]
    ends = [tuple(segment[:, 0]) for bars in ax.containers for segment in bars.lines[2][0].get_segments()]
    assert ends == [(0.0, 1.0), (1.0, 3.0), (6.0, 8.0)]
    assert [line.get_xdata()[0] for line in ax.get_lines() if len(line.get_xdata()) == 2] == [0, 2.0]


@pytest.mark.parametrize("criteria", [["mse"], ["mse", "cka", "fit", "held-out"]])
def test_predicted_against_lost_has_a_panel_for_each_predictor(criteria):
    frame = pd.DataFrame(
        [(name, size, 0.1 * size, 3.0 * size) for name in criteria for size in (1, 2)],
        columns=["criterion", "removed", "predicted", "lost"],
    )
    axes = plots.predicted_against_lost(frame).flat
    for ax, name in zip(axes, criteria):
        assert ax.get_title() == plots.selection.PREDICTOR_NAMES[name]
        points = np.vstack([collection.get_offsets() for collection in ax.collections])
        assert np.allclose(points, [(0.1, 3), (0.2, 6)])
    assert labels(axes[0]) == ("predicted cost", "accuracy lost (points)")
    assert legend_texts(axes[0]) == {"1", "2"}


def test_rank_correlations_has_a_panel_for_each_size():
    frame = pd.DataFrame(
        [(name, size, 0.5, 0.4, 0.8) for name in ("mse", "fit") for size in (1, 2, 3)],
        columns=["criterion", "removed", "correlation", "low", "high"],
    )
    axes = plots.rank_correlations(frame)
    assert [ax.get_title() for ax in axes] == [f"removed blocks: {size}" for size in (1, 2, 3)]
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["MSE", "fit"]
    assert [tuple(s[:, 0]) for s in axes[0].containers[0].lines[2][0].get_segments()] == [(0.4, 0.8)] * 2


def test_choices_against_chance_shows_every_plan_and_the_chosen_with_its_interval():
    drawn = pd.DataFrame({"removed": [1, 1, 2], "translator": ["linear"] * 3, "lost": [0.0, 60.0, 5.0]})
    chosen = pd.DataFrame({"removed": [1, 2], "lost": [0.5, 1.0], "low": [0.0, 0.5], "high": [1.0, 1.5]})
    ax = plots.choices_against_chance(drawn, chosen)
    assert labels(ax) == ("removed blocks", "accuracy lost (points)")
    assert legend_texts(ax) == {"any plan, linear", "chosen"}
    assert np.allclose(ax.collections[0].get_offsets()[:, 1], drawn["lost"])
    bars = next(bars for bars in ax.containers if bars.has_yerr)
    assert [tuple(segment[:, 1]) for segment in bars.lines[2][0].get_segments()] == [(0.0, 1.0), (0.5, 1.5)]


def test_bits_lost_shows_every_plan_but_the_original():
    rows = [("original", "original", 0, 0, 0), ("identity", "0->1", 0.5, 0.4, 0.6), ("linear", "0->1", 0.2, 0.1, 0.3)]
    ax = plots.bits_lost(pd.DataFrame(rows, columns=["translator", "plan", "lost", "lost_low", "lost_high"]))
    assert labels(ax) == ("more bits per token than the original (95 % interval)", "plan")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0->1"]
    assert legend_texts(ax) == {"identity", "linear"}
    assert sorted(line.get_xdata()[0] for line, *_ in ax.containers) == [0.2, 0.5]
