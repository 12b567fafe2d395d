"""Which blocks go where a model is made smaller: candidates of a size are raced, and sizes are tried in turn."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from toastlib.approximation.fuse import FUSED, fuse_spans
from toastlib.approximation.replace import approximate
from toastlib.data.images import Images
from toastlib.errors import InputError
from toastlib.evaluation.heads import LOST, Head, aligned, answers, first_layer, form, points_lost, score
from toastlib.evaluation.metrics import changes, images_needed
from toastlib.models.costs import parameter_count
from toastlib.models.encoder import Encoder
from toastlib.plan import Plan, plan_of
from toastlib.selection.criteria import span_costs
from toastlib.selection.plans import POOLED, candidate_plans
from toastlib.selection.rerank import divergence, race, race_plans
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import KFoldMoments
from toastlib.translators.base import make_translator, split_align

HELD_OUT = 3  # one in three training images is held out where a loss is bounded: neither maps, head nor choice see it
TESTED = ("removed", "plan", "tried", "tried_on", "next", "lost", "low", "high", "held_out", "parameters")
"""Columns of the table of numbers of blocks: plans run and on how many images; points lost on others; what is left."""


@dataclass(frozen=True)
class Calibrated:
    """The original encoder and calibration images; their moments and the original's features are computed once."""

    encoder: Encoder
    images: Images

    @cached_property
    def moments(self) -> KFoldMoments:
        """Moments of all pairs of blocks, without a decoder's context: it would multiply them."""
        return collect_moments(self.encoder, self.images, context=False)

    @cached_property
    def features(self) -> Tensor:
        """The original's features of the calibration images."""
        return self.encoder.encode(self.images)

    def needs_pass(self, kind: str) -> bool:
        """Whether this map is fitted on more than `moments`, and so takes a pass of its own."""
        translator = make_translator(kind)
        return translator.needs_activations or (self.encoder.is_causal and translator.needs_context)

    def make(self, plan: Plan, translator: str, head: Head) -> tuple[Encoder, Head]:
        """The smaller encoder, and the original's head with the alignment folded in, if the translator has one."""
        kind, align = split_align(translator)
        if kind == FUSED:
            smaller = fuse_spans(self.encoder, plan, self.images)
        else:
            calibration = self.images if self.needs_pass(kind) else self.moments
            smaller = approximate(self.encoder, plan, calibration, translator=kind)
        if not align:
            return smaller, head
        return smaller, aligned(head, self.encoder, smaller.encode(self.images), self.features)


class Choice(NamedTuple):
    """A plan, and how many were run before it, on how many images at most; one that was not run counts as 0."""

    plan: Plan
    tried: int
    images: int
    next: str = ""  # in words, its cost and that of the next best plan


class Tested(NamedTuple):
    """A chosen plan, the scores of every held-out image before and after, and the parameters that are left."""

    choice: Choice
    before: np.ndarray
    after: np.ndarray
    parameters: int

    def row(self, head: Head) -> tuple:
        """Its row in the table of numbers of blocks, see `TESTED`."""
        choice, images = self.choice, len(self.before)
        lost = points_lost(self.before, self.after, head)
        tried = (choice.tried, choice.images, choice.next)
        return len(choice.plan.removed), str(choice.plan), *tried, *lost, images, self.parameters


