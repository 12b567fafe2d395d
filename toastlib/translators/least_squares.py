"""Least squares from sums: what every closed form solves, and the ridge whose penalty is chosen on held-out folds.

``X`` and ``Y`` are rows of inputs and of targets. Nothing here sees a row: their sums and products suffice, those of
disjoint rows add up, and held-out errors follow from the sums of one fold and the maps fitted on the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from toastlib.plan import Span
from toastlib.statistics.moments import Moments

PENALTIES = torch.logspace(-8, 4, 25, dtype=torch.float64, device="cpu")
"""What a ridge chooses from, in units of the mean eigenvalue of ``X'X``: from least squares to hardly any map."""


@dataclass(frozen=True)
class Sums:
    """Sums over rows X, shape (rows, inputs), and Y, shape (rows, width); float64.

    Parameters
    ----------
    count
        Number of rows.
    source, target
        Sums of the rows of X and of Y, shapes (inputs,) and (width,).
    gram, cross
        ``X'X`` and ``X'Y``, shapes (inputs, inputs) and (inputs, width).
    square
        ``|Y|^2``.
    """

    count: int
    source: Tensor
    target: Tensor
    gram: Tensor
    cross: Tensor
    square: Tensor

    @classmethod
    def of_span(cls, moments: Moments, span: Span) -> Self:
        """X and Y are the outputs of a span's first and last block."""
        moments = moments.restrict(span)
        products = (moments.product(span.start, end) for end in span)
        return cls(moments.count, *moments.sums, *products, moments.inner[1, 1])

    @classmethod
    def of_rows(cls, source: Tensor, target: Tensor) -> Self:
        """Of rows that are at hand."""
        x, y = source.double(), target.double()
        return cls(len(x), x.sum(0), y.sum(0), x.mT @ x, x.mT @ y, y.square().sum())

    def __add__(self, other: Self) -> Self:
        return type(self)(*(mine + theirs for mine, theirs in zip(_fields(self), _fields(other), strict=True)))

    def centred(self, about: "Sums | None" = None) -> "Centred":
        """The same of rows from which means were taken: their own, or those of other sums."""
        about = about or self
        x_mean, y_mean, n = about.source / about.count, about.target / about.count, self.count

        def shift(product: Tensor, total: Tensor, mean: Tensor) -> Tensor:
            return product - torch.outer(x_mean, total) - torch.outer(self.source - n * x_mean, mean)

        return Centred(
            source_mean=x_mean,
            target_mean=y_mean,
            gram=shift(self.gram, self.source, x_mean),
            cross=shift(self.cross, self.target, y_mean),
            square=self.square - 2 * y_mean @ self.target + n * y_mean @ y_mean,
            rounding=self.gram.trace() * len(self.gram) * torch.finfo(torch.float64).eps,
        )


class Centred(NamedTuple):
    """Sums over rows about given means: everything that a closed form reads, float64.

    Attributes
    ----------
    source_mean, target_mean
        The means that were taken off, shapes (inputs,) and (width,).
    gram, cross
        ``X'X`` and ``X'Y``, shapes (inputs, inputs) and (inputs, width).
    square
        ``|Y|^2``.
    rounding
        Eigenvalues of ``X'X`` below this are rounding errors of the sums.
    """

    source_mean: Tensor
    target_mean: Tensor
    gram: Tensor
    cross: Tensor
    square: Tensor
    rounding: Tensor

    def minus_identity(self) -> Self:
        """The same with ``Y - X`` in place of ``Y``: what a map adds to the identity.

        Where there are more inputs than targets, the first ones are those that the targets are approximated from.
        """
        width = self.cross.shape[1]
        square = self.square - 2 * self.cross.trace() + self.gram[:width, :width].trace()
        return self._replace(cross=self.cross - self.gram[:, :width], square=square)

    def error(self, weight: Tensor) -> Tensor:
        """``|Y - X weight|^2``."""
        return self.square - 2 * (weight * self.cross).sum() + (weight * (self.gram @ weight)).sum()

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of ``X'X``, zero where they are rounding, and its eigenvectors in columns."""
        values, basis = torch.linalg.eigh(self.gram)
        return torch.where(values > self.rounding, values, 0), basis


class RidgeFit(NamedTuple):
    """A fitted ridge: ``X @ weight + bias``, its penalty, and its held-out squared error (NaN for a given penalty)."""

    weight: Tensor
    bias: Tensor
    penalty: float
    held_out: float


def fit_ridge(folds: Sequence[Sums], toward: str = "identity", penalty: float | None = None) -> RidgeFit:
    """Least squares with a bias and a penalty on what the weights add to the identity, or on the weights.

    Parameters
    ----------
    folds
        Sums of disjoint rows.
    toward
        ``"identity"`` or ``"zero"``.
    penalty
        In units of the mean eigenvalue of ``X'X``. If `None`, that of `PENALTIES` whose maps, fitted on all folds but
        one, leave least of that one; one eigendecomposition per fold serves all penalties.
    """
    error = torch.tensor(torch.nan)
    if penalty is None:
        errors = sum(_errors(_total(folds[:k] + folds[k + 1 :]), fold, toward) for k, fold in enumerate(folds))
        penalty, error = PENALTIES[int(errors.argmin())].item(), errors.min()
    rows = _total(folds).centred()
    left, goal = _without_goal(rows, toward)
    values, basis = left.spectrum()
    weight = goal + basis @ (inverse(values, penalty)[:, None] * (basis.mT @ left.cross))
    return RidgeFit(weight, rows.target_mean - rows.source_mean @ weight, penalty, error.item())


def inverse(values: Tensor, penalty: float | Tensor) -> Tensor:
    """``1 / (values + penalty * mean value)``, and 0 where a value is: no penalty gives the pseudo-inverse.

    Shape (inputs,), or (penalties, inputs) for penalties of shape (penalties, 1).
    """
    return torch.where(values > 0, 1 / (values + penalty * values.mean()), 0)


def _errors(kept: Sums, fold: Sums, toward: str) -> Tensor:
    """Squared error on `fold` of the maps fitted on `kept`, one for each of `PENALTIES`.

    With ``X'X = V diag(l) V'`` every map is ``V diag(g) L``, ``g = 1 / (l + a)`` and ``L = V'X'Y``: its error is a
    quadratic in ``g`` whose coefficients are the same for all penalties.
    """
    fitted, _ = _without_goal(kept.centred(), toward)
    seen, _ = _without_goal(fold.centred(about=kept), toward)
    values, basis = fitted.spectrum()
    gains = inverse(values, PENALTIES[:, None].to(values.device))  # (penalties, inputs)
    loads = basis.mT @ fitted.cross
    linear = (loads * (basis.mT @ seen.cross)).sum(1)
    quadratic = (basis.mT @ seen.gram @ basis) * (loads @ loads.mT)
    return seen.square - 2 * gains @ linear + ((gains @ quadratic) * gains).sum(1)


def _without_goal(rows: Centred, toward: str) -> tuple[Centred, Tensor]:
    """What is left to fit, and the weights that it adds to."""
    eye = torch.eye(*rows.cross.shape, dtype=rows.gram.dtype, device=rows.gram.device)
    return (rows.minus_identity(), eye) if toward == "identity" else (rows, 0 * eye)


def _total(folds: Sequence[Sums]) -> Sums:
    return sum(folds[1:], start=folds[0])


def _fields(sums: Sums) -> tuple:
    return tuple(vars(sums).values())
