"""Outputs of blocks and other modules, captured while a model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toastlib.data.tokens import select_tokens, token_mask
from toastlib.errors import InputError, need_batches, need_encoder
from toastlib.models.batch import BatchSize, batch_of

if TYPE_CHECKING:
    from toastlib.models.encoder import Encoder


@contextlib.contextmanager
def capture_modules(
    modules: Mapping[Hashable, nn.Module], read: Callable[[Any], Any] | None = None
) -> Iterator[dict[Hashable, Any]]:
    """Collect the latest output of each module, or what `read` makes of it, by key, in the order of first calls."""
    outputs, read = {}, read or (lambda output: output)
    with contextlib.ExitStack() as hooks:
        for key, module in modules.items():
            kept = module.register_forward_hook(lambda m, args, out, key=key: outputs.update({key: read(out)}))
            hooks.enter_context(kept)
        yield outputs


@contextlib.contextmanager
def capture_outputs(encoder: Encoder, blocks: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the latest ``h[k]``, shape (batch, tokens, width), for every `k` of `blocks` while the encoder runs."""
    need_encoder(encoder)
    blocks, last = set(blocks), len(encoder.blocks) - 1
    if outside := [block for block in blocks if not -1 <= block <= last]:
        raise InputError(
            f"There is no block {outside[0]}: blocks count from 0 to {last}, and -1 is the input of block 0."
        )
    with capture_modules({k: encoder.blocks[k] for k in blocks if k >= 0}, encoder.hidden_of) as outputs:
        if -1 not in blocks:
            yield outputs
            return
        with encoder.blocks[0].register_forward_pre_hook(lambda m, args: outputs.update({-1: args[0]})):
            yield outputs


@torch.inference_mode()
def collect_activations(
    encoder: Encoder,
    images,
    blocks: Iterable[int] | None = None,
    *,
    tokens: str = "cls",
    batch_size: BatchSize = "auto",
) -> dict[int, Tensor]:
    """Activations of the blocks on a set of images or texts, all of them in memory.

    Parameters
    ----------
    encoder, images, batch_size
        Any encoder; `Images`, `Texts`, or anything with ``batches(size)``; and their number per forward pass.
    blocks
        Blocks to keep, -1 being the input of block 0; all of them and -1 if `None`. An `InputError` for any other.
    tokens
        ``"cls"``, ``"last"`` or ``"mean"`` keep one row per image or text, ``"patch"`` and ``"all"`` one per token;
        see `select_tokens`; ``"positions"`` keeps images apart.

    Returns
    -------
    dict
        Block -> float32 tensor of shape (rows, width), or (images, tokens, width), on the encoder's device.
    """
    need_encoder(encoder)
    need_batches(images)
    blocks = list(range(-1, len(encoder.blocks)) if blocks is None else blocks)
    kept: dict[int, list[Tensor]] = {block: [] for block in blocks}
    with capture_outputs(encoder, blocks) as h:
        for inputs, _ in images.batches(batch_of(encoder, batch_size)):
            encoder(inputs)
            for block in blocks:
                rows = select_tokens(h[block], tokens, encoder.special_tokens, mask=token_mask(inputs))
                kept[block].append(rows.float())
    return {block: torch.cat(rows) for block, rows in kept.items()}
