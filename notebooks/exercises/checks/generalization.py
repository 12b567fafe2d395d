"""Checks of the exercises on ``03_generalization``."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from toastlib.plan import Span
from toastlib.statistics.moments import Moments
from toastlib.translators.linear import Linear

from .verdicts import ROUNDED, quiz, verdict

ORIGIN = {
    "the images that the map is fitted on": "source",
    "the labels that the map is fitted on": "neither",
    "the images that the head is trained on": "target",
    "the encoder whose features the head is trained on": "neither",
    "the images that are tested": "target",
}
"""What is used -> the data set that it comes from."""
SPAN = Span(2, 5)


def origin(answer: Mapping[str, str]) -> str:
    """Exercise 1: what comes from the source, what from the target, and what from neither."""
    reasons = {
        "the images that the map is fitted on": "that is what makes a set the source.",
        "the labels that the map is fitted on": "a map takes h[s] to h[e]; no labels play a part.",
        "the images that the head is trained on": "a head of the source could not even name the target's classes.",
        "the encoder whose features the head is trained on": "the head is trained on the features of the original"
        " encoder, which belongs to neither set, and then frozen.",
        "the images that are tested": "the question is how well the map serves the target.",
    }
    return quiz(answer, ORIGIN, reasons, "Nothing but the map comes from the source.")


def least_norm(answer: Sequence[Sequence[float]]) -> str:
    """Exercise 2: the map of least norm where the source shows one direction."""
    mistakes = {
        "It solves the equations, but it is not of least norm: nothing asks for the 1 in the second row.": [
            [1, 1],
            [0, 1],
        ],
        "This is the transpose: a token is a row, and multiplies W from the left.": [[1, 0], [1, 0]],
        "The identity leaves the tokens where they are; W takes h[s] to h[e], (1, 0) to (1, 1).": [[1, 0], [0, 1]],
    }
    praise = "It is the pseudo-inverse's solution, which `toast.Linear` takes."
    return verdict(answer, [[1, 1], [0, 0]], mistakes, praise, ROUNDED)


def goes_to(answer: Sequence[float]) -> str:
    """Exercise 2: where that map takes a token along the other direction."""
    mistakes = {
        "That would be its place if the span were dropped; the map multiplies it with W's second row.": [0, 1],
        "That is W's first row; the token (0, 1) picks the second.": [1, 1],
    }
    return verdict(answer, [0, 0], mistakes, "It is erased: what the source never showed is not even handed on.")


def directions(answer: int, gram: Tensor, share: float) -> str:
    """Exercise 3: how many principal directions hold a share of the trace."""
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    right, roots = count_directions(gram, share), values.sqrt().flip(0)
    above = int((values > (1 - share) * values.max()).sum())
    mistakes = {
        "You summed the eigenvalues smallest first: `eigvalsh` gives them rising.": _count(values, share),
        "That is one short: so many do not hold the share yet, it takes one more.": right - 1,
        "You summed square roots: eigenvalues of H'H are squared singular values already.": _count(roots, share),
        "That counts the eigenvalues above a share of the largest; asked for is a share of their sum.": above,
    }
    return verdict(answer, right, mistakes, "Along the other directions a map of this source is hardly tested.", 1e-6)


def count_directions(gram: Tensor, share: float) -> int:
    """The least number of eigenvectors of `gram`, shape (width, width), that hold this share of its trace."""
    return _count(torch.linalg.eigvalsh(gram).clamp(min=0).flip(0), share)


def unexplained(answer: Tensor, weight: Tensor, target: Moments, source: Moments) -> str:
    """Exercise 4: the share that a map of the source leaves on the target."""
    xx, xy, yy = target.product(2, 2), target.product(2, 5), target.product(5, 5).trace()
    inner, square = (weight * xy).sum(), (weight * (xx @ weight)).sum()
    right, shortcut = left_unexplained(weight, target), (yy - inner) / yy
    on_source = left_unexplained(weight, source)
    own_map = left_unexplained(Linear().fit_moments(target, SPAN).weight_, target)
    mistakes = {
        "The shortcut 1 - tr W'H[s]'H[e] / |H[e]|^2 holds on its own set alone; write all three terms.": shortcut,
        "That is its error on the set that it was fitted on; take the target's moments.": on_source,
        "The middle term has a factor 2: |a - b|^2 = |a|^2 - 2 a.b + |b|^2.": (yy - inner + square) / yy,
        "It is not divided by |H[e]|^2, the trace of yy.": right * yy,
        "That is a share of `h[s]`; it is h[e] that is approximated.": right * yy / xx.trace(),
        "That is what the target's own map leaves; the map comes from the source.": own_map,
        "That is the share that the map explains; asked for is what it leaves.": 1 - right,
        "The map is transposed: h[e] is approximated by h[s] W.": left_unexplained(weight.mT, target),
    }
    return verdict(answer, right, mistakes, "Any map can be tried on any set, and no image is run a second time.")


def left_unexplained(weight: Tensor, moments: Moments) -> float:
    """``|H[e] - H[s] weight|^2 / |H[e]|^2`` for the span ``2->5``."""
    xx, xy, yy = moments.product(2, 2), moments.product(2, 5), moments.product(5, 5).trace()
    return ((yy - 2 * (weight * xy).sum() + (weight * (xx @ weight)).sum()) / yy).item()


def _count(values: Tensor, share: float) -> int:
    return int((values.cumsum(0) / values.sum() < share).sum()) + 1
