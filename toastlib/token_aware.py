"""Maps that tell tokens apart: the CLS token, one of many, decides the classes, and one map for all hardly sees it."""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from toastlib.closed_forms import Affine, Ridge
from toastlib.moments import FoldedMoments
from toastlib.plan import Span
from toastlib.translators import needs_folds


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
