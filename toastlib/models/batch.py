"""How many images go through an encoder at once."""

from typing import Any, Literal

import torch

from toastlib.data.transforms import image_size
from toastlib.errors import InputError

BatchSize = int | Literal["auto"]
ON_A_CPU, AT_MOST = 32, 256
SHARE = 1 / 8
"""Of a GPU's memory, for the block outputs of a batch: products, attention and the weights need some too."""


def batch_of(encoder: Any, asked: BatchSize = "auto") -> int:
    """Images per forward pass: the number asked for, or of ``"auto"`` the one that suits the device.

    That is 32 on a CPU, where larger batches are no faster; on a GPU a power of two, 256 at most, whose block outputs
    take an eighth of the memory. All memory counts, not what is free: the same GPU gives the same features again.

    Raises
    ------
    InputError
        If it is another word.
    """
    if asked != "auto":
        if isinstance(asked, str):
            raise InputError(f'batch_size is a number of images or "auto", not {asked!r}.')
        return asked
    if encoder.device.type != "cuda":
        return ON_A_CPU
    memory = SHARE * torch.cuda.get_device_properties(encoder.device).total_memory
    room = memory / (_tokens(encoder) * encoder.width * 8 * (len(encoder.blocks) + 1))  # moments take them in float64
    return min(AT_MOST, 2 ** max(0, int(room).bit_length() - 1))


def _tokens(encoder: Any) -> int:
    """Tokens of an image, or of the longest text."""
    if encoder.reads_text:
        return encoder.longest_text
    config = getattr(encoder.model, "config", None)
    height, width = image_size(encoder.preprocessing, config)
    patch = getattr(getattr(config, "vision_config", config), "patch_size", 16)
    return (height * width) // (patch if isinstance(patch, int) else patch[0]) ** 2 + encoder.special_tokens
