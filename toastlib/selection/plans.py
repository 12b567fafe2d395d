"""Plans of least predicted cost, found exactly; every plan of a size, random ones, and those to run before a choice."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from heapq import nsmallest
from itertools import combinations, zip_longest

from toastlib.errors import InputError, need, real_number, whole_number
from toastlib.plan import Plan, Span, plan_of
from toastlib.selection.criteria import Costs, span_costs
from toastlib.statistics.moments import KFoldMoments, Moments

CANDIDATES = 20  # plans that are run before one of them is chosen
POOLED = ("by-token", "fit", "block-influence")
"""Criteria that candidates come from: on one encoder or with one map each of them is misled (`12_selection`)."""


def select(
    moments: Moments | KFoldMoments,
    remove: int | None = None,
    *,
    budget: float | None = None,
    criterion: str = "by-token",
    rerank: Callable[[list[Plan]], Sequence[float]] | None = None,
    candidates: int = CANDIDATES,
) -> Plan:
    """Choose the plan of least predicted cost; or run candidates, and choose the one of least measured cost.

    No criterion is right for every encoder and map. On a real ViT-S four blocks by ``"by-token"`` lose 4.5 to 9 points
    more than evenly spaced ones with ``context`` maps, and four by ``"held-out"`` 13 to 14 more with ``linear`` ones
    (`12_selection`, reference ``12-selectors``): give `rerank` where a pass over images can be paid for.

    Parameters
    ----------
    moments, criterion
        As for `span_costs`; the criterion decides what is not run.
    remove, budget
        The number of blocks to remove; or the total predicted cost that may be spent, on as many blocks as it allows.
    rerank, candidates
        Function of plans that gives the cost of each, for example ``lambda plans: race_plans(encoder, images, plans,
        calibration=moments)["cost"]`` on images of its own; and how many of `candidate_plans` are run.

    Returns
    -------
    Plan
        Neighbouring blocks are one span.

    Raises
    ------
    InputError
        If not exactly one of `remove` and `budget` is given, or there are fewer blocks; or as for `span_costs`.
    """
    best = best_plans(span_costs(moments, criterion), 1, remove, budget=budget)[0]
    if rerank is None:
        return best
    plans = candidate_plans([span_costs(moments, name) for name in POOLED], len(best.removed), candidates)
    if len(plans) == 1:
        return plans[0]
    need(rerank, "__call__", "A function of plans")
    measured = rerank(plans)
    try:
        measured = [float(cost) for cost in measured]
    except (TypeError, ValueError):  # one number, or a whole table
        measured = []
    if len(measured) != len(plans) or any(map(math.isnan, measured)):
        raise InputError(f"{len(plans)} plans were to be run: that takes a number for each of them.")
    return plans[measured.index(min(measured))]


def best_plans(costs: Costs, n: int, remove: int | None = None, *, budget: float | None = None) -> list[Plan]:
    """Find the `n` plans of least total cost, the best first, by dynamic programming over blocks.

    A best plan for the first b blocks either keeps block b-1, or ends in a span; the block before the span is kept (two
    spans that touch are one longer span), and the blocks before that are removed by a best plan of fewer blocks.

    Parameters
    ----------
    costs, n
        Span -> its cost, for every span of the encoder: a span of infinite cost is in no plan; and the number of plans.
    remove, budget
        The number of blocks to remove, or the largest total cost; exactly one of the two.

    Returns
    -------
    list of Plan
        The best first; fewer where there are fewer.

    Raises
    ------
    InputError
        If both or none of `remove` and `budget` are given, or no plan removes that number of blocks.
    """
    whole_number("The number of plans", n, least=1)
    if remove is not None:
        whole_number("remove", remove)
    if budget is not None:
        real_number("budget", budget)
    if (remove is None) == (budget is None):
        raise InputError("Say either how many blocks to remove, or the budget that their cost must not exceed.")
    count = max(span.end for span in costs) + 1
    best = _best_plans(costs, count, n)
    if remove is None:
        remove = max((k for k in best if best[k][0][0] <= budget), default=0)
    plans = [Plan(spans) for cost, spans in best.get(remove, []) if cost < math.inf]
    if not plans:
        raise InputError(f"{remove} blocks cannot be removed: the model has {count}.")
    return plans


def _best_plans(costs: Costs, count: int, n: int) -> dict[int, list[tuple[float, tuple[Span, ...]]]]:
    """Number of removed blocks -> the `n` least costs, rising, each with its spans."""
    kept = best = {0: [(0.0, ())]}  # of the first b blocks; `kept`: of those plans that keep the last of them
    all_kept = [kept]
    for b in range(1, count + 1):
        kept, best = best, {k: list(plans) for k, plans in best.items()}
        for first, before in enumerate(all_kept):  # blocks first .. b-1 are one span
            span = Span(first - 1, b - 1)
            for k, plans in before.items():
                longer = [(cost + costs[span], (*spans, span)) for cost, spans in plans]
                best[k + b - first] = best.get(k + b - first, []) + longer
        best = {k: nsmallest(n, plans) for k, plans in best.items()}
        all_kept.append(kept)
    return best


def candidate_plans(costs: Iterable[Costs], remove: int, n: int = CANDIDATES) -> list[Plan]:
    """Gather plans to run before one of them is chosen: controls, and the best few by each of several criteria.

    Parameters
    ----------
    costs, remove, n
        From `span_costs`, by each criterion; number of blocks that each plan removes, and of plans.

    Returns
    -------
    list of Plan
        Different plans: those of `control_plans`, then in turn the best by each criterion, the second best, and so on.

    Raises
    ------
    InputError
        As for `best_plans`, or if there are no costs.
    """
    costs = list(costs) if isinstance(costs, Iterable) else []
    if not costs or not all(isinstance(one, dict) for one in costs):
        raise InputError("Candidates come from a list of the costs of spans: [span_costs(moments), ...].")
    ranked = [best_plans(one, n, remove) for one in costs]
    controls = control_plans(max(span.end for span in costs[0]) + 1, remove).values()
    in_turn = (plan for plans in zip_longest(*ranked) for plan in plans if plan is not None)
    return list(dict.fromkeys([*controls, *in_turn]))[:n]


def every_plan(block_count: int, remove: int) -> list[Plan]:
    """Every plan that removes this number of blocks: those that an exhaustive search tries."""
    return [plan_of(blocks) for blocks in combinations(range(block_count), remove)]


def random_plans(block_count: int, remove: int, n: int, *, seed: int = 0) -> list[Plan]:
    """Draw `n` different plans that remove this number of blocks, uniformly: the control of a choice.

    Parameters
    ----------
    block_count, remove, n, seed
        Number of blocks of the encoder, of blocks that each plan removes, and of plans; seed of the draw.

    Returns
    -------
    list of Plan
        Different plans, in the order of the draw.

    Raises
    ------
    InputError
        If there are fewer than `n` such plans.
    """
    whole_number("remove", remove)
    whole_number("The number of plans", n, least=1)
    available = math.comb(block_count, remove)
    if n > available:
        raise InputError(f"{n} plans were asked for: {available} remove {remove} of {block_count} blocks.")
    generator, plans = random.Random(seed), {}
    while len(plans) < n:
        plans[plan_of(generator.sample(range(block_count), remove))] = None
    return list(plans)


def control_plans(block_count: int, remove: int) -> dict[str, Plan]:
    """The controls of a choice that no criterion makes: plans of evenly spaced blocks, of the first, and of the last.

    Evenly spaced (a control of arXiv 2603.20275) are the middles of `remove` equal parts of the encoder, rounded down.
    """
    whole_number("remove", remove)
    if remove > block_count:
        raise InputError(f"{remove} blocks cannot be removed: the model has {block_count}.")
    even = [(2 * part + 1) * block_count // (2 * remove) for part in range(remove)]
    chosen = {"evenly spaced": even, "first": range(remove), "last": range(block_count - remove, block_count)}
    return {name: plan_of(blocks) for name, blocks in chosen.items()}
