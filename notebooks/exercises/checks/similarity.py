"""Checks of the exercises on ``01_similarity``."""

from torch import Tensor

from toastlib.statistics.similarity import cka_from_samples

from .verdicts import ROUNDED, quiz, verdict

TRANSFORMATIONS = {
    "one is rotated": {"cka"},
    "one is doubled": {"cosine", "cka"},
    "one is shifted by a constant vector": {"cka"},
    "one goes through an invertible matrix": set(),
    "both go through the same rotation": {"mse", "cosine", "cka"},
}
"""What is done to two blocks -> the metrics that do not change."""


def cka_by_hand(answer: float) -> str:
    """Exercise 1: CKA of two blocks that are one number wide."""
    mistakes = {
        "That is CKA of the columns as they are, not centred: take the means, 2 and 2, off first.": 20**2 / (20 * 24),
        "That is the correlation itself; CKA has the square of X'Y in its numerator.": 4 / 32**0.5,
        "The Frobenius norms are squared in the denominator too; only the numerator has a square.": 16 / (16 * 64),
    }
    praise = "And for blocks one number wide CKA is the square of Pearson's correlation."
    return verdict(answer, 0.5, mistakes, praise, ROUNDED)


def cka(answer: Tensor, x: Tensor, y: Tensor) -> str:
    """Exercise 2: linear CKA of x and y, shapes (images, width) and (images, other width)."""
    right = cka_from_samples(x, y)
    mistakes = {
        "The columns are not centred: take every dimension's mean over the images off first, `mean(0)`; the mean within"
        " an image is another thing, and next to zero here.": _cka(x, y),
        "The numerator is squared and the denominator is a product of two norms, without a root.": right**0.5,
    }
    praise = "It agrees with CKA from the (images x images) Gram matrices."
    return verdict(answer, right, mistakes, praise)


def invariances(answer: dict[str, set[str]]) -> str:
    """Exercise 3: transformation -> the metrics that do not change under it."""
    reasons = {
        "one is rotated": "MSE and cosine compare coordinate by coordinate, and a rotation mixes the coordinates of one"
        " side only. CKA sums squares over all pairs of coordinates.",
        "one is doubled": "an angle does not ask for length, and CKA divides it out; a distance does not.",
        "one is shifted by a constant vector": "CKA takes means off first. The cosine is taken from the origin, so that"
        " a shift turns the vectors as seen from there.",
        "one goes through an invertible matrix": "linear CKA is not canonical correlation: directions along which a"
        " block varies much count more, and an invertible matrix changes which these are.",
        "both go through the same rotation": "that only changes the axes that both blocks are described in; lengths and"
        " angles between them stay, and what is computed from these.",
    }
    praise = "CKA forgives rotation, scale and shift; the cosine forgives scale; the distance forgives nothing."
    return quiz(answer, TRANSFORMATIONS, reasons, praise)


def update(answer: Tensor, inner: Tensor, block: int) -> str:
    """Exercise 4: the squared length of what a block adds, over that of its input, from sums of inner products."""
    before, after = inner[block, block], inner[block + 1, block + 1]
    row_before, row_after = relative_update(inner, block - 1), relative_update(inner, block + 1)
    both, added = inner[block, block + 1], relative_update(inner, block) * inner[block, block]
    mistakes = {
        "You are one row too early: row 0 is the input of block 0, so block k stands in row k + 1.": row_before,
        "You are one row too late: row k + 1 is block k's output, and row k its input.": row_after,
        "Without the factor 2: |a - b|^2 = |a|^2 - 2 a.b + |b|^2.": (after - both + before) / before,
        "You divide by the block's output; the question asks for a share of its input.": added / after,
        "That is the difference of the lengths, not the length of the difference.": (after - before) / before,
        "That is a ratio of lengths, not squared.": (added / before) ** 0.5,
    }
    praise = "Three entries of one matrix: the images themselves are not needed any more."
    return verdict(answer, added / before, mistakes, praise)


def relative_update(inner: Tensor, block: int) -> float:
    """``|H[k] - H[k-1]|^2 / |H[k-1]|^2`` for block k, whose output stands in row k + 1."""
    before, after = block, block + 1
    added = inner[after, after] - 2 * inner[before, after] + inner[before, before]
    return (added / inner[before, before]).item()


def _cka(x: Tensor, y: Tensor) -> float:
    """CKA of rows that are taken as they are."""
    return ((x.mT @ y).square().sum() / ((x.mT @ x).norm() * (y.mT @ y).norm())).item()
