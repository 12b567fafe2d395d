"""Tokenised texts as a batch, and the rows of hidden states that count: padding never does."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from toastlib.errors import InputError, unknown

TOKENS = ("all", "special", "patch", "cls", "last", "mean")


@dataclass(frozen=True)
class Tokens:
    """A batch of texts as a text model is called with it; it is cut, moved and counted like a tensor of pixel values.

    Parameters
    ----------
    input_ids
        int64, shape (batch, tokens).
    attention_mask
        int64, the same shape: 1 for tokens, 0 for padding.
    """

    input_ids: Tensor
    attention_mask: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: Any) -> Self:
        """The texts of a slice, list or index tensor."""
        return Tokens(self.input_ids[rows], self.attention_mask[rows])

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.input_ids.device

    @property
    def positions(self) -> Tensor:
        """Place of each token in its own text, int64, shape (batch, tokens); padding before a text is at 0."""
        return (self.attention_mask.cumsum(1) - 1).clamp(min=0)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return Tokens(self.input_ids.to(device), self.attention_mask.to(device))


Inputs = Tensor | Tokens
"""What an encoder reads: pixel values of shape (batch, 3, height, width), or a batch of texts."""


def token_mask(inputs: Inputs) -> Tensor | None:
    """1 for tokens and 0 for padding, shape (batch, tokens); `None` for images, whose patches all count."""
    return inputs.attention_mask if isinstance(inputs, Tokens) else None


def select_tokens(hidden: Tensor, tokens: str, special_tokens: int, mask: Tensor | None = None) -> Tensor:
    """Rows to compare, shape (rows, width), from hidden states of shape (batch, tokens, width).

    Parameters
    ----------
    hidden
        Shape (batch, tokens, width).
    tokens
        ``"all"``: every token is a row; ``"special"``: every token before the patches is; ``"patch"``: every other;
        ``"cls"``: the CLS token of each image or text; ``"last"``: its last token; ``"mean"``: the mean of its patch
        tokens. The patches of a text are all tokens but the first special ones.
    special_tokens
        How many tokens stand before the patches.
    mask
        1 for tokens and 0 for padding, shape (batch, tokens); no padding if `None`.

    Raises
    ------
    InputError
        If there is no such choice, or ``"cls"`` is asked for and no token stands before the patches.
    """
    if tokens not in TOKENS:
        raise unknown("tokens", tokens, TOKENS)
    if tokens == "cls" and not special_tokens:
        raise InputError("This encoder has no CLS token: take tokens='mean', 'patch' or 'all'.")
    if tokens == "cls":
        return hidden[:, 0]
    if mask is not None:
        return _of_texts(hidden, tokens, special_tokens, mask)
    if tokens == "last":
        return hidden[:, -1]
    if tokens == "mean":
        return hidden[:, special_tokens:].mean(1)
    part = {"all": slice(None), "special": slice(special_tokens), "patch": slice(special_tokens, None)}[tokens]
    return hidden[:, part].flatten(0, 1)


def _of_texts(hidden: Tensor, tokens: str, special_tokens: int, mask: Tensor) -> Tensor:
    """`select_tokens` of texts, on whichever side their padding stands."""
    place = mask.cumsum(1)  # of a token in its text, counted from 1
    if tokens == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), place.argmax(1)]
    special = place <= special_tokens
    chosen = mask.bool() & {"all": True, "special": special}.get(tokens, ~special)
    if tokens != "mean":
        return hidden[chosen]
    return hidden.masked_fill(~chosen[..., None], 0).sum(1) / chosen.sum(1, keepdim=True).clamp(min=1)
