"""What an encoder costs to keep and to run: parameters and floating-point operations."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from toastlib.data.tokens import Inputs, Tokens
from toastlib.data.transforms import image_size
from toastlib.errors import need

if TYPE_CHECKING:
    from toastlib.models.encoder import Encoder


def parameter_count(module: torch.nn.Module) -> int:
    """Number of parameters.

    Parameters
    ----------
    module
        A torch module, such as an encoder or a map; an `InputError` if it is none.

    Returns
    -------
    int
    """
    need(module, "parameters", "A torch.nn.Module")
    return sum(p.numel() for p in module.parameters())


def example_input(encoder: Encoder) -> Inputs:
    """Noise of the size that the encoder's images have, shape (1, 3, height, width); or a text of eight tokens."""
    if encoder.reads_text:
        ids = torch.arange(2, 10, device=encoder.device)[None]
        return Tokens(ids, torch.ones_like(ids))
    size = image_size(encoder.preprocessing, getattr(encoder.model, "config", encoder.model))
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    return noise.to(encoder.device, encoder.dtype)


def input_of(encoder: Encoder) -> str:
    """What `example_input` is, in words."""
    return "text of 8 tokens" if encoder.reads_text else "image"


def flops(encoder: Encoder, inputs: Inputs) -> int:
    """Floating-point operations of one forward pass (a multiply-add counts two), by torch's own counter."""
    # On the meta device, without weights: torch does not see the products inside attention on a CPU.
    return count_flops(without_values(encoder).features, inputs.to("meta"))


def flops_of_example(encoder: Encoder) -> int | None:
    """Operations for `example_input`; `None` of a model that looks at values, for torch counts without."""
    try:
        return flops(encoder, example_input(encoder))
    except Exception:  # of any kind, from within the model
        return None


def without_values(encoder: Encoder) -> Encoder:
    """The encoder with shapes in place of values; the values are not copied on the way."""
    shapes = {id(p): torch.nn.Parameter(p.to("meta"), requires_grad=False) for p in encoder.parameters()}
    return copy.deepcopy(encoder, shapes | {id(buffer): buffer.to("meta") for buffer in encoder.buffers()})


@torch.no_grad()
def count_flops(function, *args) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops()
