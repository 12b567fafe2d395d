"""Classes, confusions, flips and McNemar's test: against counting by hand, scikit-learn and worked examples."""

import itertools
import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import recall_score

from toastlib.errors import InputError
from toastlib.evaluation.metrics import Predictions, accuracy_lost
from toastlib.evaluation.misclassification import class_accuracy, confusion, flips, holm, mcnemar
from toastlib.evaluation.sweep import predict

mpl.use("Agg")

import matplotlib.pyplot as plt

from toastlib import plots

NAMES = ("ant", "bee", "cat")
LABELS = np.array([0, 0, 1, 1, 1, 2])


@pytest.fixture(autouse=True)
def closed_figures():
    """No figure of one test is the current one of the next."""
    yield
    plt.close("all")


@pytest.fixture
def two_seeds() -> Predictions:
    rows = [
        ("frozen", "original", "original", 0, [0, 0, 1, 1, 0, 2]),
        ("frozen", "original", "original", 1, [0, 1, 1, 1, 1, 2]),
        ("frozen", "linear", "1->2", 0, [0, 2, 1, 0, 1, 2]),
        ("frozen", "linear", "1->2", 1, [0, 0, 1, 1, 1, 0]),
    ]
    variants = pd.DataFrame([row[:4] for row in rows], columns=["head", "translator", "plan", "seed"])
    return Predictions(variants, np.array([row[4] for row in rows]), LABELS)


