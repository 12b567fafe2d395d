"""Closed forms beyond plain least squares: with a bias, shrunk towards the identity, or held to a form.

All of them read the moments of a span about its means; none sees a row. ``X`` and ``Y`` below are the centred rows of
``h[s]`` and ``h[e]``, and ``h[e]`` is approximated by ``h[s] @ weight_ + bias_``.
"""

from functools import reduce
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from toastlib.errors import unknown
from toastlib.moments import FoldedMoments, Moments, held_out
from toastlib.plan import Span
from toastlib.trained import Sum
from toastlib.translators import linear_module

PENALTIES = torch.logspace(-8, 4, 25, dtype=torch.float64)
"""What `Ridge` chooses from, in units of the mean eigenvalue of ``X'X``: from the affine map to hardly any map."""


class Centred(NamedTuple):
    """The moments of a span's rows about given means: everything that a closed form reads, float64.

    Attributes
    ----------
    source_mean, target_mean
        The means that were taken off, shape (width,).
    gram, cross
        ``X'X`` and ``X'Y``, shape (width, width).
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
        """The same with ``Y - X`` in place of ``Y``: what a map adds to the identity."""
        square = self.square - 2 * self.cross.trace() + self.gram.trace()
        return self._replace(cross=self.cross - self.gram, square=square)

    def error(self, weight: Tensor) -> Tensor:
        """``|Y - X weight|^2``."""
        return self.square - 2 * (weight * self.cross).sum() + (weight * (self.gram @ weight)).sum()

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of ``X'X``, zero where they are rounding, and its eigenvectors in columns."""
        values, basis = torch.linalg.eigh(self.gram)
        return torch.where(values > self.rounding, values, 0), basis


def centre(moments: Moments, span: Span, about: Moments | None = None) -> Centred:
    """The span's moments about its own means, or about those of other moments."""
    moments = moments.restrict(span)
    about = about.restrict(span) if about else moments
    (x, y), (x_mean, y_mean), n = moments.sums, about.sums / about.count, moments.count

    def shift(end: int, total: Tensor, mean: Tensor) -> Tensor:
        return moments.product(span.start, end) - torch.outer(x_mean, total) - torch.outer(x - n * x_mean, mean)

    return Centred(
        source_mean=x_mean,
        target_mean=y_mean,
        gram=shift(span.start, x, x_mean),
        cross=shift(span.end, y, y_mean),
        square=moments.inner[1, 1] - 2 * y_mean @ y + n * y_mean @ y_mean,
        rounding=moments.inner[0, 0] * moments.width * torch.finfo(torch.float64).eps,
    )


def inverse(values: Tensor, penalty: float | Tensor) -> Tensor:
    """``1 / (values + penalty * mean value)``, and 0 where a value is: no penalty gives the pseudo-inverse.

    Shape (width,), or (penalties, width) for penalties of shape (penalties, 1).
    """
    return torch.where(values > 0, 1 / (values + penalty * values.mean()), 0)


class Affine:
    """Least squares with a bias, ``min |Y - X W|^2``; of the maps that fit equally well the one of least norm.

    Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning" (2009), section 3.2.

    Attributes
    ----------
    weight_, bias_
        float64, shapes (width, width) and (width,).
    residual_
        ``|H[e] - map(H[s])|^2 / |H[e]|^2`` on the calibration rows, as for every closed form.
    """

    name = "affine"
    needs_activations = False

    def fit(self, moments: Moments, span: Span) -> Self:
        """Solve for the weights; the bias takes mean to mean."""
        rows = centre(moments, span)
        self.weight_ = self.solve(rows)
        self.bias_ = rows.target_mean - rows.source_mean @ self.weight_
        self.residual_ = (rows.error(self.weight_) / moments.restrict(span).inner[1, 1]).item()
        return self

    def solve(self, rows: Centred) -> Tensor:
        """The weights, float64, shape (width, width)."""
        values, basis = rows.spectrum()
        return basis @ (inverse(values, 0)[:, None] * (basis.mT @ rows.cross))

    def module(self) -> nn.Module:
        """`nn.Linear` with bias, float32."""
        return linear_module(self.weight_, self.bias_)

    def architecture(self, width: int) -> nn.Module:
        """One matrix and one vector: ``width^2 + width`` parameters."""
        return nn.Linear(width, width)


