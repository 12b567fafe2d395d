"""Checks of the exercises on ``05_skipat``."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from toastlib.evaluation.metrics import paired_difference

from .verdicts import ROUNDED, quiz, verdict

HEADS = {
    "A finished classifier is to be made smaller, and its labels are gone.": "frozen",
    "Does the smaller encoder's output still carry the information about the class?": "retrained",
    "How far do the features move away from where the original had them?": "frozen",
    "A new task begins, with labels, on top of the smaller encoder.": "retrained",
    "Which images does the removed block itself turn wrong?": "frozen",
}
"""Question -> the protocol that answers it."""


def left(answer: float) -> str:
    """Exercise 1: what dropping two blocks leaves of one token."""
    mistakes = {
        "That is the last block only; the span 0->2 removes blocks 1 and 2.": 1 / 41,
        "That is a share of `h[0]`; it is h[2] that is approximated.": 2 / 25,
        "That is a ratio of lengths, not squared.": (2 / 41) ** 0.5,
        "That is the square of the sum of the lengths; at right angles their squares add up.": 4 / 41,
        "It is not divided by |h[2]|^2, which is 41.": 2,
        "In per cent, where a share is asked for: a number between 0 and 1.": 200 / 41,
    }
    praise = "The updates are missing, not the token: the residual stream carries it on."
    return verdict(answer, 2 / 41, mistakes, praise, ROUNDED)


def student(n: int) -> float:
    """The 97.5 % quantile of Student's t with n - 1 degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.975, n - 1))


def interval(answer: tuple[float, float, float], first: np.ndarray, second: np.ndarray) -> str:
    """Exercise 2: the paired difference in points, with its interval."""
    right, n = paired_difference(first, second), len(first)
    difference, quantile = 100 * (first - second), student(len(first))
    mean, deviation = difference.mean(), difference.std(ddof=1)

    def around(half: float) -> tuple[float, float, float]:
        return mean, mean - half, mean + half

    unpaired = 100 * math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / n)
    population = difference.std() / math.sqrt(n)
    mistakes = {
        "This interval is unpaired: take the difference of each image first.": around(quantile * unpaired),
        "That is a population's deviation; the mean was estimated too: `ddof=1`.": around(quantile * population),
        "That is a single image's deviation; divide by the square root of the number.": around(quantile * deviation),
        "That is one standard error, without the quantile.": around(deviation / math.sqrt(n)),
        "These are fractions; points are a hundred times as many.": tuple(value / 100 for value in right),
        "The sign is wrong: the first less the second.": (-mean, -right[2], -right[1]),
        "That is the quantile of the normal distribution, 1.96; use `T`.": around(1.96 * deviation / math.sqrt(n)),
    }
    praise = "Paired, the images' own difficulty drops out."
    return verdict(answer, right, mistakes, praise, 1e-6)


def images_needed(answer: int) -> str:
    """Exercise 3: images for half a point, at a deviation of 20 points."""
    ratio = 20 / 0.5
    mistakes = {
        "That is the root of the number: square it.": math.ceil(1.96 * ratio),
        "1.645 belongs to a one-sided interval; a two-sided one of 95 % has 1.96.": math.ceil((1.645 * ratio) ** 2),
        "That is without 1.96: one standard error is not yet a 95 % interval.": math.ceil(ratio**2),
        "So many are a fraction of an image short: round up.": math.floor((1.96 * ratio) ** 2),
        "The whole width is not asked for: half of it is to be half a point.": math.ceil((2 * 1.96 * ratio) ** 2),
        "Twice as many would be for an unpaired comparison; these are differences.": math.ceil(2 * (1.96 * ratio) ** 2),
    }
    praise = "Half the difference needs four times the images."
    return verdict(answer, math.ceil((1.96 * ratio) ** 2), mistakes, praise, 1e-6)


def heads(answer: Mapping[str, str]) -> str:
    """Exercise 4: which protocol answers which question."""
    finished, carries, moves, begins, turns = HEADS
    reasons = {
        finished: "retraining needs labels.",
        carries: "a head that is trained anew finds the information wherever it has gone.",
        moves: "only a fixed ruler measures a movement; a new head moves along.",
        begins: "the new task has no head yet: there is nothing to freeze.",
        turns: "a retrained head changes predictions of its own, so that the block's part cannot be told.",
    }
    return quiz(answer, HEADS, reasons, "Frozen is the protocol of compression, retrained that of transfer.")


def undo(answer: Tensor, v: Tensor, a: Tensor) -> str:
    """Exercise 5: the head that undoes an invertible matrix."""
    inverse = torch.linalg.inv(a)
    mistakes = {
        "That goes in the wrong direction: Z = F A, and F A V' has to be F V.": a @ v,
        "The matrix is transposed, or its inverse on the wrong side: features are rows, Z V' = F A V'.": inverse.mT @ v,
        "The head stays as it is: that is what a frozen one does, and its logits are those of F A V.": v,
    }
    praise = "So a retrained head undoes every invertible matrix: only what is destroyed is lost."
    return verdict(answer, inverse @ v, mistakes, praise)
