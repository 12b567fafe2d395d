"""Which blocks to remove: the best plan of a size by what its spans are predicted to cost, from moments alone.

Moments know nothing of labels, and those of the training images nothing of the test images: nor does a plan chosen
here. Each span gets a cost, and a plan the sum of its spans' costs. Two spans that touch are one longer span, so a
plan is told by the blocks that it removes. Only `rank_correlation` and `distance_to_best` look at test images: they
judge a choice that has been made.
"""

import math
import random
from collections.abc import Callable, Iterable
from itertools import combinations, groupby
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from toastlib import similarities
from toastlib.closed_forms import Affine, Ridge
from toastlib.errors import InputError, unknown
from toastlib.evaluation import paired_difference
from toastlib.moments import FoldedMoments
from toastlib.plan import Plan, Span, all_spans
from toastlib.token_aware import Separate
from toastlib.translators import linear_module

Costs = dict[Span, float]


def _mse(moments: FoldedMoments, span: Span) -> float:
    return similarities.mse(moments.whole)[0, 1].item()


def _cosine(moments: FoldedMoments, span: Span) -> float:
    return 1 - similarities.cosine(moments.whole)[0, 1].item()


def _cka(moments: FoldedMoments, span: Span) -> float:
    return 1 - similarities.cka(moments.whole)[0, 1].item()


def _fit(moments: FoldedMoments, span: Span) -> float:
    return Affine().fit(moments.whole, span).residual_


def _held_out(moments: FoldedMoments, span: Span) -> float:
    return Ridge().fit(moments, span).held_out_


def _by_token(moments: FoldedMoments, span: Span) -> float:
    fits = Separate().fit(moments, span).fits_.values()
    return sum(fit.held_out_ for fit in fits) / len(fits)


