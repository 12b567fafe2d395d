"""What an image says as a whole: the means of its special tokens and of its patches, after every block."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from toastlib.activations import record
from toastlib.models import Encoder


def token_means(hidden: Tensor, special_tokens: int) -> Tensor:
    """Mean special token and mean patch, side by side; without special tokens the mean patch alone.

    Parameters
    ----------
    hidden
        Shape (batch, tokens, width).
    special_tokens
        How many tokens stand before the patches.

    Returns
    -------
    Tensor
        Shape (batch, 2 width), or (batch, width).
    """
    parts = (hidden[:, :special_tokens], hidden[:, special_tokens:])
    return torch.cat([part.mean(1) for part in parts if part.shape[1]], dim=-1)


@contextlib.contextmanager
def keep_token_means(encoder: Encoder, blocks: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Keep the token means of every image that the encoder sees.

    Yields
    ------
    dict
        Filled when the context ends: block -> float32 tensor of shape (images, 2 width), see `token_means`.
    """
    blocks, batches, means = list(blocks), [], {}

    def keep(*_) -> None:
        batches.append({k: token_means(h[k], encoder.special_tokens).float() for k in blocks})

    with record(encoder, blocks) as h:
        handle = encoder.model.register_forward_hook(keep)
        try:
            yield means
        finally:
            handle.remove()
    means |= {k: torch.cat([batch[k] for batch in batches]) for k in blocks if batches}


def merge_means(first: dict[int, Tensor], second: dict[int, Tensor]) -> dict[int, Tensor]:
    """The means of two sets of images, the second below the first."""
    return {block: torch.cat([rows, second[block]]) for block, rows in first.items()}
