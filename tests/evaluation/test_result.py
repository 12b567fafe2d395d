"""Tables, differences, classes, confusions, flips and tests of an evaluation: counted by hand, and by scikit-learn."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import recall_score

from toastlib.errors import InputError
from toastlib.evaluation.evaluate import evaluate_plans
from toastlib.evaluation.metrics import accuracy_interval, holm, paired_difference
from toastlib.evaluation.probe import HeadConfig
from toastlib.evaluation.result import ALL_PLANS, Evaluation

NAMES = ("ant", "bee", "cat")
LABELS = np.array([0, 0, 1, 1, 1, 2])
FOUR = np.array([0, 1, 2, 0])


def evaluation(*rows: tuple) -> Evaluation:
    """From (head, translator, plan, seed, predicted classes of the four images)."""
    variants = pd.DataFrame([row[:4] for row in rows], columns=["head", "translator", "plan", "seed"])
    return Evaluation(variants, np.array([row[4] for row in rows]), FOUR, NAMES)


@pytest.fixture
def four() -> Evaluation:
    return evaluation(
        ("retrained", "original", "original", 0, [0, 1, 2, 0]),
        ("retrained", "original", "original", 1, [0, 1, 2, 1]),
        ("retrained", "linear", "1->2", 0, [0, 1, 0, 1]),
        ("retrained", "linear", "1->2", 1, [0, 0, 0, 0]),
    )


@pytest.fixture
def two_seeds() -> Evaluation:
    rows = [
        ("frozen", "original", "original", 0, [0, 0, 1, 1, 0, 2]),
        ("frozen", "original", "original", 1, [0, 1, 1, 1, 1, 2]),
        ("frozen", "linear", "1->2", 0, [0, 2, 1, 0, 1, 2]),
        ("frozen", "linear", "1->2", 1, [0, 0, 1, 1, 1, 0]),
    ]
    variants = pd.DataFrame([row[:4] for row in rows], columns=["head", "translator", "plan", "seed"])
    return Evaluation(variants, np.array([row[4] for row in rows]), LABELS, NAMES)


@pytest.fixture
def drawn() -> Evaluation:
    """Two plans, two translators, three heads on 300 images of which the original gets about 80 % right."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 300)
    kinds = [("original", "original"), *itertools.product(("identity", "linear"), ("1->2", "2->3"))]
    rows = [("frozen", *kind, seed) for kind in kinds for seed in range(3)]
    predicted = np.where(draw.random((len(rows), 300)) < 0.8, labels, draw.integers(0, 3, (len(rows), 300)))
    return Evaluation(pd.DataFrame(rows, columns=["head", "translator", "plan", "seed"]), predicted, labels, NAMES)


def test_accuracy_is_the_percentage_of_right_evaluation(four):
    table = four.table
    assert table["correct"].tolist() == [4, 3, 2, 2]
    assert table["accuracy"].tolist() == [100.0, 75.0, 50.0, 50.0]
    assert (table["images"] == 4).all()
    assert list(table.columns[:4]) == ["head", "translator", "plan", "seed"]


def test_the_table_gives_the_interval_in_percent(four):
    low, high = accuracy_interval(3, 4)
    row = four.table.iloc[1]
    assert (row["accuracy_low"], row["accuracy_high"]) == (100 * low, 100 * high)


def test_each_head_loses_points_against_the_original_with_the_same_head(four):
    table = four.table
    assert table["lost"].tolist() == [0, 0, 50, 25]
    assert table.loc[:1, ["lost_low", "lost_high"]].eq(0).all(axis=None)
    for row, difference in ((2, [0, 0, 100, 100]), (3, [0, 100, 100, -100])):
        ends = stats.t.interval(0.95, 3, np.mean(difference), stats.sem(difference))
        np.testing.assert_allclose(table.loc[row, ["lost_low", "lost_high"]].astype(float), ends)


def test_each_image_is_right_in_a_share_of_the_seeds(four):
    assert four.mean_correct(plan="original").tolist() == [1.0, 1.0, 1.0, 0.5]
    assert four.mean_correct(plan="1->2", translator="linear").tolist() == [1.0, 0.5, 0.0, 0.5]


