"""Batches of tokenised texts, and the choice of the tokens whose hidden states count; padding never counts."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from toastlib.errors import InputError, unknown, whole_number

TOKENS = ("all", "special", "patch", "cls", "last", "mean", "positions")


@dataclass(frozen=True)
class Tokens:
    """A batch of texts, int64, shape (batch, tokens), sliced and moved like a tensor; the mask is 0 for padding."""

    input_ids: Tensor
    attention_mask: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: Any) -> Self:
        """The texts of a slice, list or index tensor."""
        return Tokens(self.input_ids[index], self.attention_mask[index])

    @property
    def device(self) -> torch.device:
        """The device of both tensors."""
        return self.input_ids.device

    @property
    def positions(self) -> Tensor:
        """Position of each token in its own text, from 0; int64, shape (batch, tokens); 0 for padding before it."""
        return (self.attention_mask.cumsum(1) - 1).clamp(min=0)

    def cut(self, length: int) -> Self:
        """The first tokens of each text."""
        return Tokens(self.input_ids[:, :length], self.attention_mask[:, :length])

    def to(self, device: torch.device | str) -> Self:
        """The same texts on another device."""
        return Tokens(self.input_ids.to(device), self.attention_mask.to(device))


@dataclass(frozen=True)
class TokenSample:
    """A random share of the patch tokens of each image, and all of its special tokens, for `collect_moments`.

    Parameters
    ----------
    share, seed
        The share, above 0 and 1 at most, and the seed of its draw.

    Raises
    ------
    InputError
        If the share is none.
    """

    share: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"The share of the patch tokens lies above 0 and is 1 at most, not {self.share}.")
        whole_number("seed", self.seed)

    def draw(self, patches: dict[int, Tensor], generator: torch.Generator) -> tuple[dict[int, Tensor], float]:
        """Rows (rows, width) drawn of each block's patches (images, patches, width), the same of all; and their weight.

        Of each image ``round(share * patches)`` are drawn, one at least, and none twice.
        """
        images, count, _ = next(iter(patches.values())).shape
        places = torch.rand(images, count, generator=generator).argsort(1)[:, : max(1, round(self.share * count))]
        image = torch.arange(images)[:, None]
        return {block: h[image, places].flatten(0, 1) for block, h in patches.items()}, count / places.shape[1]


Inputs = Tensor | Tokens
"""Inputs of an encoder: pixel values of shape (batch, 3, height, width), or a batch of texts."""


def arguments_of(inputs: Inputs) -> dict[str, Tensor]:
    """What a model of transformers is called with."""
    return {"pixel_values": inputs} if isinstance(inputs, Tensor) else vars(inputs)


def token_mask(inputs: Inputs) -> Tensor | None:
    """The attention mask of texts, shape (batch, tokens); `None` for images."""
    return inputs.attention_mask if isinstance(inputs, Tokens) else None


def select_tokens(hidden: Tensor, tokens: str, special_tokens: int, *, mask: Tensor | None = None) -> Tensor:
    """Hidden states of the chosen tokens, shape (rows, width), from those of all, shape (batch, tokens, width).

    `tokens` is ``"all"``: every token is a row; ``"special"``: the first `special_tokens`; ``"patch"``: all others;
    ``"cls"``: the CLS token of each image or text; ``"last"``: its last token; ``"mean"``: the mean of its patches; or
    ``"positions"``: all tokens of images, shape (batch, tokens, width). The `mask` of texts is 0 for padding.
    """
    if tokens not in TOKENS:
        raise unknown("tokens", tokens, TOKENS)
    if tokens == "cls" and not special_tokens:
        raise InputError("This encoder has no CLS token: take tokens='mean', 'patch' or 'all'.")
    if tokens == "cls":
        return hidden[:, 0]
    if tokens == "positions" and mask is not None:
        raise InputError("Texts have no fixed number of positions: maps for each position are for images alone.")
    if tokens == "positions":
        return hidden
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
    place = mask.cumsum(1)  # of a token in its text, from 1
    if tokens == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), place.argmax(1)]
    special = place <= special_tokens
    chosen = mask.bool() & {"all": True, "special": special}.get(tokens, ~special)
    if tokens != "mean":
        return hidden[chosen]
    return hidden.masked_fill(~chosen[..., None], 0).sum(1) / chosen.sum(1, keepdim=True).clamp(min=1)
