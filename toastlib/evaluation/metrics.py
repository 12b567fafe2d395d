"""Accuracies and differences with their intervals; every difference is paired over the same test images."""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm, ttest_1samp

from toastlib.errors import InputError

CONFIDENCE = 0.95


def accuracy_interval(correct: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of a proportion, as two numbers in [0, 1]."""
    interval = binomtest(correct, images).proportion_ci(CONFIDENCE, method="wilson")
    return interval.low, interval.high


def paired_difference(
    first: np.ndarray, second: np.ndarray, confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Mean of ``first - second`` over the same images, with Student's interval (1908) of the paired differences.

    Parameters
    ----------
    first, second, confidence
        Correctness of each image in [0, 1], shape (images,), from `Evaluation.mean_correct`; coverage of the interval.

    Returns
    -------
    tuple
        Difference, lower and upper end, in percentage points.

    Raises
    ------
    InputError
        If the two are not numbers for the same images, or the coverage is not between 0 and 1.
    """
    first, second = np.asarray(first), np.asarray(second)
    if any(one.dtype.kind not in "biuf" for one in (first, second)):
        raise InputError(f"Correctness is a number for each image, not {first.dtype} and {second.dtype}.")
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise InputError(f"Differences are paired over images: shapes {first.shape} and {second.shape} are no pairs.")
    if not 0 < confidence < 1:
        raise InputError(f"The confidence of an interval lies between 0 and 1, not at {confidence}.")
    difference = 100 * (first.astype(float) - second)
    if np.ptp(difference) == 0:
        return (float(difference[0]),) * 3
    interval = ttest_1samp(difference, 0).confidence_interval(confidence)
    return float(difference.mean()), float(interval.low), float(interval.high)


def paired_interval(lost: float, won: float, images: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of ``(lost - won) / images`` (Tango 1998, equations 11 and 14), as two numbers in [-1, 1].

    It keeps its coverage where few images change, and is no point where none does, as Student's would be. `lost` and
    `won` count the images that only the first model has right, and only the second; `images` counts all.
    """
    z = norm.ppf((1 + confidence) / 2)

    def upper(lost: float, won: float) -> float:
        def excess(difference: float) -> float:
            b = (2 * images - lost + won) * difference - lost - won
            c = -won * difference * (1 - difference)
            only_second = (np.sqrt(b * b - 8 * images * c) - b) / (4 * images)  # its most likely share
            variance = images * (2 * only_second + difference * (1 - difference))
            return lost - won - images * difference + z * np.sqrt(max(variance, 0))

        return brentq(excess, (lost - won) / images + 1e-12, 1) if lost < images else 1.0

    return -upper(won, lost), upper(lost, won)


def changes(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """Numbers of images that turn wrong, and that turn right."""
    return int((before > after).sum()), int((before < after).sum())


def images_needed(lost: int, won: int, images: int, bound: float) -> int | None:
    """Images that would put the upper end of `paired_interval` at `bound`, if they changed as these do, or `None`."""
    if (lost - won) / images >= bound:
        return None
    factor = 1.0
    while paired_interval(factor * lost, factor * won, factor * images)[1] > bound:
        factor *= 1.05
    return math.ceil(factor * images)


def exact_mcnemar(lost: int, won: int) -> float:
    """Two-sided p-value of McNemar's exact test (1947): do as many images turn wrong (`lost`) as turn right (`won`)?"""
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def holm(p: np.ndarray) -> np.ndarray:
    """p-values adjusted for their number by Holm's step-down method (1979), in the order given."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * np.asarray(p)[order])
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted
