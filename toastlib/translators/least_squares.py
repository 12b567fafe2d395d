"""Least squares from sums over rows: the form that all closed forms read, and a cross-validated ridge.

``X`` and ``Y`` are rows of inputs and of targets. Sums of disjoint rows add up, and give held-out errors of folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import NamedTuple, Self

import torch
from torch import Tensor

from toastlib.plan import Span
from toastlib.statistics.moments import KFoldMoments, Moments

ALPHAS = torch.logspace(-8, 4, 25, dtype=torch.float64, device="cpu")
"""Penalties that a ridge chooses from, in units of the mean eigenvalue of ``X'X``."""


@dataclass(frozen=True)
class Sums:
    """Sums over rows X and Y, float64; those that `centred` returns have gram, cross and square about the means."""

    count: int  # number of rows
    x_sum: Tensor  # (inputs,)
    y_sum: Tensor  # (width,)
    gram: Tensor  # X'X, (inputs, inputs)
    cross: Tensor  # X'Y, (inputs, width)
    square: Tensor  # |Y|^2
    rounding: Tensor | float = 0.0  # eigenvalues of gram below this are rounding errors

    @classmethod
    def of_span(cls, moments: Moments | KFoldMoments, span: Span) -> Self:
        """X and Y are the outputs of a span's first and last block."""
        moments = moments.whole.restrict(span)
        products = (moments.product(span.start, end) for end in span)
        return cls(moments.count, *moments.sums, *products, moments.inner[1, 1])

    @classmethod
    def of_rows(cls, source: Tensor, target: Tensor) -> Self:
        """Sums of rows of shapes (rows, inputs) and (rows, width)."""
        x, y = source.double(), target.double()
        return cls(len(x), x.sum(0), y.sum(0), x.mT @ x, x.mT @ y, y.square().sum())

    def __add__(self, other: Self) -> Self:
        return type(self)(*map(add, vars(self).values(), vars(other).values()))

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Mean rows of X and of Y, shapes (inputs,) and (width,)."""
        return self.x_sum / self.count, self.y_sum / self.count

    def centred(self, about: "Sums | None" = None) -> Self:
        """Gram, cross and square of rows from which their means, or those of other sums, are subtracted."""
        x_mean, y_mean = (about or self).means
        x_rest = self.x_sum - self.count * x_mean  # zero about their own means
        return replace(
            self,
            gram=self.gram - torch.outer(x_mean, self.x_sum) - torch.outer(x_rest, x_mean),
            cross=self.cross - torch.outer(x_mean, self.y_sum) - torch.outer(x_rest, y_mean),
            square=self.square - 2 * y_mean @ self.y_sum + self.count * y_mean @ y_mean,
            rounding=(self.gram.trace() * len(self.gram) * torch.finfo(torch.float64).eps).clamp(min=1e-300),
        )

    def residual_target(self) -> Self:
        """Sums with ``Y - X`` in place of ``Y``, the first inputs where there are more inputs than targets."""
        width = self.cross.shape[1]
        square = self.square - 2 * self.cross.trace() + self.gram[:width, :width].trace()
        return replace(self, cross=self.cross - self.gram[:, :width], square=square)

    def error(self, weight: Tensor) -> Tensor:
        """``|Y - X weight|^2``."""
        return self.square - 2 * (weight * self.cross).sum() + (weight * (self.gram @ weight)).sum()

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of ``X'X``, zero where they are rounding, and its eigenvectors in columns."""
        values, basis = torch.linalg.eigh(self.gram)
        return torch.where(values > self.rounding, values, 0), basis

    def solve(self, alpha: float = 0.0) -> Tensor:
        """The W that minimises ``|Y - X W|^2 + alpha * mean eigenvalue * |W|^2``; of several the one of least norm."""
        values, basis = self.spectrum()
        return basis @ (inverse(values, alpha)[:, None] * (basis.mT @ self.cross))


