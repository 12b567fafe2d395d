"""The paper's numbers and plans, and ours beside them."""

import math

import pandas as pd
import pytest

from toastlib import paper
from toastlib.errors import InputError
from toastlib.plan import Plan, Span


def test_every_accuracy_that_the_paper_prints_is_there():
    table = paper.published()
    assert len(table) == 1332
    assert table["accuracy"].between(0, 100).all()


def test_a_table_is_named_by_number_or_text():
    assert len(paper.published(8)) == len(paper.published("8")) == 120
    assert set(paper.published(8)["model"]) == {"vit-s"}


def test_a_table_without_accuracies_is_refused():
    with pytest.raises(InputError, match="Unknown table '6'"):
        paper.published(6)


def test_published_numbers_cannot_be_spoilt_by_a_reader():
    table = paper.published()
    table.loc[:, "accuracy"] = 0.0
    assert paper.published()["accuracy"].max() > 90


def test_a_number_is_what_table_8_prints():
    rows = paper.published(8).set_index(["plan", "dataset"])
    assert rows.loc[("1->5", "mnist"), "accuracy"] == 92.28
    assert rows.loc[("1->5", "mnist"), "params_m"] == "15.31"


@pytest.mark.parametrize(("block_count", "count"), [(12, 20), (24, 34)])
def test_the_plan_lists_of_the_paper_are_complete_and_fit(block_count, count):
    plans = paper.plan_list(block_count)
    assert len(set(plans)) == len(plans) == count
    assert all(plan and plan.check(block_count) for plan in plans)


def test_the_list_for_12_blocks_holds_every_single_block_that_the_paper_removes():
    singles = {plan.spans[0] for plan in paper.plan_list(12) if len(plan.removed) == 1}
    assert singles == {Span(block, block + 1) for block in range(11)}


def test_another_depth_gets_single_blocks_and_the_longer_plans_that_fit():
    plans = paper.plan_list(6)
    assert {str(plan) for plan in plans if len(plan.removed) == 1} == {"0->1", "1->2", "2->3", "3->4", "4->5"}
    longer = [plan for plan in plans if len(plan.removed) > 1]
    assert longer == [p for p in paper.plan_list(12) if len(p.removed) > 1 and max(p.removed) < 6]
    assert Plan.parse("1->5") in longer


def test_table_plans_keep_the_order_of_the_table():
    assert [str(plan) for plan in paper.table_plans(4)] == list(
        dict.fromkeys(plan for plan in paper.published(4)["plan"] if plan != "original")
    )


@pytest.mark.parametrize(
    ("text", "plans"),
    [
        ("paper", paper.plan_list(12)),
        (" paper ", paper.plan_list(12)),
        ("table 4", paper.table_plans(4)),
        ("table4", paper.table_plans(4)),
        ("1->5, 4->5 1->2", [Plan.parse("1->5"), Plan.parse("1->2 4->5")]),
        ("1->5,original,1->5,", [Plan.parse("1->5")]),
    ],
)
def test_a_parameter_may_name_plans_in_three_ways(text, plans):
    assert paper.read_plans(text, 12) == plans


def test_plans_of_a_table_that_do_not_fit_are_left_out():
    plans = paper.read_plans("table 13", 12)
    assert plans == [plan for plan in paper.table_plans(13) if max(plan.removed) < 12]
    assert 0 < len(plans) < 34


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1->5, 5->2", "runs backwards"),
        ("10->12", "Span 10->12 leaves the model: it has 12 blocks, so the last is 11."),
        ("table 6", "Unknown table '6'"),
        ("original", "'original' names no plan for a model of 12 blocks"),
    ],
)
def test_a_plan_written_out_must_fit(text, says):
    with pytest.raises(InputError) as error:
        paper.read_plans(text, 12)
    assert says in str(error.value)


def ours(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["model", "dataset", "head", "translator", "plan", "seed", "accuracy"])


