"""What a plan costs and saves: accuracy with its interval, parameters, FLOPs and throughput."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from toastlib.errors import InputError
from toastlib.plan import ORIGINAL

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Predictions:
    """What every variant of a sweep predicts for the same test images.

    Parameters
    ----------
    variants
        One row per variant: ``head``, ``translator``, ``plan``, ``seed``.
    predicted
        int64, shape (variants, images).
    labels
        int64, shape (images,).
    """

    variants: pd.DataFrame
    predicted: np.ndarray
    labels: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """bool, shape (variants, images)."""
        return self.predicted == self.labels

    def mean_correct(self, **which: str) -> np.ndarray:
        """Share of seeds that classify each image rightly, shape (images,), for one head, translator and plan.

        Raises
        ------
        InputError
            If no variant is of that kind.
        """
        chosen = np.logical_and.reduce([self.variants[column] == value for column, value in which.items()])
        if not chosen.any():
            raise InputError(f"No variant has {', '.join(f'{k}={v!r}' for k, v in which.items())}.")
        return self.correct[chosen].mean(0)


def accuracy_table(predictions: Predictions) -> pd.DataFrame:
    """One row per variant with its accuracy.

    Parameters
    ----------
    predictions
        From `predict`.

    Returns
    -------
    DataFrame
        The variants' columns, then ``correct``, ``images``, ``accuracy`` in percent, and ``accuracy_low``,
        ``accuracy_high``: Wilson's 95 % interval (1927) over test images.
    """
    correct = predictions.correct.sum(1)
    images = len(predictions.labels)
    low, high = zip(*(accuracy_interval(int(c), images) for c in correct), strict=True)
    return predictions.variants.assign(
        correct=correct,
        images=images,
        accuracy=100 * correct / images,
        accuracy_low=[100 * value for value in low],
        accuracy_high=[100 * value for value in high],
    )


def accuracy_interval(correct: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, as two numbers in [0, 1]."""
    from scipy.stats import binomtest

    interval = binomtest(correct, images).proportion_ci(CONFIDENCE, method="wilson")
    return interval.low, interval.high


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Mean of ``first - second`` over the same test images, with the 95 % interval of Student (1908).

    Parameters
    ----------
    first, second
        Correctness of each image in [0, 1], shape (images,), from `Predictions.mean_correct`.

    Returns
    -------
    tuple
        Difference, lower and upper end, in percentage points: Student's interval of the paired differences.
    """
    from scipy.stats import ttest_1samp

    difference = 100 * (first - second)
    if np.ptp(difference) == 0:
        return (float(difference[0]),) * 3
    interval = ttest_1samp(difference, 0).confidence_interval(CONFIDENCE)
    return float(difference.mean()), float(interval.low), float(interval.high)


def accuracy_lost(predictions: Predictions) -> pd.DataFrame:
    """Percentage points that each plan loses against the original encoder, paired over test images.

    Parameters
    ----------
    predictions
        From `predict`, with the original among its variants.

    Returns
    -------
    DataFrame
        Columns ``head``, ``translator``, ``plan``, ``lost``, ``lost_low``, ``lost_high`` (95 % interval; negative
        values are gains).
    """
    rows = []
    kinds = predictions.variants[["head", "translator", "plan"]].drop_duplicates()
    for head, translator, plan in kinds[kinds["plan"] != ORIGINAL].itertuples(index=False):
        original = predictions.mean_correct(head=head, plan=ORIGINAL)
        approximated = predictions.mean_correct(head=head, translator=translator, plan=plan)
        lost, low, high = paired_difference(original, approximated)
        rows.append((head, translator, plan, lost, low, high))
    return pd.DataFrame(rows, columns=["head", "translator", "plan", "lost", "lost_low", "lost_high"])
