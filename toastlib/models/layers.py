"""The layers of maps that torch does not have, and the descriptions of maps in saved configurations.

This file imports torch alone, and travels beside modeling_toast.py in the folder of every model that toastlib saves.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CODE = ("modeling_toast.py", "layers.py", "sublayer_split.py")
"""Files that are copied into every saved folder."""


class Parallel(nn.Module):
    """Two paths with the same input, their outputs added."""

    def __init__(self, straight: nn.Module, bent: nn.Module) -> None:
        super().__init__()
        self.straight = straight
        self.bent = bent

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., width) to the same shape."""
        return self.straight(hidden) + self.bent(hidden)


class Scale(nn.Module):
    """``hidden * weight + bias``; the weight has shape (1,) or (width,)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., width) to the same shape."""
        return hidden * self.weight + self.bias


class SplitByTokenType(nn.Module):
    """One map for the first tokens, another for the rest."""

    def __init__(self, special_tokens: int, special: nn.Module, patches: nn.Module) -> None:
        super().__init__()
        self.special_tokens = special_tokens
        self.special = special
        self.patches = patches

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (batch, tokens, width) to the same shape."""
        first, rest = hidden[:, : self.special_tokens], hidden[:, self.special_tokens :]
        return torch.cat([self.special(first), self.patches(rest)], dim=1)

    def extra_repr(self) -> str:
        """Number of the tokens before the patches."""
        return f"special_tokens={self.special_tokens}"


class AddPooledContext(nn.Module):
    """One map for each token; a second map of the pooled patches is added to the special tokens, or else to all.

    `context` takes mean and standard deviation of an image's patches, (batch, 2 width), to (batch, width).
    """

    def __init__(self, special_tokens: int, tokens: nn.Module, context: nn.Module) -> None:
        super().__init__()
        self.special_tokens = special_tokens
        self.tokens = tokens
        self.context = context

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (batch, tokens, width) to the same shape."""
        mapped, added = self.tokens(hidden), self.context(context_of(hidden[:, self.special_tokens :]))
        if not self.special_tokens:
            return mapped + added[:, None]
        first, rest = mapped[:, : self.special_tokens], mapped[:, self.special_tokens :]
        return torch.cat([first + added[:, None], rest], dim=1)

    def extra_repr(self) -> str:
        """Number of the tokens before the patches."""
        return f"special_tokens={self.special_tokens}"


def context_of(patches: Tensor) -> Tensor:
    """Mean and standard deviation of each image's patches, shape (batch, 2 width), from (batch, patches, width)."""
    mean = patches.mean(1, keepdim=True)
    variance = (patches - mean).square().mean(1)  # torch.std is far slower
    spread = torch.where(variance > 0, variance, 1).sqrt() * (variance > 0)  # the root has no gradient at 0
    return torch.cat([mean[:, 0], spread], dim=-1)


class Replacement(nn.Module):
    """The map of a span in a block list; it ignores the further arguments that a block is called with."""

    def __init__(self, span: Sequence[int], translation: nn.Module) -> None:
        super().__init__()
        self.span = span
        self.translation = translation

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Approximate ``h[end]`` from ``h[start]``, both of shape (batch, tokens, width)."""
        return self.translation(hidden)

    def extra_repr(self) -> str:
        """The span."""
        return "->".join(map(str, self.span))


def _scale(factors: int, width: int) -> Scale:
    return Scale(torch.ones(factors), torch.zeros(width))


LAYERS = {
    "Identity": (nn.Identity, lambda layer: ()),
    "Linear": (nn.Linear, lambda layer: (layer.in_features, layer.out_features, layer.bias is not None)),
    "LayerNorm": (nn.LayerNorm, lambda layer: (list(layer.normalized_shape), layer.eps)),
    "GELU": (nn.GELU, lambda layer: (layer.approximate,)),
    "SiLU": (nn.SiLU, lambda layer: ()),
    "Dropout": (nn.Dropout, lambda layer: (layer.p,)),
    "Sequential": (nn.Sequential, lambda layer: layer),
    "Sum": (Parallel, lambda layer: (layer.straight, layer.bent)),
    "Scale": (_scale, lambda layer: (len(layer.weight), len(layer.bias))),
    "ByToken": (SplitByTokenType, lambda layer: (layer.special_tokens, layer.special, layer.patches)),
    "InContext": (AddPooledContext, lambda layer: (layer.special_tokens, layer.tokens, layer.context)),
}
"""Name -> (function that makes the layer, layer -> arguments of that function); the names are a file format."""
RENAMED = {"Parallel": "Sum", "SplitByTokenType": "ByToken", "AddPooledContext": "InContext"}
"""Class -> its name in `LAYERS`, where the two differ."""


def describe_map(module: Any) -> Any:
    """Description of a map without its weights: ``["Linear", 96, 96, false]``; `ValueError` for unknown layers."""
    if isinstance(module, nn.Module):
        name = RENAMED.get(type(module).__name__, type(module).__name__)
        if name not in LAYERS:
            raise ValueError(f"A map with a layer of class {name} cannot be saved; known are {', '.join(LAYERS)}.")
        return [name, *map(describe_map, LAYERS[name][1](module))]
    return module


def build_map(description: Sequence) -> nn.Module:
    """A map from its description, before its weights are read; `ValueError` for unknown layers."""
    name, *arguments = description
    if name not in LAYERS:
        raise ValueError(f"A map of this model has a layer {name!r}, and only {', '.join(LAYERS)} are known.")
    nested = [isinstance(part, list) and bool(part) and isinstance(part[0], str) for part in arguments]
    return LAYERS[name][0](*(build_map(part) if deep else part for part, deep in zip(arguments, nested, strict=True)))
