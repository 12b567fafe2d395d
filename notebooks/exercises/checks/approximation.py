"""Checks of the exercises on ``02_approximation``."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from toastlib.approximation.replace import fit_spans
from toastlib.plan import Span
from toastlib.statistics.moments import Moments
from toastlib.translators.linear import Affine, Linear

from .verdicts import ROUNDED, same, steps, verdict

H_S = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
H_E = torch.tensor([[2.0, 2.0], [1.0, 1.0], [2.0, -1.0]])
"""Exercise 1: three tokens before and after a span."""
TRANSPOSED = "This is the transpose: with tokens in rows the map multiplies from the right, h[e] = h[s] W."
CENTRED = "This is the map of centred activations, which needs a bias; the paper's map has none."
MILLIONS = "in millions, where the number itself is asked for, to the last parameter."
BACKWARDS = "That is the map from `h[e]` to `h[s]`: it is the output that is to be predicted."


def map_by_hand(answer: Sequence[Sequence[float]]) -> str:
    """Exercise 1: the least-squares map of width 2."""
    right = torch.linalg.lstsq(H_S, H_E).solution
    centred = torch.linalg.lstsq(H_S - H_S.mean(0), H_E - H_E.mean(0)).solution
    mistakes = {
        f"{TRANSPOSED} Or did you multiply with the inverse from the right?": right.mT,
        "That is H[s]'H[e], not multiplied with the inverse of H[s]'H[s] yet.": H_S.mT @ H_E,
        CENTRED: centred,
        BACKWARDS: torch.linalg.lstsq(H_E, H_S).solution,
        "The factor of the inverse is missing, 1 / (a^2 - b^2) = 1/3.": 3 * right,
        "The inverse has -b beside its diagonal, not b.": torch.tensor([[2.0, 1.0], [1.0, 2.0]]) / 3 @ H_S.mT @ H_E,
    }
    return verdict(answer, right, mistakes, "What it misses is orthogonal to both columns of h[s].", ROUNDED)


def left_by_hand(answer: float) -> str:
    """Exercise 1: the share of ``|H[e]|^2`` that the map leaves."""
    mistakes = {
        "That is the squared error itself; a share is asked for, of |H[e]|^2.": 3,
        "That is a ratio of lengths, not squared.": 0.2**0.5,
        "That is the share that the map explains; asked for is what it leaves.": 0.8,
        "That is a share of `h[s]`; it is h[e] that is approximated.": 3 / 4,
        "|H[e]|^2 is the sum of the squares as they are, means not taken off.": 9 / 16,
        "That is what dropping the span leaves, |H[s] - H[e]|^2: multiply with W first.": 13 / 15,
        "In per cent, where a share is asked for: a number between 0 and 1.": 20,
    }
    return verdict(answer, 3 / 15, mistakes, "No matrix leaves less.", ROUNDED)


def linear_map(answer: Tensor, moments: Moments) -> str:
    """Exercise 2: the map of the span ``2->5``."""
    span = Span(2, 5)
    xx, xy, yy = moments.product(2, 2), moments.product(2, 5), moments.product(5, 5)
    right = Linear().fit_moments(moments, span).weight_
    others = [Span(3, 5), Span(2, 4), Span(1, 5)]
    mistakes = {
        TRANSPOSED: right.mT,
        "The inverse stands on the wrong side: (H[s]'H[s])^-1 comes before H[s]'H[e].": xy @ torch.linalg.inv(xx),
        "You divided one of the two sums by the number of tokens: both or none.": right / moments.count,
        CENTRED: Affine().fit_moments(moments, span).weight_,
        BACKWARDS: torch.linalg.solve(yy, xy.mT),
        "`xy` is transposed: H[s]'H[e] is the right-hand side as it is.": torch.linalg.solve(xx, xy.mT),
        "That is entry by entry: to divide by a matrix is to solve a linear system.": xy / xx,
        "That is H[s]'H[e] alone, not multiplied with the inverse of H[s]'H[s].": xy,
        **{f"That is the map of the span `{other}`.": Linear().fit_moments(moments, other).weight_ for other in others},
        "That is ridge regression: the paper's map has no penalty.": lambda w: penalty(w, xx, xy, 0) is not None,
    }
    return verdict(answer, right, mistakes, "Two sums of shape (96, 96) are all that the fit needs.")


def penalty(weight: Tensor, xx: Tensor, xy: Tensor, goal: Tensor | float) -> float | None:
    """The c for which a map minimises ``|X W - Y|^2 + c |W - goal|^2``; nothing if there is none."""
    weight = torch.as_tensor(weight, dtype=xx.dtype)
    away, slope = weight - goal, xy - xx @ weight
    c = (slope * away).sum() / away.square().sum()
    return c.item() if (slope - c * away).norm() < 1e-3 * slope.norm() else None


def order(answer: Sequence[str], moments: Moments) -> str:
    """Exercise 3: four spans, the one whose map leaves least first."""
    spans = [Span.parse(text) for text in ("-1->0", "1->5", "2->5", "4->5")]
    fitted = fit_spans(spans, "linear", moments)
    right = [str(span) for span in sorted(spans, key=lambda span: fitted[span].residual_)]
    mistakes = {
        "Name each of the four spans once.": lambda a: sorted(a) != sorted(right),
        "This is the reverse: the span whose map leaves least first.": tuple(right[::-1]),
        "`-1->0` removes the first block: before it no token has seen anything of the others.": lambda a: (
            a[-1] != "-1->0"
        ),
        "`4->5` lies within `2->5`, and that within `1->5`: a longer span leaves more.": lambda a: a[-1] == "-1->0",
    }
    praise = "What matters is where a span lies, not only how long it is."
    return verdict(answer, tuple(right), mistakes, praise)


def in_millions(count: int) -> Callable[[float], bool]:
    """Whether an answer is the number in millions, rounded or not."""
    return lambda answer: abs(answer - count / 1e6) < 0.01


def parameters(answer: Mapping[str, float]) -> str:
    """Exercise 4: parameters of a ViT-S block, and those that the plan ``1->5`` saves."""
    square, width = 384**2, 384
    block = 12 * square + 13 * width
    right = {
        "of a block": block,
        "saved": 4 * block - square,
        "saved as the paper counts": 4 * block - 4 * square,
    }
    of_a_block = {
        MILLIONS: in_millions(block),
        "these are the matrices of a block without their biases and norms.": 12 * square,
        "4 d are missing: the two LayerNorms, a weight and a bias each, or as many biases.": block - 4 * width,
        "2 d are missing: one LayerNorm, or the biases of both.": block - 2 * width,
        "d is missing: the bias of a matrix or of a LayerNorm.": block - width,
        "an MLP of d -> 4d -> d has two matrices of 4 d^2.": block - 4 * square,
    }
    saved = {
        "1->5 removes blocks 2, 3, 4 and 5: block 1 stays, the map reads its output.": 5 * block - square,
        "that is three blocks: the end of a span is removed too, blocks 2, 3, 4 and 5.": 3 * block - square,
        "the map has no bias.": 4 * block - square - width,
        "one map stands in for the whole span, not one for each block.": 4 * block - 4 * square,
        "the map's own parameters come back in: take them off.": 4 * block,
        MILLIONS: in_millions(4 * block - square),
    }
    as_the_paper = {
        "the paper's tables take off a map for each removed block.": 4 * block - square,
        "four blocks are removed, 2, 3, 4 and 5.": lambda a: any(same(a, k * (block - square), 1e-6) for k in (3, 5)),
        MILLIONS: in_millions(4 * block - 4 * square),
    }
    praise = "One map for a span of four blocks: the longer the span, the less its map matters."
    return steps(answer, right, (of_a_block, saved, as_the_paper), praise, 1e-6)
