"""The interface of maps from ``h[s]`` to an approximation of ``h[e]``, and their names.

A translator is fitted once per span, by `fit` on rows or by `fit_moments`; fitted attributes end in ``_``.
"""

import copy
import pkgutil
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from toastlib.errors import InputError, unknown
from toastlib.plan import Span
from toastlib.plugins import is_known, look_up, registry
from toastlib.statistics.moments import KFoldMoments, Moments

Activations = dict[int, Tensor]
"""Block -> its outputs, shape (rows, width), the same tokens of the same images in every block."""
Rows = ArrayLike | Tensor
SPAN, PAIRS = Span(0, 1), [(0, 0), (0, 1)]  # where X is called the output of block 0, and Y that of block 1


class Translator:
    """A map of a span: subclasses set `name` and define `module` and `fit_moments`, or `fit` where it is trained.

    Attributes
    ----------
    name
        Name in tables and on the command line.
    needs_folds, needs_context, needs_activations, needs_positions, tells_tokens_apart
        True where `fit_moments` reads `KFoldMoments` alone; where it reads the context of a decoder's tokens; where the
        map is fitted on rows; on those of whole images, (images, tokens, width), so that `build` takes the number of
        tokens; and where special tokens have a map of their own, so that `build` takes their number.
    residual_
        Of the translators here, ``|H[e] - map(H[s])|^2 / |H[e]|^2`` on the calibration rows.
    """

    name: str
    needs_folds = False
    needs_context = False
    needs_activations = False
    needs_positions = False
    tells_tokens_apart = False

    def fit(self, X: Rows, Y: Rows, special_tokens: int = 0) -> Self:
        """Fit the map from X to Y, the outputs of a span's first and last block.

        Arrays or tensors of shape (rows, width), or (images, tokens, width) with `special_tokens` tokens before the
        patches; an `InputError` for others, and for NaN or infinity. Row or image i belongs to fold ``i % 5``.
        """
        hidden = dict(enumerate(check_rows(X, Y)))
        hidden = {block: rows if rows.ndim == 3 else rows[:, None] for block, rows in hidden.items()}
        if self.needs_folds:
            return self.fit_moments(KFoldMoments.of(hidden, PAIRS, special_tokens=special_tokens), SPAN)
        return self.fit_moments(Moments.of({block: h.flatten(0, 1) for block, h in hidden.items()}, PAIRS), SPAN)

    def fit_moments(self, moments: Moments | KFoldMoments, span: Span) -> Self:
        """Fit the map of `span` to the moments of the original model's block outputs.

        Raises
        ------
        InputError
            If the translator is fitted on rows.
        """
        raise InputError(f"Translator {self.name!r} is fitted on rows, not on moments: use fit(X, Y).")

    def module(self) -> nn.Module:
        """The fitted map, float32, from (batch, tokens, width) to the same shape."""
        raise NotImplementedError

    def predict(self, X: Rows) -> Rows:
        """The map of X, in the type, shape and dtype of X.

        Raises
        ------
        InputError
            If the map was not fitted, or was fitted on rows of another width.
        """
        if not any(name.endswith("_") for name in vars(self)):
            raise InputError(f"Translator {self.name!r} is not fitted: call fit or fit_moments first.")
        try:
            rows = torch.as_tensor(X)
            with torch.no_grad():
                mapped = self.module().to(rows)(rows)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"The map does not take rows of shape {np.shape(X)}: {error}") from error
        return mapped if isinstance(X, Tensor) else mapped.numpy()

    def build(self, width: int) -> nn.Module:
        """The map with arbitrary weights, on which parameters and FLOPs are counted."""
        with torch.device("cpu"), torch.random.fork_rng([]):
            rows = torch.randn(10, 2 * width, width)
            return copy.copy(self).fit(rows, rows, special_tokens=1).module()


def check_rows(X: Rows, Y: Rows) -> tuple[Tensor, Tensor]:
    """X and Y as tensors; refused unless they are of one shape of two or three dimensions, with finite numbers."""
    try:
        x, y = torch.as_tensor(X), torch.as_tensor(Y)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"X and Y are rows of numbers, not a {type(X).__name__} and a {type(Y).__name__}.") from error
    if x.shape != y.shape or x.ndim not in (2, 3) or not x.numel():
        raise InputError(f"X and Y are (rows, width) or (images, tokens, width), not {(*x.shape,)}, {(*y.shape,)}.")
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise InputError("X or Y holds NaN or infinity.")
    return x, y


TRANSLATORS: dict[str, str | type[Translator]] = {
    "identity": "toastlib.translators.linear:Identity",
    "linear": "toastlib.translators.linear:Linear",
    "affine": "toastlib.translators.linear:Affine",
    "ridge": "toastlib.translators.linear:Ridge",
    "separate": "toastlib.translators.per_token:PerTokenType",
    "context": "toastlib.translators.per_token:PooledContext",
    "per-position": "toastlib.translators.per_token:PerPosition",
    "low-rank": "toastlib.translators.linear:LowRank",
    "orthogonal": "toastlib.translators.linear:Orthogonal",
    "diagonal": "toastlib.translators.linear:Diagonal",
    "scalar": "toastlib.translators.linear:Scalar",
    "mlp": "toastlib.translators.trained:MLP",
    "res-mlp": "toastlib.translators.trained:ResMLP",
    "warm-start-mlp": "toastlib.translators.trained:WarmStartMLP",
}
"""Name -> the class, or its place, from where it is imported on first use. Add your own here."""
registry("translator", TRANSLATORS)
RECOMMENDED = "context"
"""Default translator: on two encoders it loses less than ``"linear"``, see 16_better_maps; not on decoders, 13_text."""
ALIGN = "+align"  # behind a name, as in "linear+align": the same maps, and the final features aligned


def split_align(translator: str) -> tuple[str, bool]:
    """The name without ``"+align"``, and whether that stood behind it."""
    name = translator.removesuffix(ALIGN)
    return name, name != translator


def make_translator(translator: str | Translator) -> Translator:
    """A fresh translator by name, with or without ``"+align"``; a translator is returned as it is."""
    if isinstance(translator, str):
        name = split_align(translator)[0]
        if "+" in name and not is_known(name, TRANSLATORS):
            raise unknown("translator", translator, [known + ALIGN for known in TRANSLATORS])
        kind = look_up("translator", name, TRANSLATORS)
        if isinstance(kind, Translator):
            raise InputError(f"{translator!r} stands for a {type(kind).__name__}: register the class, not an instance.")
        translator = (pkgutil.resolve_name(kind) if isinstance(kind, str) else kind)()
    if not isinstance(translator, Translator):
        kind = type(translator).__name__
        raise InputError(f"{kind} is not a translator: let its class extend toastlib.translators.base.Translator.")
    return translator
