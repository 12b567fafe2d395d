"""Checks of the exercises on ``06_translators``."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from toastlib.plan import Span
from toastlib.statistics.moments import Moments
from toastlib.translators.linear import Affine

from .approximation import penalty
from .verdicts import ROUNDED, numbers, same, steps, verdict

TRANSPOSED = "It is transposed: tokens are rows, and the map multiplies from the right."


def diagonal(answer: Sequence[float]) -> str:
    """Exercise 1: one factor for each dimension."""
    mistakes = {
        "That goes from Y to X: divide by the squares of X, x'y / x'x.": [0.5, 1],
        "Those are x'y, not divided by x'x yet.": [4, 8],
    }
    return verdict(answer, [2, 1], mistakes, "Each dimension is a regression of its own.", ROUNDED)


def scalar(answer: float) -> str:
    """Exercise 1: one factor for both dimensions."""
    mistakes = {
        "That is the plain mean of the two factors; a dimension that varies more has more say.": 1.5,
        "You divided by Y's squares; it is X that is multiplied: tr X'Y / |X|^2.": 12 / 16,
        "That is the ratio of the lengths, which ignores whether X and Y point the same way.": (16 / 10) ** 0.5,
    }
    return verdict(answer, 1.2, mistakes, "It is the factors' mean, weighted with the squares of X.", ROUNDED)


def affine(answer: tuple[Tensor, Tensor], moments: Moments) -> str:
    """Exercise 2: the affine map of the span ``2->5``, from its sums."""
    fitted = Affine().fit_moments(moments, Span(2, 5))
    weight, bias = fitted.weight_, fitted.bias_
    xx, xy, n = moments.product(2, 2), moments.product(2, 5), moments.count
    x, y = moments.restrict(Span(2, 5)).sums
    plain = torch.linalg.solve(xx, xy)
    as_means = torch.linalg.solve(xx - n * torch.outer(x, x), xy - n * torch.outer(x, y))
    of_sums = torch.linalg.solve(xx - torch.outer(x, x), xy - torch.outer(x, y))
    of_means = torch.linalg.solve(xx - torch.outer(x, x) / n**2, xy - torch.outer(x, y) / n**2)
    gram, cross = xx - torch.outer(x, x) / n, xy - torch.outer(x, y) / n

    def with_bias(w: Tensor) -> tuple[Tensor, Tensor]:
        return w, (y - x @ w) / n

    one_centred = [with_bias(torch.linalg.solve(*sums)) for sums in ((gram, xy), (xx, cross))]
    mistakes = {
        "The moments are not centred: take n times the outer product of the means off both.": with_bias(plain),
        "The bias has to take mean to mean: the output's mean less the mapped mean of the input.": (weight, y / n),
        "The bias is made of sums, not means: divide both by n.": (weight, y - x @ weight),
        "The outer product of the two sums is not divided by n.": with_bias(of_sums),
        "The outer product of the means is not multiplied by n.": with_bias(of_means),
        "Only X'X is centred: X'Y has to be as well.": one_centred[0],
        "Only X'Y is centred: X'X has to be as well.": one_centred[1],
        "The inverse stands on the wrong side: it comes before X'Y.": with_bias(cross @ torch.linalg.inv(gram)),
        "W is right, b is not: the mean is a row, x W, and you computed W x.": (weight, (y - weight @ x) / n),
        "W is right, the sign of b is not: the output's mean less the mapped mean of the input.": (weight, -bias),
        "W is right, b is not: it is zero only where both means are.": (weight, torch.zeros_like(bias)),
        "`x_sum` and `y_sum` are sums: divide both by n before they serve as means.": lambda a: any(
            same(a, (w, y - x @ w)) for w in (as_means, of_sums, plain)
        ),
        "Weight and bias are swapped: the answer is (W, b), of shapes (96, 96) and (96,).": lambda a: (
            np.ndim(a[0]) < np.ndim(a[1])
        ),
        TRANSPOSED: lambda a: same(a[0], weight.mT),
        "W is right, and so are the numbers of b; its shape is (96,).": lambda a: (
            same(a[0], weight) and same(np.ravel(numbers(a[1])), bias)
        ),
        "W is right, b is not.": lambda a: same(a[0], weight),
        "b is right, W is not.": lambda a: same(a[1], bias),
    }
    return verdict(answer, (weight, bias), mistakes, "Centring costs no second pass: the sums are enough.")


def ridge(answer: Tensor, xx: Tensor, xy: Tensor, a: Tensor) -> str:
    """Exercise 3: the map that a penalty holds to the identity."""
    eye, solve = torch.eye(len(xx), dtype=xx.dtype), torch.linalg.solve
    right = eye + solve(xx + a * eye, xy - xx)
    mistakes = {
        "This one shrinks to zero: the goal I enters the right-hand side as well.": solve(xx + a * eye, xy),
        "The goal I enters with its factor, as on the left: X'Y + a I.": solve(xx + a * eye, xy + eye),
        "That is least squares without a penalty.": solve(xx, xy),
        "The penalty is missing on the left, X'X + a I.": solve(xx, xy + a * eye),
        "The identity is added to a map of Y; regress what the span adds, Y - X.": eye + solve(xx + a * eye, xy),
        "The penalty is squared: a stands before |W - I|^2 as it is.": eye + solve(xx + a**2 * eye, xy - xx),
        "You added a to every entry; it belongs on the diagonal, a I.": solve(xx + a, xy + a),
        TRANSPOSED: right.mT,
        "That is the limit a to infinity; solve for the a that is given.": eye,
        "The penalty is twice too large: both terms have a 2 in their derivative, which cancels.": (
            eye + solve(xx + 2 * a * eye, xy - xx)
        ),
        "The inverse stands on the wrong side: (X'X + a I)^-1 comes before X'Y + a I.": (
            (xy + a * eye) @ torch.linalg.inv(xx + a * eye)
        ),
        "The form is right, the strength of the penalty is not a.": lambda w: penalty(w, xx, xy, eye) is not None,
    }
    return verdict(answer, right, mistakes, "One dial from the plain map to dropping the blocks.")


def rotation(answer: Tensor, xx: Tensor, xy: Tensor) -> str:
    """Exercise 4: the orthogonal matrix that takes X closest to Y."""
    left, values, right = torch.linalg.svd(xy)
    best, scaled, eye = left @ right, left @ values.diag() @ right, np.eye(len(xy))

    def is_orthogonal(r: Tensor) -> bool:
        return np.allclose(numbers(r).T @ numbers(r), eye, atol=1e-4)

    mistakes = {
        TRANSPOSED: best.mT,
        "`torch.linalg.svd` returns V' already: it is not to be transposed again.": left @ right.mT,
        "This is not orthogonal: that is least squares among all matrices.": torch.linalg.solve(xx, xy),
        "This is not orthogonal: the singular values have to go, they hold X'Y's lengths.": scaled,
        "That is the Q of a QR decomposition: orthogonal, but not the one that is closest.": torch.linalg.qr(xy).Q,
        "This is orthogonal, but not the best: tr R'X'Y can be larger.": is_orthogonal,
        "This is not orthogonal: R'R has to be I.": lambda r: not is_orthogonal(r),
    }
    return verdict(answer, best, mistakes, "Nothing but a rotation, read off X'Y alone.")


def rows(answer: Mapping[str, float]) -> str:
    """Exercise 5: rows, share of CLS, and parameters."""
    right = {
        "of one image": 65,
        "of 300 images": 300 * 65,
        "share of CLS": 1 / 65,
        "parameters of separate": 2 * (96 * 96 + 96),
    }
    mistakes = (
        {
            "the CLS token itself is a row as well.": 64,
            "a patch is 4 x 4 pixels, and is one token.": 32 * 32 + 1,
            "8 x 8 patches, not 8 in all.": 9,
        },
        {
            "you left one row per image out: the CLS tokens as well are fitted.": 300 * 64,
            "every token is a row, not every image.": 300,
        },
        {
            "in per cent, where a share is asked for.": 100 / 65,
            "one to 64 is CLS against patches; asked for is the share of all rows.": 1 / 64,
        },
        {
            "`separate` keeps two maps.": 96 * 96 + 96,
            "affine maps have biases, of 96 each.": 2 * 96 * 96,
            "each of the two maps has a bias of its own: 2 × 96.": 2 * 96 * 96 + 96,
        },
    )
    praise = "The plain map is a fit of patches, and the head reads CLS."
    return steps(answer, right, mistakes, praise, ROUNDED)
