"""The one pass over calibration images or texts that collects moments; its result is cached on disk."""

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from toastlib.cache import cached
from toastlib.data.tokens import TokenSample, select_tokens, token_mask
from toastlib.errors import InputError, need_batches, need_encoder
from toastlib.models.batch import BatchSize, batch_of
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import capture_outputs
from toastlib.models.walk import check_walk
from toastlib.statistics.moments import KFoldMoments, Moments, Pair, all_pairs, running_moments, split_folds, summarise

Kinds = dict[str, str | TokenSample]  # name of a part of the moments -> the tokens that are its rows


def collect_moments(
    encoder: Encoder,
    images: Any,
    pairs: Iterable[Pair] | None = None,
    *,
    folds: int | None = None,
    tokens: str | TokenSample = "all",
    batch_size: BatchSize = "auto",
    augmentation: Callable[[Any, int], Any] | None = None,
    context: bool = True,
) -> KFoldMoments | Moments:
    """Stream images through the encoder once and add up the moments of its block outputs.

    Parameters
    ----------
    encoder, images, batch_size
        The original; `Images`, `Texts`, or anything with ``batches(size)`` (folds need slicing and a length as well);
        and their number per forward pass, see `evaluate_plans`.
    pairs
        Products to keep, all if `None`. `plan_pairs` gives those that a list of plans needs.
    folds
        Number of folds; image i belongs to fold ``i % folds``. `None` means 5 where all tokens are taken. 0 gives plain
        `Moments`, a tenth of the memory, enough for translators and criteria that hold nothing out.
    tokens
        ``"all"`` and ``"patch"`` take every token as a row, ``"cls"``, ``"last"`` and ``"mean"`` one row per image
        or text. Padding is never a row. Only ``"all"`` comes in folds, and ``TokenSample(share, seed)``: all special
        tokens, and a share of the patches with so much more weight that the moments are right on average.
    augmentation
        Function of the images of a fold and the fold's number, such as `Augmentation`; all copies of an image stay in
        its fold.
    context
        Whether folds of a decoder hold what ``"context"`` maps need; it multiplies the products by about four.

    Returns
    -------
    KFoldMoments or Moments
        float64, on the encoder's device; in folds, with special tokens and patches apart.

    Raises
    ------
    InputError
        If there are no images or fewer than folds, or no pairs, folds are wanted of selected tokens or a share of a
        text's tokens, the encoder is more than its blocks, see `check_walk`, or a block's output holds NaN or infinity
        (the message names it).
    """
    need_encoder(encoder)
    need_batches(images)
    batch_size = batch_of(encoder, batch_size)
    pairs = all_pairs(len(encoder.blocks)) if pairs is None else list(pairs)
    if not pairs:
        raise InputError("There are no pairs of blocks to collect moments of.")
    sample = tokens if isinstance(tokens, TokenSample) else None
    if sample and encoder.reads_text:
        raise InputError("A share of the tokens can be drawn of images, and not of texts.")
    kinds = ({"special": "special"} if encoder.special_tokens else {}) | {"patch": sample or "patch"}
    if folds is None:
        folds = 5 if sample or tokens == "all" else 0
    augment = augmentation or (lambda images, fold: images)
    if not folds:
        parts, _ = _stream(encoder, augment(images, 0), pairs, kinds if sample else {tokens: tokens}, batch_size)
        return reduce(Moments.merge, parts.values())
    if not sample and tokens != "all":
        raise InputError(f"Only all tokens are collected in folds: leave out folds={folds} with tokens={tokens!r}.")
    dealt = [augment(part, fold) for fold, part in enumerate(split_folds(images, folds))]
    running = {"running": "running"} if encoder.is_causal and context else {}
    passes = [_stream(encoder, part, pairs, kinds | running, batch_size, True) for part in dealt]
    parts = {kind: tuple(moments[kind] for moments, _ in passes) for kind in kinds}
    summaries = tuple(summaries for _, summaries in passes if summaries)
    context_of_tokens = tuple(moments[kind] for moments, _ in passes for kind in running)
    return KFoldMoments(parts, encoder.special_tokens, summaries=summaries, running=context_of_tokens)


def _stream(
    encoder: Encoder, images, pairs: list[Pair], kinds: Kinds, batch_size: int, with_summaries: bool = False
) -> tuple[dict[str, Moments], dict[int, Tensor]]:
    """Moments for each choice of tokens, and each block's summaries of images if wanted; from the cache if possible."""
    settings = (pairs, kinds, batch_size, with_summaries)
    if hasattr(images, "cache_key_parts"):
        key = ("moments", encoder, (encoder.blocks_path, encoder.special_tokens), *images.cache_key_parts, *settings)
        kept = cached(lambda: _collect(encoder, images, *settings), *key)
    else:
        kept = _collect(encoder, images, *settings)
    parts: dict[str, dict[str, Tensor]] = {"summaries": {}}
    for name, tensor in kept.items():
        part, _, name = name.partition("/")
        parts.setdefault(part, {})[name] = tensor.to(encoder.device)
    summaries = {int(block): rows for block, rows in parts["summaries"].items()}
    return {kind: Moments.from_tensors(parts[kind]) for kind in kinds}, summaries


@torch.inference_mode()
def _collect(
    encoder: Encoder, images: Any, pairs: list[Pair], kinds: Kinds, batch_size: int, with_summaries: bool
) -> dict[str, Tensor]:
    """One pass: moments for each choice of tokens, and summaries; those of a decoder are its running moments."""
    totals: dict[str, Moments] = {}
    summaries: dict[int, list[Tensor]] = {}
    generator = None
    blocks = sorted({block for pair in pairs for block in pair})
    with capture_outputs(encoder, blocks) as hidden:
        for inputs, _ in images.batches(batch_size):
            check_walk(encoder, inputs)
            with encoder.replayed(inputs, first=blocks[-1] + 1):  # no later block is run
                encoder(inputs)
            mask = token_mask(inputs)
            for name, kind in kinds.items():
                if kind == "running":
                    moments = running_moments(hidden, pairs, mask)
                elif isinstance(kind, TokenSample):
                    generator = generator or torch.Generator().manual_seed(kind.seed)
                    patches = {k: h[:, encoder.special_tokens :] for k, h in hidden.items()}
                    rows, weight = kind.draw(patches, generator)
                    moments = Moments.of(rows, pairs).scaled(weight)
                else:
                    rows = {k: select_tokens(h, kind, encoder.special_tokens, mask=mask) for k, h in hidden.items()}
                    moments = Moments.of(rows, pairs)
                totals[name] = totals[name].merge(moments) if name in totals else moments
            if with_summaries and not encoder.is_causal:
                for k, h in hidden.items():
                    summaries.setdefault(k, []).append(summarise(h, encoder.special_tokens, mask).float())
    if not totals:
        raise InputError("There are no images to collect moments from.")
    for moments in totals.values():
        for block, total in zip(moments.blocks, moments.inner.diagonal(), strict=True):
            if not torch.isfinite(total):
                where = "The input of block 0" if block == -1 else f"The output of block {block}"
                raise InputError(f"{where} holds NaN or infinity: check the checkpoint and its dtype.")
    kept = {f"{kind}/{name}": tensor for kind in kinds for name, tensor in totals[kind].tensors().items()}
    return kept | {f"summaries/{block}": torch.cat(rows) for block, rows in summaries.items()}
