"""The best plan by its predicted cost, against all plans there are; and nothing but moments goes in."""

import inspect
import random
from collections import Counter
from itertools import combinations
from math import comb
from typing import get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from toastlib.errors import InputError
from toastlib.moments import FoldedMoments, collect_folds, collect_moments, plan_pairs
from toastlib.plan import Plan, Span, all_spans
from toastlib.selection import (
    PREDICTORS,
    best_plan,
    distance_to_best,
    every_plan,
    plan_of,
    random_like,
    random_plans,
    rank_correlation,
    select,
    span_costs,
)
from toastlib.similarities import cka, cosine, mse


def random_costs(block_count: int, seed: int) -> dict[Span, float]:
    draw = random.Random(seed)
    return {span: draw.random() * len(span.blocks) ** draw.choice([0.5, 1, 2]) for span in all_spans(block_count)}


def cost_of(plan: Plan, costs: dict[Span, float]) -> float:
    return sum(costs[span] for span in plan)


@pytest.mark.parametrize("block_count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(5))
def test_the_chosen_plan_is_the_best_of_all(block_count, seed):
    costs = random_costs(block_count, seed)
    for remove in range(block_count + 1):
        chosen = best_plan(costs, remove)
        plans = [plan_of(blocks) for blocks in combinations(range(block_count), remove)]
        assert len(chosen.removed) == remove
        assert cost_of(chosen, costs) == pytest.approx(min(cost_of(plan, costs) for plan in plans))
        assert chosen == plan_of(chosen.removed)  # no two of its spans touch


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_removes_as_many_blocks_as_it_allows(seed):
    costs = random_costs(6, seed)
    cheapest = [cost_of(best_plan(costs, k), costs) for k in range(7)]
    for budget in (0, 0.3, 1, 3, 100):
        chosen = best_plan(costs, budget=budget)
        assert cost_of(chosen, costs) <= budget
        assert len(chosen.removed) == max(k for k in range(7) if cheapest[k] <= budget)


def test_neighbours_are_one_span():
    assert str(plan_of([7, 3, 2])) == "1->3 6->7"
    assert plan_of([]) == Plan()
    assert plan_of(range(4)) == Plan((Span(-1, 3),))


@pytest.fixture
def folds(tiny_encoder, tiny_images):
    return collect_folds(tiny_encoder, tiny_images.train[:40])


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_every_predictor_gives_every_span_a_cost(folds, predictor):
    costs = span_costs(folds, predictor)
    assert set(costs) == set(all_spans(6))
    assert all(cost > 0 for cost in costs.values())
    assert select(folds, remove=2, predictor=predictor) == best_plan(costs, 2)


def test_similarities_are_those_of_the_plain_moments(tiny_encoder, tiny_images, folds):
    moments = collect_moments(tiny_encoder, tiny_images.train[:40])
    for name, measure in (("mse", mse), ("cosine", cosine), ("cka", cka)):
        matrix, costs = measure(moments), span_costs(folds, name)
        for (start, end), cost in costs.items():
            value = matrix[start + 1, end + 1].item()
            assert cost == pytest.approx(value if name == "mse" else 1 - value, rel=1e-3, abs=1e-6)


def test_a_fit_leaves_less_of_what_it_was_fitted_on_than_of_what_was_held_out(folds):
    fit, held_out = span_costs(folds, "fit"), span_costs(folds, "held-out")
    assert all(fit[span] < held_out[span] for span in fit)


def test_a_block_that_does_nothing_goes_first(tiny_encoder, tiny_images):
    with torch.no_grad():
        for name, parameter in tiny_encoder.blocks[3].named_parameters():
            if "o_proj" in name or "fc2" in name or "output.dense" in name:
                parameter.zero_()
    folds = collect_folds(tiny_encoder, tiny_images.train[:40])
    for predictor in PREDICTORS:
        assert str(select(folds, remove=1, predictor=predictor)) == "2->3"


def test_a_choice_cannot_see_labels():
    """Nothing but moments goes in, and moments are sums and means over the outputs of blocks."""
    assert list(inspect.signature(select).parameters) == ["moments", "remove", "budget", "predictor"]
    assert get_type_hints(select)["moments"] is FoldedMoments
    assert set(get_type_hints(FoldedMoments)) == {"parts", "special_tokens", "activations", "means"}


def test_the_choice_is_the_same_whatever_the_labels(tiny_encoder, tiny_images):
    images = tiny_images.train[:20]
    bare = type(images)(images.pixels, None, images.class_names, images.preprocessing)
    assert span_costs(collect_folds(tiny_encoder, images)) == span_costs(collect_folds(tiny_encoder, bare))


def test_random_plans_are_different_and_of_the_size_asked_for():
    plans = random_plans(12, remove=4, n=100)
    assert len(set(plans)) == 100
    assert all(len(plan.removed) == 4 and plan == plan_of(plan.removed) for plan in plans)
    assert plans == random_plans(12, remove=4, n=100, seed=0) != random_plans(12, remove=4, n=100, seed=1)
    assert len(set(random_plans(6, remove=3, n=comb(6, 3)))) == 20


def test_every_plan_is_as_likely_as_any_other():
    counts = Counter(random_plans(5, remove=2, n=1, seed=seed)[0] for seed in range(5000))
    assert len(counts) == 10
    assert all(400 < count < 600 for count in counts.values())  # 500 with a deviation of 21


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either how many blocks to remove or the budget"),
        ({"remove": 1, "budget": 1.0}, "either how many blocks to remove or the budget"),
        ({"remove": 7}, "7 blocks cannot be removed: the model has 6"),
        ({"remove": 1, "predictor": "mes"}, "Unknown predictor 'mes': did you mean 'mse'"),
    ],
)
def test_what_cannot_be_chosen_is_refused(folds, options, says):
    with pytest.raises(InputError, match=says):
        select(folds, **options)


