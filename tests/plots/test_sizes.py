"""Figures as they are rendered, at each width, with one plan and with forty: nothing is cut, no legend covers data."""

import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.text import Text

from toastlib import plots
from toastlib.errors import InputError
from toastlib.runs.store import Results

WIDTHS = {None: None, "column": 3.25, "page": 6.75, "slide": 10}
MAPS = ("identity", "linear", "half-way", "context", "context+align")


def lost(plan_count: int, maps=MAPS) -> pd.DataFrame:
    """Points lost by plan, map and head, and accuracies, with intervals; the plans have up to three spans."""
    generator = np.random.default_rng(0)
    plans = [f"{k}->{k + 3}" if k % 3 else f"0->1 3->4 {k + 5}->{k + 9}" for k in range(plan_count)]
    names = [(head, name, plan) for head in ("retrained", "frozen") for plan in plans for name in maps]
    frame = pd.DataFrame(names, columns=["head", "translator", "plan"])
    for value, mean in (("lost", 4), ("accuracy", 90)):
        frame[value] = mean + generator.normal(size=len(frame))
        frame[f"{value}_low"], frame[f"{value}_high"] = frame[value] - 2, frame[value] + 2
    frame["calibration_size"] = generator.choice([16, 32, 64], len(frame))
    return frame.assign(front=frame["lost"].rank() <= 4)


FIGURES = {
    "intervals": lambda frame: plots.intervals(frame.query("head == 'frozen'"), y="plan", hue="translator"),
    "accuracy_by_plan": lambda frame: plots.accuracy_by_plan(frame.query("head == 'frozen'")),
    "panels": lambda frame: plots.panels(
        plots.intervals, frame, by="head", y="plan", hue="translator", columns=2 if plt.rcParams["font.size"] > 8 else 1
    ),
    "matrix": lambda frame: plots.matrix(frame, row="plan", column="translator", value="lost"),
    "scatter": lambda frame: plots.scatter(frame, x="lost", y="accuracy", hue="translator", front="front"),
    "curve": lambda frame: plots.curve(frame, x="calibration_size", y="accuracy", hue="translator"),
}


@pytest.fixture(autouse=True)
def own_style():
    with mpl.rc_context():
        yield
        plt.close("all")


def rendered(figure) -> tuple[list[str], list[str]]:
    """Sides at which something is cut, and legends that cover axes."""
    with warnings.catch_warnings(action="error"):  # matplotlib's, that axes have no room
        figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    width, height = figure.get_size_inches()
    ends = figure.get_tightbbox(renderer)
    beyond = {"left": -ends.x0, "bottom": -ends.y0, "right": ends.x1 - width, "top": ends.y1 - height}
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    covering = [
        legend.get_texts()[0].get_text()
        for legend in legends
        for ax in figure.axes
        if ax.bbox.overlaps(legend.get_window_extent(renderer))
    ]
    return [side for side, inches in beyond.items() if inches > 0.02], covering


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("plan_count", [1, 40])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_and_no_legend_covers_data(width, plan_count, name):
    plots.set_style(width=width)
    ax = np.ravel(FIGURES[name](lost(plan_count)))[0]
    assert rendered(ax.figure) == ([], [])
    assert WIDTHS[width] in (None, ax.figure.get_figwidth())
    shown = [other for other in ax.figure.axes if not hasattr(other, "_colorbar")]
    assert all(other.bbox.width > 0.25 * ax.figure.bbox.width / len(shown) for other in shown)


def test_what_is_cut_or_covered_would_be_found():
    plots.set_style(width="column")
    figure, ax = plt.subplots(layout="none")
    ax.plot([0, 1], label="a")
    ax.legend(loc="center")
    figure.text(0.9, 0.5, "a long text at the edge")
    assert rendered(figure) == (["right"], ["a"])


@pytest.mark.parametrize(("width", "points"), [(None, 12), ("column", 8), ("page", 8), ("slide", 18)])
def test_text_has_its_size_in_points(width, points):
    plots.set_style(width=width)
    ax = FIGURES["intervals"](lost(3))
    assert ax.xaxis.label.get_size() == pytest.approx(points)
    assert min(text.get_size() for text in ax.findobj(Text) if text.get_text()) >= 0.8 * points


def test_an_unknown_width_is_refused():
    with pytest.raises(InputError, match="Unknown width 'colum': did you mean 'column'"):
        plots.set_style(width="colum")


def test_a_width_in_inches_is_that_of_the_figure():
    plots.set_style(width=3.5)
    ax = FIGURES["intervals"](lost(3))
    assert (ax.figure.get_figwidth(), ax.xaxis.label.get_size()) == (3.5, pytest.approx(8))
    for width in (0, -2, 1e9, float("nan")):
        with pytest.raises(InputError, match="cannot be drawn"):
            plots.set_style(width=width)


def test_the_style_of_a_width_is_left_again():
    plots.set_style(width="column")
    plots.set_style()
    assert tuple(FIGURES["scatter"](lost(3)).figure.get_size_inches()) == (6.5, 4.2)


def test_a_pdf_has_its_fonts_as_truetype_and_is_the_same_every_time(tmp_path):
    plots.set_style(width="column")
    for folder in ("first", "second"):
        Results(str(tmp_path / folder)).figure(FIGURES["intervals"](lost(3)), "lost")
    first, second = ((tmp_path / folder / "lost.pdf").read_bytes() for folder in ("first", "second"))
    assert first == second
    assert b"/FontFile2" in first
    assert b"/Type3" not in first