class RidgeFit(NamedTuple):
    """A fitted ridge, ``X @ weight + bias``."""

    weight: Tensor  # float64, (inputs, width)
    bias: Tensor  # float64, (width,)
    alpha: float  # the penalty in use
    cv_error: float  # |Y - map(X)|^2 with every fold mapped by the fit on the others; NaN if alpha was given
    error: float  # |Y - map(X)|^2 on the rows of the fit
    square: float  # |Y|^2


def fit_ridge(folds: Sequence[Sums], shrink_to: str = "identity", alpha: float | None = None) -> RidgeFit:
    """Least squares with a bias and a penalty on the distance of the weights from ``"identity"``, or from ``"zero"``.

    The penalty `alpha` is in units of the mean eigenvalue of ``X'X``. If `None`, it is that of `ALPHAS` with the least
    error on held-out folds; one eigendecomposition per fold serves all of them.
    """
    cv_error = torch.tensor(torch.nan)
    if alpha is None:
        errors = held_out_errors(folds, shrink_to)
        alpha, cv_error = ALPHAS[int(errors.argmin())].item(), errors.min()
    total = reduce(add, folds)
    centred, (x_mean, y_mean) = total.centred(), total.means
    weight = _penalised(centred, shrink_to).solve(alpha)
    if shrink_to == "identity":
        weight = weight + torch.eye(*weight.shape, dtype=weight.dtype, device=weight.device)
    errors = (cv_error, centred.error(weight), total.square)
    return RidgeFit(weight, y_mean - x_mean @ weight, alpha, *(error.item() for error in errors))


def share(error: Tensor | float, square: Tensor | float) -> float:
    """``error / square``; 0 where the target is zero, of which nothing is left to explain."""
    return float(error) / float(square) if square else 0.0


def inverse(values: Tensor, alpha: float | Tensor) -> Tensor:
    """``1 / (values + alpha * mean value)``, and 0 where a value is 0: ``alpha = 0`` gives the pseudo-inverse."""
    return torch.where(values > 0, 1 / (values + alpha * values.mean()), 0)


def held_out_errors(folds: Sequence[Sums], shrink_to: str = "identity", shared: list | None = None) -> Tensor:
    """Squared error of the maps of all `ALPHAS`, shape (alphas,), every fold mapped by the fit on the others.

    `shared`, a list that is empty at first, keeps the decompositions for other targets of the same inputs.
    """
    others = [reduce(add, [*folds[:k], *folds[k + 1 :]]) for k in range(len(folds))]
    kept = [] if shared is None else shared
    kept.extend([] for _ in folds[len(kept) :])
    return sum(_errors(*one, shrink_to) for one in zip(others, folds, kept, strict=True))


def _errors(fitted_on: Sums, fold: Sums, kept: list, shrink_to: str) -> Tensor:
    """Squared error on `fold` of the maps fitted on the other folds.

    With ``X'X = V diag(l) V'`` every map is ``V diag(g) L``, ``g = 1 / (l + a)`` and ``L = V'X'Y``: its error is a
    quadratic in ``g`` whose coefficients are the same for all penalties.
    """
    fitted = _penalised(fitted_on.centred(), shrink_to)
    held_out = _penalised(fold.centred(about=fitted_on), shrink_to)
    if not kept:
        values, basis = fitted.spectrum()
        kept.extend((values, basis, basis.mT @ held_out.gram @ basis))
    values, basis, gram = kept
    gains = inverse(values, ALPHAS[:, None].to(values.device))  # (alphas, inputs)
    loads = basis.mT @ fitted.cross
    linear = (loads * (basis.mT @ held_out.cross)).sum(1)
    quadratic = gram * (loads @ loads.mT)
    return held_out.square - 2 * gains @ linear + ((gains @ quadratic) * gains).sum(1)


def _penalised(sums: Sums, shrink_to: str) -> Sums:
    """Sums whose least-squares weights are those that the penalty holds to zero."""
    return sums.residual_target() if shrink_to == "identity" else sums
