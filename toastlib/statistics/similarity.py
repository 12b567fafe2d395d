"""How alike the outputs of two blocks are: MSE, cosine similarity, angular distance and linear CKA.

From moments every pair costs next to nothing; `cka_from_samples` computes CKA a second, independent way. Blocks of two
encoders are compared by their rows on the same images: CKA, representational similarity (RSA), Procrustes distance.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from toastlib.errors import InputError, naming, need
from toastlib.plugins import look_up, registry
from toastlib.statistics.moments import KFoldMoments, Moments


def mse(moments: Moments | KFoldMoments) -> Tensor:
    """Mean squared difference per entry, ``E |h[i] - h[j]|^2 / width``; float64, shape (blocks, blocks)."""
    moments = moments.whole
    squares = moments.inner.diagonal()
    distances = squares[:, None] + squares[None, :] - 2 * moments.inner
    return distances.clamp(min=0) / (moments.count * moments.width)


def cosine(moments: Moments | KFoldMoments) -> Tensor:
    """Mean over rows of the cosine between ``h[i]`` and ``h[j]``; float64, shape (blocks, blocks)."""
    return moments.whole.cosines / moments.whole.count


def angular(moments: Moments | KFoldMoments) -> Tensor:
    """Mean over rows of the angle between ``h[i]`` and ``h[j]``, divided by pi; float64, shape (blocks, blocks).

    Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers" (2024), section 3.2, over all rows.
    """
    return moments.whole.angles / (torch.pi * moments.whole.count)


def cka(moments: Moments | KFoldMoments) -> Tensor:
    """Linear centred kernel alignment, ``|Xc'Yc|_F^2 / (|Xc'Xc|_F |Yc'Yc|_F)``; float64, shape (blocks, blocks).

    Kornblith et al., "Similarity of Neural Network Representations Revisited" (2019), equation 4, in feature space. It
    needs the products of all pairs. NaN for a block whose rows are all alike, as the CLS tokens are before block 0.
    """
    moments = moments.whole
    sums, n = moments.sums, moments.count
    centred = _pairwise(moments, lambda a, b, xy: (xy - torch.outer(sums[a], sums[b]) / n).square().sum())
    return _normalised(centred, moments)


def debiased_cka(moments: Moments | KFoldMoments) -> Tensor:
    """Linear CKA from the unbiased estimate of HSIC, in feature space; float64, shape (blocks, blocks).

    Near 0 for independent rows, however few, where CKA is near 1; it may be negative. The estimate is that of Song et
    al., "Feature Selection via Dependence Maximization" (2012), for CKA as in Nguyen et al., "Do Wide and Deep Networks
    Learn the Same Things?" (2021), section 2. It needs the products of all pairs, and an `InputError` says if there are
    fewer than 4 rows; NaN where `cka` is.
    """
    moments = moments.whole
    n, sums, squares = moments.count, moments.sums, moments.inner.diagonal()
    if n < 4:
        raise InputError(f"Debiased CKA needs at least 4 rows; there are {n}.")
    # With K = XX' and L = YY', both without their diagonals: tr KL, 1'K1 and 1'KL1.
    traces = _pairwise(moments, lambda a, b, xy: xy.square().sum()) - moments.lengths.cpu()
    totals = (sums.square().sum(1) - squares).cpu()
    means = _pairwise(moments, lambda a, b, xy: sums[a] @ xy @ sums[b])
    weighted = torch.einsum("jiw,iw->ij", moments.weighted, sums).cpu()  # sum over rows of |y|^2 x, times 1'X
    paths = means - weighted - weighted.mT + moments.lengths.cpu()
    hsic = traces + torch.outer(totals, totals) / ((n - 1) * (n - 2)) - 2 * paths / (n - 2)
    return _normalised((hsic + hsic.mT) / 2, moments)


def _pairwise(moments: Moments, value: Callable[[int, int, Tensor], Tensor]) -> Tensor:
    """A symmetric matrix over blocks, from the positions of two blocks and their product."""
    matrix = torch.empty(len(moments.blocks), len(moments.blocks), dtype=torch.float64)
    for a, first in enumerate(moments.blocks):
        for b, second in enumerate(moments.blocks[a:], start=a):
            matrix[a, b] = matrix[b, a] = value(a, b, moments.product(first, second))
    return matrix


def _normalised(hsic: Tensor, moments: Moments) -> Tensor:
    """HSIC divided by the roots of its diagonal; NaN for blocks whose rows are all alike but for rounding."""
    squares = moments.inner.diagonal()
    spread = squares - moments.sums.square().sum(1) / moments.count
    is_varied = spread > moments.count * torch.finfo(torch.float64).eps * squares
    scale = hsic.diagonal().sqrt().where(is_varied.cpu(), torch.nan)
    return hsic / torch.outer(scale, scale)


def cka_from_samples(first: Tensor, second: Tensor, debiased: bool = False) -> float:
    """Linear CKA of two sets of rows, from their (rows x rows) Gram matrices.

    Kornblith et al. (2019), section 3: ``<HKH, HLH> / (|HKH| |HLH|)`` with ``K = XX'`` and ``H`` the centring matrix.
    It is too large where rows are few. Debiased, it is that of `debiased_cka`.

    Parameters
    ----------
    first, second
        Shapes (rows, width) and (rows, other width).
    debiased
        Near 0 for independent rows, however few; may be negative.

    Returns
    -------
    float
        NaN if the rows of either are all alike.

    Raises
    ------
    InputError
        If the two are no rows of the same number, or there are fewer than 2, or 4 for the debiased estimate.
    """
    pair = _row_sets(first, second, "Debiased CKA" if debiased else "CKA", least=4 if debiased else 2)
    k, l = (_centred_gram(rows, debiased) for rows in pair)
    return ((k * l).sum() / (k.norm() * l.norm())).item()


def rsa(first: Tensor, second: Tensor) -> float:
    """Representational similarity: Spearman's correlation of the distances between rows in two sets; in [-1, 1].

    Kriegeskorte et al., "Representational Similarity Analysis" (2008). The distance of two rows is one minus Pearson's
    correlation of their entries. NaN if the rows of either are all alike, or a row's entries are.
    """
    pair = _row_sets(first, second, "RSA", least=3)
    i, j = torch.triu_indices(len(first), len(first), 1)
    distances = torch.stack([1 - torch.corrcoef(rows)[i, j] for rows in pair], dim=1)
    ranks = pd.DataFrame(distances.numpy(force=True)).rank()
    return torch.corrcoef(torch.tensor(ranks.to_numpy().T))[0, 1].item()


def procrustes(first: Tensor, second: Tensor) -> float:
    """Squared distance of two sets of rows after the best rotation, ``2 - 2 |X'Y|_*``; in [0, 2], 0 where alike.

    X and Y are centred and divided by their Frobenius norms; ``|.|_*`` is the sum of the singular values. Ding et al.,
    "Grounding Representation Similarity with Statistical Testing" (2021). NaN if the rows of either are all alike.
    """
    x, y = (rows - rows.mean(0) for rows in _row_sets(first, second, "The Procrustes distance", least=2))
    product = x.mT @ y / (x.norm() * y.norm())
    return torch.nan if product.isnan().any() else max(0.0, 2 - 2 * torch.linalg.svdvals(product).sum().item())


def _row_sets(first: Tensor, second: Tensor, name: str, least: int) -> list[Tensor]:
    """Both in float64, if they are as many rows; NaN in place of rows that are all alike but for rounding."""
    a, b = (tuple(getattr(rows, "shape", ())) for rows in (first, second))
    if len(a) != 2 or len(b) != 2 or a[0] != b[0]:
        raise InputError(f"{name} compares rows of the same images, shapes (rows, width), not {a} and {b}.")
    if a[0] < least:
        raise InputError(f"{name} needs at least {least} rows; there are {a[0]}.")
    pair, eps = [torch.as_tensor(rows).double() for rows in (first, second)], torch.finfo(torch.float64).eps
    return [rows.where(rows.var(0).sum() > eps * rows.square().sum(), torch.nan) for rows in pair]


def _centred_gram(rows: Tensor, debiased: bool) -> Tensor:
    """Debiased so that ``<K, L> / (n (n - 3))`` is the unbiased HSIC, which leaves out the diagonal."""
    gram, n = rows @ rows.mT, len(rows)
    centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    if not debiased:
        return centred
    hollow = centred.fill_diagonal_(0)
    sums = hollow.sum(0) / (n - 2)
    return (hollow - sums - sums[:, None] + sums.sum() / (n - 1)).fill_diagonal_(0)


METRICS = {"mse": mse, "cosine": cosine, "angular": angular, "cka": cka, "debiased-cka": debiased_cka}
registry("metric", METRICS)
METRICS_BETWEEN = {"cka": cka_from_samples, "rsa": rsa, "procrustes": procrustes}
METRICS_BETWEEN["debiased-cka"] = partial(cka_from_samples, debiased=True)
registry("metric between encoders", METRICS_BETWEEN)
FEW_ROWS = 0.05  # above its debiased value by more, CKA says more of the number of rows than of the blocks


def similarity(moments: Moments | KFoldMoments, metric: str = "cka") -> pd.DataFrame:
    """A (B+1) x (B+1) similarity matrix as a tidy frame.

    Parameters
    ----------
    moments, metric
        Of all pairs, from `collect_moments`; ``"mse"`` and ``"angular"`` (distances), ``"cosine"``, ``"cka"``, or
        ``"debiased-cka"`` where rows are few.

    Returns
    -------
    DataFrame
        Columns ``first``, ``second`` (blocks, -1 being the input of block 0), ``metric``, ``value``.

    Raises
    ------
    InputError
        If the metric is unknown, raises an error or returns another shape, or the moments lack a pair that it needs.

    Warns
    -----
    UserWarning
        If the rows are so few that a CKA is more than 0.05 above its debiased value.
    """
    compute = look_up("metric", metric, METRICS)
    moments = moments.whole
    with naming(f"Metric {metric!r}"):
        matrix = compute(moments)
    if getattr(matrix, "shape", ()) != (shape := (len(moments.blocks),) * 2):
        given = f"shape {(*matrix.shape,)}" if hasattr(matrix, "shape") else f"a {type(matrix).__name__}"
        raise InputError(f"Metric {metric!r} returns {given}, where a {shape} tensor is needed.")
    excess = (matrix - debiased_cka(moments)).nan_to_num(0).max() if metric == "cka" and moments.count >= 4 else 0
    if excess > FEW_ROWS:
        warnings.warn(
            f"CKA is up to {excess:.2f} too large: {moments.count} rows are few for a width of {moments.width}. Take "
            "more images, or the metric 'debiased-cka'.",
            stacklevel=2,
        )
    pairs = pd.MultiIndex.from_product([moments.blocks] * 2, names=["first", "second"])
    return pd.DataFrame({"metric": metric, "value": matrix.flatten().tolist()}, index=pairs).reset_index()


def similarity_between(
    first: Mapping[int, Tensor], second: Mapping[int, Tensor], metric: str = "debiased-cka"
) -> pd.DataFrame:
    """Compare every block of one encoder with every block of another, on the same images, as a tidy frame.

    Parameters
    ----------
    first, second
        Block -> rows, shape (images, width), from `collect_activations`; the two widths may differ.
    metric
        ``"cka"``, ``"debiased-cka"``, ``"rsa"``, or ``"procrustes"`` (a distance); see `rsa` and `procrustes`.

    Returns
    -------
    DataFrame
        Columns ``first``, ``second`` (blocks), ``metric``, ``value``; NaN for a block whose rows are all alike.

    Raises
    ------
    InputError
        If the metric is unknown, or rows are too few, or not as many on both sides.
    """
    compare = look_up("metric", metric, METRICS_BETWEEN)
    for blocks in (first, second):
        need(blocks, "items", "A dictionary, block -> rows, such as collect_activations returns,")
    with naming(f"Metric {metric!r}"):
        rows = [(a, b, metric, float(compare(x, y))) for a, x in first.items() for b, y in second.items()]
    return pd.DataFrame(rows, columns=["first", "second", "metric", "value"])
