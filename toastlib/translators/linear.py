"""Closed forms beyond plain least squares: with a bias, shrunk towards the identity, or held to a form.

All of them read the moments of a span about its means; none sees a row. ``X`` and ``Y`` below are the centred rows of
``h[s]`` and ``h[e]``, and ``h[e]`` is approximated by ``h[s] @ weight_ + bias_``.
"""

from typing import Self

import torch
from torch import Tensor, nn

from toastlib.errors import unknown
from toastlib.models.layers import Parallel, Scale
from toastlib.plan import Span
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.base import linear_module
from toastlib.translators.least_squares import Centred, Sums, fit_ridge, inverse


def centre(moments: Moments, span: Span, about: Moments | None = None) -> Centred:
    """The span's moments about its own means, or about those of other moments."""
    return Sums.of_span(moments, span).centred(about and Sums.of_span(about, span))


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
        In units of the mean eigenvalue of ``X'X``; chosen on held-out folds if `None`, see
        `fit_ridge`. A given one needs no folds.

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

    def fit(self, moments: Moments | KFoldMoments, span: Span) -> Self:
        """Choose the penalty where none was given, then fit the map on all folds."""
        folds = moments.restrict(span).folds if self.needs_folds else (moments,)
        sums = [Sums.of_span(fold, span) for fold in folds]
        whole = sum(sums[1:], start=sums[0])
        self.weight_, self.bias_, self.penalty_, held_out = fit_ridge(sums, self.toward, self.penalty)
        self.held_out_ = held_out / whole.square.item()
        self.residual_ = (whole.centred().error(self.weight_) / whole.square).item()
        return self


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
        return Parallel(nn.Identity(), nn.Sequential(linear_module(down), linear_module(up, self.bias_)))

    def architecture(self, width: int) -> nn.Module:
        """``2 rank width + width`` parameters."""
        rank = self._rank(width)
        thin = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
        return Parallel(nn.Identity(), thin)

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
        return Scale(self.weight_.diagonal().float(), self.bias_.float()).requires_grad_(False)

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
        return Scale(self.weight_[0, :1].float(), self.bias_.float()).requires_grad_(False)

    def architecture(self, width: int) -> nn.Module:
        """``1 + width`` parameters."""
        return Scale(torch.ones(1), torch.zeros(width))
