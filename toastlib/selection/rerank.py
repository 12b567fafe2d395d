"""The cost of plans when they are run on images that neither maps nor head were fitted on."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from toastlib.approximation.engine import THE_ORIGINAL, collect_features
from toastlib.approximation.prepare import Prepared, prepare
from toastlib.data.images import Images
from toastlib.errors import InputError, need_encoder, unknown, whole_number
from toastlib.evaluation.probe import Probe
from toastlib.models.batch import BatchSize
from toastlib.models.encoder import Encoder
from toastlib.plan import Plan, plan_of

MEASURES = ("features", "divergence", "loss")
"""Costs of a plan: error of its features, change of the head's answers, and the head's loss with labels."""
ROUNDS, KEPT = (10, 3, 1), 3
"""Rounds of a race end at one in 10, one in 3 and all of the images; one plan in 3 goes on."""
FEWEST, FINALISTS = 8, 2  # images before a plan leaves a race, and plans that all images decide between


def run_plans(
    encoder: Encoder,
    images: Images,
    plans: Iterable[Plan],
    *,
    calibration: Any,
    translator: str = "linear",
    head: Probe | nn.Module | None = None,
    measures: Iterable[str] = ("features",),
    batch_size: BatchSize = "auto",
) -> pd.DataFrame:
    """Run plans, and measure how far each is from the original encoder.

    Parameters
    ----------
    encoder, images, plans
        The original encoder, training images that neither maps nor head are fitted on, and plans that are not empty.
    calibration, translator, batch_size
        As for `approximate`; the maps may be with ``"+align"``, which needs images for calibration.
    head
        Fitted on the original's features: a `Probe`, whose seeds are averaged, or a module; ``"features"`` needs none.
    measures
        Names of `MEASURES`; only ``"loss"`` needs labels.

    Returns
    -------
    DataFrame
        One row per plan, by its name, and a column per measure: ``"features"`` from `features_error`, others in nats.

    Raises
    ------
    InputError
        If a measure is unknown, or a head, labels or calibration images are missing where they are needed.
    """
    measures = list(measures)
    for name in measures:
        _check_measure(name, head, images)
    ready = prepare(encoder, None, plans, translators=[translator], calibration=calibration, batch_size=batch_size)
    costs = _costs(encoder, images, ready, head, measures, batch_size=batch_size)
    names = [str(variant.plan) for variant in ready.variants[1:]]
    return pd.DataFrame({name: costs[name].mean(1).tolist() for name in measures}, index=names)


def race_plans(
    encoder: Encoder,
    images: Images,
    plans: Iterable[Plan],
    *,
    calibration: Any,
    translator: str = "linear",
    head: Probe | nn.Module | None = None,
    measure: str | None = None,
    batch_size: BatchSize = "auto",
) -> pd.DataFrame:
    """Run plans on more and more images, the best third of them each time: about a third of the work of all.

    Parameters
    ----------
    encoder, images, plans, calibration, translator, head, measure, batch_size
        As for `run_plans`, and a name of `MEASURES`: by default ``"divergence"``, or ``"features"`` without a head.

    Returns
    -------
    DataFrame
        One row per plan, see `race`; an `InputError` as for `run_plans`.
    """
    measure = measure or ("features" if head is None else "divergence")
    _check_measure(measure, head, images)
    ready = prepare(encoder, None, plans, translators=[translator], calibration=calibration, batch_size=batch_size)
    variants = {variant.plan: variant for variant in ready.variants[1:]}

    def run(left: list[Plan], part: Images) -> Tensor:
        these = replace(ready, variants=[THE_ORIGINAL, *(variants[plan] for plan in left)])
        return _costs(encoder, part, these, head, [measure], batch_size=batch_size)[measure]

    return race(list(variants), images, run)


def race(plans: list[Plan], images: Images, run: Callable[[list[Plan], Images], Tensor]) -> pd.DataFrame:
    """Find the plan of least cost by successive elimination, as scikit-learn's ``HalvingGridSearchCV`` with factor 3.

    All plans are run on a tenth of the images (8 at least), the best third of them up to a third, and the best third of
    those on all images (sequential halving, Karnin, Koren and Somekh, ICML 2013, with thirds); two at least go on.
    `run` takes plans and images to the cost of each plan on each image, shape (plans, images).

    Each plan is a row, with its name as index: ``cost``, the best plan's mean cost plus the mean paired difference
    from it on the images that both were run on, so that the best has the least; and ``images``, their number.
    """
    costs = torch.full((len(plans), len(images)), torch.nan, dtype=torch.float64)
    left, done = torch.arange(len(plans)), 0
    for share in ROUNDS:
        end = min(max(-(-len(images) // share), FEWEST), len(images))
        if done < end and (done == 0 or len(left) > 1):
            costs[left, done:end] = run([plans[row] for row in left], images[done:end]).double().cpu()
            done = end
            order = costs[left, :end].mean(1).argsort(stable=True)
            left = left[order[: max(-(-len(left) // KEPT), FINALISTS)]]
    best = costs[left[0]]
    found = best.nanmean() + (costs - best).nanmean(1)
    counts = costs.isfinite().sum(1).tolist()
    return pd.DataFrame({"cost": found.tolist(), "images": counts}, index=list(map(str, plans)))


def removal_order(
    encoder: Encoder,
    images: Images,
    *,
    calibration: Any,
    head: Probe | nn.Module,
    translator: str = "linear",
    at_most: int | None = None,
) -> pd.DataFrame:
    """Put blocks in one order of removal for all budgets: greedily, the next one changes the head's answers least.

    Parameters
    ----------
    encoder, images, calibration, head, translator
        As for `run_plans`. Each step runs all plans of one block more with maps of their own, best fitted from moments.
    at_most
        Number of steps, from 1 on; by default all blocks go.

    Returns
    -------
    DataFrame
        One row per step: ``removed`` (number of blocks), the ``block`` that goes, ``plan``, ``divergence`` in nats.
    """
    need_encoder(encoder)
    count, options = len(encoder.blocks), {"calibration": calibration, "translator": translator, "head": head}
    whole_number("at_most", count if at_most is None else at_most, least=1)
    rows, removed = [], []
    for _ in range(count)[:at_most]:
        left = [block for block in range(count) if block not in removed]
        plans = [plan_of([*removed, block]) for block in left]
        run = run_plans(encoder, images, plans, measures=["divergence"], **options)["divergence"]
        removed.append(left[run.argmin()])
        rows.append((len(removed), removed[-1], run.idxmin(), run.min()))
    return pd.DataFrame(rows, columns=["removed", "block", "plan", "divergence"])


def features_error(features: Tensor, original: Tensor) -> Tensor:
    """``|f - f0|^2`` of each image in units of the mean ``|f0 - mean f0|^2``, shape (images,); 0 for equal features."""
    return (features - original).square().sum(1) / (original - original.mean(0)).square().sum(1).mean()


@torch.inference_mode()
def divergence(head: Probe | nn.Module, features: Tensor, original: Tensor) -> Tensor:
    """Kullback-Leibler divergence ``KL(p0 | p)`` of a head's answers from the original's, in nats, shape (images,)."""
    answers, expected = (_log_probabilities(head, one) for one in (features, original))
    return (expected.exp() * (expected - answers)).sum(-1).mean(0)


@torch.inference_mode()
def loss(head: Probe | nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a head's answers with labels, int64, in nats; both have shape (images,)."""
    answers, images = _log_probabilities(head, features), torch.arange(len(labels))
    return -answers[:, images, labels.to(answers.device)].mean(0)


def _check_measure(name: str, head: Probe | nn.Module | None, images: Images) -> None:
    if name not in MEASURES:
        raise unknown("measure", name, MEASURES)
    if name != "features" and head is None:
        raise InputError(f"Measure {name!r} needs a head; 'features' needs none.")
    if name == "loss" and images.labels is None:
        raise InputError("Measure 'loss' needs labels; 'divergence' needs only a head.")


def _costs(
    encoder: Encoder, images: Images, ready: Prepared, head: Any, measures: list[str], *, batch_size: int
) -> dict[str, Tensor]:
    """Measure -> the cost of each plan on each image, shape (plans, images)."""
    original, *features = collect_features(encoder, images, ready.variants, ready.maps, batch_size)
    costs = {
        "features": lambda one: features_error(one, original),
        "divergence": lambda one: divergence(head, one, original),
        "loss": lambda one: loss(head, one, images.labels),
    }
    return {name: torch.stack([costs[name](one) for one in features]) for name in measures}


def _log_probabilities(head: Probe | nn.Module, features: Tensor) -> Tensor:
    """Shape (seeds, images, classes); a module is one seed."""
    logits = head.logits(features)[0] if isinstance(head, Probe) else head(features)[None]
    return logits.log_softmax(-1)
