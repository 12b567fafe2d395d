"""What plans cost when they are run: how far they lead from the original, on images whose labels play no part."""

from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor, nn

from toastlib.data import Images
from toastlib.errors import InputError
from toastlib.models import Encoder
from toastlib.moments import FoldedMoments, Moments
from toastlib.plan import Plan
from toastlib.probe import Probe
from toastlib.translators import REALIGN
from toastlib.walks import collect_calibration, collect_features, fit_maps, fit_realignments, variants_of


def measured_costs(
    encoder: Encoder,
    images: Images,
    plans: Iterable[Plan],
    translator: str = "linear",
    moments: Moments | FoldedMoments | None = None,
    calibration: Images | None = None,
    head: Probe | nn.Module | None = None,
    batch_size: int = 32,
) -> pd.Series:
    """How far plans lead from the original on images without labels: what `toastlib.selection.select` verifies by.

    Parameters
    ----------
    encoder, plans
        The original, and plans that are not empty.
    images
        Training images, other than those that the maps are fitted on.
    translator
        What stands in for the spans, realigned or not.
    moments
        What the maps are fitted on, see `toastlib.approximation.fit_spans`. If `None`, those of these plans' spans
        alone are collected on the calibration images.
    calibration
        Images that maps are fitted on where there are no moments, and realignments in any case.
    head
        Fitted on the original's features, and kept. Without one, features are compared.
    batch_size
        Images per forward pass.

    Returns
    -------
    Series
        Plan -> with a head, the mean Kullback-Leibler divergence of its answers (in nats; over its seeds) from those
        that it gives for the original's features; without, ``|f - f0|^2 / |f0 - mean f0|^2`` of the features.

    Raises
    ------
    InputError
        If there are neither moments nor calibration images, or features are to be realigned without the latter.
    """
    variants = variants_of(plans, [translator])
    if calibration is None and (moments is None or translator.endswith(REALIGN)):
        raise InputError(f"Maps {translator!r} are to be fitted: pass the calibration images.")
    if moments is None:
        moments = collect_calibration(encoder, calibration, [v.plan for v in variants], [translator], batch_size)
    maps = fit_maps(encoder, variants, moments)
    maps |= fit_realignments(encoder, calibration, variants, maps, batch_size)
    original, *features = collect_features(encoder, images, variants, maps, batch_size)
    away = [features_error(one, original) if head is None else divergence(head, one, original) for one in features]
    return pd.Series(away, index=[str(variant.plan) for variant in variants[1:]])


def features_error(features: Tensor, original: Tensor) -> float:
    """``|f - f0|^2 / |f0 - mean f0|^2``: 0 for equal features, 1 for what the mean of all images would give."""
    return ((features - original).square().sum() / (original - original.mean(0)).square().sum()).item()


@torch.inference_mode()
def divergence(head: Probe | nn.Module, features: Tensor, original: Tensor) -> float:
    """Mean Kullback-Leibler divergence ``KL(p0 | p)`` of a head's answers for features from those for the original's.

    Parameters
    ----------
    head
        A fitted `Probe`, over whose seeds the mean is taken, or a module from features to logits.
    features, original
        Shape (images, width).
    """
    told, expected = (_logits(head, rows).log_softmax(-1) for rows in (features, original))
    return (expected.exp() * (expected - told)).sum(-1).mean().item()


def _logits(head: Probe | nn.Module, features: Tensor) -> Tensor:
    return features @ head.weight_[0] + head.bias_[0] if isinstance(head, Probe) else head(features)
