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
from toastlib.selection.criteria import best_plans, span_costs
from toastlib.selection.rerank import run_plans
from toastlib.statistics.moments import Moments
from toastlib.translators.base import split_align

SHORTLIST = 10
"""So many plans of a size are run before one is chosen."""


def make_selector(
    encoder: Encoder,
    moments: Moments,
    calibration: Images,
    trying: Images,
    head: Head,
    translator: str,
    batch_size: int,
) -> Callable[[int], Plan]:
    """Number of blocks -> of the plans that are predicted to cost least, the one that changes the answers least.

    A folded span needs a block before it; folded plans are tried with linear maps, which come near them.

    Parameters
    ----------
    encoder
        The original.
    moments
        Of all pairs of its blocks on the calibration images.
    calibration
        Images that maps are fitted on.
    trying
        Others, that the plans are run on; their labels play no part. Without any the best predicted plan is taken.
    head
        Whose answers are compared; if it is no probe, features are.
    translator
        As for `compress`.
    batch_size
        Images per forward pass.
    """
    costs, folded = span_costs(moments, "fit"), split_align(translator)[0] == FUSED
    if folded:
        costs = {span: float("inf") if span.start == -1 else cost for span, cost in costs.items()}
    probe = head.module if isinstance(head.module, Probe) else None
    measure = "divergence" if probe else "features"

    def choose(remove: int) -> Plan:
        plans = best_plans(costs, SHORTLIST, remove)
        if len(plans) == 1 or not len(trying):
            return plans[0]
        tried = "linear" if folded else translator
        settings = {"calibration": calibration, "head": probe, "measures": [measure], "batch_size": batch_size}
        return plans[int(run_plans(encoder, trying, plans, tried, **settings)[measure].argmin())]

    return choose


def largest_plan_within(
    encoder: Encoder,
    make: Callable[[Plan, Head], tuple[Encoder, Head]],
    choose: Callable[[int], Plan],
    head: Head,
    images: Images,
    max_drop: float,
    batch_size: int = 32,
) -> tuple[Plan, pd.DataFrame]:
    """Remove one block more, and one more, until the images lose more than `max_drop` points.

    Parameters
    ----------
    encoder
        The original.
    make
        A plan and a head -> the smaller encoder, and the head that belongs to it.
    choose
        Number of blocks -> the plan to try.
    head
        The original's.
    images
        Held out from maps and head.
    max_drop
        Points.
    batch_size
        Images per forward pass.

    Returns
    -------
    tuple
        The last plan within the bound, and the table of all that were tried: ``removed``, ``plan`` and ``lost``.

    Raises
    ------
    InputError
        If one block alone loses more.
    """
    original, best, rows = answers(form(encoder, head), images, batch_size), None, []
    before = score(original, original, images, head)
    for removed in range(1, len(encoder.blocks)):
        plan = choose(removed)
        after = score(answers(form(*make(plan, head)), images, batch_size), original, images, head)
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
