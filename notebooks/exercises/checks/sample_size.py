"""Checks of the exercises on ``07_sample_size``."""

from collections.abc import Mapping

import torch
from torch import Tensor

from toastlib.statistics.moments import Moments

from .verdicts import ROUNDED, steps, verdict


def counts(answer: Mapping[str, float]) -> str:
    """Exercise 1: rows, and the images that a map of width 96 needs."""
    right = {"rows of 16 images": 16 * 65, "images, every token": 2, "images, CLS alone": 96}
    mistakes = (
        {
            "the CLS token of each image is a row as well.": 16 * 64,
            "every token is a row, not every image.": 16,
        },
        {
            "one image has 65 rows, and 65 rows have no rank of 96.": 1,
            "images come whole: it has to be rounded up.": 96 / 65,
            "that is for one row per image; here every token is a row.": 96,
        },
        {
            "that is for every token; CLS alone is one row per image.": 2,
            "that would be for an affine map; this one has no bias.": 97,
        },
    )
    return steps(answer, right, mistakes, "Tokens make a map unique long before they make it good.", 1e-6)


def covariance(answer: Tensor, first: Moments, second: Moments) -> str:
    """Exercise 2: the sample covariance of two workers' rows of ``h[2]``."""
    both = first.merge(second)
    right, n = _scatter(both) / (both.count - 1), both.count
    pooled = (_scatter(first) + _scatter(second)) / (n - 2)
    average = (_scatter(first) / (first.count - 1) + _scatter(second) / (second.count - 1)) / 2
    mistakes = {
        "Each part is centred about its own mean, so their distance is lost: add first, then centre.": pooled,
        "That is the average of the two: 20 images do not count as much as 40, and the means differ.": average,
        "It is not centred: take n times the outer product of the mean off.": both.product(2, 2) / n,
        "That is the population's covariance; a sample's divides by n - 1.": _scatter(both) / n,
        "You divided by the number of images; every token is a row.": _scatter(both) / 59,
        "It is not divided by n - 1.": _scatter(both),
    }
    return verdict(answer, right, mistakes, "Sums about zero add up, covariances do not.", 1e-6)


def noise(answer: Mapping[str, float]) -> str:
    """Exercise 3: mean squared error on the rows of the fit and on new ones, for 128 rows and 96 numbers."""
    kept, new = 1 - 96 / 128, 1 + 96 / 31
    right = {"on the fit's rows": kept, "on new rows": new, "factor": new / kept}
    mistakes = (
        {
            "that is what the fit takes away, d/n; what is left is 1 - d/n.": 96 / 128,
            "that is as if nothing were fitted: the fit bends to the noise.": 1,
            "so much an unbiased estimate multiplies with, n/(n - d): asked for is the mean square itself.": 4,
        },
        {
            "it cannot be less than the noise of the row itself.": 1 - 96 / 31,
            "that is the map's part; a new row has its own noise as well, 1 + ...": 96 / 31,
        },
        {
            "it is the other way round: new rows over the fit's.": kept / new,
            "a factor is a ratio, not a difference.": new - kept,
        },
    )
    return steps(
        answer, right, mistakes, "A third more rows than numbers, and the residual flatters by sixteen.", ROUNDED
    )


def flattery(n: int, d: int) -> float:
    """By which factor noise is larger on new rows than on the n independent rows that d numbers were fitted on."""
    return (1 + d / (n - d - 1)) / (1 - d / n)


def enough(answer: int, accuracy: Mapping[int, float], within: float) -> str:
    """Exercise 4: the smallest size from which on no larger one brings more."""
    sizes = list(accuracy)

    def smallest(suffices) -> int:
        return next(size for size in sizes if suffices(size))

    right = smallest(lambda s: all(accuracy[t] - accuracy[s] <= within for t in sizes if t > s))
    beside_next = smallest(lambda s: accuracy.get(2 * s, accuracy[s]) - accuracy[s] <= within)
    beside_last = smallest(lambda s: accuracy[sizes[-1]] - accuracy[s] <= within)
    mistakes = {
        "You compared with the next size alone; a larger one may bring more.": beside_next,
        "That is the best size; a smaller one within the margin is enough.": max(accuracy, key=accuracy.get),
        "You compared with the last size alone; one between may be better.": beside_last,
        "The accuracies are in per cent, not as a fraction: half a point is 0.5.": sizes[0],
        "That is the largest size: of course none is better than the last.": sizes[-1],
    }
    return verdict(answer, right, mistakes, "No larger size brings more than the margin.", 1e-6)


def _scatter(moments: Moments) -> Tensor:
    """The sum of ``(x - mean)(x - mean)'`` over the rows of ``h[2]``."""
    total = moments.sums[moments.blocks.index(2)]
    return moments.product(2, 2) - torch.outer(total, total) / moments.count
