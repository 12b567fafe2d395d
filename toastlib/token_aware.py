"""Maps that tell tokens apart: the CLS token, one of many, decides the classes, and one map for all hardly sees it.

`Separate` gives it a map of its own, `Contextual` a look at the patches as well, which is what attention gives it.
"""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from toastlib.closed_forms import Affine, Ridge
from toastlib.errors import InputError
from toastlib.least_squares import Sums, fit_ridge
from toastlib.moments import FoldedMoments, Moments
from toastlib.plan import Span
from toastlib.tokens import token_means
from toastlib.translators import linear_module, needs_folds


class Separate:
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

    def fit(self, moments: FoldedMoments, span: Span) -> Self:
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
        return ByToken(self.special_tokens_, modules["special"], modules["patch"])

    def architecture(self, width: int) -> nn.Module:
        """Two maps: twice the parameters of one, and the same work."""
        return ByToken(1, self.form.architecture(width), self.form.architecture(width))


class ByToken(nn.Module):
    """One map for the first tokens, another for the rest."""

    def __init__(self, special_tokens: int, special: nn.Module, patches: nn.Module) -> None:
        super().__init__()
        self.special_tokens = special_tokens
        self.special = special
        self.patches = patches

    def forward(self, hidden: Tensor) -> Tensor:
        """Shape (batch, tokens, width) to the same."""
        first, rest = hidden[:, : self.special_tokens], hidden[:, self.special_tokens :]
        return torch.cat([self.special(first), self.patches(rest)], dim=1)

    def extra_repr(self) -> str:
        """Where the tokens are parted."""
        return f"special_tokens={self.special_tokens}"


class Contextual:
    """Separate maps that also read the image's context: the mean patch, and for the patches the mean special token.

    What a removed block adds to the CLS token it gathers from the patches, and mostly by averaging them: no map of the
    token alone can know it. Every token becomes ``own W + context V + bias``, a ridge towards the identity in
    ``(W, V)``: the identity, and no context. The context is computed once per image, and costs next to nothing.

    Parameters
    ----------
    penalty
        For either kind of token, in units of the mean eigenvalue of its inputs' covariance; chosen on held-out folds if
        `None`.

    Attributes
    ----------
    weights_, biases_
        Kind of token -> float64 tensors, shapes (width + context, width) and (width,).
    penalties_
        Kind of token -> its penalty, see `toastlib.least_squares.fit_ridge`.
    residual_
        ``|H[e] - map(H[s])|^2 / |H[e]|^2`` over all calibration rows.
    """

    name = "context"
    needs_activations = False
    needs_folds = True

    def __init__(self, penalty: float | None = None) -> None:
        self.penalty = penalty

    def fit(self, moments: FoldedMoments, span: Span) -> Self:
        """Fit the maps of either kind of token.

        Raises
        ------
        InputError
            If the moments hold no means of each image's tokens.
        """
        if not moments.means:
            raise InputError(f"Translator {self.name!r} needs the means of each image's tokens: pass collect_folds's.")
        moments = moments.restrict(span)
        self.weights_, self.biases_, self.penalties_, left, squares = {}, {}, {}, 0, 0
        for kind, parts in moments.parts.items():
            sums = [sums_in_context(*fold, span, kind) for fold in zip(parts, moments.means, strict=True)]
            self.weights_[kind], self.biases_[kind], self.penalties_[kind], _ = fit_ridge(sums, penalty=self.penalty)
            whole = sum(sums[1:], start=sums[0])
            left += whole.centred().error(self.weights_[kind]).item()
            squares += whole.square.item()
        self.residual_ = left / squares
        self.special_tokens_ = moments.special_tokens
        return self

    def module(self) -> nn.Module:
        """All of it as an `InContext`, float32."""
        own, context = {}, {"special": None}
        for kind, weight in self.weights_.items():
            width = weight.shape[1]
            own[kind], context[kind] = linear_module(weight[:width], self.biases_[kind]), linear_module(weight[width:])
        tokens = own["patch"] if len(own) == 1 else ByToken(self.special_tokens_, own["special"], own["patch"])
        return InContext(self.special_tokens_, tokens, context["special"], context["patch"])

    def architecture(self, width: int) -> nn.Module:
        """Five matrices, three of which see one vector for each image: the work of little more than one."""
        own = ByToken(1, nn.Linear(width, width), nn.Linear(width, width))
        return InContext(1, own, nn.Linear(width, width, bias=False), nn.Linear(2 * width, width, bias=False))


class InContext(nn.Module):
    """A map of each token, and what the image as a whole adds to it.

    Parameters
    ----------
    special_tokens
        How many tokens stand before the patches.
    tokens
        The map of each token.
    special
        From the mean patch, shape (..., width), to what is added to special tokens; `None` where there are none.
    patches
        From the token means, shape (..., 2 width), to what is added to patches; without special tokens from the mean
        patch.
    """

    def __init__(self, special_tokens: int, tokens: nn.Module, special: nn.Module | None, patches: nn.Module) -> None:
        super().__init__()
        self.special_tokens = special_tokens
        self.tokens = tokens
        self.special = special
        self.patches = patches

    def forward(self, hidden: Tensor) -> Tensor:
        """Shape (batch, tokens, width) to the same."""
        context = token_means(hidden, self.special_tokens)[:, None]
        mapped = self.tokens(hidden)
        mapped[:, self.special_tokens :] += self.patches(context)
        if self.special is not None:
            mapped[:, : self.special_tokens] += self.special(context[..., -hidden.shape[-1] :])  # the mean patch
        return mapped

    def extra_repr(self) -> str:
        """Where the tokens are parted."""
        return f"special_tokens={self.special_tokens}"


def sums_in_context(moments: Moments, means: dict[int, Tensor], span: Span, kind: str) -> Sums:
    """What least squares reads of rows ``[own token, context]`` and of the tokens that they become.

    The context is the same for all tokens of an image, so that its products with them are those with their mean.

    Parameters
    ----------
    moments
        Of the tokens of one kind.
    means
        Token means of the same images, see `toastlib.tokens.token_means`.
    span
        From which block to which.
    kind
        ``"special"``: the context is the mean patch; ``"patch"``: all token means.
    """
    own, start, end = Sums.of_span(moments, span), means[span.start].double(), means[span.end].double()
    width, tokens = moments.width, moments.count // len(start)
    rows = slice(0, width) if kind == "special" else slice(-width, None)  # where the means of this kind lie
    context = start[:, -width:] if kind == "special" else start
    beside = tokens * start[:, rows].mT @ context
    gram = torch.cat([torch.cat([own.gram, beside], 1), torch.cat([beside.mT, tokens * context.mT @ context], 1)])
    cross = torch.cat([own.cross, tokens * context.mT @ end[:, rows]])
    return Sums(own.count, torch.cat([own.source, tokens * context.sum(0)]), own.target, gram, cross, own.square)