def make_selector(calibrated: Calibrated, trying: Images, head: Head, translator: str) -> Callable[[int], Choice]:
    """Number of blocks -> of the candidates, the plan that changes the answers least, or features if there is no head.

    Candidates are those of `candidate_plans`, and the chosen plan of one block fewer with any block more. They race on
    the images `trying`, without their labels, and without feature alignment and fused maps, which take a pass over the
    calibration images for each: fused plans are tried with linear maps.
    """
    kind, count = split_align(translator)[0], len(calibrated.encoder.blocks)
    costs = [span_costs(calibrated.moments, criterion) for criterion in POOLED]
    fused = kind == FUSED
    layer = first_layer(head, calibrated.encoder)
    if isinstance(layer, nn.Module):  # the checkpoint's own may lie on another device
        layer = copy.deepcopy(layer).to(calibrated.encoder.device)
    if fused or calibrated.needs_pass(kind):
        kind = "linear"

    def run(plans: list[Plan], part: Images) -> Tensor:  # a classifier that reads more than the features
        original = answers(form(calibrated.encoder, head), part)
        models = (form(*calibrated.make(plan, kind, head)) for plan in plans)
        return torch.stack([divergence(nn.Identity(), answers(model, part), original) for model in models])

    @cache
    def choose(remove: int) -> Choice:
        before = choose(remove - 1).plan.removed if remove > 1 else ()
        longer = [plan_of([*before, block]) for block in range(count) if block not in before]
        plans = list(dict.fromkeys([*candidate_plans(costs, remove), *longer]))
        plans = [plan for plan in plans if not (fused and plan.spans[0].start == -1)]
        if not plans:
            raise InputError(f"{remove} blocks cannot be removed by fused maps: block 0 has no block before it.")
        if len(plans) == 1:
            return Choice(plans[0], 0, 0)
        if layer is None and head.module is not None:
            table = race(plans, trying, run)
        else:
            maps = {"translator": kind, "calibration": calibrated.moments}
            table = race_plans(calibrated.encoder, trying, plans, head=layer, **maps)
        last = table[table["images"] == table["images"].max()]["cost"].nsmallest(2)
        how = f" (its cost in the race is {last.iloc[0]:.2g}, that of the next, {last.index[1]}, {last.iloc[1]:.2g})"
        return Choice(Plan.parse(last.index[0]), len(plans), int(table["images"].max()), how)

    return choose


def scores_by_size(
    calibrated: Calibrated, choose: Callable[[int], Choice], translator: str, head: Head, images: Images
) -> Iterator[Tested]:
    """Remove one block, two, and so on, the best plan of each number, and test it on images."""
    original = answers(form(calibrated.encoder, head), images)
    before = score(original, original, images, head)
    for removed in range(1, len(calibrated.encoder.blocks)):
        choice = choose(removed)
        smaller = form(*calibrated.make(choice.plan, translator, head))
        after = score(answers(smaller, images), original, images, head)
        yield Tested(choice, before, after, parameter_count(smaller))


def plan_of_size(tested: Iterable[Tested], head: Head, size: int) -> tuple[Plan, pd.DataFrame]:
    """Remove one block more, and one more, up to `size`: the last plan, and a row for each number."""
    steps = list(islice(tested, size))
    return steps[-1].choice.plan, pd.DataFrame([step.row(head) for step in steps], columns=TESTED)


def largest_plan_within(
    tested: Iterable[Tested], head: Head, max_drop: float, inputs: str = "images"
) -> tuple[Plan, pd.DataFrame]:
    """Remove one block more, and one more, while held-out images say that at most `max_drop` points are lost.

    They say so if the upper end of the paired 95 % interval of the loss is at most `max_drop`. Numbers of blocks are
    tested in a fixed order up to the first that fails, so that the error of all tests together is that of one
    (Maurer, Hothorn and Lehmacher 1995): a promise is broken in one case of forty at most. The result is the last plan
    within the bound, and a row for each that was tested; an `InputError` if removing one block may lose more.
    """
    best, rows = None, []
    for step in tested:
        rows.append(step.row(head))
        if points_lost(step.before, step.after, head)[2] > max_drop:
            break
        best = step.choice.plan
    if best is None:
        raise InputError(_why_none(step, head, max_drop, inputs))
    return best, pd.DataFrame(rows, columns=TESTED)


def _why_none(step: Tested, head: Head, max_drop: float, inputs: str) -> str:
    (lost, low, high), images = points_lost(step.before, step.after, head), len(step.before)
    plan, needed = step.choice.plan, images_needed(*changes(step.before, step.after), images, max_drop / 100)
    told = (
        f"{images:,} held-out training {inputs}: {LOST[head.measure]} {lost:.1f} [{low:.1f}, {high:.1f}] when one "
        f"block goes ({plan})"
    )
    if needed is None:
        return f"No block can be removed within {max_drop:g} points on {told}: allow a larger drop, or say how many go."
    return (
        f"That at most {max_drop:g} points are lost cannot be told from {told}. Some {needed:,} held-out {inputs} "
        f"would tell, a third of {HELD_OUT * needed:,} training {inputs}; here are {HELD_OUT * images:,}. Or allow a "
        "larger drop, or say how many blocks go."
    )