def test_comparison_lays_the_mean_over_seeds_beside_the_published_number():
    frame = ours(
        ("vit-s", "mnist", "retrained", "linear", "1->5", 0, 91.0),
        ("vit-s", "mnist", "retrained", "linear", "1->5", 1, 93.0),
        ("vit-s", "mnist", "retrained", "linear", "2->5", 0, 95.0),
    )
    both = paper.compare_with_paper(frame)
    expected = pd.DataFrame(
        {
            "plan": ["1->5", "2->5"],
            "ours": [92.0, 95.0],
            "ours_std": [math.sqrt(2), math.nan],
            "theirs": [92.28, 94.76],
            "difference": [92.0 - 92.28, 95.0 - 94.76],
            "table": ["8", "8"],
        }
    )
    pd.testing.assert_frame_equal(both[list(expected)], expected, check_dtype=False)


def test_settings_that_the_paper_does_not_print_are_left_out():
    assert paper.compare_with_paper(ours(("vit-mini", "digits", "retrained", "linear", "1->5", 0, 90.0))).empty


def test_comparison_can_be_held_to_one_table():
    row = ("vit-s", "cifar10", "retrained", "linear", "1->5", 0, 80.0)
    assert paper.compare_with_paper(ours(row), table=8)["table"].tolist() == ["8"]
    assert paper.compare_with_paper(ours(row), table=9).empty


def test_comparison_never_compares_with_maps_fitted_on_another_data_set():
    published = paper.published(14)
    row = published[(published["dataset"] == "cifar10") & (published["source"] == "cifar10")].iloc[0]
    frame = ours(("vit-s", "cifar10", "frozen", "linear", row["plan"], 0, 50.0))
    assert paper.compare_with_paper(frame)["theirs"].tolist() == [row["accuracy"]]


def test_comparison_knows_the_original_and_the_dropped_blocks():
    frame = ours(
        ("vit-s", "mnist", "retrained", "original", "original", 0, 97.0),
        ("vit-s", "mnist", "retrained", "identity", "1->2", 0, 96.0),
    )
    assert paper.compare_with_paper(frame)["theirs"].notna().all()


def test_imagenet_of_the_text_and_of_the_code_stand_beside_the_same_number_under_their_own_names():
    row = ("retrained", "linear", "9->11", 0, 50.0)
    both = paper.compare_with_paper(ours(("vit-s", "imagenet-1k", *row), ("vit-s", "imagenet-1k-val", *row)), table=1)
    assert both["dataset"].tolist() == ["imagenet-1k", "imagenet-1k-val"]
    assert both["theirs"].tolist() == [47.23, 47.23]
    assert set(paper.published()["dataset"]).isdisjoint({"imagenet-1k-val"})


@pytest.mark.parametrize("source", ["mnist", "cifar10", "cifar100-fine"])
def test_comparison_matches_the_source_where_ours_has_one(source):
    frame = ours(("vit-s", "cifar10", "frozen", "linear", "3->5", 0, 50.0)).assign(calibration=source)
    theirs = {"mnist": 15.17, "cifar10": 93.57, "cifar100-fine": 92.77}[source]  # Table 14
    assert paper.compare_with_paper(frame, table=14)[["calibration", "theirs"]].to_numpy().tolist() == [
        [source, theirs]
    ]


def test_comparison_keeps_sources_apart():
    row = ("vit-s", "cifar10", "frozen", "linear", "3->5", 0, 50.0)
    frame = pd.concat([ours(row).assign(calibration="mnist"), ours(row).assign(calibration="digits", accuracy=10.0)])
    both = paper.compare_with_paper(frame).set_index("calibration")
    assert both["ours"].to_dict() == {"mnist": 50.0}


def test_the_original_has_no_source_in_either_table():
    frame = ours(("vit-s", "mnist", "retrained", "original", "original", 0, 97.0)).assign(calibration="")
    assert paper.compare_with_paper(frame)["theirs"].notna().all()
