"""Maps from ``h[s]`` to an approximation of ``h[e]``: what each has to offer, their names, and the closed forms.

A translator is fitted once per span: ``fit`` reads moments, or activations where it has to be trained, and returns the
translator; fitted names end in ``_``, and ``module`` gives the map as an `nn.Module` from (batch, tokens, width) to
the same shape.
"""

import pkgutil
import warnings
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from toastlib.errors import unknown
from toastlib.plan import Span
from toastlib.statistics.moments import KFoldMoments, Moments

Activations = dict[int, Tensor]
"""Block -> its outputs, shape (rows, width), the same tokens of the same images in every block."""


class Translator(Protocol):
    """What a translator has to offer.

    Attributes
    ----------
    name
        How it is called, in tables and on the command line.
    needs_activations
        Whether it is fitted on activations, row by row, rather than on their moments.
    needs_folds
        Whether it needs moments that are kept in folds and by kind of token; a translator that does not say so does
        not.
    """

    name: str
    needs_activations: bool

    def fit(self, calibration: Moments | KFoldMoments | Activations, span: Span) -> Self:
        """Fit the map of `span` to what the original model computes for the calibration images."""
        ...

    def module(self) -> nn.Module:
        """The fitted map."""
        ...

    def architecture(self, width: int) -> nn.Module:
        """A map as `module` gives it, not fitted: what its parameters and FLOPs are counted on."""
        ...


class Identity:
    """The span is dropped and nothing stands in for it (the SkipAt variant; paper, Tables 4 and 16).

    Attributes
    ----------
    residual_
        ``|H[e] - H[s]|^2 / |H[e]|^2`` on the calibration rows.
    """

    name = "identity"
    needs_activations = False

    def fit(self, moments: Moments, span: Span) -> Self:
        """Measure what dropping the span costs; there is nothing else to fit."""
        inner = moments.restrict(span).inner
        self.residual_ = ((inner[0, 0] - 2 * inner[0, 1] + inner[1, 1]) / inner[1, 1]).item()
        return self

    def module(self) -> nn.Module:
        """A module without parameters that hands its input on."""
        return nn.Identity()

    def architecture(self, width: int) -> nn.Module:
        """The same: there is nothing to fit."""
        return nn.Identity()


class Linear:
    """Least squares without bias, one matrix for all tokens (paper, section 3): ``min_W |H[s] W - H[e]|^2``.

    Where the rows of ``H[s]`` do not span the whole width, the solution of least norm is taken.

    Attributes
    ----------
    weight_
        float64, shape (width, width); ``h[e]`` is approximated by ``h[s] @ weight_``.
    residual_
        ``|H[e] - H[s] W|^2 / |H[e]|^2`` on the calibration rows.
    rank_
        Numerical rank of ``H[s]``.
    """

    name = "linear"
    needs_activations = False

    def fit(self, moments: Moments, span: Span) -> Self:
        """Solve the normal equations of the span.

        Warns
        -----
        UserWarning
            If there are fewer calibration rows than the width, so that many maps fit them equally well.
        """
        gram, cross = moments.product(span.start, span.start), moments.product(span.start, span.end)
        if moments.count < moments.width:
            warnings.warn(
                f"{moments.count} calibration rows cannot determine a map of width {moments.width}: of the maps that "
                "fit equally well the one of least norm is taken; more calibration images make it unique.",
                stacklevel=2,
            )
        self.weight_, self.rank_ = least_norm_solution(*moments.spectrum(span.start), cross)
        inner = moments.restrict(span).inner
        explained = 2 * (self.weight_ * cross).sum() - (self.weight_ * (gram @ self.weight_)).sum()
        self.residual_ = ((inner[1, 1] - explained) / inner[1, 1]).item()
        return self

    def module(self) -> nn.Module:
        """`nn.Linear` without bias, float32."""
        return linear_module(self.weight_)

    def architecture(self, width: int) -> nn.Module:
        """One matrix: ``width^2`` parameters."""
        return nn.Linear(width, width, bias=False)


TRANSLATORS: dict[str, str | type[Translator]] = {
    "identity": "toastlib.translators.base:Identity",
    "linear": "toastlib.translators.base:Linear",
    "affine": "toastlib.translators.linear:Affine",
    "ridge": "toastlib.translators.linear:Ridge",
    "separate": "toastlib.translators.per_token:PerTokenType",
    "context": "toastlib.translators.per_token:PooledContext",
    "low-rank": "toastlib.translators.linear:LowRank",
    "orthogonal": "toastlib.translators.linear:Orthogonal",
    "diagonal": "toastlib.translators.linear:Diagonal",
    "scalar": "toastlib.translators.linear:Scalar",
    "mlp": "toastlib.translators.trained:MLP",
    "res-mlp": "toastlib.translators.trained:ResMLP",
    "warm-start-mlp": "toastlib.translators.trained:WarmStartMLP",
}
"""Name -> the class, or where it lies: then it is imported when it is asked for. Add your own here."""
RECOMMENDED = "context"
"""What stands in where no translator is named: it loses least, see 06_translators; the paper's map is ``"linear"``."""
ALIGN = "+align"
"""Behind a name, as in ``"linear+align"``: the same maps, and the final features aligned."""


def split_align(translator: str) -> tuple[str, bool]:
    """The name of the maps alone, and whether the final features are aligned after them."""
    name = translator.removesuffix(ALIGN)
    return name, name != translator


def needs_folds(translator: Translator) -> bool:
    """Whether a translator is fitted on moments in folds, `KFoldMoments`."""
    return getattr(translator, "needs_folds", False)


def make_translator(translator: "str | Translator") -> Translator:
    """A fresh translator by name, whether or not its features are aligned; a translator is returned as it is.

    Raises
    ------
    InputError
        If there is no translator of that name.
    """
    if not isinstance(translator, str):
        return translator
    name, _ = split_align(translator)
    if name not in TRANSLATORS:
        raise unknown("translator", name, TRANSLATORS)
    kind = TRANSLATORS[name]
    return (pkgutil.resolve_name(kind) if isinstance(kind, str) else kind)()


def linear_module(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """`nn.Linear` that computes ``h @ weight + bias``, float32, from shapes (width, other width) and (other width,)."""
    linear = nn.utils.skip_init(nn.Linear, *weight.shape, bias=bias is not None)
    linear.weight.data = weight.mT.float().contiguous()
    if bias is not None:
        linear.bias.data = bias.float()
    return linear.requires_grad_(False)


def least_norm_solution(values: Tensor, vectors: Tensor, cross: Tensor) -> tuple[Tensor, int]:
    """The W of least Frobenius norm among those that minimise ``|X W - Y|``, from ``X'X`` and ``X'Y``.

    Eigenvalues of ``X'X`` below ``width * eps`` of the largest are taken as zero: float64 sums cannot tell them
    from rounding.

    Parameters
    ----------
    values, vectors
        Eigenvalues of ``X'X``, rising, and its eigenvectors: float64, shapes (width,) and (width, width).
    cross
        ``X'Y``, float64, shape (width, other width).

    Returns
    -------
    tuple
        W, float64, shape (width, other width), and the numerical rank of X.
    """
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    basis = vectors[:, kept]
    return basis @ ((basis.mT @ cross) / values[kept, None]), int(kept.sum())
