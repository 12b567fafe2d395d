"""The cost of plans when they are run on images that neither maps nor head were fitted on."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from toastlib.approximation.engine import collect_features
from toastlib.approximation.prepare import prepare
from toastlib.data.images import Images
from toastlib.errors import InputError, need_encoder, unknown, whole_number
from toastlib.evaluation.probe import Probe
from toastlib.models.encoder import Encoder
from toastlib.plan import Plan, plan_of

MEASURES = ("features", "divergence", "loss")
"""Costs of a plan: error of its features, change of the head's answers, and the head's loss with labels."""


def run_plans(
    encoder: Encoder,
    images: Images,
    plans: Iterable[Plan],
    *,
    calibration: Any,
    translator: str = "linear",
    head: Probe | nn.Module | None = None,
    measures: Iterable[str] = ("features",),
    batch_size: int = 32,
) -> pd.DataFrame:
    """Run plans, and measure how far each is from the original encoder.

    Parameters
    ----------
    encoder, plans
        The original encoder, and plans that are not empty.
    images
        Training images that neither maps nor head are fitted on.
    calibration, translator, batch_size
        As for `approximate`; the maps may be with ``"+align"``, which needs images for calibration.
    head
        Fitted on the original's features: a `Probe`, whose seeds are averaged, or a module from features to logits.
        ``"features"`` needs none.
    measures
        Names of `MEASURES`; only ``"loss"`` needs labels.

    Returns
    -------
    DataFrame
        One row per plan, with its name as index, and one column per measure: ``"features"`` from `features_error`,
        ``"divergence"`` in nats, ``"loss"`` the head's cross-entropy in nats.

    Raises
    ------
    InputError
        If a measure is unknown, or a head, labels or calibration images are missing where they are needed.
    """
    measures = list(measures)
    for name in measures:
        if name not in MEASURES:
            raise unknown("measure", name, MEASURES)
        if name != "features" and head is None:
            raise InputError(f"Measure {name!r} needs a head; 'features' needs none.")
    if "loss" in measures and images.labels is None:
        raise InputError("Measure 'loss' needs labels; 'divergence' needs only a head.")
    ready = prepare(encoder, None, plans, translators=[translator], calibration=calibration, batch_size=batch_size)
    original, *features = collect_features(encoder, images, ready.variants, ready.maps, batch_size)
    costs = {
        "features": lambda one: features_error(one, original),
        "divergence": lambda one: divergence(head, one, original),
        "loss": lambda one: loss(head, one, images.labels),
    }
    names = [str(variant.plan) for variant in ready.variants[1:]]
    return pd.DataFrame({name: [costs[name](one) for one in features] for name in measures}, index=names)


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
        Number of steps; by default all blocks go.

    Returns
    -------
    DataFrame
        One row per step: ``removed`` (number of blocks), the ``block`` that goes, ``plan``, ``divergence`` in nats.

    Raises
    ------
    InputError
        If `at_most` is no whole number from 1 on; or as for `run_plans`.
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


def features_error(features: Tensor, original: Tensor) -> float:
    """``|f - f0|^2 / |f0 - mean f0|^2``: 0 for equal features, 1 if every image gets the mean feature."""
    return ((features - original).square().sum() / (original - original.mean(0)).square().sum()).item()


@torch.inference_mode()
def divergence(head: Probe | nn.Module, features: Tensor, original: Tensor) -> float:
    """Mean Kullback-Leibler divergence ``KL(p0 | p)`` of a head's answers from those for the original's features."""
    answers, expected = (_log_probabilities(head, one) for one in (features, original))
    return (expected.exp() * (expected - answers)).sum(-1).mean().item()


@torch.inference_mode()
def loss(head: Probe | nn.Module, features: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy of a head's answers with labels, int64, shape (images,)."""
    answers, images = _log_probabilities(head, features), torch.arange(len(labels))
    return -answers[..., images, labels.to(answers.device)].mean().item()


def _log_probabilities(head: Probe | nn.Module, features: Tensor) -> Tensor:
    """Shape (images, classes), or (seeds, images, classes)."""
    logits = head.logits(features)[0] if isinstance(head, Probe) else head(features)
    return logits.log_softmax(-1)