def test_a_mean_of_a_variant_that_was_not_predicted_is_named(four):
    with pytest.raises(InputError, match=r"^No variant has plan='2->3', translator='linear'\.$"):
        four.mean_correct(plan="2->3", translator="linear")


def test_the_predicted_classes_of_the_chosen_variants(four):
    assert four.predicted(plan="1->2", seed=1).tolist() == [[0, 0, 0, 0]]
    assert four.predicted(plan="original").tolist() == [[0, 1, 2, 0], [0, 1, 2, 1]]


@pytest.mark.parametrize("which", [{"plans": "1->2"}, {"calibration": "mnist"}])
def test_a_column_that_variants_lack_is_named(four, which):
    message = f"Variants have no '{next(iter(which))}': choose by head, translator, plan, seed."
    for method in (four.mean_correct, four.predicted, four.confusion, four.flips):
        with pytest.raises(InputError) as error:
            method(**which)
        assert str(error.value) == message


def test_a_column_that_is_not_named_is_averaged_over(four):
    assert four.mean_correct(head="retrained").tolist() == [1.0, 0.75, 0.5, 0.5]
    assert four.mean_correct().tolist() == [1.0, 0.75, 0.5, 0.5]
    assert four.mean_correct(seed=1).tolist() == [1.0, 0.5, 0.5, 0.5]


def test_what_a_plan_loses_is_paired_over_images(four):
    lost = four.lost
    assert lost[["head", "translator", "plan"]].to_numpy().tolist() == [["retrained", "linear", "1->2"]]
    expected = paired_difference(np.array([1, 1, 1, 0.5]), np.array([1, 0.5, 0, 0.5]))
    assert tuple(lost[["lost", "lost_low", "lost_high"]].iloc[0]) == expected
    assert lost["lost"].item() == 37.5


def test_each_head_is_held_against_its_own_original():
    both = evaluation(
        ("retrained", "original", "original", 0, [0, 1, 2, 0]),
        ("retrained", "linear", "1->2", 0, [0, 1, 2, 1]),
        ("frozen", "original", "original", 0, [0, 1, 1, 1]),
        ("frozen", "linear", "1->2", 0, [0, 1, 2, 1]),
    )
    assert both.lost.set_index("head")["lost"].to_dict() == {"retrained": 25.0, "frozen": -25.0}


GAIN = ["gain", "gain_low", "gain_high"]


def test_pooled_losses_count_each_image_with_its_mean_over_plans_and_seeds(drawn):
    pooled = drawn.pooled.set_index("translator")
    assert list(pooled) == ["head", "plan", "lost", "lost_low", "lost_high"]
    assert list(pooled.index) == ["identity", "linear"]
    assert set(pooled["plan"]) == {ALL_PLANS}
    original = drawn.correct[(drawn.variants["plan"] == "original").to_numpy()].mean(0)
    for translator, row in pooled.iterrows():
        own = drawn.correct[(drawn.variants["translator"] == translator).to_numpy()]
        assert len(own) == 2 * 3
        expected = paired_difference(original, own.mean(0))
        assert tuple(row[["lost", "lost_low", "lost_high"]]) == pytest.approx(expected, rel=1e-12)
        assert row["lost"] == pytest.approx(drawn.lost.query("translator == @translator")["lost"].mean())


@pytest.mark.parametrize("pooled", [True, False])
def test_a_gain_over_the_original_is_a_loss_turned_around(drawn, pooled):
    gain, lost = drawn.gain(pooled=pooled, translator="original"), drawn.pooled if pooled else drawn.lost
    assert (gain["gain"] == -lost["lost"]).all()
    assert (gain["gain_low"] == -lost["lost_high"]).all()
    assert (gain["gain_high"] == -lost["lost_low"]).all()


