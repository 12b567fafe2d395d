"""The one pass over calibration images, or texts, that collects moments; what a pass found is kept on disk."""

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import Any

import torch
from torch import Tensor

from toastlib.cache import cached
from toastlib.data.tokens import select_tokens, token_mask
from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import capture_outputs
from toastlib.models.layers import context_of
from toastlib.statistics.moments import KFoldMoments, Moments, Pair, all_pairs

States = tuple[dict[int, Tensor], Tensor | None]
"""Of one batch: block -> its output, shape (batch, tokens, width), and 1 for tokens, 0 for padding, or `None`."""


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
        `Images`, `Texts`, or anything with ``batches(size)``.
    pairs
        Which products to keep; all of them if `None`. `plan_pairs` gives those that a list of plans needs.
    tokens
        ``"all"`` and ``"patch"`` take every token as a row, ``"cls"``, ``"last"`` and ``"mean"`` one row per image
        or text. Padding is never a row.
    batch_size
        Images per forward pass.

    Returns
    -------
    Moments
        float64, on the encoder's device.

    Raises
    ------
    InputError
        If there are no images, or a block's output holds NaN or infinity (the message names the first such block).
    """
    pairs = all_pairs(len(encoder.blocks)) if pairs is None else list(pairs)
    return _stream(encoder, images, pairs, [tokens], batch_size)[0][tokens]


def collect_folds(
    encoder: Encoder,
    images,
    pairs: Iterable[Pair] | None = None,
    folds: int = 5,
    batch_size: int = 32,
    views: Callable[[Any, int], Any] | None = None,
) -> KFoldMoments:
    """Stream images through the encoder once and accumulate moments in folds, special tokens and patches apart.

    Parameters
    ----------
    encoder, images, pairs, batch_size
        As for `collect_moments`; the images must allow slicing, as `Images` do.
    folds
        Image i belongs to fold ``i % folds``.
    views
        What to see in the images of a fold, such as `Augmentation`: all copies of an image stay in its fold.

    Returns
    -------
    KFoldMoments
        float64, on the encoder's device.

    Raises
    ------
    InputError
        If there are fewer images than folds, or fewer folds than two; or as for `collect_moments`.
    """
    pairs = all_pairs(len(encoder.blocks)) if pairs is None else list(pairs)
    dealt = split_folds(images, folds)
    if views is not None:
        dealt = [views(part, fold) for fold, part in enumerate(dealt)]
    kinds = kinds_of(encoder)
    return merge_folds(encoder, [_stream(encoder, part, pairs, kinds, batch_size, True) for part in dealt])


def split_folds(images, folds: int) -> list:
    """Image i goes to fold ``i % folds``.

    Raises
    ------
    InputError
        If there are fewer images than folds, or fewer folds than two.
    """
    if not 2 <= folds <= len(images):
        raise InputError(f"{len(images)} images cannot be parted into {folds} folds: take 2 folds up to one per image.")
    return [images[fold::folds] for fold in range(folds)]


def kinds_of(encoder: Encoder) -> list[str]:
    """The kinds of tokens that are kept apart."""
    return ["special", "patch"] if encoder.special_tokens else ["patch"]


def merge_folds(encoder: Encoder, dealt: list[tuple[dict[str, Moments], dict[int, Tensor]]]) -> KFoldMoments:
    """Folded moments from what `accumulate` gave for each fold."""
    parts = {kind: tuple(moments[kind] for moments, _ in dealt) for kind in kinds_of(encoder)}
    summaries = tuple(summaries for _, summaries in dealt if summaries)
    return KFoldMoments(parts, encoder.special_tokens, summaries=summaries)


def _stream(
    encoder: Encoder, images, pairs: list[Pair], kinds: list[str], batch_size: int, with_summaries: bool = False
) -> tuple[dict[str, Moments], dict[int, Tensor]]:
    """Moments for each choice of tokens, and each block's summaries where they are asked for and are images'.

    From one pass, or from that of an earlier call with the same of everything.
    """

    def compute() -> dict[str, Tensor]:
        moments, summaries = _pass(encoder, images, pairs, kinds, batch_size, with_summaries)
        kept = {f"{kind}/{name}": tensor for kind in kinds for name, tensor in moments[kind].tensors().items()}
        return kept | {f"summaries/{block}": rows for block, rows in summaries.items()}

    if hasattr(images, "cache_key_parts"):
        read_out = (encoder.blocks_path, encoder.special_tokens)
        settings = (pairs, kinds, batch_size, with_summaries)
        kept = cached(compute, "moments", encoder, read_out, *images.cache_key_parts, *settings)
    else:
        kept = compute()
    parts: dict[str, dict[str, Tensor]] = {"summaries": {}}
    for name, tensor in kept.items():
        part, _, name = name.partition("/")
        parts.setdefault(part, {})[name] = tensor.to(encoder.device)
    summaries = {int(block): rows for block, rows in parts["summaries"].items()}
    return {kind: Moments.from_tensors(parts[kind]) for kind in kinds}, summaries


def _pass(
    encoder: Encoder, images, pairs: list[Pair], kinds: list[str], batch_size: int, with_summaries: bool
) -> tuple[dict[str, Moments], dict[int, Tensor]]:
    blocks = sorted({block for pair in pairs for block in pair})

    def states() -> Generator[States, None, None]:
        with capture_outputs(encoder, blocks) as h:
            for inputs, _ in images.batches(batch_size):
                encoder(inputs)
                yield h, token_mask(inputs)

    return accumulate(states(), encoder, pairs, kinds, with_summaries)


@torch.inference_mode()
def accumulate(
    states: Generator[States, None, None], encoder: Encoder, pairs: list[Pair], kinds: list[str], with_summaries: bool
) -> tuple[dict[str, Moments], dict[int, Tensor]]:
    """Moments of states, batch after batch, for each choice of tokens; and each block's summaries of images.

    Parameters
    ----------
    states
        For each batch block -> its output, shape (batch, tokens, width), and the mask of its tokens.
    encoder
        Whose states they are.
    pairs
        Which products to keep.
    kinds
        Choices of tokens, see `select_tokens`.
    with_summaries
        Whether images are summarised; texts never are.

    Raises
    ------
    InputError
        If there are no batches, or a state holds NaN or infinity.
    """
    totals: dict[str, Moments] = {}
    summaries: dict[int, list[Tensor]] = {}
    with contextlib.closing(states):  # and its hooks removed, whatever happens
        for hidden, mask in states:
            for kind in kinds:
                rows = {k: select_tokens(h, kind, encoder.special_tokens, mask) for k, h in hidden.items()}
                moments = Moments.of(rows, pairs, product_dtype(encoder))
                totals[kind] = totals[kind].merge(moments) if kind in totals else moments
            for k, h in hidden.items() if with_summaries and mask is None else ():
                summaries.setdefault(k, []).append(summarise(h, encoder.special_tokens).float())
    if not totals:
        raise InputError("There are no images to collect moments from.")
    for moments in totals.values():
        _check_finite(moments)
    return totals, {block: torch.cat(rows) for block, rows in summaries.items()}


def product_dtype(encoder: Encoder) -> torch.dtype:
    """In which type a batch's products are formed: float32 on GPUs, most of which are slow in float64."""
    return torch.float64 if encoder.device.type == "cpu" or encoder.dtype == torch.float64 else torch.float32


def _check_finite(moments: Moments) -> None:
    for block, total in zip(moments.blocks, moments.inner.diagonal(), strict=True):
        if not torch.isfinite(total):
            where = "The input of block 0" if block == -1 else f"The output of block {block}"
            raise InputError(f"{where} holds NaN or infinity: check the checkpoint and its dtype.")


def summarise(hidden: Tensor, special_tokens: int) -> Tensor:
    """What images say as a whole: mean special token, mean patch, and the patches' standard deviation, side by side.

    Parameters
    ----------
    hidden
        Shape (batch, tokens, width).
    special_tokens
        How many tokens stand before the patches.

    Returns
    -------
    Tensor
        Shape (batch, 3 width); without special tokens (batch, 2 width), mean patch and standard deviation alone.
    """
    context = context_of(hidden[:, special_tokens:])
    return torch.cat([hidden[:, :special_tokens].mean(1), context], dim=-1) if special_tokens else context
