"""Attention that wastes nothing: by plain products where these are faster, and for one token where one is read."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function
from transformers import AttentionInterface

from toastlib.models.costs import example_input
from toastlib.models.encoder import Encoder

PLAIN = "toastlib_products"  # the name of `attend_by_products` among transformers' attention functions
GAIN = 1.25
"""How much faster products must be to be taken: what is nearly equal is not left to the noise of a measurement."""


def products(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, scale: float = 1) -> Tensor:
    """Softmax attention, (batch, heads, tokens, size) to the same shape; a mask is added to the scores."""
    if has_torch_function((query,)):  # as torch's own functions, for `FirstQuery`
        return handle_torch_function(products, (query,), query, key, value, attn_mask=attn_mask, scale=scale)
    scores = (query * scale) @ key.mT
    return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ value


def attend_by_products(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **settings: Any
) -> tuple[Tensor, None]:
    """`products` as transformers calls attention; the result has the shape (batch, tokens, heads, size)."""
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    return products(query, key, value, attn_mask=attention_mask, scale=scale).transpose(1, 2).contiguous(), None


class FirstQuery(TorchFunctionMode):
    """Inside the context attention is computed for the first token, whose output stands for all others."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the function; torch's attention, and `products`, on one query."""
        kwargs = kwargs or {}
        if function not in (scaled_dot_product_attention, products) or len(args) != 3:
            return function(*args, **kwargs)
        query, key, value = args
        mask = kwargs.get("attn_mask")  # (..., queries, keys), or (..., 1, keys)
        mask = None if mask is None else mask[..., :1, :]
        first = function(query[..., :1, :], key, value, **kwargs | {"attn_mask": mask})
        return first.expand(*query.shape[:-1], -1)


@torch.inference_mode()
def choose_attention(encoder: Encoder) -> None:
    """Let an encoder of images attend by products on a CPU, if these are faster there and its features agree."""
    config = getattr(encoder.model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    if encoder.reads_text or encoder.device.type != "cpu" or not isinstance(heads, int):
        return
    inputs = example_input(encoder)
    tokens, width = encoder.embed(inputs).hidden.shape[1:]
    if not products_are_faster((8, heads, tokens, width // heads), encoder.dtype):
        return
    before, own = encoder(inputs), config._attn_implementation
    AttentionInterface.register(PLAIN, attend_by_products)
    try:
        encoder.model.set_attn_implementation(PLAIN)
        apart = (encoder(inputs) - before).abs().max() / before.abs().max()
    except Exception:  # of a model whose attention cannot be switched
        apart = torch.inf
    if not apart < torch.finfo(encoder.dtype).eps ** 0.5:  # rounding, grown over the blocks
        encoder.model.set_attn_implementation(own)


@cache
def products_are_faster(shape: tuple[int, int, int, int], dtype: torch.dtype) -> bool:
    """Whether `products` beat torch's attention on this CPU by `GAIN`, for (batch, heads, tokens, size)."""
    draw = torch.Generator().manual_seed(0)
    batch, heads, tokens, size = shape
    query, key, value = torch.randn(3, batch, tokens, heads, size, generator=draw).to(dtype).transpose(2, 3)

    def seconds(attend: Callable) -> float:
        start = time.perf_counter()
        attend(query, key, value, scale=size**-0.5)
        return time.perf_counter() - start

    rounds = [(seconds(scaled_dot_product_attention), seconds(products)) for _ in range(6)]
    own, ours = map(min, zip(*rounds[1:], strict=True))
    return own > GAIN * ours