def test_a_gain_over_a_translator_is_paired_on_the_same_plan(drawn):
    gain = drawn.gain(pooled=False, translator="linear")
    assert gain[["head", "translator", "plan"]].to_numpy().tolist() == [
        ["frozen", "identity", "1->2"],
        ["frozen", "identity", "2->3"],
    ]
    for row in gain.itertuples():
        first, second = (drawn.mean_correct(translator=name, plan=row.plan) for name in ("identity", "linear"))
        assert (row.gain, row.gain_low, row.gain_high) == paired_difference(first, second)
    pooled = drawn.gain(translator="linear")
    first, second = (drawn.mean_correct(translator=name) for name in ("identity", "linear"))
    assert pooled[["translator", "plan"]].to_numpy().tolist() == [["identity", ALL_PLANS]]
    assert tuple(pooled[GAIN].iloc[0]) == paired_difference(first, second)


def test_each_head_gains_over_its_own_reference():
    both = evaluation(
        ("retrained", "original", "original", 0, [0, 1, 2, 0]),
        ("retrained", "identity", "1->2", 0, [0, 1, 1, 1]),
        ("retrained", "linear", "1->2", 0, [0, 1, 2, 1]),
        ("frozen", "original", "original", 0, [0, 1, 1, 1]),
        ("frozen", "identity", "1->2", 0, [0, 1, 2, 0]),
        ("frozen", "linear", "1->2", 0, [0, 1, 2, 1]),
    )
    gain = both.gain(translator="identity")
    assert gain[["head", "translator", "gain"]].to_numpy().tolist() == [
        ["retrained", "linear", 25.0],
        ["frozen", "linear", -25.0],
    ]


@pytest.mark.parametrize("pooled", [True, False])
def test_adjusted_intervals_are_bonferronis(drawn, pooled):
    plain, adjusted = (drawn.gain(pooled=pooled, adjust=adjust, translator="original") for adjust in (False, True))
    rivals = len(plain)
    assert rivals == (2 if pooled else 4)
    assert (plain["gain"] == adjusted["gain"]).all()
    original = drawn.mean_correct(plan="original")
    for row in adjusted.itertuples():
        which = {"translator": row.translator} | ({} if pooled else {"plan": row.plan})
        difference = 100 * (drawn.mean_correct(**which) - original)
        half = stats.t.ppf(1 - 0.025 / rivals, 299) * stats.sem(difference)
        assert (row.gain_low, row.gain_high) == pytest.approx((row.gain - half, row.gain + half))
    wider = adjusted["gain_high"] - adjusted["gain_low"] - plain["gain_high"] + plain["gain_low"]
    assert (wider > 0).all()


def test_intervals_are_adjusted_for_the_rows_of_one_head(drawn):
    rows = drawn.variants.assign(head="retrained")
    both = replace(
        drawn,
        variants=pd.concat([drawn.variants, rows], ignore_index=True),
        predictions=np.vstack([drawn.predictions, drawn.predictions]),
    )
    alone, together = (one.gain(pooled=False, adjust=True, translator="original") for one in (drawn, both))
    pd.testing.assert_frame_equal(alone, together[together["head"] == "frozen"])
    one = drawn.gain(adjust=True, translator="linear")  # a single row, for which nothing is adjusted
    pd.testing.assert_frame_equal(one, drawn.gain(translator="linear"))


def test_a_reference_without_rivals_gives_an_empty_table(two_seeds):
    for pooled in (True, False):
        gain = two_seeds.gain(pooled=pooled, adjust=True, translator="linear")
        assert gain.empty
        assert list(gain) == ["head", "translator", "plan", *GAIN]


def test_a_reference_that_was_not_evaluated_is_named(drawn):
    with pytest.raises(InputError, match=r"No variant has .*translator='ridge'"):
        drawn.gain(translator="ridge")


def test_a_gain_without_a_reference_is_refused(drawn):
    with pytest.raises(InputError, match="needs a reference"):
        drawn.gain()


def test_the_original_alone_has_empty_tables(two_seeds):
    alone = replace(two_seeds, variants=two_seeds.variants[:2], predictions=two_seeds.predictions[:2])
    for table in (alone.lost, alone.pooled):
        assert table.empty
        assert list(table) == ["head", "translator", "plan", "lost", "lost_low", "lost_high"]


def test_no_zero_is_negative():
    same = evaluation(
        ("frozen", "original", "original", 0, [0, 1, 1, 0]),
        ("frozen", "linear", "1->2", 0, [0, 1, 0, 0]),  # another wrong class: nothing is lost
    )
    zeros = [same.lost, same.pooled, same.gain(translator="original"), same.by_class]
    zeros = [table.filter(regex="^(lost|gain|delta)").to_numpy() for table in zeros]
    assert all((values == 0).all() and not np.signbit(values).any() for values in zeros)


