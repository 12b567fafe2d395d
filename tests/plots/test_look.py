"""One look: colours that stay apart for the colour-blind, files that stay the same, and the picture on the README."""

import itertools
import json
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import FancyBboxPatch

from toastlib import plots
from toastlib.plan import Plan
from toastlib.plots.style import COLOURS, OTHER_COLOURS, OTHER_MARKERS, looks
from toastlib.runs.store import Results

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "idea.svg"
# Machado, Oliveira and Fernandes (2009), severity 1: linear RGB as the colour-blind see it.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


@pytest.fixture(autouse=True)
def the_look():
    with mpl.rc_context():
        plots.set_style()
        yield
        plt.close("all")


def lab(colour: str, blindness: str) -> np.ndarray:
    """CIELAB, white of sRGB."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(BLINDNESS[blindness]) @ linear, 0, 1)
    x, y, z = (TO_XYZ @ seen) / TO_XYZ.sum(1)
    f = [v ** (1 / 3) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_the_colours_of_a_figure_stay_apart_for_the_colour_blind(blindness):
    # 2.3 is a just noticeable difference; 10 is seen at a glance.
    names = ("original", "identity", "linear", "mlp", "res-mlp", "warm-start-mlp")
    for first, second in itertools.combinations(names, 2):
        distance = np.linalg.norm(lab(COLOURS[first], blindness) - lab(COLOURS[second], blindness))
        assert distance > 10, (first, second)


def test_thirty_classes_differ_in_colour_or_marker():
    assert len(set(OTHER_COLOURS)) == len(set(OTHER_MARKERS)) == 10
    assert len({tuple(look.values()) for look in looks([f"class {k}" for k in range(30)]).values()}) == 30
    frame = pd.DataFrame({"x": 0.0, "y": 0.0, "class": [f"class {k}" for k in range(30)]})
    ax = plots.scatter(frame, x="x", y="y", hue="class")
    lines = [handle.lines[0] for handle in ax.get_legend_handles_labels()[0]]
    assert len({(to_hex(line.get_color()), line.get_marker()) for line in lines}) == 30


@pytest.mark.parametrize("known", [(), ("linear",), ("ridge", "context", "linear", "identity", "original")])
def test_an_unknown_translator_gets_a_colour_and_a_marker_that_no_other_has(known):
    found = looks([*known, "mine", "yours"])
    assert all(found[name] == {"color": COLOURS[name], "marker": plots.style.MARKERS[name]} for name in known)
    assert len({look["color"] for look in found.values()}) == len(known) + 2
    assert len({look["marker"] for look in found.values()}) == len(known) + 2


def test_numbers_are_graded():
    colours = [look["color"] for look in looks([1, 2, 4]).values()]
    brightness = [lab(colour, "none")[0] for colour in colours]
    assert brightness == sorted(brightness, reverse=True)


def test_the_same_figure_is_the_same_file(tmp_path):
    for folder in ("first", "second"):
        ax = plt.subplots()[1]
        ax.plot([1, 2, 3])
        ax.fill_between([0, 1], [0, 1])
        ax.set_title("a title")
        Results(str(tmp_path / folder)).figure(ax, "figure")
    for name in ("figure.png", "figure.svg", "figure.pdf"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def swept(plan: str, accuracy=(95.7, 84.6, 95.4), parameters=(1.35e6, 1.02e6, 1.03e6)) -> pd.DataFrame:
    """As from `sweep` with a frozen head."""
    names = {"translator": ["original", "identity", "linear"], "plan": ["original", plan, plan]}
    where = {"model": "vit-mini", "dataset": "mnist-mini", "head": "frozen", "images": 1000}
    return pd.DataFrame(names | {"accuracy": accuracy, "parameters": parameters}).assign(**where)


@pytest.mark.parametrize(("plan", "blocks", "maps"), [("2->5", 12, 1), ("-1->0 3->5", 7, 2), ("20->23", 24, 1)])
def test_the_idea_draws_every_block_and_map(plan, blocks, maps):
    ax = plots.idea(swept(plan), plan, blocks)
    gone = len(Plan.parse(plan).removed)
    written = [text.get_text() for text in ax.texts]
    boxes = [patch for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    assert len(boxes) == blocks + blocks + (blocks - gone + maps)
    assert (written.count("×"), written.count("W")) == (gone, maps)
    for block in range(blocks):
        assert written.count(str(block)) in (1, 3)
    assert {"95.7 %", "84.6 %", "95.4 %", "1.35 M parameters", "1.02 M parameters"} <= set(written)
    title = ax.get_title(loc="left")
    assert title.startswith("On MNIST (vit-mini, 1.35 M parameters):")
    assert f"without {gone} of {blocks} blocks, accuracy is 84.6 % instead of 95.7 %" in title


def test_the_bars_of_the_idea_are_as_long_as_the_accuracies():
    ax = plots.idea(swept("2->5", accuracy=(80.0, 20.0, 60.0)), "2->5", 12)
    widths = [bar.get_width() for bars in ax.containers for bar in bars]
    tracks, bars = widths[::2], widths[1::2]
    assert np.allclose(np.divide(bars, tracks), [0.8, 0.2, 0.6])


def test_the_idea_averages_the_seeds():
    frame = pd.concat([swept("2->5"), swept("2->5", accuracy=(95.9, 84.8, 95.6))])
    written = [text.get_text() for text in plots.idea(frame, "2->5", 12).texts]
    assert {"95.8 %", "84.7 %", "95.5 %"} <= set(written)


def of_the_notebook() -> pd.DataFrame:
    """The numbers that 00_quickstart was committed with."""
    notebook = json.loads((ROOT / "notebooks" / "00_quickstart.ipynb").read_text(encoding="utf-8"))
    shown = ["".join(o.get("data", {}).get("text/plain", "")) for c in notebook["cells"] for o in c.get("outputs", [])]
    table = next(text for text in shown if text.split()[:3] == ["accuracy", "parameters", "gflops"])
    rows = {name: (float(a), float(p) * 1e6) for name, a, p in re.findall(r"^(\w+) +([\d.]+) +([\d.]+)", table, re.M)}
    accuracy, parameters = zip(*(rows[name] for name in ("original", "identity", "linear")))
    return swept("2->5", accuracy, parameters)


def structure(svg: str) -> tuple[list[str], list[str]]:
    """Texts, which matplotlib leaves beside their outlines, and what is drawn."""
    return re.findall(r"<!-- (.+?) -->", svg), re.findall(r'<g id="(\w+)">', svg)


def test_the_picture_of_the_readme_is_what_the_quickstart_found(tmp_path):
    Results(str(tmp_path)).figure(plots.idea(of_the_notebook(), "2->5", 12), "idea")
    made, committed = (path.read_text(encoding="utf-8") for path in (tmp_path / "idea.svg", PICTURE))
    assert structure(committed) == structure(made), "toast run 00, then copy its idea.svg to docs/images"
    assert len(structure(made)[0]) > 40
    assert PICTURE.stat().st_size < 200_000


def test_the_readme_opens_with_the_picture_and_says_what_it_shows():
    title = plots.idea(of_the_notebook(), "2->5", 12).get_title(loc="left").replace("\n", " ")
    first = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line][1]
    assert first == f"![{title}](docs/images/idea.svg)"


def test_the_picture_asks_no_other_machine_for_anything():
    svg = PICTURE.read_text(encoding="utf-8")
    assert re.findall(r'(?:href|src)="(?!#)[^"]*"|@import|url\((?!#)', svg) == []
