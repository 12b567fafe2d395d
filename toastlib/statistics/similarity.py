"""How alike the outputs of two blocks are: MSE, cosine similarity and linear CKA.

From moments every pair costs next to nothing; `cka_from_samples` computes CKA a second, independent way.
"""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

from toastlib.errors import InputError, unknown
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


def cka(moments: Moments | KFoldMoments) -> Tensor:
    """Linear centred kernel alignment, ``|Xc'Yc|_F^2 / (|Xc'Xc|_F |Yc'Yc|_F)``; float64, shape (blocks, blocks).

    Kornblith et al., "Similarity of Neural Network Representations Revisited" (2019), equation 4, in feature space. It
    needs the products of all pairs. NaN for a block whose rows are all alike, as the CLS tokens are before block 0.
    """
    moments = moments.whole
    size = len(moments.blocks)
    norms = torch.empty(size, size, dtype=torch.float64)
    for a, first in enumerate(moments.blocks):
        for b, second in enumerate(moments.blocks[a:], start=a):
            centred = moments.product(first, second) - torch.outer(moments.sums[a], moments.sums[b]) / moments.count
            norms[a, b] = norms[b, a] = centred.square().sum()
    scale = norms.diagonal().sqrt()
    rounding = moments.count * torch.finfo(torch.float64).eps * moments.inner.diagonal().cpu()
    scale[scale <= rounding] = torch.nan
    return norms / torch.outer(scale, scale)


def cka_from_samples(first: Tensor, second: Tensor, debiased: bool = False) -> float:
    """Linear CKA of two sets of rows, from their (rows x rows) Gram matrices.

    Kornblith et al. (2019), section 3: ``<HKH, HLH> / (|HKH| |HLH|)`` with ``K = XX'`` and ``H`` the centring matrix.
    It is too large where rows are few. Debiased, HSIC is estimated as in Song et al., "Feature Selection via Dependence
    Maximization" (2012), for CKA as in Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?" (2021).

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
        If there are fewer than 4 rows for the debiased estimate.
    """
    if debiased and len(first) < 4:
        raise InputError(f"Debiased CKA needs at least 4 rows; there are {len(first)}.")
    k, l = (_centred_gram(rows.double(), debiased) for rows in (first, second))
    return ((k * l).sum() / (k.norm() * l.norm())).item()


def _centred_gram(rows: Tensor, debiased: bool) -> Tensor:
    """Debiased so that ``<K, L> / (n (n - 3))`` is the unbiased HSIC, which leaves out the diagonal."""
    gram, n = rows @ rows.mT, len(rows)
    centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    if not centred.norm() > n * torch.finfo(torch.float64).eps * gram.trace():
        return torch.full_like(gram, torch.nan)
    if not debiased:
        return centred
    hollow = centred.fill_diagonal_(0)
    sums = hollow.sum(0) / (n - 2)
    return (hollow - sums - sums[:, None] + sums.sum() / (n - 1)).fill_diagonal_(0)


METRICS: dict[str, Callable[[Moments | KFoldMoments], Tensor]] = {"mse": mse, "cosine": cosine, "cka": cka}


def similarity(moments: Moments | KFoldMoments, metric: str = "cka") -> pd.DataFrame:
    """A (B+1) x (B+1) similarity matrix as a tidy frame.

    Parameters
    ----------
    moments, metric
        Of all pairs, from `collect_moments`; ``"mse"`` (a distance), ``"cosine"`` or ``"cka"``.

    Returns
    -------
    DataFrame
        Columns ``first``, ``second`` (blocks, -1 being the input of block 0), ``metric``, ``value``.

    Raises
    ------
    InputError
        If the metric is unknown, or the moments lack a pair that it needs.
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    pairs = pd.MultiIndex.from_product([moments.blocks] * 2, names=["first", "second"])
    values = METRICS[metric](moments).flatten().tolist()
    return pd.DataFrame({"metric": metric, "value": values}, index=pairs).reset_index()
