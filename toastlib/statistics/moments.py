"""The second moments of block outputs, which one streaming pass over the calibration images collects.

Everything closed-form about blocks follows from them. With one row per token and ``H[k]`` the (rows, width)
matrix of block k's outputs, the sums ``1'H[k]``, the products ``H[i]'H[j]``, the inner products ``tr H[i]'H[j]`` and
the sums of row cosines give MSE, cosine similarity and linear CKA, and for every span the least-squares map
with its residual. Memory depends on the pairs and the width, never on the number of images.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Self

import torch
from torch import Tensor

from toastlib.errors import InputError
from toastlib.plan import Plan

Pair = tuple[int, int]


@dataclass(frozen=True)
class Moments:
    """Second moments of block outputs; moments of disjoint images add up.

    Parameters
    ----------
    blocks
        The blocks whose outputs were seen, in order; -1 is the input of block 0.
    count
        Number of rows (tokens, or images for ``"cls"`` and ``"mean"``).
    sums
        float64, shape (blocks, width): the sum of each block's rows.
    inner
        float64, shape (blocks, blocks): the sum over rows of ``h[i] . h[j]``.
    cosines
        float64, shape (blocks, blocks): the sum over rows of ``cos(h[i], h[j])``.
    products
        (i, j) with i <= j -> ``H[i]'H[j]``, float64, shape (width, width).
    """

    blocks: tuple[int, ...]
    count: int
    sums: Tensor
    inner: Tensor
    cosines: Tensor
    products: dict[Pair, Tensor]
    _spectra: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, hidden: dict[int, Tensor], pairs: Iterable[Pair], dtype: torch.dtype = torch.float64) -> Self:
        """Moments of rows that are at hand.

        Parameters
        ----------
        hidden
            Block -> (rows, width), all of one length.
        pairs
            Which products to keep.
        dtype
            Of the products of these rows. Whatever it is, they are kept, and added to others, in float64: float32
            costs about six digits of what many batches add up to, and is many times as fast on most GPUs.
        """
        blocks = tuple(sorted(hidden))
        rows = torch.stack([hidden[block] for block in blocks], dim=1).to(dtype)  # (rows, blocks, width)
        inner = (rows @ rows.mT).double()
        lengths = inner.diagonal(dim1=1, dim2=2).sqrt().clamp(min=1e-12)
        cosines = inner / (lengths[:, :, None] * lengths[:, None])
        sums = rows.sum(0, dtype=torch.float64)
        return cls(blocks, len(rows), sums, inner.sum(0), cosines.sum(0), _products(rows, blocks, list(pairs)))

    def merge(self, other: Self) -> Self:
        """Moments of the union of two disjoint sets of images.

        Raises
        ------
        InputError
            If the two do not hold the same pairs.
        """
        if self.products.keys() != other.products.keys() or self.blocks != other.blocks:
            raise InputError("Only moments of the same blocks and pairs can be merged.")
        return Moments(
            self.blocks,
            self.count + other.count,
            self.sums + other.sums,
            self.inner + other.inner,
            self.cosines + other.cosines,
            {pair: product + other.products[pair] for pair, product in self.products.items()},
        )

    def tensors(self) -> dict[str, Tensor]:
        """All that they are as named tensors, for a safetensors file; `from_tensors` is the way back."""
        kept = {"blocks": torch.tensor(self.blocks), "count": torch.tensor(self.count)}
        kept |= {"sums": self.sums, "inner": self.inner, "cosines": self.cosines}
        return kept | {f"product {i} {j}": product for (i, j), product in self.products.items()}

    @classmethod
    def from_tensors(cls, kept: dict[str, Tensor]) -> Self:
        """Moments of what `tensors` gave."""
        products = {tuple(map(int, name.split()[1:])): kept[name] for name in kept if name.startswith("product ")}
        blocks = tuple(kept["blocks"].tolist())
        return cls(blocks, int(kept["count"]), kept["sums"], kept["inner"], kept["cosines"], products)

    def restrict(self, blocks: Iterable[int]) -> Self:
        """Moments of these blocks alone, with what products of theirs are held.

        Raises
        ------
        InputError
            If a block was not seen.
        """
        blocks = tuple(blocks)
        if not set(blocks) <= set(self.blocks):
            raise self.lack(*blocks)
        rows = [self.blocks.index(block) for block in blocks]
        products = {pair: product for pair, product in self.products.items() if set(pair) <= set(blocks)}
        inner, cosines = (matrix[rows][:, rows] for matrix in (self.inner, self.cosines))
        return Moments(blocks, self.count, self.sums[rows], inner, cosines, products)

    def product(self, first: int, second: int) -> Tensor:
        """``H[first]'H[second]``, float64, shape (width, width).

        Raises
        ------
        InputError
            If that pair was not collected.
        """
        if (first, second) in self.products:
            return self.products[first, second]
        if (second, first) in self.products:
            return self.products[second, first].mT
        raise self.lack(first, second)

    def spectrum(self, block: int) -> tuple[Tensor, Tensor]:
        """Eigenvalues, rising, and eigenvectors of ``H[block]'H[block]``; computed once for all spans from there."""
        if block not in self._spectra:
            self._spectra[block] = tuple(torch.linalg.eigh(self.product(block, block)))
        return self._spectra[block]

    def lack(self, *blocks: int) -> InputError:
        """The error that these blocks, or their product, were not collected."""
        return InputError(f"These moments do not hold the blocks {blocks}: collect them with pairs=None for all pairs.")

    @property
    def width(self) -> int:
        """Length of a row."""
        return self.sums.shape[1]


