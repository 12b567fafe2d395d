"""The quality of a choice of plan by test labels that it never saw; and random maps, the control of fitted ones."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import nn

from toastlib.errors import InputError, unknown
from toastlib.evaluation.metrics import paired_difference
from toastlib.translators.linear import linear_module


def random_map(linear: nn.Linear, center: str = "zero", seed: int = 0) -> nn.Linear:
    """Draw a map with the singular values of a fitted map's matrix W, shape (width, width), and random directions.

    Uniform over all rotations and reflections; `center` ``"identity"`` takes the values of ``W - I``. A bias stays.
    """
    if center not in ("zero", "identity"):
        raise unknown("center of a random map", center, ("zero", "identity"))
    weight = linear.weight.detach().double().cpu().mT
    goal = torch.eye(len(weight), dtype=weight.dtype) if center == "identity" else torch.zeros_like(weight)
    generator = torch.Generator().manual_seed(seed)
    left, right = (nn.init.orthogonal_(torch.empty_like(goal), generator=generator) for _ in range(2))
    drawn = goal + left @ torch.diag(torch.linalg.svdvals(weight - goal)) @ right
    return linear_module(drawn, linear.bias).to(linear.weight.device, linear.weight.dtype)


def rank_correlation(predicted: pd.Series, correct: pd.DataFrame) -> tuple[float, float, float]:
    """Spearman's rank correlation (1904) between the predicted costs of plans and the accuracy that they lose.

    From plan -> its predicted cost, and the correctness of each test image in [0, 1], shape (images, plans). With it
    come its 2.5 and 97.5 % quantiles over 500 resamples of the test images. Resamples add noise to accuracies that are
    noisy already: the interval leans towards zero. All three are 0 where all plans are tied.
    """
    outcomes, images = correct[predicted.index].to_numpy(), len(correct)
    resamples = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=500)
    accuracies = np.vstack([outcomes.mean(0), resamples @ outcomes / images]).round(9)  # ties are equal up to rounding
    ranks = rankdata(np.vstack([-predicted.to_numpy(), accuracies]), axis=1)
    with np.errstate(invalid="ignore"):  # NaN where all plans are tied, also in one resample
        correlation, *resampled = np.nan_to_num(np.corrcoef(ranks)[0, 1:])
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(correlation), float(low), float(high)


class Regret(NamedTuple):
    """Points by which the best plan of a size beats the chosen one: too many, as the luckiest of many plans is best."""

    best: str  # the most accurate plan on the test images
    points: float  # its lead, with the 95 % interval paired over images
    low: float
    high: float
    cross_validated: float  # lead of the best plan of half of the images on the other half, mean over random halves


def regret(correct: pd.DataFrame, chosen: str, splits: int = 200) -> Regret:
    """Compare a chosen plan with the best of all plans of its size, found by the test labels.

    `correct` is the correctness of each test image in [0, 1], shape (images, plans); `splits` are its random halves.
    """
    own = correct.columns.get_loc(chosen)
    leads = [second[first.argmax()] - second[own] for first, second in _halves(correct.to_numpy(), splits)]
    best = correct.mean().idxmax()
    lead = paired_difference(correct[best].to_numpy(), correct[chosen].to_numpy())
    return Regret(best, *lead, cross_validated=100 * float(np.mean(leads)))


class WinRate(NamedTuple):
    """The rank of a chosen plan among others of its size, as shares in [0, 1]."""

    beats: float  # share of the others that are less accurate; equally accurate ones count half
    unbeaten: float  # share of the others that are not clearly more accurate: the paired 95 % interval reaches zero
    hindsight: float  # the ceiling: what the best plan of half of the images beats on the others, mean over halves


def win_rate(correct: pd.DataFrame, chosen: str, splits: int = 200) -> WinRate:
    """Compare a chosen plan with other plans of its size, of which there must be one; parameters as for `regret`."""
    outcomes, own = correct.to_numpy(), correct.columns.get_loc(chosen)
    others = [plan for plan in range(outcomes.shape[1]) if plan != own]
    if not others:
        raise InputError(f"Plan {chosen} has no rival: pass other plans of its size too.")
    lows = [paired_difference(outcomes[:, plan], outcomes[:, own])[1] for plan in others]
    halves = [(first.argmax(), second) for first, second in _halves(outcomes, splits)]
    hindsight = np.mean([_share_beaten(accuracies, best) for best, accuracies in halves])
    return WinRate(_share_beaten(outcomes.mean(0), own), float(np.mean(np.array(lows) <= 0)), float(hindsight))


def _share_beaten(accuracies: np.ndarray, own: int) -> float:
    leads = (accuracies[own] - np.delete(accuracies, own)).round(9)  # ties are equal up to rounding
    return float((leads > 0).mean() + (leads == 0).mean() / 2)


def _halves(outcomes: np.ndarray, splits: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Accuracies of all plans on random halves of the images."""
    generator = np.random.default_rng(0)
    orders = [np.array_split(generator.permutation(len(outcomes)), 2) for _ in range(splits)]
    return [(outcomes[first].mean(0), outcomes[second].mean(0)) for first, second in orders]
