"""Which blocks go where a model is made smaller: the best few plans of a size are run, and sizes are tried in turn."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from toastlib.approximation.fuse import FUSED
from toastlib.data.images import Images
from toastlib.errors import InputError
from toastlib.evaluation.calibrated import Calibrated
from toastlib.evaluation.heads import Head, answers, changes, first_layer, form, points_lost, score
from toastlib.evaluation.metrics import images_needed
from toastlib.plan import Plan
from toastlib.selection.criteria import span_costs
from toastlib.selection.plans import best_plans
from toastlib.selection.rerank import run_plans
from toastlib.translators.base import split_align

CANDIDATES = 10
"""Plans of a size that are run before one of them is chosen."""
HELD_OUT = 3
"""One in three training images is held out where a loss is bounded: neither maps, head nor choice see it."""
TESTED = ("removed", "plan", "tried", "tried_on", "lost", "low", "high", "held_out")
"""Columns of the table of numbers of blocks: plans that were run, on how many images; and points lost on others."""


class Choice(NamedTuple):
    """A plan, and how many plans were run on how many images before it was taken; one that was not run counts as 0."""

    plan: Plan
    tried: int
    images: int


def make_selector(calibrated: Calibrated, trying: Images, head: Head, translator: str) -> Callable[[int], Choice]:
    """Number of blocks -> of the plans that are predicted to cost least, the one that changes the answers least.

    Plans are run on the images `trying`, without their labels, and without feature alignment, which takes a pass over
    the calibration images for each. Answers are compared if a linear head reads the features, else features. A fused
    span needs a block before it; fused plans are tried with linear maps, which come near them.
    """
    costs, kind = span_costs(calibrated.moments), split_align(translator)[0]
    if kind == FUSED:
        costs = {span: float("inf") if span.start == -1 else cost for span, cost in costs.items()}
    layer = first_layer(head, calibrated.encoder)
    if isinstance(layer, nn.Module):  # the checkpoint's own may lie on another device
        layer = copy.deepcopy(layer).to(calibrated.encoder.device)
    measure = "features" if layer is None else "divergence"

    def choose(remove: int) -> Choice:
        plans = best_plans(costs, CANDIDATES, remove)
        if len(plans) == 1:
            return Choice(plans[0], 0, 0)
        maps = {"translator": "linear" if kind == FUSED else kind, "calibration": calibrated.moments}
        costs_when_run = run_plans(calibrated.encoder, trying, plans, head=layer, measures=[measure], **maps)
        return Choice(plans[int(costs_when_run[measure].argmin())], len(plans), len(trying))

    return choose


def scores_by_size(
    calibrated: Calibrated, choose: Callable[[int], Choice], translator: str, head: Head, images: Images
) -> Iterator[tuple[Choice, np.ndarray, np.ndarray]]:
    """Remove one block, two, and so on: the plan, and the scores of every image before and after."""
    original = answers(form(calibrated.encoder, head), images)
    before = score(original, original, images, head)
    for removed in range(1, len(calibrated.encoder.blocks)):
        choice = choose(removed)
        smaller = form(*calibrated.make(choice.plan, translator, head))
        yield choice, before, score(answers(smaller, images), original, images, head)


def largest_plan_within(
    tested: Iterable[tuple[Choice, np.ndarray, np.ndarray]], head: Head, max_drop: float
) -> tuple[Plan, pd.DataFrame]:
    """Remove one block more, and one more, while held-out images say that at most `max_drop` points are lost.

    They say so if the upper end of the paired 95 % interval of the loss is at most `max_drop`. Numbers of blocks are
    tested in a fixed order up to the first that fails, so that the error of all tests together is that of one
    (Maurer, Hothorn and Lehmacher 1995): a promise is broken in one case of forty at most.

    Parameters
    ----------
    tested
        `scores_by_size`, on images that neither maps, head nor choice have seen.
    head
        The original's.
    max_drop
        Points, above 0 and below 100.

    Returns
    -------
    Plan, DataFrame
        The last plan within the bound, and a row for each that was tested, with the columns `TESTED`.

    Raises
    ------
    InputError
        If removing one block may lose more; it says how many images would tell.
    """
    best, rows = None, []
    for choice, before, after in tested:
        lost = points_lost(before, after, head)
        removed = len(choice.plan.removed)
        rows.append((removed, str(choice.plan), choice.tried, choice.images, *lost, len(before)))
        if lost[2] > max_drop:
            break
        best = choice.plan
    if best is None:
        raise InputError(_why_none(rows[0], changes(before, after), max_drop))
    return best, pd.DataFrame(rows, columns=TESTED)


def _why_none(row: tuple, changed: tuple[int, int], max_drop: float) -> str:
    _, plan, _, _, lost, low, high, images = row
    needed = images_needed(*changed, images, max_drop / 100)
    told = (
        f"{images:,} held-out training images: {lost:.1f} [{low:.1f}, {high:.1f}] points are lost when one block goes "
        f"({plan})"
    )
    if needed is None:
        return f"No block can be removed within {max_drop:g} points on {told}: allow a larger drop, or say how many go."
    return (
        f"That at most {max_drop:g} points are lost cannot be told from {told}. Some {needed:,} held-out images would "
        f"tell, a third of {HELD_OUT * needed:,} training images; here are {HELD_OUT * images:,}. Or allow a larger "
        "drop, or say how many blocks go."
    )