PREDICTORS: dict[str, Callable[[FoldedMoments, Span], float]] = {
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


def span_costs(moments: FoldedMoments, predictor: str = "held-out") -> Costs:
    """What every span of the model is predicted to cost.

    Parameters
    ----------
    moments
        Of all pairs, from `toastlib.collecting.collect_folds`.
    predictor
        A name of `PREDICTORS`.

    Returns
    -------
    dict
        Span -> its cost, for all ``blocks * (blocks + 1) / 2`` spans.

    Raises
    ------
    InputError
        If the predictor is unknown, the moments are in no folds, or pairs are missing.
    """
    if predictor not in PREDICTORS:
        raise unknown("predictor", predictor, PREDICTORS)
    if not isinstance(moments, FoldedMoments):
        raise InputError("Spans are chosen by held-out error: pass the moments of collect_folds.")
    blocks = next(iter(moments.parts.values()))[0].blocks
    return {span: PREDICTORS[predictor](moments.restrict(span), span) for span in all_spans(blocks[-1] + 1)}


def select(
    moments: FoldedMoments, remove: int | None = None, budget: float | None = None, predictor: str = "held-out"
) -> Plan:
    """The plan of least predicted cost.

    Parameters
    ----------
    moments
        Of all pairs of the original encoder's blocks on calibration images, from `toastlib.collecting.collect_folds`.
    remove
        How many blocks to remove, exactly.
    budget
        Remove instead as many blocks as a total predicted cost of this allows.
    predictor
        A name of `PREDICTORS`.

    Returns
    -------
    Plan
        Neighbouring blocks are one span of it.

    Raises
    ------
    InputError
        If not one of `remove` and `budget` is given, or there are fewer blocks; or as for `span_costs`.
    """
    if (remove is None) == (budget is None):
        raise InputError("Say either how many blocks to remove or the budget that their cost must not exceed.")
    return best_plan(span_costs(moments, predictor), remove, budget)


def best_plan(costs: Costs, remove: int | None = None, budget: float | None = None) -> Plan:
    """The plan of least total cost, see `select`, from costs of every span of a model.

    Dynamic programming over blocks: the best plan that removes k of the first n blocks ends in a block that is kept, or
    in a span; the block before a span is kept.
    """
    count = max(span.end for span in costs) + 1
    best = _best_plans(costs, count)
    if remove is None:
        remove = max((k for k in best if best[k][0] <= budget), default=0)
    if remove not in best:
        raise InputError(f"{remove} blocks cannot be removed: the model has {count}.")
    return Plan(best[remove][1])


def _best_plans(costs: Costs, count: int) -> dict[int, tuple[float, tuple[Span, ...]]]:
    """Number of removed blocks -> least cost and its spans."""
    kept = best = {0: (0.0, ())}  # of the first n blocks; `kept`: of those plans that keep the last of them
    all_kept = [kept]
    for n in range(1, count + 1):
        kept, best = best, dict(best)
        for first, before in enumerate(all_kept):  # blocks first .. n-1 are one span
            span = Span(first - 1, n - 1)
            for k, (cost, spans) in before.items():
                plan = (cost + costs[span], (*spans, span))
                best[k + n - first] = min(plan, best.get(k + n - first, plan))
        all_kept.append(kept)
    return best


def plan_of(removed: Iterable[int]) -> Plan:
    """The plan that removes these blocks, neighbours in one span.

    Examples
    --------
    >>> print(plan_of([2, 3, 7]))
    1->3 6->7
    """
    runs = groupby(enumerate(sorted(removed)), key=lambda item: item[1] - item[0])
    blocks = [[block for _, block in run] for _, run in runs]
    return Plan(tuple(Span(run[0] - 1, run[-1]) for run in blocks))


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


def random_like(linear: nn.Linear, around: str = "zero", seed: int = 0) -> nn.Linear:
    """A map of the same scale in random directions: the control of a fitted one, which knows nothing of the data.

    Parameters
    ----------
    linear
        The fitted map, from (width) to (width).
    around
        ``"zero"`` keeps the singular values of its matrix ``W``, ``"identity"`` those of ``W - I``: as far from
        dropping the span as the fitted map is, the other way. A bias stays as it is.
    seed
        Of the directions, uniform over all rotations and reflections.

    Returns
    -------
    Linear
        `nn.Linear` of the same shape, device and dtype.

    Raises
    ------
    InputError
        If `around` is neither of the two.
    """
    if around not in ("zero", "identity"):
        raise unknown("centre of a random map", around, ("zero", "identity"))
    weight = linear.weight.detach().double().cpu().mT
    goal = torch.eye(len(weight), dtype=weight.dtype) if around == "identity" else torch.zeros_like(weight)
    draw = torch.Generator().manual_seed(seed)
    left, right = (_random_rotation(len(weight), draw) for _ in range(2))
    drawn = goal + left @ torch.diag(torch.linalg.svdvals(weight - goal)) @ right
    return linear_module(drawn, linear.bias).to(linear.weight.device, linear.weight.dtype)


def _random_rotation(size: int, draw: torch.Generator) -> Tensor:
    """Uniform over the orthogonal matrices: QR of a Gaussian one, with the signs that make it unique."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))
    return q * r.diagonal().sign()


def rank_correlation(
    predicted: pd.Series, correct: pd.DataFrame, draws: int = 500, seed: int = 0
) -> tuple[float, float, float]:
    """Spearman's rank correlation (1904) of what plans were predicted to cost with the accuracy that they lost.

    Parameters
    ----------
    predicted
        Plan -> its predicted cost.
    correct
        Correctness of each test image in [0, 1], shape (images, plans), one column for each plan.
    draws, seed
        Resamples of the test images.

    Returns
    -------
    tuple
        The correlation, and the 2.5 and 97.5 % quantiles over the resamples. A resample adds noise to accuracies that
        have some already, so that the interval leans towards zero.
    """
    from scipy.stats import rankdata

    outcomes, images = correct[predicted.index].to_numpy(), len(correct)
    resamples = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)
    accuracies = np.vstack([outcomes.mean(0), resamples @ outcomes / images])
    ranks = rankdata(np.vstack([-predicted.to_numpy(), accuracies.round(9)]), axis=1)  # equal but for rounding: tied
    ranks -= ranks.mean(1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1, keepdims=True)
    expected, *measured = ranks / np.where(lengths > 0, lengths, 1)  # where all are tied there is no correlation: 0
    correlation, *resampled = np.array(measured) @ expected
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(correlation), float(low), float(high)


class Distance(NamedTuple):
    """How far a chosen plan lies below the best one, in percentage points.

    Attributes
    ----------
    best
        The most accurate plan on the test images.
    points, low, high
        Its lead, with the 95 % interval paired over images: too large, for among many plans the luckiest is best.
    honest
        The lead of the best plan on one half of the images, measured on the other half; mean over random halves.
    """

    best: str
    points: float
    low: float
    high: float
    honest: float


def distance_to_best(correct: pd.DataFrame, chosen: str, splits: int = 200, seed: int = 0) -> Distance:
    """What an exhaustive search with the test labels would have won over a choice made without them.

    Parameters
    ----------
    correct
        Correctness of each test image in [0, 1], shape (images, plans): of every plan of the size, with its name.
    chosen
        Name of the chosen one.
    splits, seed
        Random halves of the test images.

    Returns
    -------
    Distance
        In percentage points.
    """
    outcomes, generator = correct.to_numpy(), np.random.default_rng(seed)
    leads = []
    for _ in range(splits):
        first, second = np.array_split(generator.permutation(len(outcomes)), 2)
        means = outcomes[second].mean(0)
        leads.append(means[outcomes[first].mean(0).argmax()] - means[correct.columns.get_loc(chosen)])
    best = correct.mean().idxmax()
    lead = paired_difference(correct[best].to_numpy(), correct[chosen].to_numpy())
    return Distance(best, *lead, honest=100 * float(np.mean(leads)))
