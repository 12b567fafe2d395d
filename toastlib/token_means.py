"""What an image says as a whole: the means of its special tokens and of its patches, after every block."""

import torch
from torch import Tensor


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


def merge_means(first: dict[int, Tensor], second: dict[int, Tensor]) -> dict[int, Tensor]:
    """The means of two sets of images, the second below the first."""
    return {block: torch.cat([rows, second[block]]) for block, rows in first.items()}