def test_selected_classes_keep_every_prediction_of_their_images(drawn):
    parts = [drawn.select_classes(classes) for classes in ([0], [1, 2])]
    assert [len(part.labels) for part in parts] == [int((drawn.labels == 0).sum()), int((drawn.labels > 0).sum())]
    assert (sum(part.table["correct"] for part in parts) == drawn.table["correct"]).all()
    assert np.array_equal(parts[0].predictions, drawn.predictions[:, drawn.labels == 0])
    assert set(parts[0].by_class["class"]) == {"ant"}
    whole, part = (one.by_class.query("`class` == 'ant'").reset_index(drop=True) for one in (drawn, parts[0]))
    pd.testing.assert_frame_equal(whole, part)


def test_every_row_of_the_table_has_names_and_the_costs_of_its_plan(four):
    costs = pd.DataFrame(
        {"translator": ["linear", "original"], "plan": ["1->2", "original"], "parameters": [7, 9], "gflops": [0.5, 1.0]}
    )
    named = replace(four, names={"model": "tiny", "dataset": "fours"}, costs=costs).table
    assert list(named)[:3] == ["model", "dataset", "head"]
    assert named["parameters"].tolist() == [9, 9, 7, 7]
    assert named["gflops"].tolist() == [1.0, 1.0, 0.5, 0.5]
    assert named["correct"].tolist() == four.table["correct"].tolist()


def test_class_accuracy_is_counted_by_hand(two_seeds):
    table = two_seeds.by_class.set_index(["plan", "class"])
    assert table["images"].tolist() == [2, 3, 1] * 2
    assert table["accuracy"].tolist() == pytest.approx([75, 500 / 6, 100, 75, 500 / 6, 50])
    assert table.loc["1->2", "delta"].tolist() == pytest.approx([0, 0, -50])
    assert (table.loc["original", ["delta", "delta_low", "delta_high"]] == 0).all(axis=None)


def test_class_accuracy_is_recall(drawn):
    table = drawn.by_class
    for (translator, plan), frame in table.groupby(["translator", "plan"]):
        rows = (drawn.variants["translator"] == translator) & (drawn.variants["plan"] == plan)
        recalls = [recall_score(drawn.labels, p, average=None) for p in drawn.predictions[rows]]
        assert frame["accuracy"].to_numpy() == pytest.approx(100 * np.mean(recalls, axis=0))


def test_the_losses_of_the_classes_add_up_to_the_whole(drawn):
    table = drawn.by_class
    total = (table["delta"] * table["images"] / 300).groupby([table["translator"], table["plan"]]).sum()
    lost = drawn.lost.set_index(["translator", "plan"])["lost"]
    assert (total[lost.index] + lost).abs().max() < 1e-9


def test_a_class_without_test_images_is_left_out(two_seeds):
    table = replace(two_seeds, class_names=(*NAMES, "dog")).by_class
    assert set(table["class"]) == set(NAMES)


def test_confusion_is_counted_by_hand(two_seeds):
    cells = two_seeds.confusion(plan="1->2").set_index(["true", "predicted"])
    assert cells.loc["ant", "original"].tolist() == pytest.approx([75, 25, 0])
    assert cells.loc["ant", "approximated"].tolist() == pytest.approx([75, 0, 25])
    assert cells.loc["cat", "delta"].tolist() == pytest.approx([50, 0, -50])


def test_the_diagonal_of_the_confusion_is_class_accuracy(drawn):
    cells = drawn.confusion(translator="identity", plan="2->3")
    diagonal = cells[cells["true"] == cells["predicted"]]
    table = drawn.by_class.query("translator == 'identity' and plan == '2->3'")
    assert diagonal["approximated"].to_numpy() == pytest.approx(table["accuracy"].to_numpy())
    assert diagonal["delta"].to_numpy() == pytest.approx(table["delta"].to_numpy())
    assert cells.groupby("true")["approximated"].sum().to_numpy() == pytest.approx([100] * 3)