def test_moments_of_the_wrong_kind_are_refused(tiny_encoder, tiny_images):
    images = tiny_images.train[:10]
    with pytest.raises(InputError, match="pass the moments of collect_folds"):
        select(collect_moments(tiny_encoder, images), remove=1)
    with pytest.raises(InputError, match="do not hold the blocks"):
        select(collect_folds(tiny_encoder, images, plan_pairs([Plan.parse("1->2 3->5")])), remove=1)


def test_more_plans_than_there_are_are_refused():
    with pytest.raises(InputError, match="16 plans were asked for: 15 remove 2 of 6 blocks"):
        random_plans(6, remove=2, n=16)


def test_every_plan_is_listed_once():
    plans = every_plan(6, remove=3)
    assert set(plans) == set(random_plans(6, remove=3, n=20))
    assert len(plans) == 20
    assert every_plan(6, remove=0) == [Plan()]


@pytest.mark.parametrize("bias", [False, True])
def test_a_random_map_has_the_scale_of_the_fitted_one_and_nothing_else(bias):
    torch.manual_seed(0)
    fitted = nn.Linear(8, 8, bias=bias)
    eye = torch.eye(8)
    random_map, near_identity = random_like(fitted), random_like(fitted, around="identity")

    def values(weight):
        return torch.linalg.svdvals(weight.detach())

    assert torch.allclose(values(random_map.weight), values(fitted.weight), atol=1e-5)
    assert torch.allclose(values(near_identity.weight - eye), values(fitted.weight - eye), atol=1e-5)
    assert not torch.allclose(random_map.weight, random_like(fitted, seed=1).weight, atol=0.01)
    assert torch.equal(random_map.weight, random_like(fitted, seed=0).weight)
    assert (random_map.bias is None) if not bias else torch.equal(random_map.bias, fitted.bias)


def test_random_directions_favour_none():
    """Each entry of a random rotation has mean 0 and variance 1 / width."""
    entries = torch.stack(
        [random_like(nn.Linear(4, 4).requires_grad_(False), seed=seed).weight for seed in range(2000)]
    )
    assert entries.mean(0).abs().max() < 0.03
    spread = entries.var(0)
    assert spread.max() / spread.min() < 1.3


@pytest.fixture
def measured() -> pd.DataFrame:
    """300 images, 6 plans of falling accuracy."""
    draw = np.random.default_rng(0)
    return pd.DataFrame({f"plan {k}": draw.random(300) < 0.95 - 0.1 * k for k in range(6)}).astype(float)


def test_the_rank_correlation_is_spearmans_and_lies_in_its_interval(measured):
    predicted = pd.Series([0.2, 0.1, 0.4, 0.3, 0.9, 0.5], index=measured.columns)
    correlation, low, high = rank_correlation(predicted, measured)
    assert correlation == pytest.approx(spearmanr(predicted, 1 - measured.mean()).statistic)
    assert low <= correlation <= high <= 1
    turned, _, _ = rank_correlation(-predicted, measured)
    assert turned == pytest.approx(-correlation)
    shuffled = predicted.sample(frac=1, random_state=0)  # plans are found by name
    assert rank_correlation(shuffled, measured)[0] == pytest.approx(correlation)


def test_plans_that_are_all_alike_have_no_rank_correlation():
    alike = pd.DataFrame({name: [0.0, 1.0, 1.0] for name in "abc"})
    assert rank_correlation(pd.Series({"a": 1.0, "b": 2.0, "c": 3.0}), alike) == (0, 0, 0)


def test_the_distance_to_the_best_plan_is_that_of_the_means(measured):
    distance = distance_to_best(measured, "plan 3")
    means = 100 * measured.mean()
    assert distance.best == "plan 0"
    assert distance.points == pytest.approx(means["plan 0"] - means["plan 3"])
    assert distance.low < distance.points < distance.high
    assert distance.honest == pytest.approx(distance.points, abs=2)
    assert distance_to_best(measured, "plan 0")[1:4] == (0, 0, 0)


def test_the_luckiest_of_equal_plans_has_no_honest_lead():
    draw, distances = np.random.default_rng(0), []
    for _ in range(100):
        equal = pd.DataFrame({f"plan {k}": (draw.random(200) < 0.9).astype(float) for k in range(20)})
        distances.append(distance_to_best(equal, "plan 0", splits=10))
    assert np.mean([distance.points for distance in distances]) > 2
    assert abs(np.mean([distance.honest for distance in distances])) < 0.8  # a deviation of 2.5 or so over 100
