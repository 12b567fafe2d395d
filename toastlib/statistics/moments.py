"""The second moments of block outputs, which one streaming pass over the calibration images collects.

Everything closed-form about blocks follows from them. With one row per token and ``H[k]`` the (rows, width)
matrix of block k's outputs, the sums ``1'H[k]``, the products ``H[i]'H[j]``, the inner products ``tr H[i]'H[j]`` and
the sums of row cosines and angles give MSE, cosine similarity, angular distance and linear CKA, and for every span the
least-squares map with its residual. Sums of third and fourth order take the bias of few rows out of CKA. Memory depends
on the pairs and the width, never on the number of images.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import combinations_with_replacement
from typing import Any, Self

import torch
from torch import Tensor

from toastlib.data.texts import Texts
from toastlib.errors import InputError
from toastlib.models.layers import context_of, running_context, running_sums
from toastlib.plan import Plan, parse_plans

Pair = tuple[int, int]
SUMS = ("sums", "inner", "cosines", "angles", "lengths", "weighted")  # the tensors of `Moments` that add up
MEAN, SPREAD = 10**6, 2 * 10**6
"""Block k + MEAN and block k + SPREAD: the running mean and standard deviation of block k's outputs, in a decoder."""


@dataclass(frozen=True)
class Moments:
    """Second moments of block outputs; moments of disjoint images add up.

    Parameters
    ----------
    blocks, count
        The blocks whose outputs were seen, in order, -1 being the input of block 0; and the number of rows (tokens, or
        images for ``"cls"`` and ``"mean"``).
    sums
        float64, shape (blocks, width): the sum of each block's rows.
    inner, cosines, angles
        float64, shape (blocks, blocks): the sums over rows of ``h[i] . h[j]``, of ``cos(h[i], h[j])``, and of the angle
        between the two in radians.
    lengths, weighted
        float64, shapes (blocks, blocks) and (blocks, blocks, width): the sums over rows of ``|h[i]|^2 |h[j]|^2``, and
        of ``|h[i]|^2 h[j]``.
    products
        (i, j) with i <= j -> ``H[i]'H[j]``, float64, shape (width, width).
    """

    blocks: tuple[int, ...]
    count: int
    sums: Tensor
    inner: Tensor
    cosines: Tensor
    angles: Tensor
    lengths: Tensor
    weighted: Tensor
    products: dict[Pair, Tensor]
    _spectra: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        return f"Moments({len(self.blocks)} blocks, width {self.width}, {self.count:,} rows)"

    @classmethod
    def of(cls, hidden: dict[int, Tensor], pairs: Iterable[Pair]) -> Self:
        """Moments of stored rows: block -> (rows, width), all of one shape; the products of `pairs`, in float64.

        Raises
        ------
        InputError
            If there are no rows, they are of several shapes, or a pair names a block that is not among them.
        """
        blocks, pairs = tuple(sorted(hidden)), list(pairs)
        shapes = {tuple(rows.shape) for rows in hidden.values()}
        if len(shapes) != 1 or any(len(shape) != 2 or not shape[0] for shape in shapes):
            raise InputError(f"Every block has rows of one shape (rows, width), not {sorted(shapes)}.")
        if missing := {block for pair in pairs for block in pair} - set(blocks):
            raise InputError(f"There are no rows of block {min(missing)}, which the pairs name.")
        rows = torch.stack([hidden[block] for block in blocks], dim=1).double()  # (rows, blocks, width)
        inner = rows @ rows.mT
        squares = inner.diagonal(dim1=1, dim2=2)  # (rows, blocks)
        norms = squares.sqrt().clamp(min=1e-12)
        cosines = inner / (norms[:, :, None] * norms[:, None])
        added = {
            "sums": rows.sum(0),
            "inner": inner.sum(0),
            "cosines": cosines.sum(0),
            "angles": cosines.clamp(-1, 1).acos().sum(0).fill_diagonal_(0),
            "lengths": squares.mT @ squares,
            "weighted": (squares.mT @ rows.flatten(1)).unflatten(1, rows.shape[1:]),
        }
        return cls(blocks, len(rows), **added, products=_products(rows, blocks, pairs))

    def merge(self, other: Self) -> Self:
        """Moments of the union of two disjoint sets of images.

        Raises
        ------
        InputError
            If the two do not hold the same pairs.
        """
        if self.products.keys() != other.products.keys() or self.blocks != other.blocks:
            raise InputError("Only moments of the same blocks and pairs can be merged.")
        added = {name: getattr(self, name) + getattr(other, name) for name in SUMS}
        products = {pair: product + other.products[pair] for pair, product in self.products.items()}
        return Moments(self.blocks, self.count + other.count, **added, products=products)

    def scaled(self, factor: float) -> Self:
        """Moments as of so many times the rows, where these are a random share of them."""
        added = {name: factor * getattr(self, name) for name in SUMS}
        products = {pair: factor * product for pair, product in self.products.items()}
        return Moments(self.blocks, round(factor * self.count), **added, products=products)

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors for a safetensors file; `from_tensors` reads them."""
        kept = {"blocks": torch.tensor(self.blocks), "count": torch.tensor(self.count)}
        kept |= {name: getattr(self, name) for name in SUMS}
        return kept | {f"product {i} {j}": product for (i, j), product in self.products.items()}

    @classmethod
    def from_tensors(cls, kept: dict[str, Tensor]) -> Self:
        """Moments from the result of `tensors`."""
        products = {tuple(map(int, name.split()[1:])): kept[name] for name in kept if name.startswith("product ")}
        added = {name: kept[name] for name in SUMS}
        return cls(tuple(kept["blocks"].tolist()), int(kept["count"]), **added, products=products)

    def restrict(self, blocks: Iterable[int]) -> Self:
        """Moments of these blocks alone, with the products that are held; an `InputError` if a block was not seen."""
        blocks = tuple(blocks)
        if not set(blocks) <= set(self.blocks):
            raise self.lack(*blocks)
        rows = [self.blocks.index(block) for block in blocks]
        products = {pair: product for pair, product in self.products.items() if set(pair) <= set(blocks)}
        pairwise = {name: getattr(self, name)[rows][:, rows] for name in SUMS if name != "sums"}
        return Moments(blocks, self.count, self.sums[rows], **pairwise, products=products)

    def product(self, first: int, second: int) -> Tensor:
        """``H[first]'H[second]``, float64, shape (width, width); an `InputError` if that pair was not collected."""
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
    def whole(self) -> Self:
        """The moments themselves, so that a reader of plain moments takes `KFoldMoments` as well."""
        return self

    @property
    def width(self) -> int:
        """Length of a row."""
        return self.sums.shape[1]