@dataclass(frozen=True)
class KFoldMoments:
    """Moments of the calibration images in folds and by kind of token: for held-out errors and token-aware maps.

    Parameters
    ----------
    parts
        Kind of token -> the moments of each fold. Kinds are ``"special"`` (CLS and whatever else stands before the
        patches; left out where nothing does) and ``"patch"``. Folds are of images: no image's tokens are parted.
    special_tokens
        How many tokens stand before the patches.
    activations
        The rows themselves, block -> (rows, width), where a trained map is fitted beside closed forms.
    summaries
        For each fold block -> what `summarise` says of each image: small, and so just kept.
    """

    parts: dict[str, tuple[Moments, ...]]
    special_tokens: int
    activations: dict[int, Tensor] | None = None
    summaries: tuple[dict[int, Tensor], ...] = ()

    @property
    def folds(self) -> tuple[Moments, ...]:
        """Moments of each fold, all kinds of tokens together."""
        return tuple(reduce(Moments.merge, kinds) for kinds in zip(*self.parts.values(), strict=True))

    @property
    def whole(self) -> Moments:
        """Moments of all images and tokens, as `collect_moments` gives them."""
        return reduce(Moments.merge, self.folds)

    def kind(self, name: str) -> Self:
        """One kind of token alone."""
        return KFoldMoments({name: self.parts[name]}, self.special_tokens)

    def restrict(self, blocks: Iterable[int]) -> Self:
        """Moments of these blocks alone, see `Moments.restrict`."""
        blocks = tuple(blocks)
        parts = {kind: tuple(fold.restrict(blocks) for fold in folds) for kind, folds in self.parts.items()}
        summaries = tuple({block: fold[block] for block in blocks} for fold in self.summaries)
        return KFoldMoments(parts, self.special_tokens, summaries=summaries)

    def merge(self, other: Self) -> Self:
        """Moments of the union of two disjoint sets of images, fold by fold; activations are not kept."""
        parts = {kind: tuple(map(Moments.merge, folds, other.parts[kind])) for kind, folds in self.parts.items()}
        summaries = tuple(map(_merge_summaries, self.summaries, other.summaries))
        return KFoldMoments(parts, self.special_tokens, summaries=summaries)


def all_pairs(block_count: int) -> list[Pair]:
    """Every (i, j) with -1 <= i <= j < `block_count`."""
    return [(i, j) for i in range(-1, block_count) for j in range(i, block_count)]


def plan_pairs(plans: Iterable[Plan]) -> list[Pair]:
    """The pairs that the maps of these plans are fitted from: (s, s) and (s, e) for each span ``s->e``."""
    spans = {span for plan in plans for span in plan}
    return sorted({pair for s, e in spans for pair in ((s, s), (s, e))})


def _products(rows: Tensor, blocks: tuple[int, ...], pairs: list[Pair]) -> dict[Pair, Tensor]:
    """``H[i]'H[j]`` of rows (rows, blocks, width) for each pair; all pairs two blocks at a time, in fewer products."""
    width, flat = rows.shape[2], rows.flatten(1)
    start = {block: index * width for index, block in enumerate(blocks)}
    if len(pairs) < len(blocks) * (len(blocks) + 1) / 2:
        columns = {block: flat[:, start[block] : start[block] + width] for block in blocks}
        return {(i, j): (columns[i].mT @ columns[j]).double() for i, j in pairs}
    products, wanted = {}, set(pairs)
    for first in range(0, len(blocks), 2):
        two = flat[:, first * width : (first + 2) * width].mT @ flat[:, first * width :]
        for offset, i in enumerate(blocks[first : first + 2]):
            of_i = two[offset * width : (offset + 1) * width].double().split(width, dim=1)
            products |= {(i, j): product.contiguous() for j, product in zip(blocks[first:], of_i) if (i, j) in wanted}
    return products


def _merge_summaries(first: dict[int, Tensor], second: dict[int, Tensor]) -> dict[int, Tensor]:
    """The summaries of two sets of images, the second below the first."""
    return {block: torch.cat([rows, second[block]]) for block, rows in first.items()}
