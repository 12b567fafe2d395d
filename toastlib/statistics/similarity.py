"""How alike the outputs of two blocks are: MSE, cosine similarity and linear CKA.

From moments every pair costs next to nothing; `cka_from_samples` computes CKA a second, independent way.
"""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

from toastlib.errors import unknown
from toastlib.statistics.moments import Moments


def mse(moments: Moments) -> Tensor:
    """Mean squared difference per entry, ``E |h[i] - h[j]|^2 / width`` (paper, Figure 2 of the older text).

    Returns
    -------
    Tensor
        float64, shape (blocks, blocks); zero on the diagonal.
    """
    squares = moments.inner.diagonal()
    distances = squares[:, None] + squares[None, :] - 2 * moments.inner
    return distances.clamp(min=0) / (moments.count * moments.width)


def cosine(moments: Moments) -> Tensor:
    """Mean over rows of the cosine between ``h[i]`` and ``h[j]``; float64, shape (blocks, blocks)."""
    return moments.cosines / moments.count


def cka(moments: Moments) -> Tensor:
    """Linear centred kernel alignment, ``|Xc'Yc|_F^2 / (|Xc'Xc|_F |Yc'Yc|_F)``.

    Kornblith et al., "Similarity of Neural Network Representations Revisited" (2019), equation 4, in feature space.

    Returns
    -------
    Tensor
        float64, shape (blocks, blocks); needs the products of all pairs. NaN for a block whose rows are all alike,
        as the CLS tokens are before block 0: there is nothing to align.
    """
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


def cka_from_samples(first: Tensor, second: Tensor) -> float:
    """Linear CKA of two sets of rows, from their (rows x rows) Gram matrices.

    Kornblith et al. (2019), section 3: ``<HKH, HLH> / (|HKH| |HLH|)`` with ``K = XX'`` and ``H`` the centring matrix.

    Parameters
    ----------
    first, second
        Shapes (rows, width) and (rows, other width).

    Returns
    -------
    float
        NaN if the rows of either are all alike.
    """

    def centred_gram(rows: Tensor) -> Tensor:
        gram = rows.double() @ rows.double().mT
        centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
        rounding = len(rows) * torch.finfo(torch.float64).eps * gram.trace()
        return centred if centred.norm() > rounding else torch.full_like(gram, torch.nan)

    k, l = centred_gram(first), centred_gram(second)
    return ((k * l).sum() / (k.norm() * l.norm())).item()


METRICS: dict[str, Callable[[Moments], Tensor]] = {"mse": mse, "cosine": cosine, "cka": cka}


def similarity(moments: Moments, metric: str = "cka") -> pd.DataFrame:
    """A (B+1) x (B+1) similarity matrix as a tidy frame.

    Parameters
    ----------
    moments
        Of all pairs, from `collect_moments`.
    metric
        ``"mse"`` (a distance), ``"cosine"`` or ``"cka"``.

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
    matrix = METRICS[metric](moments).tolist()
    return pd.DataFrame(
        [
            {"first": first, "second": second, "metric": metric, "value": value}
            for first, row in zip(moments.blocks, matrix, strict=True)
            for second, value in zip(moments.blocks, row, strict=True)
        ]
    )
