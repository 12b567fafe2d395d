"""Maps that tell tokens apart: the CLS token, one of many, decides the classes, and one map for all hardly sees it.

`PerTokenType` gives it a map of its own, `PooledContext` a look at the patches as well, as attention does.
"""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from toastlib.errors import InputError
from toastlib.models.layers import AddPooledContext, SplitByTokenType
from toastlib.plan import Span
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.base import linear_module, needs_folds
from toastlib.translators.least_squares import Sums, fit_ridge
from toastlib.translators.linear import Affine, Ridge


class PerTokenType:
    """One map for the special tokens and one for the patches: the CLS token, one of many, decides the classes.

    Parameters
    ----------
    form
        What either map is; `Ridge` towards the identity if `None`.

    Attributes
    ----------
    fits_
        Kind of token -> its fitted map; an encoder without special tokens has but the one for ``"patch"``.
    residual_
        ``|H[e] - map(H[s])|^2 / |H[e]|^2`` over all calibration rows.
    """

    name = "separate"
    needs_activations = False
    needs_folds = True

    def __init__(self, form: Affine | None = None) -> None:
        self.form = form or Ridge()

    def fit(self, moments: KFoldMoments, span: Span) -> Self:
        """Fit either map on its own tokens."""
        moments = moments.restrict(span)
        parts = {kind: moments.kind(kind) for kind in moments.parts}
        self.fits_ = {
            kind: copy.copy(self.form).fit(part if needs_folds(self.form) else part.whole, span)
            for kind, part in parts.items()
        }
        squares = {kind: part.whole.inner[1, 1].item() for kind, part in parts.items()}
        left = sum(fit.residual_ * squares[kind] for kind, fit in self.fits_.items())
        self.residual_ = left / sum(squares.values())
        self.special_tokens_ = moments.special_tokens
        return self

    def module(self) -> nn.Module:
        """Both maps, each for its tokens; one map where there are no special tokens."""
        modules = {kind: fit.module() for kind, fit in self.fits_.items()}
        if len(modules) == 1:
            return modules["patch"]
        return SplitByTokenType(self.special_tokens_, modules["special"], modules["patch"])

    def architecture(self, width: int) -> nn.Module:
        """Two maps: twice the parameters of one, and the same work."""
        return SplitByTokenType(1, self.form.architecture(width), self.form.architecture(width))


class PooledContext:
    """Separate maps, of which that of the special tokens also reads the image: its mean patch and how patches vary.

    What a removed block adds to the CLS token it gathers from the patches: no map of the token alone can know it, and
    their mean and standard deviation say much of it. Every special token becomes ``own W + context V + bias``, a ridge
    towards the identity in ``(W, V)``: the identity, and no context. Patches get a ridge of their own; where no token
    stands before them, it is they that read the context. It is computed once per image, and costs next to nothing.

    Parameters
    ----------
    penalty
        For either kind of token, in units of the mean eigenvalue of its inputs' covariance; chosen on held-out folds if
        `None`.

    Attributes
    ----------
    weights_, biases_
        Kind of token -> float64 tensors; weights have shape (3 width, width) for the tokens that read the context, in
        the order own, mean, standard deviation, and (width, width) for others; biases (width,).
    penalties_
        Kind of token -> its penalty, see `fit_ridge`.
    residual_
        ``|H[e] - map(H[s])|^2 / |H[e]|^2`` over all calibration rows.
    """

    name = "context"
    needs_activations = False
    needs_folds = True

    def __init__(self, penalty: float | None = None) -> None:
        self.penalty = penalty

    def fit(self, moments: KFoldMoments, span: Span) -> Self:
        """Fit the maps of either kind of token.

        Raises
        ------
        InputError
            If the moments hold no summaries of the images.
        """
        if not moments.summaries:
            raise InputError(
                f"Translator {self.name!r} needs summaries of the images: pass the moments of collect_folds."
            )
        moments = moments.restrict(span)
        self.weights_, self.biases_, self.penalties_, left, squares = {}, {}, {}, 0, 0
        for kind, parts in moments.parts.items():
            if kind == "special" or not moments.special_tokens:
                sums = [sums_in_context(*fold, span) for fold in zip(parts, moments.summaries, strict=True)]
            else:
                sums = [Sums.of_span(fold, span) for fold in parts]
            self.weights_[kind], self.biases_[kind], self.penalties_[kind], _ = fit_ridge(sums, penalty=self.penalty)
            whole = sum(sums[1:], start=sums[0])
            left += whole.centred().error(self.weights_[kind]).item()
            squares += whole.square.item()
        self.residual_ = left / squares
        self.special_tokens_ = moments.special_tokens
        return self

    def module(self) -> nn.Module:
        """All of it as an `AddPooledContext`, float32."""
        width = len(self.biases_["patch"])
        own = {kind: linear_module(weight[:width], self.biases_[kind]) for kind, weight in self.weights_.items()}
        context = linear_module(self.weights_["special" if self.special_tokens_ else "patch"][width:])
        tokens = (
            SplitByTokenType(self.special_tokens_, own["special"], own["patch"])
            if self.special_tokens_
            else own["patch"]
        )
        return AddPooledContext(self.special_tokens_, tokens, context)

    def architecture(self, width: int) -> nn.Module:
        """Four matrices, two of which see one vector for each image: the work of little more than one."""
        own = SplitByTokenType(1, nn.Linear(width, width), nn.Linear(width, width))
        return AddPooledContext(1, own, nn.Linear(2 * width, width, bias=False))


def sums_in_context(moments: Moments, summaries: dict[int, Tensor], span: Span) -> Sums:
    """What least squares reads of rows ``[own token, context]`` and of the tokens that they become.

    The context is the same for all tokens of an image, so that its products with them are those with their mean.

    Parameters
    ----------
    moments
        Of the special tokens, or of the patches where no tokens stand before them.
    summaries
        Of the same images, see `summarise`: the mean of these tokens comes first.
    span
        From which block to which.
    """
    own, start, end = Sums.of_span(moments, span), summaries[span.start].double(), summaries[span.end].double()
    width, tokens = moments.width, moments.count // len(start)
    context = start[:, -2 * width :]
    beside = tokens * start[:, :width].mT @ context
    gram = torch.cat([torch.cat([own.gram, beside], 1), torch.cat([beside.mT, tokens * context.mT @ context], 1)])
    cross = torch.cat([own.cross, tokens * context.mT @ end[:, :width]])
    return Sums(own.count, torch.cat([own.source, tokens * context.sum(0)]), own.target, gram, cross, own.square)
