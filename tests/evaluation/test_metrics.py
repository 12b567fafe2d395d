"""Accuracies and their intervals, parameters, FLOPs: against formulas, SciPy, the paper and the smaller encoders."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from tiny import FAMILIES, PATCHES

from toastlib import paper
from toastlib.approximation.replace import approximate
from toastlib.errors import InputError
from toastlib.evaluation.costs import plan_costs, removed_parameters
from toastlib.evaluation.metrics import (
    Predictions,
    accuracy_interval,
    accuracy_lost,
    accuracy_table,
    paired_difference,
)
from toastlib.models.costs import flops, parameter_count
from toastlib.models.encoder import Encoder
from toastlib.plan import Plan, parse_plans
from toastlib.statistics.collect import collect_moments

LABELS = np.array([0, 1, 2, 0])


def predictions(*rows: tuple) -> Predictions:
    """From (head, translator, plan, seed, predicted classes of the four images)."""
    variants = pd.DataFrame([row[:4] for row in rows], columns=["head", "translator", "plan", "seed"])
    return Predictions(variants, np.array([row[4] for row in rows]), LABELS)


@pytest.fixture
def four() -> Predictions:
    return predictions(
        ("retrained", "original", "original", 0, [0, 1, 2, 0]),
        ("retrained", "original", "original", 1, [0, 1, 2, 1]),
        ("retrained", "linear", "1->2", 0, [0, 1, 0, 1]),
        ("retrained", "linear", "1->2", 1, [0, 0, 0, 0]),
    )


def test_accuracy_is_the_percentage_of_right_predictions(four):
    table = accuracy_table(four)
    assert table["correct"].tolist() == [4, 3, 2, 2]
    assert table["accuracy"].tolist() == [100.0, 75.0, 50.0, 50.0]
    assert (table["images"] == 4).all()
    assert list(table.columns[:4]) == ["head", "translator", "plan", "seed"]


def test_the_table_gives_the_interval_in_percent(four):
    low, high = accuracy_interval(3, 4)
    row = accuracy_table(four).iloc[1]
    assert (row["accuracy_low"], row["accuracy_high"]) == (100 * low, 100 * high)


def test_each_image_is_right_in_a_share_of_the_seeds(four):
    assert four.mean_correct(plan="original").tolist() == [1.0, 1.0, 1.0, 0.5]
    assert four.mean_correct(plan="1->2", translator="linear").tolist() == [1.0, 0.5, 0.0, 0.5]


def test_a_variant_that_was_not_predicted_is_named(four):
    with pytest.raises(InputError, match=r"^No variant has plan='2->3', translator='linear'\.$"):
        four.mean_correct(plan="2->3", translator="linear")


def test_the_interval_is_wilsons():
    low, high = accuracy_interval(8, 10)
    assert (low, high) == pytest.approx((0.4901625, 0.9433178), abs=1e-7)  # statsmodels, proportion_confint


@pytest.mark.parametrize(("correct", "images"), [(0, 10), (10, 10), (97, 600), (550, 600)])
def test_the_interval_solves_wilsons_equation(correct, images):
    z, share = stats.norm.ppf(0.975), correct / images
    for end in accuracy_interval(correct, images):
        assert (share - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / images, abs=1e-12)


def test_the_paired_difference_is_students():
    draw = np.random.default_rng(0)
    first, second = draw.integers(0, 4, 200) / 3, draw.integers(0, 4, 200) / 3
    difference, low, high = paired_difference(first, second)
    half = stats.t.ppf(0.975, 199) * 100 * (first - second).std(ddof=1) / math.sqrt(200)
    assert difference == pytest.approx(100 * (first.mean() - second.mean()))
    assert (low, high) == pytest.approx((difference - half, difference + half))
    expected = stats.ttest_rel(100 * first, 100 * second).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_a_difference_that_is_the_same_for_every_image_has_no_width():
    assert paired_difference(np.ones(5), np.zeros(5)) == (100.0, 100.0, 100.0)
    assert paired_difference(np.ones(5), np.ones(5)) == (0.0, 0.0, 0.0)


def test_what_a_plan_loses_is_paired_over_images(four):
    lost = accuracy_lost(four)
    assert lost[["head", "translator", "plan"]].to_numpy().tolist() == [["retrained", "linear", "1->2"]]
    expected = paired_difference(np.array([1, 1, 1, 0.5]), np.array([1, 0.5, 0, 0.5]))
    assert tuple(lost[["lost", "lost_low", "lost_high"]].iloc[0]) == expected
    assert lost["lost"].item() == 37.5


def test_each_head_is_held_against_its_own_original():
    lost = accuracy_lost(
        predictions(
            ("retrained", "original", "original", 0, [0, 1, 2, 0]),
            ("retrained", "linear", "1->2", 0, [0, 1, 2, 1]),
            ("frozen", "original", "original", 0, [0, 1, 1, 1]),
            ("frozen", "linear", "1->2", 0, [0, 1, 2, 1]),
        )
    )
    assert lost.set_index("head")["lost"].to_dict() == {"retrained": 25.0, "frozen": -25.0}


@pytest.fixture(scope="module")
def vit_small() -> Encoder:
    """ViT-S/16-224 without weights."""
    import transformers

    config = transformers.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    with torch.device("meta"):
        return Encoder(transformers.ViTModel(config))


def test_the_papers_counting_gives_the_papers_numbers(vit_small):
    table = paper.published(1)
    printed = table[(table["model"] == "vit-s") & (table["plan"] != "original")].drop_duplicates("plan")
    assert len(printed) == 10
    for plan, millions in zip(printed["plan"], printed["params_m"], strict=True):
        ours = -removed_parameters(vit_small, Plan.parse(plan), "block") / 1e6
        assert ours == pytest.approx(float(millions), abs=0.01)  # as far as the paper prints


def test_one_map_per_span_leaves_more_to_remove(vit_small):
    plan = Plan.parse("1->5")
    assert removed_parameters(vit_small, plan, "block") == 6_508_032
    assert removed_parameters(vit_small, plan, "span") == 6_950_400
    assert removed_parameters(vit_small, plan, "span", "identity") == 6_950_400 + 384**2


def test_both_countings_agree_on_single_blocks(vit_small):
    plan = Plan.parse("0->1 4->5")
    assert removed_parameters(vit_small, plan, "block") == removed_parameters(vit_small, plan, "span") == 2 * 1_627_008


def test_another_counting_is_refused(vit_small):
    with pytest.raises(InputError, match="per 'span' or per 'block', not per 'model'"):
        removed_parameters(vit_small, Plan.parse("1->2"), "model")


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_are_those_counted_on_the_smaller_encoder(tiny_model, tiny_images, family):
    encoder = Encoder(tiny_model(family), features="mean" if family == "siglip" else "cls")
    moments = collect_moments(encoder, tiny_images.train[:10])
    inputs = torch.randn(1, 3, 32, 32)
    plans = parse_plans(["original", "1->2", "-1->1 2->4"])
    costs = plan_costs(encoder, plans, ["identity", "linear"], inputs)
    assert costs["translator"].tolist() == ["original", "identity", "linear", "identity", "linear"]
    assert costs["blocks_removed"].tolist() == [0, 1, 1, 4, 4]
    for row in costs.itertuples():
        name = "identity" if row.translator == "original" else row.translator
        small = approximate(encoder, row.plan, name, moments)
        assert row.parameters == parameter_count(small)
        assert row.removed_parameters == parameter_count(encoder) - parameter_count(small)
        assert row.gflops == flops(small, inputs) / 1e9 > 0


def test_flops_are_those_of_the_formula(tiny_encoder, pixel_values):
    config, tokens = tiny_encoder.model.config, PATCHES + 1
    width, inner = config.hidden_size, config.intermediate_size
    projections, attention, mlp = 4 * tokens * width**2, 2 * tokens**2 * width, 2 * tokens * width * inner
    embedding = PATCHES * width * 3 * config.patch_size**2
    blocks, pooler = len(tiny_encoder.blocks) * (projections + attention + mlp), width**2
    per_image = 2 * (embedding + blocks + pooler)
    assert flops(tiny_encoder, pixel_values) == len(pixel_values) * per_image
    assert next(tiny_encoder.parameters()).device.type == "cpu"  # counting leaves the weights where they are


def test_flops_grow_with_the_batch(tiny_encoder, pixel_values):
    assert flops(tiny_encoder, pixel_values) == 3 * flops(tiny_encoder, pixel_values[:1])


class TwoLayers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8, bias=False) for _ in range(2))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.layers[1](self.layers[0](hidden))


def test_a_multiplication_and_its_addition_are_two_flops():
    assert flops(Encoder(TwoLayers(), blocks="layers"), torch.randn(5, 8)) == 2 * (2 * 5 * 8 * 8)
