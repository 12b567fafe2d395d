"""How good a choice of blocks was, by the test labels that it never saw; and random maps, a control of fitted ones."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from toastlib.errors import InputError, unknown
from toastlib.evaluation.metrics import paired_difference
from toastlib.translators.base import linear_module


def random_map(linear: nn.Linear, around: str = "zero", seed: int = 0) -> nn.Linear:
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


def regret(correct: pd.DataFrame, chosen: str, splits: int = 200, seed: int = 0) -> Distance:
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
    own = correct.columns.get_loc(chosen)
    leads = [second[first.argmax()] - second[own] for first, second in _halves(correct.to_numpy(), splits, seed)]
    best = correct.mean().idxmax()
    lead = paired_difference(correct[best].to_numpy(), correct[chosen].to_numpy())
    return Distance(best, *lead, honest=100 * float(np.mean(leads)))


class Standing(NamedTuple):
    """How a chosen plan stands among others of its size on the test images, as shares in [0, 1].

    Attributes
    ----------
    beats
        Of the others, those that are less accurate; equally accurate ones count half.
    unbeaten
        Of the others, those that are not clearly more accurate: the 95 % interval, paired over images, reaches zero.
    hindsight
        What `beats` is for the plan that is best on a random half of the images, measured on the other half, mean over
        halves: how much of the order of these plans can be told at all with so many images, and their labels.
    """

    beats: float
    unbeaten: float
    hindsight: float


def win_rate(correct: pd.DataFrame, chosen: str, splits: int = 200, seed: int = 0) -> Standing:
    """How a chosen plan stands among others of its size.

    Parameters
    ----------
    correct
        Correctness of each test image in [0, 1], shape (images, plans): of the chosen plan and of others, with names.
    chosen
        Name of the chosen one.
    splits, seed
        Random halves of the test images.

    Returns
    -------
    Standing
        Shares, from 0 to 1.

    Raises
    ------
    InputError
        If there is no other plan.
    """
    outcomes, own = correct.to_numpy(), correct.columns.get_loc(chosen)
    others = [plan for plan in range(outcomes.shape[1]) if plan != own]
    if not others:
        raise InputError(f"Plan {chosen} stands alone: pass other plans beside it.")
    lows = [paired_difference(outcomes[:, plan], outcomes[:, own])[1] for plan in others]
    halves = [(first.argmax(), second) for first, second in _halves(outcomes, splits, seed)]
    hindsight = np.mean([_share_beaten(accuracies, best) for best, accuracies in halves])
    return Standing(_share_beaten(outcomes.mean(0), own), float(np.mean(np.array(lows) <= 0)), float(hindsight))


def _share_beaten(accuracies: np.ndarray, own: int) -> float:
    leads = (accuracies[own] - np.delete(accuracies, own)).round(9)  # equal but for rounding: tied
    return float((leads > 0).mean() + (leads == 0).mean() / 2)


def _halves(outcomes: np.ndarray, splits: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Accuracies of all plans on random halves of the images."""
    generator = np.random.default_rng(seed)
    orders = [np.array_split(generator.permutation(len(outcomes)), 2) for _ in range(splits)]
    return [(outcomes[first].mean(0), outcomes[second].mean(0)) for first, second in orders]
