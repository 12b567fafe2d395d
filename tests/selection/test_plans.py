"""The best plans by their predicted cost, against all plans there are; and no labels go in."""

import inspect
import random
from collections import Counter
from itertools import combinations, pairwise
from math import comb
from typing import get_type_hints

import hypothesis.strategies as st
import pandas as pd
import pytest
import torch
from hypothesis import given

from toastlib.errors import InputError
from toastlib.plan import Plan, Span, all_spans, plan_of
from toastlib.selection.criteria import CRITERIA, span_costs
from toastlib.selection.plans import (
    POOLED,
    best_plans,
    candidate_plans,
    control_plans,
    every_plan,
    random_plans,
    select,
)
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import SUMS, KFoldMoments, Moments, plan_pairs


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
        chosen = best_plans(costs, 1, remove)[0]
        plans = [plan_of(blocks) for blocks in combinations(range(block_count), remove)]
        assert len(chosen.removed) == remove
        assert cost_of(chosen, costs) == pytest.approx(min(cost_of(plan, costs) for plan in plans))
        assert chosen == plan_of(chosen.removed)  # no two of its spans touch


@pytest.mark.parametrize("block_count", [2, 4, 7])
@pytest.mark.parametrize("n", [1, 5, 20, 1000])
def test_the_candidates_are_the_best_of_all_in_order(block_count, n):
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
    cheapest = [cost_of(best_plans(costs, 1, k)[0], costs) for k in range(7)]
    for budget in (0, 0.3, 1, 3, 100):
        chosen = best_plans(costs, 1, budget=budget)[0]
        assert cost_of(chosen, costs) <= budget
        assert len(chosen.removed) == max(k for k in range(7) if cheapest[k] <= budget)


@pytest.fixture
def folds(tiny_encoder, tiny_images):
    return collect_moments(tiny_encoder, tiny_images.train[:40], folds=5)


def test_a_block_that_does_nothing_goes_first(tiny_encoder, tiny_images):
    with torch.no_grad():
        for name, parameter in tiny_encoder.blocks[3].named_parameters():
            if "o_proj" in name or "fc2" in name or "output.dense" in name:
                parameter.zero_()
    folds = collect_moments(tiny_encoder, tiny_images.train[:40], folds=5)
    for criterion in CRITERIA:
        assert str(select(folds, remove=1, criterion=criterion)) == "2->3"


def test_a_reranked_choice_is_the_best_of_the_candidates(folds):
    truth = {plan: cost for cost, plan in enumerate(random_plans(6, remove=3, n=20, seed=1))}
    costs = [span_costs(folds, criterion) for criterion in POOLED]
    asked = []

    def rerank(plans):
        asked.append(plans)
        return [truth[plan] for plan in plans]

    assert select(folds, remove=3, rerank=rerank, candidates=100) == next(iter(truth))  # brute force: all are run
    assert len(asked[0]) == 20
    for candidates in (2, 7):
        chosen = select(folds, remove=3, rerank=rerank, candidates=candidates)
        assert asked[-1] == candidate_plans(costs, 3, candidates)
        assert truth[chosen] == min(truth[plan] for plan in asked[-1])
    asked.clear()
    assert select(folds, remove=3, rerank=rerank, candidates=1) == plan_of([1, 3, 5])  # evenly spaced
    assert select(folds, remove=0, rerank=rerank) == Plan()
    assert not asked  # there is nothing to choose from


def test_candidates_are_the_controls_and_then_the_best_of_each_criterion_in_turn(folds):
    costs = [span_costs(folds, criterion) for criterion in ("fit", "mse")]
    controls = [plan_of(blocks) for blocks in ([1, 4], [0, 1], [4, 5])]
    ranked = [best_plans(one, 15, remove=2) for one in costs]
    expected = []
    for plan in [*controls, *(plan for both in zip(*ranked, strict=True) for plan in both)]:
        if plan not in expected:
            expected.append(plan)
    for n in (1, 3, 4, 8, 15, 40):
        assert candidate_plans(costs, 2, n) == expected[:n]
    assert set(candidate_plans(costs, 2)) == set(every_plan(6, 2))
    for wrong in ([], folds, costs[0], [folds]):
        with pytest.raises(InputError, match=r"come from a list of the costs of spans: \[span_costs\("):
            candidate_plans(wrong, 2)
    for n in (0, -1, 2.5):
        with pytest.raises(InputError, match="number of plans"):
            candidate_plans(costs, 2, n)


