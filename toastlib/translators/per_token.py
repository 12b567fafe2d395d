"""Maps by type or position of a token: CLS, one of many, decides the classes, and one map for all hardly sees it."""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from toastlib.errors import InputError
from toastlib.models.layers import AddPooledContext, AddRunningContext, MapPerPosition, SplitByTokenType
from toastlib.plan import Span
from toastlib.statistics.moments import MEAN, SPREAD, KFoldMoments, Moments
from toastlib.translators.base import Rows, Translator, check_rows
from toastlib.translators.least_squares import Sums, fit_ridge, share
from toastlib.translators.linear import Affine, Ridge, linear_module


class PerTokenType(Translator):
    """One map for the special tokens and one for the patches.

    Parameters
    ----------
    form
        Either map; a `Ridge` shrunk to the identity if `None`.

    Attributes
    ----------
    fits_
        Type of token -> its fitted map; ``"patch"`` alone where the encoder has no special tokens.
    """

    name = "separate"
    needs_folds = tells_tokens_apart = True

    def __init__(self, form: Affine | None = None) -> None:
        self.form = form or Ridge()

    def fit_moments(self, moments: KFoldMoments, span: Span) -> Self:
        """Fit either map on its own tokens."""
        moments = moments.restrict(span)
        parts = {kind: moments.kind(kind) for kind in moments.parts}
        self.fits_ = {kind: copy.copy(self.form).fit_moments(part, span) for kind, part in parts.items()}
        squares = {kind: part.whole.inner[1, 1].item() for kind, part in parts.items()}
        errors = (fit.residual_ * squares[kind] for kind, fit in self.fits_.items())
        self.residual_ = share(sum(errors), sum(squares.values()))
        self.special_tokens_ = moments.special_tokens
        return self

    def module(self) -> nn.Module:
        """`SplitByTokenType` of both maps; one map where there are no special tokens."""
        return _split({kind: fit.module() for kind, fit in self.fits_.items()}, self.special_tokens_)

    def build(self, width: int, special_tokens: int = 1) -> nn.Module:
        """Two maps: twice the parameters of one, and the same work; one map where there are no special tokens."""
        return _split({kind: self.form.build(width) for kind in ("special", "patch")}, special_tokens)


class PerPosition(Translator):
    """One map for each position of a token, fitted on that position's rows alone: one row of each image.

    With `Linear` it is "mode 2" of the authors' released code; 500 images barely determine matrices of width 384, hence
    the ridge. Moments are made position by position, so that memory is that of the activations.

    Parameters
    ----------
    form
        Each map; a `Ridge` shrunk to the identity if `None`, whose penalty each position chooses for itself.

    Attributes
    ----------
    fits_
        The fitted map of each position.
    """

    name = "per-position"
    needs_activations = needs_positions = True

    def __init__(self, form: Affine | None = None) -> None:
        self.form = form or Ridge()

    def fit(self, X: Rows, Y: Rows, special_tokens: int = 0) -> Self:
        """Fit the map of each position from X to Y, of shape (images, tokens, width).

        Raises
        ------
        InputError
            If they have another shape, or hold NaN or infinity.
        """
        source, target = check_rows(X, Y)
        if source.ndim != 3:
            raise InputError(f"Translator {self.name!r} is fitted on X and Y of shape (images, tokens, width) alone.")
        pairs = zip(source.unbind(1), target.unbind(1), strict=True)
        self.fits_ = [copy.copy(self.form).fit(x, y) for x, y in pairs]
        squares = target.double().square().sum((0, 2))
        errors = sum(fit.residual_ * square for fit, square in zip(self.fits_, squares, strict=True))
        self.residual_ = share(errors, squares.sum())
        return self

    def module(self) -> nn.Module:
        """`MapPerPosition`, float32."""
        weights = torch.stack([fit.weight_ for fit in self.fits_]).float()
        module = MapPerPosition(*weights.shape[:2]).requires_grad_(False)
        module.weight.data = weights
        if self.fits_[0].bias_ is not None:
            module.bias.data = torch.stack([fit.bias_ for fit in self.fits_]).float()[:, None]
        return module

    def build(self, width: int, tokens: int = 1) -> nn.Module:
        """A matrix and a bias for each position: as many times the parameters of one map, and the same work."""
        return MapPerPosition(tokens, width)