def test_a_class_without_test_images_has_a_row_of_zeros(two_seeds):
    cells = replace(two_seeds, class_names=(*NAMES, "dog")).confusion(plan="1->2").set_index(["true", "predicted"])
    assert (cells.loc["dog"] == 0).all(axis=None)


def test_flips_are_the_images_that_turn_wrong(two_seeds):
    assert two_seeds.flips(plan="1->2").to_numpy().tolist() == [
        [0, 1, "ant", "cat"],
        [0, 3, "bee", "ant"],
        [1, 5, "cat", "ant"],
    ]
    assert two_seeds.flips(plan="1->2", seed=1)["image"].tolist() == [5]
    assert two_seeds.flips(plan="original").empty


def test_a_variant_that_was_not_predicted_is_named(two_seeds):
    with pytest.raises(InputError, match=r"^No variant has plan='2->3'\.$"):
        two_seeds.flips(plan="2->3")


def test_one_variant_at_a_time(drawn):
    with pytest.raises(InputError, match="2 variants are of that kind: name head, translator, plan"):
        drawn.confusion(plan="1->2")


def turned(right_to_wrong: int, wrong_to_right: int, both: int = 5) -> Evaluation:
    """One plan that turns so many images, and `both` that are right before and after; the label is always 0."""
    before = [0] * right_to_wrong + [1] * wrong_to_right + [0] * both
    after = [1] * right_to_wrong + [0] * wrong_to_right + [0] * both
    variants = pd.DataFrame(
        [("frozen", "original", "original", 0), ("frozen", "linear", "1->2", 0)],
        columns=["head", "translator", "plan", "seed"],
    )
    return Evaluation(variants, np.array([before, after]), np.zeros(len(before), dtype=int))


@pytest.mark.parametrize(("lost", "won"), [(6, 1), (1, 6), (10, 0), (4, 4), (23, 9)])
def test_mcnemar_is_a_fair_coin(lost, won):
    row = turned(lost, won).mcnemar().iloc[0]
    assert (row["right_to_wrong"], row["wrong_to_right"]) == (lost, won)
    tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1)) / 2 ** (lost + won)
    assert row["p"] == pytest.approx(min(1, 2 * tail))


def test_without_flips_nothing_is_shown():
    assert turned(0, 0).mcnemar()["p"].tolist() == [1.0]


def test_mcnemar_takes_one_head(two_seeds):
    assert two_seeds.mcnemar()[["right_to_wrong", "wrong_to_right"]].to_numpy().tolist() == [[2, 1]]
    assert two_seeds.mcnemar(seed=1)[["right_to_wrong", "wrong_to_right"]].to_numpy().tolist() == [[1, 1]]


def test_each_translator_is_corrected_by_itself(drawn):
    table = drawn.mcnemar()
    assert len(table) == 4
    for _, frame in table.groupby("translator"):
        assert frame["p_holm"].to_numpy() == pytest.approx(holm(frame["p"].to_numpy()))


def test_evaluated_plans_have_flips_tests_and_classes(tiny_encoder, tiny_images):
    head = HeadConfig(["frozen", "retrained"], seeds=[3, 4], min_steps=0)
    swept = evaluate_plans(tiny_encoder, tiny_images, ["1->2", "2->4"], calibration=60, head=head)
    table = swept.mcnemar()
    assert len(table) == 2 * 2 * 2
    for row in table.itertuples():
        flipped = swept.flips(head=row.head, translator=row.translator, plan=row.plan, seed=3)
        assert len(flipped) == row.right_to_wrong
    assert len(swept.by_class) == 2 * 5 * 3


def test_a_result_is_printed_in_one_line(tiny_encoder, tiny_images):
    head = HeadConfig(("frozen", "retrained"), 3, min_steps=1, epochs=1)
    result = evaluate_plans(tiny_encoder, tiny_images, ["1->3", "2->4"], calibration=20, head=head)
    assert repr(result) == (
        f"Evaluation({tiny_encoder.name} on tiny; heads: 2, translators: 2, plans: 2, seeds: 3, test images: "
        f"{len(tiny_images.test)})"
    )
