"""What plans cost when they are run: how far they lead from the original on images that no map was fitted on."""

from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor, nn

from toastlib.approximation.engine import collect_calibration, collect_features, fit_alignments, fit_maps, variants_of
from toastlib.data.images import Images
from toastlib.errors import InputError, unknown
from toastlib.evaluation.probe import Probe
from toastlib.models.encoder import Encoder
from toastlib.plan import Plan
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.base import split_align

MEASURES = ("features", "divergence", "loss")
"""What a plan is judged by: its final features, the head's answers, or these and the labels; see `run_plans`."""


def run_plans(
    encoder: Encoder,
    images: Images,
    plans: Iterable[Plan],
    translator: str = "linear",
    moments: Moments | KFoldMoments | None = None,
    calibration: Images | None = None,
    head: Probe | nn.Module | None = None,
    measures: Iterable[str] = ("features",),
    batch_size: int = 32,
) -> pd.DataFrame:
    """Run plans and say how far each leads from the original: what `select` verifies by.

    Parameters
    ----------
    encoder, plans
        The original, and plans that are not empty.
    images
        Training images that neither the maps nor the head are fitted on.
    translator
        What stands in for the spans, aligned or not.
    moments
        What the maps are fitted on, see `fit_spans`. If `None`, those of these plans' spans
        alone are collected on the calibration images.
    calibration
        Images that maps are fitted on where there are no moments, and alignments in any case.
    head
        Fitted on the original's features, and kept: a `Probe`, over whose seeds the mean is taken, or a module from
        features to logits. ``"features"`` needs none.
    measures
        Names of `MEASURES`. Labels are looked at for ``"loss"`` alone.
    batch_size
        Images per forward pass.

    Returns
    -------
    DataFrame
        One row per plan, by its name, and a column for each measure: ``"features"``, their `features_error`;
        ``"divergence"``, how far the head's answers move, in nats; ``"loss"``, the head's cross-entropy.

    Raises
    ------
    InputError
        If a measure is unknown, or there is no head, label, moments or calibration image where one is needed.
    """
    measures = list(measures)
    _check(measures, head, images)
    variants = variants_of(plans, [translator])
    if calibration is None and (moments is None or split_align(translator)[1]):
        raise InputError(f"Maps {translator!r} are to be fitted: pass the calibration images.")
    if moments is None:
        moments = collect_calibration(encoder, calibration, [v.plan for v in variants], [translator], batch_size)
    maps = fit_maps(encoder, variants, moments)
    maps |= fit_alignments(encoder, calibration, variants, maps, batch_size)
    original, *features = collect_features(encoder, images, variants, maps, batch_size)
    costs = {
        "features": lambda rows: features_error(rows, original),
        "divergence": lambda rows: divergence(head, rows, original),
        "loss": lambda rows: loss(head, rows, images.labels),
    }
    names = [str(variant.plan) for variant in variants[1:]]
    return pd.DataFrame({name: [costs[name](rows) for rows in features] for name in measures}, index=names)


def features_error(features: Tensor, original: Tensor) -> float:
    """``|f - f0|^2 / |f0 - mean f0|^2``: 0 for equal features, 1 for what the mean of all images would give."""
    return ((features - original).square().sum() / (original - original.mean(0)).square().sum()).item()


@torch.inference_mode()
def divergence(head: Probe | nn.Module, features: Tensor, original: Tensor) -> float:
    """Mean Kullback-Leibler divergence ``KL(p0 | p)`` of a head's answers for features from those for the original's.

    Parameters
    ----------
    head
        As for `run_plans`.
    features, original
        Shape (images, width).
    """
    told, expected = (_log_probabilities(head, rows) for rows in (features, original))
    return (expected.exp() * (expected - told)).sum(-1).mean().item()


@torch.inference_mode()
def loss(head: Probe | nn.Module, features: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy of a head's answers with labels, int64, shape (images,)."""
    told, images = _log_probabilities(head, features), torch.arange(len(labels))
    return -told[..., images, labels.to(told.device)].mean().item()


def _log_probabilities(head: Probe | nn.Module, features: Tensor) -> Tensor:
    """Shape (images, classes), or (seeds, images, classes)."""
    logits = features @ head.weight_[0] + head.bias_[0] if isinstance(head, Probe) else head(features)
    return logits.log_softmax(-1)


def _check(measures: list[str], head: Probe | nn.Module | None, images: Images) -> None:
    for name in measures:
        if name not in MEASURES:
            raise unknown("measure", name, MEASURES)
        if name != "features" and head is None:
            raise InputError(f"Measure {name!r} needs a head; 'features' needs none.")
    if "loss" in measures and images.labels is None:
        raise InputError("Measure 'loss' needs labels; 'divergence' needs a head alone.")
