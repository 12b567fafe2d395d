"""The best plans by their predicted cost, against all plans there are; and no labels go in."""

import inspect
import random
from collections import Counter
from itertools import combinations
from math import comb
from typing import get_type_hints

import pytest
import torch

from toastlib.errors import InputError
from toastlib.plan import Plan, Span, all_spans, plan_of
from toastlib.selection.criteria import (
    CRITERIA,
    NEED_FOLDS,
    best_plan,
    best_plans,
    every_plan,
    random_plans,
    select,
    span_costs,
)
from toastlib.statistics.collect import collect_folds, collect_moments
from toastlib.statistics.moments import KFoldMoments, Moments, plan_pairs
from toastlib.statistics.similarity import cka, cosine, mse


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


@pytest.mark.parametrize("block_count", [2, 4, 7])
@pytest.mark.parametrize("n", [1, 5, 20, 1000])
def test_the_shortlist_holds_the_best_of_all_in_order(block_count, n):
    costs = random_costs(block_count, seed=n)
    for remove in range(block_count + 1):
        ranked = sorted(every_plan(block_count, remove), key=lambda plan: cost_of(plan, costs))
        assert best_plans(costs, n, remove) == ranked[:n]  # random costs do not tie


def test_a_span_of_infinite_cost_is_never_taken():
    costs = random_costs(5, seed=0) | {span: float("inf") for span in all_spans(5) if span.start == -1}
    assert best_plans(costs, 100, 2) == [p for p in best_plans(random_costs(5, seed=0), 100, 2) if 0 not in p.removed]
    with pytest.raises(InputError, match="5 blocks cannot be removed"):
        best_plans(costs, 100, 5)


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_removes_as_many_blocks_as_it_allows(seed):
    costs = random_costs(6, seed)
    cheapest = [cost_of(best_plan(costs, k), costs) for k in range(7)]
    for budget in (0, 0.3, 1, 3, 100):
        chosen = best_plan(costs, budget=budget)
        assert cost_of(chosen, costs) <= budget
        assert len(chosen.removed) == max(k for k in range(7) if cheapest[k] <= budget)


@pytest.fixture
def folds(tiny_encoder, tiny_images):
    return collect_folds(tiny_encoder, tiny_images.train[:40])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_predictor_gives_every_span_a_cost(folds, criterion):
    costs = span_costs(folds, criterion)
    assert set(costs) == set(all_spans(6))
    assert all(cost > 0 for cost in costs.values())
    assert select(folds, remove=2, criterion=criterion) == best_plan(costs, 2)


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
    for criterion in CRITERIA:
        assert str(select(folds, remove=1, criterion=criterion)) == "2->3"


@pytest.mark.parametrize("criterion", CRITERIA)
def test_plain_moments_are_enough_where_nothing_is_held_out(tiny_encoder, tiny_images, folds, criterion):
    moments = collect_moments(tiny_encoder, tiny_images.train[:40])
    if criterion in NEED_FOLDS:
        with pytest.raises(InputError, match=f"{criterion}.* pass the moments of collect_folds"):
            span_costs(moments, criterion)
    else:
        costs = span_costs(moments, criterion)
        assert costs == pytest.approx(span_costs(folds, criterion), rel=1e-6, abs=1e-9)  # summed in another order


def test_a_verified_choice_is_the_best_of_the_shortlist(folds):
    costs, truth = span_costs(folds), {plan: cost for cost, plan in enumerate(random_plans(6, remove=3, n=20, seed=1))}
    asked = []

    def verify(plans):
        asked.append(plans)
        return [truth[plan] for plan in plans]

    assert select(folds, remove=3, verify=verify, shortlist=100) == next(iter(truth))  # brute force: all are run
    assert len(asked[0]) == 20
    for shortlist in (2, 7):
        chosen = select(folds, remove=3, verify=verify, shortlist=shortlist)
        assert asked[-1] == best_plans(costs, shortlist, remove=3)
        assert truth[chosen] == min(truth[plan] for plan in asked[-1])
    asked.clear()
    assert select(folds, remove=3, verify=verify, shortlist=1) == select(folds, remove=3)
    assert select(folds, remove=0, verify=verify) == Plan()
    assert not asked  # there is nothing to choose from


@pytest.mark.parametrize("numbers", [[], [1.0], [float("nan")] * 5])
def test_a_verdict_on_every_plan_is_asked_for(folds, numbers):
    with pytest.raises(InputError, match="5 plans were to be verified"):
        select(folds, remove=2, verify=lambda plans: numbers, shortlist=5)


def test_a_choice_cannot_see_labels():
    """Nothing but moments goes in, sums over the outputs of blocks; what verifies is asked about plans alone."""
    assert list(inspect.signature(select).parameters)[:4] == ["moments", "remove", "budget", "criterion"]
    assert list(inspect.signature(select).parameters)[4:] == ["verify", "shortlist"]
    assert get_type_hints(select)["moments"] == Moments | KFoldMoments
    assert set(get_type_hints(KFoldMoments)) == {"parts", "special_tokens", "activations", "summaries"}
    fields = {"blocks", "count", "sums", "inner", "cosines", "products", "_spectra"}
    assert set(get_type_hints(Moments)) == fields


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
        ({"remove": 1, "criterion": "mes"}, "Unknown criterion 'mes': did you mean 'mse'"),
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