@dataclass(frozen=True)
class KFoldMoments:
    """Moments of the calibration images in folds and by kind of token: for held-out errors and token-aware maps.

    All tokens of an image are in one fold. Kinds are ``"special"`` (CLS and other tokens before the patches; left out
    where there are none) and ``"patch"``.
    """

    parts: dict[str, tuple[Moments, ...]]  # kind of token -> the moments of each fold
    special_tokens: int  # number of tokens before the patches
    activations: dict[int, Tensor] | None = None  # block -> (rows, width), where trained maps are fitted as well
    summaries: tuple[dict[int, Tensor], ...] = ()  # for each fold block -> the result of `summarise` for its images
    running: tuple[Moments, ...] = ()  # of a decoder: for each fold its `running_moments`

    def __repr__(self) -> str:
        rows = " and ".join(f"{sum(fold.count for fold in own):,} {kind}" for kind, own in self.parts.items())
        one, *others = next(iter(self.parts.values()))
        return f"KFoldMoments({len(one.blocks)} blocks, width {one.width}, {len(others) + 1} folds, {rows} rows)"

    @classmethod
    def of(cls, hidden: dict[int, Tensor], pairs: Iterable[Pair], *, special_tokens: int = 0, folds: int = 5) -> Self:
        """Moments of block outputs of shape (images, tokens, width), image i in fold ``i % folds``."""
        kinds = {"special": slice(special_tokens)} if special_tokens else {}
        kinds["patch"] = slice(special_tokens, None)
        dealt = [dict(zip(hidden, part)) for part in zip(*(split_folds(h, folds) for h in hidden.values()))]
        parts = {
            kind: tuple(Moments.of({k: h[:, chosen].flatten(0, 1) for k, h in fold.items()}, pairs) for fold in dealt)
            for kind, chosen in kinds.items()
        }
        summaries = ({k: summarise(h, special_tokens) for k, h in fold.items()} for fold in dealt)
        return cls(parts, special_tokens, summaries=tuple(summaries))

    @property
    def folds(self) -> tuple[Moments, ...]:
        """Moments of each fold, all kinds of tokens together."""
        return tuple(reduce(Moments.merge, kinds) for kinds in zip(*self.parts.values(), strict=True))

    @cached_property
    def whole(self) -> Moments:
        """Moments of all images and tokens; added up once, then kept."""
        return reduce(Moments.merge, self.folds)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks whose outputs were seen, in order."""
        return next(iter(self.parts.values()))[0].blocks

    def kind(self, name: str) -> Self:
        """One kind of token alone."""
        return KFoldMoments({name: self.parts[name]}, self.special_tokens)

    def restrict(self, blocks: Iterable[int]) -> Self:
        """Moments of these blocks alone, see `Moments.restrict`."""
        blocks = tuple(blocks)
        parts = {kind: tuple(fold.restrict(blocks) for fold in folds) for kind, folds in self.parts.items()}
        summaries = tuple({block: fold[block] for block in blocks} for fold in self.summaries)
        return KFoldMoments(parts, self.special_tokens, summaries=summaries, running=self.running)


def all_pairs(block_count: int) -> list[Pair]:
    """Every (i, j) with -1 <= i <= j < `block_count`."""
    return [(i, j) for i in range(-1, block_count) for j in range(i, block_count)]


def plan_pairs(plans: str | Plan | Iterable[str | Plan]) -> list[Pair]:
    """The pairs that the maps of plans are fitted from: (s, s) and (s, e) for each span ``s->e``.

    Parameters
    ----------
    plans
        One plan, or several, in any form of `Plan.parse`.

    Returns
    -------
    list of Pair
        Sorted, without repetitions.
    """
    return sorted({pair for plan in parse_plans(plans) for s, e in plan for pair in ((s, s), (s, e))})


def running_moments(hidden: dict[int, Tensor], pairs: Iterable[Pair], mask: Tensor) -> Moments:
    """What maps of a decoder's tokens and of their running context are fitted from, for the spans among the pairs.

    Hidden states of each block have the shape (batch, tokens, width), and the mask (batch, tokens).
    """
    spans, is_token = [(start, end) for start, end in pairs if start < end], mask.bool()
    rows = {block: hidden[block][is_token] for span in spans for block in span}
    wanted = set()
    for start in {start for start, _ in spans}:
        mean, spread = running_context(running_sums(hidden[start], mask))[is_token].chunk(2, dim=-1)
        rows |= {start + MEAN: mean, start + SPREAD: spread}
        wanted |= set(combinations_with_replacement((start, start + MEAN, start + SPREAD), 2))
    wanted |= {(row, end) for start, end in spans for row in (start, start + MEAN, start + SPREAD)}
    return Moments.of(rows, sorted(wanted))


def split_folds(images: Any, folds: int) -> list:
    """Image i goes to fold ``i % folds``.

    An `InputError` if the images cannot be sliced, there are fewer images than folds, or fewer folds than two.
    """
    if not hasattr(images, "__len__"):
        raise InputError(f"A {type(images).__name__} cannot be split into folds: take folds=0, or Images or Texts.")
    if not 2 <= folds <= len(images):
        given = f"{len(images)} {'texts' if isinstance(images, Texts) else 'images'}"
        raise InputError(f"{given} cannot be parted into {folds} folds: take 2 folds up to one for each of them.")
    return [images[fold::folds] for fold in range(folds)]


def summarise(hidden: Tensor, special_tokens: int, mask: Tensor | None = None) -> Tensor:
    """Mean special token, mean patch and the patches' standard deviation of each image, shape (batch, 3 width).

    From (batch, tokens, width), of a text with its mask; without special tokens (batch, 2 width), mean patch and
    standard deviation alone.
    """
    context = context_of(hidden[:, special_tokens:], None if mask is None else mask[:, special_tokens:])
    return torch.cat([hidden[:, :special_tokens].mean(1), context], dim=-1) if special_tokens else context


def _products(rows: Tensor, blocks: tuple[int, ...], pairs: list[Pair]) -> dict[Pair, Tensor]:
    """``H[i]'H[j]`` of rows (rows, blocks, width) for each pair; all pairs two blocks at a time, in fewer products."""
    width, flat = rows.shape[2], rows.flatten(1)
    start = {block: index * width for index, block in enumerate(blocks)}
    if len(pairs) < len(blocks) * (len(blocks) + 1) / 2:
        columns = {block: flat[:, start[block] : start[block] + width] for block in blocks}
        return {(i, j): columns[i].mT @ columns[j] for i, j in pairs}
    products, wanted = {}, set(pairs)
    for first in range(0, len(blocks), 2):
        two = flat[:, first * width : (first + 2) * width].mT @ flat[:, first * width :]
        for offset, i in enumerate(blocks[first : first + 2]):
            of_i = two[offset * width : (offset + 1) * width].split(width, dim=1)
            products |= {(i, j): product.contiguous() for j, product in zip(blocks[first:], of_i) if (i, j) in wanted}
    return products
