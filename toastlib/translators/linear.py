"""Closed forms: one matrix for all tokens, free, without or with a bias, shrunk to the identity, or restricted.

``X`` and ``Y`` are rows of ``h[s]`` and ``h[e]``, which is approximated by ``h[s] @ weight_ + bias_``.
"""

import warnings
from typing import Self

import torch
from torch import Tensor, nn

from toastlib.errors import InputError, real_number, unknown
from toastlib.models.layers import Parallel, Scale
from toastlib.plan import Span
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.base import Translator
from toastlib.translators.least_squares import Sums, fit_ridge, share


class Identity(Translator):
    """The span is dropped and nothing replaces it (the SkipAt variant; paper, Tables 4 and 16)."""

    name = "identity"

    def fit_moments(self, moments: Moments | KFoldMoments, span: Span) -> Self:
        """Measure the error of dropping the span; there is nothing to fit."""
        inner = moments.whole.restrict(span).inner
        self.residual_ = share(inner[0, 0] - 2 * inner[0, 1] + inner[1, 1], inner[1, 1])
        return self

    def module(self) -> nn.Module:
        """`nn.Identity`."""
        return nn.Identity()

    def build(self, width: int) -> nn.Module:
        """`nn.Identity`."""
        return nn.Identity()


class Affine(Translator):
    """Least squares with a bias, ``min |Y - X W - b|^2``; of the maps that fit equally well the one of least norm.

    Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning" (2009), section 3.2.

    Attributes
    ----------
    weight_, bias_
        float64, shapes (width, width) and (width,).
    """

    name = "affine"
    has_free_matrix = True
    bias_: Tensor | None

    def fit_moments(self, moments: Moments | KFoldMoments, span: Span) -> Self:
        """Solve for the weights; the bias takes mean to mean. Fewer rows than the width are warned of.

        Raises
        ------
        InputError
            If `solve` gives weights of another shape.
        """
        self.warn_of_few(moments.whole)
        sums = Sums.of_span(moments, span)
        centred, (x_mean, y_mean) = sums.centred(), sums.means
        self.weight_ = self.solve(centred)
        if self.weight_.shape != (expected := (len(x_mean), len(y_mean))):
            raise InputError(f"{self.name!r} solves for weights of {(*self.weight_.shape,)}, not {expected}.")
        self.bias_ = y_mean - x_mean @ self.weight_
        self.residual_ = share(centred.error(self.weight_), sums.square)
        return self

    def warn_of_few(self, moments: Moments) -> None:
        """Warn where the rows do not determine a map with a free matrix."""
        if self.has_free_matrix and moments.count < moments.width:
            warnings.warn(
                f"{moments.count} calibration rows cannot determine a map of width {moments.width}: many fit them "
                "equally well, and one of these is taken; more calibration images make it unique.",
                stacklevel=3,
            )

    def solve(self, sums: Sums) -> Tensor:
        """Weights, float64, shape (width, width), from sums about the means."""
        return sums.solve()

    def module(self) -> nn.Module:
        """`nn.Linear`, float32."""
        return linear_module(self.weight_, self.bias_)

    def build(self, width: int) -> nn.Module:
        """One matrix and one vector: ``width^2 + width`` parameters."""
        return nn.Linear(width, width)


class Linear(Affine):
    """Least squares without bias, one matrix for all tokens (paper, section 3): ``min_W |H[s] W - H[e]|^2``.

    Where the rows of ``H[s]`` do not span the whole width, the solution of least norm is taken.

    Attributes
    ----------
    weight_, rank_
        float64, shape (width, width); and the numerical rank of ``H[s]``.
    """

    name = "linear"
    bias_ = None

    def fit_moments(self, moments: Moments | KFoldMoments, span: Span) -> Self:
        """Solve the normal equations of the span; few rows are warned of as by `Affine.fit_moments`."""
        moments = moments.whole
        self.warn_of_few(moments)
        sums, (values, basis) = Sums.of_span(moments, span), moments.spectrum(span.start)
        kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps  # the others are rounding errors
        basis, self.rank_ = basis[:, kept], int(kept.sum())
        self.weight_ = basis @ ((basis.mT @ sums.cross) / values[kept, None])
        self.residual_ = share(sums.error(self.weight_), sums.square)
        return self

    def build(self, width: int) -> nn.Module:
        """One matrix: ``width^2`` parameters."""
        return nn.Linear(width, width, bias=False)