@pytest.mark.parametrize("numbers", [[], [1.0], [float("nan")] * 5, 1.0, pd.DataFrame({"cost": range(5)})])
def test_a_number_for_every_plan_is_asked_for(folds, numbers):
    with pytest.raises(InputError, match="5 plans were to be run: that takes a number for each of them"):
        select(folds, remove=2, rerank=lambda plans: numbers, candidates=5)


def test_what_reranks_is_a_function(folds):
    with pytest.raises(InputError, match=r"^A function of plans is needed here, not a str\.$"):
        select(folds, remove=2, rerank="divergence")


def test_a_choice_cannot_see_labels():
    """Nothing but moments goes in, sums over the outputs of blocks; what reranks is asked about plans alone."""
    assert list(inspect.signature(select).parameters)[:4] == ["moments", "remove", "budget", "criterion"]
    assert list(inspect.signature(select).parameters)[4:] == ["rerank", "candidates"]
    assert get_type_hints(select)["moments"] == Moments | KFoldMoments
    assert set(get_type_hints(KFoldMoments)) == {"parts", "special_tokens", "activations", "summaries", "running"}
    fields = {"blocks", "count", *SUMS, "products", "_spectra"}
    assert set(get_type_hints(Moments)) == fields


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
        ({}, "either how many blocks to remove, or the budget"),
        ({"remove": 1, "budget": 1.0}, "either how many blocks to remove, or the budget"),
        ({"remove": 7}, "7 blocks cannot be removed: the model has 6"),
        ({"remove": 1, "criterion": "mes"}, "Unknown criterion 'mes': did you mean 'mse'"),
    ],
)
def test_what_cannot_be_chosen_is_refused(folds, options, says):
    with pytest.raises(InputError, match=says):
        select(folds, **options)


def test_moments_of_the_wrong_kind_are_refused(tiny_encoder, tiny_images):
    images = tiny_images.train[:10]
    with pytest.raises(InputError, match="Criterion 'by-token' is a held-out error: collect moments with folds"):
        select(collect_moments(tiny_encoder, images, folds=0), remove=1)
    with pytest.raises(InputError, match="do not hold the blocks"):
        select(collect_moments(tiny_encoder, images, plan_pairs([Plan.parse("1->2 3->5")]), folds=5), remove=1)


def test_more_plans_than_there_are_are_refused():
    with pytest.raises(InputError, match="16 plans were asked for: 15 remove 2 of 6 blocks"):
        random_plans(6, remove=2, n=16)


def test_every_plan_is_listed_once():
    plans = every_plan(6, remove=3)
    assert set(plans) == set(random_plans(6, remove=3, n=20))
    assert len(plans) == 20
    assert every_plan(6, remove=0) == [Plan()]


@pytest.mark.parametrize(
    ("block_count", "remove", "blocks"),
    [
        (12, 1, (6,)),
        (12, 2, (3, 9)),
        (12, 4, (1, 4, 7, 10)),
        (12, 5, (1, 3, 6, 8, 10)),
        (7, 3, (1, 3, 5)),
        (5, 4, (0, 1, 3, 4)),
        (3, 3, (0, 1, 2)),
        (3, 0, ()),
    ],
)
def test_evenly_spaced_blocks_are_the_middles_of_equal_parts(block_count, remove, blocks):
    assert control_plans(block_count, remove)["evenly spaced"] == plan_of(blocks)


@given(st.integers(1, 200).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count))))
def test_controls_have_their_size_and_their_place(size):
    block_count, remove = size
    removed = {name: plan.removed for name, plan in control_plans(block_count, remove).items()}
    even = removed["evenly spaced"]
    assert len(set(even)) == remove
    assert set(even) <= set(range(block_count))
    gaps = {right - left for left, right in pairwise(even)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert abs(even[0] - (block_count - 1 - even[-1])) <= 1  # as far from the first block as from the last
    assert removed["first"] == tuple(range(remove))
    assert removed["last"] == tuple(range(block_count))[-remove:]


def test_controls_of_more_blocks_than_there_are_are_refused():
    with pytest.raises(InputError, match=r"^7 blocks cannot be removed: the model has 6\.$"):
        control_plans(6, remove=7)
    with pytest.raises(InputError, match=r"^remove is a whole number from 0 on, not -1"):
        control_plans(6, remove=-1)