class Ridge(Affine):
    """Least squares with a bias and a penalty that holds the map to the identity: one dial from dropping to mapping.

    ``W = I + (X'X + a I)^-1 X'(Y - X)`` minimises ``|Y - X W|^2 + a |W - I|^2``. A large penalty drops the span and
    keeps only the shift of its mean, a small one gives the affine map. The penalty is the one whose maps, fitted on
    all folds but one, leave least of that one. One eigendecomposition per fold serves all penalties. Towards zero it
    is the ridge of Hoerl and Kennard, "Ridge regression" (1970).

    Parameters
    ----------
    toward
        ``"identity"``, or ``"zero"`` for ordinary ridge regression.
    penalty
        In units of the mean eigenvalue of ``X'X``; chosen from `PENALTIES` on held-out folds if `None`. A given one
        needs no folds.

    Attributes
    ----------
    penalty_
        The penalty in use.
    held_out_
        ``|H[e] - map(H[s])|^2 / |H[e]|^2`` with every fold mapped by what was fitted on the others, for that penalty;
        NaN if the penalty was given.

    Raises
    ------
    InputError
        If `toward` is neither of the two.
    """

    name = "ridge"

    def __init__(self, toward: str = "identity", penalty: float | None = None) -> None:
        if toward not in ("identity", "zero"):
            raise unknown("goal of a ridge", toward, ("identity", "zero"))
        self.toward = toward
        self.penalty = penalty

    @property
    def needs_folds(self) -> bool:
        """Whether the penalty is to be chosen."""
        return self.penalty is None

    def fit(self, moments: Moments | FoldedMoments, span: Span) -> Self:
        """Choose the penalty where none was given, then fit the map on all folds."""
        self.penalty_, self.held_out_ = self.penalty, torch.nan
        if self.needs_folds:
            folds = moments.restrict(span).folds
            moments = reduce(Moments.merge, folds)
            errors = sum(self._errors(*parts, span) for parts in held_out(folds))
            self.penalty_ = PENALTIES[int(errors.argmin())].item()
            self.held_out_ = (errors.min() / moments.inner[1, 1]).item()
        return super().fit(moments, span)

    def solve(self, rows: Centred) -> Tensor:
        """The weights, float64, shape (width, width)."""
        rows, goal = self._without_goal(rows)
        values, basis = rows.spectrum()
        return goal + basis @ (inverse(values, self.penalty_)[:, None] * (basis.mT @ rows.cross))

    def _errors(self, kept: Moments, fold: Moments, span: Span) -> Tensor:
        """Squared error on `fold` of the maps fitted on `kept`, one for each of `PENALTIES`.

        With ``X'X = V diag(l) V'`` every map is ``V diag(g) L``, ``g = 1 / (l + a)`` and ``L = V'X'Y``: its error is a
        quadratic in ``g`` whose coefficients are the same for all penalties.
        """
        fitted, _ = self._without_goal(centre(kept, span))
        seen, _ = self._without_goal(centre(fold, span, about=kept))
        values, basis = fitted.spectrum()
        gains = inverse(values, PENALTIES[:, None].to(values.device))  # (penalties, width)
        loads = basis.mT @ fitted.cross
        linear = (loads * (basis.mT @ seen.cross)).sum(1)
        quadratic = (basis.mT @ seen.gram @ basis) * (loads @ loads.mT)
        return seen.square - 2 * gains @ linear + ((gains @ quadratic) * gains).sum(1)

    def _without_goal(self, rows: Centred) -> tuple[Centred, Tensor]:
        """What is left to fit, and the map that it adds to."""
        eye = torch.eye(len(rows.gram), dtype=rows.gram.dtype, device=rows.gram.device)
        return (rows.minus_identity(), eye) if self.toward == "identity" else (rows, 0 * eye)


class LowRank(Affine):
    """The identity plus the best matrix of low rank: reduced-rank regression of ``Y - X`` on ``X``, and a bias.

    Izenman, "Reduced-rank regression for the multivariate linear model" (1975): the least-squares matrix, projected on
    the leading principal directions of what it predicts.

    Parameters
    ----------
    rank
        A quarter of the width if `None`, at most the width: ``2 rank width`` parameters in place of ``width^2``.
    """

    name = "low-rank"

    def __init__(self, rank: int | None = None) -> None:
        self.rank = rank

    def solve(self, rows: Centred) -> Tensor:
        """The weights, float64, shape (width, width)."""
        rows, width = rows.minus_identity(), len(rows.gram)
        full = super().solve(rows)
        directions = torch.linalg.eigh(full.mT @ rows.cross).eigenvectors[:, -self._rank(width) :]
        self.factors_ = full @ directions, directions.mT
        return torch.eye(width, dtype=full.dtype, device=full.device) + self.factors_[0] @ self.factors_[1]

    def module(self) -> nn.Module:
        """The input plus two thin layers of it."""
        down, up = self.factors_
        return Sum(nn.Identity(), nn.Sequential(linear_module(down), linear_module(up, self.bias_)))

    def architecture(self, width: int) -> nn.Module:
        """``2 rank width + width`` parameters."""
        rank = self._rank(width)
        thin = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
        return Sum(nn.Identity(), thin)

    def _rank(self, width: int) -> int:
        return min(self.rank or width // 4, width)


class Orthogonal(Affine):
    """A rotation with one scale and a bias: the Procrustes problem (Schönemann 1966), ``min |Y - c X R|^2``."""

    name = "orthogonal"

    def solve(self, rows: Centred) -> Tensor:
        """``c R`` with ``X'Y = U S V'``, ``R = U V'`` and ``c = tr S / |X|^2``."""
        left, values, right = torch.linalg.svd(rows.cross)
        return (left @ right) * (values.sum() / rows.gram.trace().clamp(min=rows.rounding))


class Diagonal(Affine):
    """One factor and one bias for each dimension."""

    name = "diagonal"

    def solve(self, rows: Centred) -> Tensor:
        """Each dimension's own regression, on the diagonal of a matrix."""
        return torch.diag(rows.cross.diagonal() / rows.gram.diagonal().clamp(min=rows.rounding))

    def module(self) -> nn.Module:
        """A factor for each dimension, and a bias."""
        return Scale(self.weight_.diagonal().float(), self.bias_.float())

    def architecture(self, width: int) -> nn.Module:
        """``2 width`` parameters."""
        return Scale(torch.ones(width), torch.zeros(width))


class Scalar(Affine):
    """One factor for all dimensions, and a bias for each."""

    name = "scalar"

    def solve(self, rows: Centred) -> Tensor:
        """``c I`` with ``c = tr X'Y / |X|^2``."""
        factor = rows.cross.trace() / rows.gram.trace().clamp(min=rows.rounding)
        return torch.diag(factor.expand(len(rows.gram)))

    def module(self) -> nn.Module:
        """One factor, and a bias for each dimension."""
        return Scale(self.weight_[0, :1].float(), self.bias_.float())

    def architecture(self, width: int) -> nn.Module:
        """``1 + width`` parameters."""
        return Scale(torch.ones(1), torch.zeros(width))


class Scale(nn.Module):
    """``h * weight + bias``."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Shape (..., width) to the same."""
        return hidden * self.weight + self.bias