class PooledContext(Translator):
    """Separate ridges; that of the special tokens also reads the mean and the standard deviation of the patches.

    A removed block adds to the CLS token a mixture of patches that no map of the token alone can know. A special token
    h becomes ``h W + context V + b``, a ridge that shrinks W to the identity and V to zero. Where there are no special
    tokens the patches read the context. A token of a decoder reads the mean and deviation of the tokens up to it.

    Parameters
    ----------
    alpha
        As for `Ridge`, for either type of token.

    Attributes
    ----------
    fits_
        Type of token -> its `RidgeFit`; weights that read the context are (3 width, width): own, mean, deviation.
    """

    name = "context"
    needs_folds = needs_context = tells_tokens_apart = True

    def __init__(self, alpha: float | None = None) -> None:
        self.alpha = alpha

    def fit_moments(self, moments: KFoldMoments, span: Span) -> Self:
        """Fit the maps of either type of token.

        Raises
        ------
        InputError
            If the moments hold no summaries of the images, or no running context of a decoder's tokens.
        """
        if not (moments.summaries or moments.running):
            raise InputError(f"{self.name!r} needs moments of the context: leave context=True in collect_moments.")
        self.is_causal_ = bool(moments.running)
        if self.is_causal_:
            fit = fit_ridge([running_rows(fold, span) for fold in moments.running], alpha=self.alpha)
            self.fits_, self.residual_, self.special_tokens_ = {"patch": fit}, share(fit.error, fit.square), 0
            return self
        moments = moments.restrict(span)
        reader = "special" if moments.special_tokens else "patch"
        sums = {kind: [Sums.of_span(fold, span) for fold in folds] for kind, folds in moments.parts.items()}
        sums[reader] = [add_context(*fold, span) for fold in zip(sums[reader], moments.summaries, strict=True)]
        self.fits_ = {kind: fit_ridge(folds, alpha=self.alpha) for kind, folds in sums.items()}
        errors, squares = (sum(getattr(fit, name) for fit in self.fits_.values()) for name in ("error", "square"))
        self.residual_ = share(errors, squares)
        self.special_tokens_ = moments.special_tokens
        return self

    def module(self) -> nn.Module:
        """`AddPooledContext`, or `AddRunningContext` of a decoder, float32."""
        width = len(self.fits_["patch"].bias)
        own = {kind: linear_module(fit.weight[:width], fit.bias) for kind, fit in self.fits_.items()}
        context = linear_module(self.fits_["special" if self.special_tokens_ else "patch"].weight[width:])
        if self.is_causal_:
            return AddRunningContext(own["patch"], context)
        return AddPooledContext(self.special_tokens_, _split(own, self.special_tokens_), context)

    def build(self, width: int, special_tokens: int = 1, is_causal: bool = False) -> nn.Module:
        """Four matrices, or three without special tokens; two see one vector per image, a decoder's each token."""
        if is_causal:
            return AddRunningContext(nn.Linear(width, width), nn.Linear(2 * width, width, bias=False))
        own = _split({kind: nn.Linear(width, width) for kind in ("special", "patch")}, special_tokens)
        return AddPooledContext(special_tokens, own, nn.Linear(2 * width, width, bias=False))


def add_context(own: Sums, summaries: dict[int, Tensor], span: Span) -> Sums:
    """Sums over rows ``[token, context]`` from those over tokens and each image's summary, see `summarise`."""
    start, end = (summaries[block].double() for block in span)
    width, tokens = len(own.gram), own.count // len(start)
    context = start[:, -2 * width :]  # (images, 2 width), the same for all tokens of an image; their mean comes first
    products = tokens * start[:, :width].mT @ context
    gram = torch.cat([torch.cat([own.gram, products], 1), torch.cat([products.mT, tokens * context.mT @ context], 1)])
    cross = torch.cat([own.cross, tokens * context.mT @ end[:, :width]])
    return Sums(own.count, torch.cat([own.x_sum, tokens * context.sum(0)]), own.y_sum, gram, cross, own.square)


def running_rows(moments: Moments, span: Span) -> Sums:
    """Sums over a decoder's rows ``[token, running mean, running deviation]``, from `running_moments`."""
    start, end = span
    inputs = (start, start + MEAN, start + SPREAD)
    gram = torch.cat([torch.cat([moments.product(i, j) for j in inputs], 1) for i in inputs])
    cross = torch.cat([moments.product(i, end) for i in inputs])
    *x_sum, y_sum = (moments.sums[moments.blocks.index(block)] for block in (*inputs, end))
    place = moments.blocks.index(end)
    return Sums(moments.count, torch.cat(x_sum), y_sum, gram, cross, moments.inner[place, place])


def _split(modules: dict[str, nn.Module], special_tokens: int) -> nn.Module:
    if not special_tokens:
        return modules["patch"]
    return SplitByTokenType(special_tokens, modules["special"], modules["patch"])
