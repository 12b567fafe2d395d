"""What an encoder costs to keep and to run: parameters and floating-point operations."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from toastlib.data.transforms import image_size
from toastlib.errors import InputError, need

if TYPE_CHECKING:
    from toastlib.models.encoder import Encoder


def parameter_count(module: torch.nn.Module) -> int:
    """Number of parameters.

    Parameters
    ----------
    module
        A torch module, such as an encoder or a map.

    Returns
    -------
    int

    Raises
    ------
    InputError
        If it is no module.
    """
    need(module, "parameters", "A torch.nn.Module")
    return sum(p.numel() for p in module.parameters())


def example_input(encoder: Encoder) -> Tensor:
    """Noise of the size that the encoder's images have, shape (1, 3, height, width); `InputError` if it reads texts."""
    if encoder.reads_text:
        raise InputError(
            f"{encoder.name} reads texts, and only encoders of images can be saved; a LanguageModel saves itself."
        )
    size = image_size(encoder.preprocessing, getattr(encoder.model, "config", encoder.model))
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    return noise.to(encoder.device, encoder.dtype)


def flops(encoder: Encoder, inputs: Tensor) -> int:
    """Floating-point operations of one forward pass (a multiply-add counts two), by torch's own counter."""
    # On the meta device, without weights: torch does not see the products inside attention on a CPU.
    return count_flops(without_values(encoder).features, inputs.to("meta"))


def without_values(encoder: Encoder) -> Encoder:
    """The encoder with shapes in place of values; the values are not copied on the way."""
    shapes = {id(p): torch.nn.Parameter(p.to("meta"), requires_grad=False) for p in encoder.parameters()}
    return copy.deepcopy(encoder, shapes | {id(buffer): buffer.to("meta") for buffer in encoder.buffers()})


@torch.no_grad()
def count_flops(function, *args) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops()