class Ridge(Affine):
    """Least squares with a bias, shrunk to the identity: the penalty goes from the affine map to dropping the span.

    ``W = I + (X'X + a I)^-1 X'(Y - X)`` minimises ``|Y - X W|^2 + a |W - I|^2``, X and Y centred. Shrunk to zero it is
    the ridge of Hoerl and Kennard, "Ridge regression" (1970).

    Parameters
    ----------
    shrink_to
        ``"identity"``, or ``"zero"`` for ordinary ridge regression.
    alpha
        Penalty in units of the mean eigenvalue of ``X'X``; if `None` that of least held-out error, see `fit_ridge`.

    Attributes
    ----------
    alpha_, cv_error_
        The penalty in use; ``residual_`` with every fold mapped by the fit on the others, NaN if alpha was given.

    Raises
    ------
    InputError
        If `shrink_to` is neither of the two, or `alpha` is negative or no number.
    """

    name = "ridge"

    def __init__(self, shrink_to: str = "identity", alpha: float | None = None) -> None:
        if shrink_to not in ("identity", "zero"):
            raise unknown("goal of a ridge", shrink_to, ("identity", "zero"))
        if alpha is not None and alpha != 0:
            real_number("alpha", alpha, above=0)
        self.shrink_to = shrink_to
        self.alpha = alpha

    @property
    def needs_folds(self) -> bool:
        """True where alpha is chosen."""
        return self.alpha is None

    def fit_moments(self, moments: Moments | KFoldMoments, span: Span) -> Self:
        """Choose alpha where none is given, then fit the map on all folds."""
        folds = moments.restrict(span).folds if self.needs_folds else (moments,)
        fit = fit_ridge([Sums.of_span(fold, span) for fold in folds], self.shrink_to, self.alpha)
        self.weight_, self.bias_, self.alpha_ = fit.weight, fit.bias, fit.alpha
        self.cv_error_, self.residual_ = share(fit.cv_error, fit.square), share(fit.error, fit.square)
        return self


class LowRank(Affine):
    """The identity plus the best matrix of low rank: reduced-rank regression of ``Y - X`` on ``X``, and a bias.

    Izenman, "Reduced-rank regression for the multivariate linear model" (1975): the least-squares matrix, projected on
    the leading principal directions of its predictions. ``2 rank width`` parameters in place of ``width^2``; the rank
    is a quarter of the width if `None`, and at most the width.
    """

    name = "low-rank"

    def __init__(self, rank: int | None = None) -> None:
        self.rank = rank

    def solve(self, sums: Sums) -> Tensor:
        """Weights, float64, shape (width, width), from sums about the means."""
        sums, width = sums.residual_target(), len(sums.gram)
        full, rank = sums.solve(), min(self.rank or width // 4, width)
        directions = torch.linalg.eigh(full.mT @ sums.cross).eigenvectors[:, -rank:]
        self.factors_ = full @ directions, directions.mT
        return torch.eye(width, dtype=full.dtype, device=full.device) + self.factors_[0] @ self.factors_[1]

    def module(self) -> nn.Module:
        """The input plus two thin layers of it."""
        down, up = self.factors_
        return Parallel(nn.Identity(), nn.Sequential(linear_module(down), linear_module(up, self.bias_)))

    def build(self, width: int) -> nn.Module:
        """``2 rank width + width`` parameters."""
        rank = min(self.rank or width // 4, width)
        thin = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
        return Parallel(nn.Identity(), thin)


class Orthogonal(Affine):
    """A rotation with one scale and a bias: the Procrustes problem (Schönemann 1966), ``min |Y - c X R|^2``."""

    name = "orthogonal"

    def solve(self, sums: Sums) -> Tensor:
        """``c R`` with ``X'Y = U S V'``, ``R = U V'`` and ``c = tr S / |X|^2``."""
        left, values, right = torch.linalg.svd(sums.cross)
        return (left @ right) * (values.sum() / sums.gram.trace().clamp(min=sums.rounding))


class Diagonal(Affine):
    """One factor and one bias for each dimension."""

    name = "diagonal"
    has_free_matrix = False

    def solve(self, sums: Sums) -> Tensor:
        """Each dimension's own regression, on the diagonal of a matrix."""
        self.factors_ = sums.cross.diagonal() / sums.gram.diagonal().clamp(min=sums.rounding)
        return torch.diag(self.factors_)

    def module(self) -> nn.Module:
        """`Scale`, float32."""
        return Scale(self.factors_.float(), self.bias_.float()).requires_grad_(False)

    def build(self, width: int) -> nn.Module:
        """``2 width`` parameters."""
        return Scale(torch.ones(width), torch.zeros(width))


class Scalar(Diagonal):
    """One factor for all dimensions, and a bias for each."""

    name = "scalar"

    def solve(self, sums: Sums) -> Tensor:
        """``c I`` with ``c = tr X'Y / |X|^2``."""
        self.factors_ = sums.cross.trace()[None] / sums.gram.trace().clamp(min=sums.rounding)
        return torch.diag(self.factors_.expand(len(sums.gram)))

    def build(self, width: int) -> nn.Module:
        """``1 + width`` parameters."""
        return Scale(torch.ones(1), torch.zeros(width))


def linear_module(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Frozen float32 layer of ``h @ weight + bias``, from weights of shape (inputs, width) and (width,)."""
    linear = nn.utils.skip_init(nn.Linear, *weight.shape, bias=bias is not None)
    linear.weight.data = weight.mT.float().contiguous()
    if bias is not None:
        linear.bias.data = bias.float()
    return linear.requires_grad_(False)
