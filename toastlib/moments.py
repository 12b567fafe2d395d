"""One streaming pass over the calibration images: the second moments of block outputs.

Everything closed-form about blocks follows from them. With one row per token and ``H[k]`` the (rows, width)
matrix of block k's outputs, the sums ``1'H[k]``, the products ``H[i]'H[j]``, the inner products ``tr H[i]'H[j]`` and
the sums of row cosines give MSE, cosine similarity and linear CKA, and for every span the least-squares map
with its residual. Memory depends on the pairs and the width, never on the number of images.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from toastlib.activations import record, select_tokens
from toastlib.errors import InputError
from toastlib.models import Encoder
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

    @classmethod
    def of(cls, hidden: dict[int, Tensor], pairs: Iterable[Pair]) -> Self:
        """Moments of rows that are at hand: block -> (rows, width), all of one length."""
        blocks = tuple(sorted(hidden))
        stacked = torch.stack([hidden[block] for block in blocks]).double()  # (blocks, rows, width)
        flat, unit = stacked.flatten(1), normalize(stacked, dim=-1).flatten(1)
        row = {block: index for index, block in enumerate(blocks)}
        products = {(i, j): stacked[row[i]].mT @ stacked[row[j]] for i, j in pairs}
        return cls(blocks, stacked.shape[1], stacked.sum(1), flat @ flat.mT, unit @ unit.mT, products)

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

    def lack(self, first: int, second: int) -> InputError:
        """The error that this pair was not collected."""
        return InputError(
            f"These moments do not hold the blocks ({first}, {second}): collect them with pairs=None for all pairs."
        )

    @property
    def width(self) -> int:
        """Length of a row."""
        return self.sums.shape[1]


def all_pairs(block_count: int) -> list[Pair]:
    """Every (i, j) with -1 <= i <= j < `block_count`."""
    return [(i, j) for i in range(-1, block_count) for j in range(i, block_count)]


def plan_pairs(plans: Iterable[Plan]) -> list[Pair]:
    """The pairs that the maps of these plans are fitted from: (s, s) and (s, e) for each span ``s->e``."""
    spans = {span for plan in plans for span in plan}
    return sorted({pair for s, e in spans for pair in ((s, s), (s, e))})


@torch.inference_mode()
def collect_moments(
    encoder: Encoder,
    images,
    pairs: Iterable[Pair] | None = None,
    tokens: str = "all",
    batch_size: int = 32,
) -> Moments:
    """Stream images through the encoder once and accumulate the moments of its block outputs.

    Parameters
    ----------
    encoder
        The original model: every map of the paper is fitted on its activations.
    images
        `toastlib.data.Images`, or anything with ``batches(size)``.
    pairs
        Which products to keep; all of them if `None`. `plan_pairs` gives those that a list of plans needs.
    tokens
        ``"all"`` and ``"patch"`` take every token as a row, ``"cls"`` and ``"mean"`` one row per image.
    batch_size
        Images per forward pass.

    Raises
    ------
    InputError
        If there are no images, or a block's output holds NaN or infinity (the message names the first such block).
    """
    pairs = all_pairs(len(encoder.blocks)) if pairs is None else list(pairs)
    blocks = sorted({block for pair in pairs for block in pair})

    def moments_of(pixel_values: Tensor) -> Moments:
        encoder(pixel_values)
        return Moments.of({k: select_tokens(h[k], tokens, encoder.special_tokens) for k in blocks}, pairs)

    with record(encoder, blocks) as h:
        parts = (moments_of(pixel_values) for pixel_values, _ in images.batches(batch_size))
        first = next(parts, None)
        if first is None:
            raise InputError("There are no images to collect moments from.")
        moments = reduce(Moments.merge, parts, first)
    _check_finite(moments)
    return moments


def _check_finite(moments: Moments) -> None:
    for block, total in zip(moments.blocks, moments.inner.diagonal(), strict=True):
        if not torch.isfinite(total):
            where = "The input of block 0" if block == -1 else f"The output of block {block}"
            raise InputError(f"{where} holds NaN or infinity: check the checkpoint and its dtype.")