@pytest.fixture
def drawn() -> Predictions:
    """Two plans, two translators, three heads on 300 images of which the original gets about 80 % right."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 300)
    kinds = [("original", "original"), *itertools.product(("identity", "linear"), ("1->2", "2->3"))]
    rows = [("frozen", *kind, seed) for kind in kinds for seed in range(3)]
    predicted = np.where(draw.random((len(rows), 300)) < 0.8, labels, draw.integers(0, 3, (len(rows), 300)))
    return Predictions(pd.DataFrame(rows, columns=["head", "translator", "plan", "seed"]), predicted, labels)


def test_class_accuracy_is_counted_by_hand(two_seeds):
    table = class_accuracy(two_seeds, NAMES).set_index(["plan", "class"])
    assert table["images"].tolist() == [2, 3, 1] * 2
    assert table["accuracy"].tolist() == pytest.approx([75, 500 / 6, 100, 75, 500 / 6, 50])
    assert table.loc["1->2", "delta"].tolist() == pytest.approx([0, 0, -50])
    assert (table.loc["original", ["delta", "delta_low", "delta_high"]] == 0).all(axis=None)


def test_class_accuracy_is_recall(drawn):
    table = class_accuracy(drawn, NAMES)
    for (translator, plan), frame in table.groupby(["translator", "plan"]):
        rows = (drawn.variants["translator"] == translator) & (drawn.variants["plan"] == plan)
        recalls = [recall_score(drawn.labels, p, average=None) for p in drawn.predicted[rows]]
        assert frame["accuracy"].to_numpy() == pytest.approx(100 * np.mean(recalls, axis=0))


def test_the_losses_of_the_classes_add_up_to_the_whole(drawn):
    table = class_accuracy(drawn, NAMES)
    total = (table["delta"] * table["images"] / 300).groupby([table["translator"], table["plan"]]).sum()
    lost = accuracy_lost(drawn).set_index(["translator", "plan"])["lost"]
    assert (total[lost.index] + lost).abs().max() < 1e-9


def test_a_class_without_test_images_is_left_out(two_seeds):
    table = class_accuracy(two_seeds, (*NAMES, "dog"))
    assert set(table["class"]) == set(NAMES)


def test_confusion_is_counted_by_hand(two_seeds):
    cells = confusion(two_seeds, NAMES, plan="1->2").set_index(["true", "predicted"])
    assert cells.loc["ant", "original"].tolist() == pytest.approx([75, 25, 0])
    assert cells.loc["ant", "approximated"].tolist() == pytest.approx([75, 0, 25])
    assert cells.loc["cat", "delta"].tolist() == pytest.approx([50, 0, -50])


def test_the_diagonal_of_the_confusion_is_class_accuracy(drawn):
    cells = confusion(drawn, NAMES, translator="identity", plan="2->3")
    diagonal = cells[cells["true"] == cells["predicted"]]
    table = class_accuracy(drawn, NAMES).query("translator == 'identity' and plan == '2->3'")
    assert diagonal["approximated"].to_numpy() == pytest.approx(table["accuracy"].to_numpy())
    assert diagonal["delta"].to_numpy() == pytest.approx(table["delta"].to_numpy())
    assert cells.groupby("true")["approximated"].sum().to_numpy() == pytest.approx([100] * 3)


def test_a_class_without_test_images_has_a_row_of_zeros(two_seeds):
    cells = confusion(two_seeds, (*NAMES, "dog"), plan="1->2").set_index(["true", "predicted"])
    assert (cells.loc["dog"] == 0).all(axis=None)


def test_flips_are_the_images_that_turn_wrong(two_seeds):
    assert flips(two_seeds, NAMES, plan="1->2").to_numpy().tolist() == [
        [0, 1, "ant", "cat"],
        [0, 3, "bee", "ant"],
        [1, 5, "cat", "ant"],
    ]
    assert flips(two_seeds, NAMES, plan="1->2", seed=1)["image"].tolist() == [5]
    assert flips(two_seeds, NAMES, plan="original").empty


def test_a_variant_that_was_not_predicted_is_named(two_seeds):
    with pytest.raises(InputError, match=r"^No variant has plan='2->3'\.$"):
        flips(two_seeds, NAMES, plan="2->3")


def test_one_variant_at_a_time(drawn):
    with pytest.raises(InputError, match="2 variants are of that kind: name head, translator and plan"):
        confusion(drawn, NAMES, plan="1->2")


def turned(right_to_wrong: int, wrong_to_right: int, both: int = 5) -> Predictions:
    """One plan that turns so many images, and `both` that are right before and after; the label is always 0."""
    before = [0] * right_to_wrong + [1] * wrong_to_right + [0] * both
    after = [1] * right_to_wrong + [0] * wrong_to_right + [0] * both
    variants = pd.DataFrame(
        [("frozen", "original", "original", 0), ("frozen", "linear", "1->2", 0)],
        columns=["head", "translator", "plan", "seed"],
    )
    return Predictions(variants, np.array([before, after]), np.zeros(len(before), dtype=int))


@pytest.mark.parametrize(("lost", "won"), [(6, 1), (1, 6), (10, 0), (4, 4), (23, 9)])
def test_mcnemar_is_a_fair_coin(lost, won):
    row = mcnemar(turned(lost, won)).iloc[0]
    assert (row["right_to_wrong"], row["wrong_to_right"]) == (lost, won)
    tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1)) / 2 ** (lost + won)
    assert row["p"] == pytest.approx(min(1, 2 * tail))


def test_without_flips_nothing_is_shown():
    assert mcnemar(turned(0, 0))["p"].tolist() == [1.0]


def test_mcnemar_takes_one_head(two_seeds):
    assert mcnemar(two_seeds)[["right_to_wrong", "wrong_to_right"]].to_numpy().tolist() == [[2, 1]]
    assert mcnemar(two_seeds, seed=1)[["right_to_wrong", "wrong_to_right"]].to_numpy().tolist() == [[1, 1]]


def test_each_translator_is_corrected_by_itself(drawn):
    table = mcnemar(drawn)
    assert len(table) == 4
    for _, frame in table.groupby("translator"):
        assert frame["p_holm"].to_numpy() == pytest.approx(holm(frame["p"].to_numpy()))


def test_holm_of_a_worked_example():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]


def test_holm_rejects_as_the_closed_test_does():
    """Holm is the closure of Bonferroni: reject i if every intersection that holds i is rejected by Bonferroni."""
    draw = np.random.default_rng(1)
    for p in draw.random((50, 5)) ** 3:
        adjusted = holm(p)
        for i in range(5):
            others = [k for k in range(5) if k != i]
            sets = [(i, *extra) for size in range(5) for extra in itertools.combinations(others, size)]
            assert adjusted[i] == pytest.approx(min(1, max(len(s) * min(p[list(s)]) for s in sets)))


def test_predictions_of_a_sweep_are_understood(tiny_encoder, tiny_images):
    options = {"heads": ["frozen", "retrained"], "seeds": [3, 4], "calibration_size": 60}
    swept = predict(tiny_encoder, tiny_images, ["1->2", "2->4"], **options)
    table = mcnemar(swept)
    assert len(table) == 2 * 2 * 2
    for row in table.itertuples():
        flipped = flips(swept, NAMES, head=row.head, translator=row.translator, plan=row.plan, seed=3)
        assert len(flipped) == row.right_to_wrong
    assert len(class_accuracy(swept, NAMES)) == 2 * 5 * 3


def test_class_delta_shows_plans_by_classes(drawn):
    frame = class_accuracy(drawn, NAMES).query("translator == 'linear'")
    ax = plots.class_delta(frame)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("class", "plan")
    assert [text.get_text() for text in ax.get_xticklabels()] == list(NAMES)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["1->2", "2->3"]
    assert ax.collections[0].get_array().ravel().tolist() == frame["delta"].tolist()
    low, high = ax.collections[0].get_clim()
    assert -low == high == frame["delta"].abs().max()


def test_many_classes_are_drawn_without_numbers():
    frame = pd.DataFrame(
        {"plan": "1->2", "class": [f"class {k:02}" for k in range(30)], "delta": np.linspace(-5, 5, 30)}
    )
    assert plots.class_delta(frame.iloc[:20]).texts
    assert not plots.class_delta(frame, plt.subplots()[1]).texts


def test_confusion_delta_keeps_the_order_of_the_classes(two_seeds):
    names = ("cat", "ant", "bee")
    ax = plots.confusion_delta(confusion(two_seeds, names, plan="1->2"))
    assert [text.get_text() for text in ax.get_yticklabels()] == list(names)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")


def test_a_plan_that_changes_nothing_can_be_drawn(two_seeds):
    plots.confusion_delta(confusion(two_seeds, NAMES, plan="original")).figure.canvas.draw()


def test_flip_counts_shows_both_directions_and_stars():
    frame = pd.DataFrame(
        {
            "translator": ["identity", "linear"],
            "plan": "1->2",
            "right_to_wrong": [30, 4],
            "wrong_to_right": [2, 3],
            "p_holm": [1e-6, 1.0],
        }
    )
    ax = plots.flip_counts(frame)
    assert sorted(bar.get_width() for bar in ax.patches) == [-30, -4, 2, 3]
    stars = [line for line in ax.lines if line.get_marker() == "$*$"]
    assert [line.get_xdata().tolist() for line in stars if len(line.get_xdata())] == [[-30]]


@pytest.mark.parametrize(("found", "shown", "places"), [(0, 0, 8), (3, 3, 8), (11, 11, 16), (40, 16, 16)])
def test_flipped_images_have_both_classes_above_them(found, shown, places):
    pixels = torch.zeros(40, 3, 4, 4, dtype=torch.uint8)
    frame = pd.DataFrame({"image": range(found), "true": "ant", "predicted": "bee"})
    axes = plots.flipped_images(pixels, frame)
    assert axes.size == places
    assert [ax.get_title() for ax in axes.flat if ax.images] == ["ant\n→ bee"] * shown
