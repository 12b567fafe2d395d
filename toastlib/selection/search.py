"""Which blocks go where a model is made smaller: the best few plans of a size are run, and sizes are tried in turn."""

from collections.abc import Callable

import pandas as pd

from toastlib.approximation.fuse import FUSED
from toastlib.data.images import Images
from toastlib.errors import InputError
from toastlib.evaluation.heads import Head, answers, form, score
from toastlib.evaluation.probe import Probe
from toastlib.models.encoder import Encoder
from toastlib.plan import Plan
from toastlib.selection.criteria import span_costs
from toastlib.selection.plans import best_plans
from toastlib.selection.rerank import run_plans
from toastlib.statistics.moments import Moments
from toastlib.translators.base import split_align

CANDIDATES = 10
"""Plans of a size that are run before one of them is chosen."""


def make_selector(
    encoder: Encoder, moments: Moments, calibration: Images, trying: Images, head: Head, translator: str
) -> Callable[[int], Plan]:
    """Number of blocks -> of the plans that are predicted to cost least, the one that changes the answers least.

    Moments, of all pairs of blocks, are those of the calibration images. Plans are run on the images `trying`, without
    their labels; without any image the best predicted plan is taken. Answers are compared if the head is a probe, else
    features. A folded span needs a block before it; folded plans are tried with linear maps, which come near them.
    """
    costs, folded = span_costs(moments), split_align(translator)[0] == FUSED
    if folded:
        costs = {span: float("inf") if span.start == -1 else cost for span, cost in costs.items()}
    probe = head.module if isinstance(head.module, Probe) else None
    measure = "divergence" if probe else "features"

    def choose(remove: int) -> Plan:
        plans = best_plans(costs, CANDIDATES, remove)
        if len(plans) == 1 or not len(trying):
            return plans[0]
        maps = {"translator": "linear" if folded else translator, "calibration": calibration}
        costs_when_run = run_plans(encoder, trying, plans, head=probe, measures=[measure], **maps)
        return plans[int(costs_when_run[measure].argmin())]

    return choose


def largest_plan_within(
    encoder: Encoder,
    make: Callable[[Plan, Head], tuple[Encoder, Head]],
    choose: Callable[[int], Plan],
    head: Head,
    images: Images,
    max_drop: float,
) -> tuple[Plan, pd.DataFrame]:
    """Remove one block more, and one more, until held-out images lose more than `max_drop` points.

    `choose` takes a number of blocks to the plan to try; `make` a plan and the original's head to the smaller encoder
    and its head. Returned are the last plan within the bound, and a table of all that were tried: ``removed``,
    ``plan``, ``lost``. An `InputError` if one block alone loses more.
    """
    original, best, rows = answers(form(encoder, head), images), None, []
    before = score(original, original, images, head)
    for removed in range(1, len(encoder.blocks)):
        plan = choose(removed)
        after = score(answers(form(*make(plan, head)), images), original, images, head)
        lost = 100 * float((before - after).mean())
        rows.append((removed, str(plan), lost))
        if lost > max_drop:
            break
        best = plan
    if best is None:
        raise InputError(
            f"Removing one block ({rows[0][1]}) loses {rows[0][2]:.1f} points on held-out training images, more than "
            f"{max_drop:g}: allow a larger drop, or say how many blocks go."
        )
    return best, pd.DataFrame(rows, columns=["removed", "plan", "lost"])
