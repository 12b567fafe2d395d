"""Block outputs as they are computed, on the device they are computed on."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from toastlib.data.tokens import select_tokens, token_mask
from toastlib.errors import InputError
from toastlib.models.encoder import Encoder


@contextlib.contextmanager
def capture_outputs(encoder: Encoder, blocks: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Collect ``h[k]`` for every `k` of `blocks` while the encoder runs; -1 is the input of block 0.

    Yields
    ------
    dict
        Block -> its latest output, shape (batch, tokens, width); nothing is copied or moved.

    Raises
    ------
    InputError
        If the encoder has no such block.

    Examples
    --------
    >>> with capture_outputs(encoder, [2, 5]) as h:  # doctest: +SKIP
    ...     encoder(pixel_values)
    >>> h[5] - h[2]  # doctest: +SKIP
    """
    blocks, last = list(blocks), len(encoder.blocks) - 1
    outside = [block for block in blocks if not -1 <= block <= last]
    if outside:
        raise InputError(
            f"There is no block {outside[0]}: blocks count from 0 to {last}, and -1 is the input of block 0."
        )
    outputs: dict[int, Tensor] = {}

    def keep(block: int, hidden: Tensor) -> None:
        outputs[block] = hidden

    handles = [
        encoder.blocks[0].register_forward_pre_hook(lambda module, args: keep(-1, args[0]))
        if block == -1
        else encoder.blocks[block].register_forward_hook(lambda module, args, out, k=block: keep(k, out))
        for block in blocks
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def collect_activations(
    encoder: Encoder, images, blocks: Iterable[int] | None = None, tokens: str = "cls", batch_size: int = 32
) -> dict[int, Tensor]:
    """Keep one vector per image and block, for the measures and pictures that need the samples themselves.

    Parameters
    ----------
    encoder
        Whose block outputs are kept.
    images
        `Images`, `Texts`, or anything with ``batches(size)``.
    blocks
        Blocks to keep, -1 being the input of block 0; all of them and -1 if `None`.
    tokens
        ``"cls"``, ``"last"`` or ``"mean"`` keep one row per image or text, ``"patch"`` and ``"all"`` one per token;
        see `select_tokens`.
    batch_size
        Images per forward pass.

    Returns
    -------
    dict
        Block -> float32 tensor of shape (rows, width) on the encoder's device.
    """
    blocks = list(range(-1, len(encoder.blocks)) if blocks is None else blocks)
    kept: dict[int, list[Tensor]] = {block: [] for block in blocks}
    with capture_outputs(encoder, blocks) as h:
        for inputs, _ in images.batches(batch_size):
            encoder(inputs)
            for block in blocks:
                rows = select_tokens(h[block], tokens, encoder.special_tokens, token_mask(inputs))
                kept[block].append(rows.float())
    return {block: torch.cat(rows) for block, rows in kept.items()}
