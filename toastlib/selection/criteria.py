"""Which blocks to remove: the best plan of a size by what its spans are predicted to cost, or by running the best few.

Moments know nothing of labels, and those of the training images nothing of the test images: nor does a plan chosen
here. Each span gets a predicted cost, and a plan the sum of its spans' costs. Two spans that touch are one longer span,
so a plan is told by the blocks that it removes. A sum over spans keeps off the blocks that matter, and cannot tell the
others apart: for that the plans that it puts first are run on more training images, see `toastlib.selection.rerank`.
"""

import math
import random
from collections.abc import Callable, Sequence
from heapq import nsmallest
from itertools import combinations

from toastlib.errors import InputError, unknown
from toastlib.plan import Plan, Span, all_spans, plan_of
from toastlib.statistics import similarity
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.linear import Affine, Ridge
from toastlib.translators.per_token import PerTokenType

Costs = dict[Span, float]
SHORTLIST = 20
"""How many plans are run where a choice is verified."""


def _mse(moments: Moments, span: Span) -> float:
    return similarity.mse(moments)[0, 1].item()


def _cosine(moments: Moments, span: Span) -> float:
    return 1 - similarity.cosine(moments)[0, 1].item()


def _cka(moments: Moments, span: Span) -> float:
    return 1 - similarity.cka(moments)[0, 1].item()


def _fit(moments: Moments, span: Span) -> float:
    return Affine().fit(moments, span).residual_


def _held_out(moments: KFoldMoments, span: Span) -> float:
    return Ridge().fit(moments, span).held_out_


def _by_token(moments: KFoldMoments, span: Span) -> float:
    fits = PerTokenType().fit(moments, span).fits_.values()
    return sum(fit.held_out_ for fit in fits) / len(fits)


CRITERIA: dict[str, Callable[..., float]] = {
    "mse": _mse,
    "cosine": _cosine,
    "cka": _cka,
    "fit": _fit,
    "held-out": _held_out,
    "by-token": _by_token,
}
"""Name -> what a span is predicted to cost.

``"mse"``, ``"cosine"`` and ``"cka"`` compare ``h[s]`` and ``h[e]`` as they are (one minus the similarity). The others
are shares of ``|H[e]|^2`` that a map leaves: ``"fit"`` the affine map on the rows it was fitted on, ``"held-out"`` the
ridge towards the identity on held-out images, ``"by-token"`` the same for special tokens and patches apart, their mean.
"""
NEED_FOLDS = ("held-out", "by-token")
"""Predictors that need `collect_folds`; `collect_moments`, a tenth of it in memory, is enough for the others."""


def span_costs(moments: Moments | KFoldMoments, criterion: str = "held-out") -> Costs:
    """What every span of the model is predicted to cost.

    Parameters
    ----------
    moments
        Of all pairs, from `collect_folds`; or from `collect_moments`, for the criteria that hold
        nothing out.
    criterion
        A name of `CRITERIA`.

    Returns
    -------
    dict
        Span -> its cost, for all ``blocks * (blocks + 1) / 2`` spans.

    Raises
    ------
    InputError
        If the criterion is unknown, the moments are in no folds where it needs them, or pairs are missing.
    """
    if criterion not in CRITERIA:
        raise unknown("criterion", criterion, CRITERIA)
    if isinstance(moments, KFoldMoments):
        blocks = next(iter(moments.parts.values()))[0].blocks
        moments = moments if criterion in NEED_FOLDS else moments.whole
    elif criterion in NEED_FOLDS:
        raise InputError(f"Criterion {criterion!r} is a held-out error: pass the moments of collect_folds.")
    else:
        blocks = moments.blocks
    return {span: CRITERIA[criterion](moments.restrict(span), span) for span in all_spans(blocks[-1] + 1)}


def select(
    moments: Moments | KFoldMoments,
    remove: int | None = None,
    budget: float | None = None,
    criterion: str = "held-out",
    verify: Callable[[list[Plan]], Sequence[float]] | None = None,
    shortlist: int = SHORTLIST,
) -> Plan:
    """The plan of least predicted cost; or, verified, of the few that are predicted to cost least the one that does.

    Parameters
    ----------
    moments
        Of all pairs of the original encoder's blocks on calibration images, see `span_costs`.
    remove
        How many blocks to remove, exactly.
    budget
        Remove instead as many blocks as a total predicted cost of this allows.
    criterion
        A name of `CRITERIA`.
    verify
        Plans -> what each of them costs, in their order, see `run_plans`.
    shortlist
        How many plans to verify.

    Returns
    -------
    Plan
        Neighbouring blocks are one span of it.

    Raises
    ------
    InputError
        If not one of `remove` and `budget` is given, there are fewer blocks, or `verify` gives no number for a plan;
        or as for `span_costs`.

    Examples
    --------
    >>> def verify(plans):
    ...     return run_plans(encoder, held_out, plans, moments=folds)["features"]
    >>> select(folds, remove=2, verify=verify)  # doctest: +SKIP
    """
    plans = best_plans(span_costs(moments, criterion), shortlist if verify else 1, remove, budget)
    if len(plans) == 1:
        return plans[0]
    measured = [float(cost) for cost in verify(plans)]
    if len(measured) != len(plans) or any(map(math.isnan, measured)):
        raise InputError(f"{len(plans)} plans were to be verified: that takes a number for each of them.")
    return plans[measured.index(min(measured))]


def best_plan(costs: Costs, remove: int | None = None, budget: float | None = None) -> Plan:
    """The plan of least total cost, see `select`, from costs of every span of a model."""
    return best_plans(costs, 1, remove, budget)[0]


def best_plans(costs: Costs, n: int, remove: int | None = None, budget: float | None = None) -> list[Plan]:
    """The `n` plans of least total cost, or as many as there are, the best first; none with a span of infinite cost.

    Dynamic programming over blocks: a good plan that removes k of the first b blocks ends in a block that is kept, or
    in a span; the block before a span is kept; and what comes before is a good plan of fewer blocks.
    """
    if (remove is None) == (budget is None):
        raise InputError("Say either how many blocks to remove or the budget that their cost must not exceed.")
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


def every_plan(block_count: int, remove: int) -> list[Plan]:
    """All plans that remove so many blocks: what an exhaustive search has to try."""
    return [plan_of(blocks) for blocks in combinations(range(block_count), remove)]


def random_plans(block_count: int, remove: int, n: int, seed: int = 0) -> list[Plan]:
    """Different plans that remove so many blocks, each as likely as any other: the control of a choice.

    Parameters
    ----------
    block_count
        Depth of the model.
    remove
        How many blocks each plan removes.
    n
        How many plans.
    seed
        Of the draw.

    Returns
    -------
    list of Plan
        `n` of them, no two alike.

    Raises
    ------
    InputError
        If there are fewer than `n` such plans.
    """
    available = math.comb(block_count, remove)
    if n > available:
        raise InputError(f"{n} plans were asked for: {available} remove {remove} of {block_count} blocks.")
    draw, plans = random.Random(seed), {}
    while len(plans) < n:
        plans[plan_of(draw.sample(range(block_count), remove))] = None
    return list(plans)
