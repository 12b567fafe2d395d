"""Checks of the exercises on ``04_misclassification``."""

from collections.abc import Mapping

import numpy as np

from toastlib.evaluation import metrics

from .verdicts import ROUNDED, steps, verdict

HIDDEN = {
    "images for one plan": 6,
    "images for the smallest of 11": 9,
    "points lost without a star": 100 * 8 / 600,
}
"""Exercise 4: what an absent star may hide on 600 test images."""


def p_value(answer: float) -> str:
    """Exercise 1: McNemar's exact test for six against one."""
    mistakes = {
        "That is one side only; the other tail, six or seven that turn right, is as likely.": 8 / 128,
        "That is the chance of exactly one; what is at least as extreme counts, none as well.": 14 / 128,
        "That is the chi-squared approximation, (6 - 1)^2 / 7, too coarse for seven images.": 0.0588,
        "That is the chi-squared approximation with a continuity correction, not the exact value.": 0.1306,
        "In per cent, where a probability between 0 and 1 is asked for.": 12.5,
        "That would be the value for six of six: the image that turns right speaks for the block's removal.": 2 / 2**6,
    }
    praise = "The images on which both agree never enter."
    return verdict(answer, 0.125, mistakes, praise, ROUNDED)


def flips(answer: tuple[int, int], labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> str:
    """Exercise 2: how many images turn from right to wrong, and how many from wrong to right."""
    was, now = before == labels, after == labels
    lost, won = int((was & ~now).sum()), int((~was & now).sum())
    changed, wrong = int((before != after).sum()), (int((~now).sum()), int((~was).sum()))
    mistakes = {
        "They are the other way round: right to wrong comes first.": (won, lost),
        "You counted images that go from one wrong class to another; these were wrong before.": (changed, won),
        "Those are all wrong images; count those that were right before, and the reverse.": wrong,
        "Those are all right images, before and after; count those that turn.": (int(was.sum()), int(now.sum())),
    }
    praise = "Their difference is the accuracy lost; McNemar's test needs both."
    return verdict(answer, (lost, won), mistakes, praise, 1e-6)


def holm(answer: np.ndarray, p: np.ndarray) -> str:
    """Exercise 3: Holm's correction."""
    p, n = np.asarray(p), len(p)
    right, ranks = metrics.holm(p), p.argsort().argsort()
    mistakes = {
        "That is Bonferroni's correction, n times every value: Holm's factor falls from n to 1.": np.minimum(n * p, 1),
        "A corrected value is smaller than one before it: take the running maximum.": np.minimum((n - ranks) * p, 1),
        "The values are right, but sorted: give them back in the order in which they came.": np.sort(right),
        "That is Benjamini and Hochberg's correction, of the share of false alarms.": benjamini_hochberg(p),
        "These are the p-values as they were.": p,
        "The factors go the wrong way: n for the smallest p-value, 1 for the largest.": np.minimum(p * (ranks + 1), 1),
    }
    return verdict(answer, right, mistakes, "Only the smallest p-value pays Bonferroni's full price.")


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """p-values corrected for the rate of false discoveries, in the order given."""
    order = np.argsort(p)[::-1]
    corrected = np.empty(len(p))
    corrected[order] = np.minimum.accumulate(len(p) / np.arange(len(p), 0, -1) * p[order])
    return corrected


def hidden(answer: Mapping[str, float]) -> str:
    """Exercise 4: how much a plan may lose without a star."""
    mistakes = (
        {
            "that would be a one-sided test; p = 2 / 2^n.": 5,
            "the smallest n with 2 / 2^n below 0.05 is wanted.": 4,
        },
        {
            "that would do for a one-sided test; p = 2 / 2^n has to fall below 0.05 / 11.": 8,
            "that is not corrected: the smallest of 11 p-values is multiplied with 11.": 6,
        },
        {
            "with nine images the plan does have a star; one less has none.": 100 * 9 / 600,
            "that is a fraction; points are per cent of the images.": 8 / 600,
            "that is the number of images; 600 of them are 100 points.": 8,
            "that is without Holm: five images would pass a single test.": 100 * 5 / 600,
        },
    )
    return steps(answer, HIDDEN, mistakes, "No star does not mean no harm.", ROUNDED)
