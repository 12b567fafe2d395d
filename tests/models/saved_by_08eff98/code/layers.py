"""What maps are made of beside torch's own layers, and their descriptions in saved configurations.

This file imports torch alone, and travels beside modeling_toast.py in the folder of every model that toastlib saves.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CODE = ("modeling_toast.py", "layers.py", "parting.py")
"""The files that travel."""


class Sum(nn.Module):
    """Two paths with the same input, their outputs added."""

    def __init__(self, straight: nn.Module, bent: nn.Module) -> None:
        super().__init__()
        self.straight = straight
        self.bent = bent

    def forward(self, hidden: Tensor) -> Tensor:
        """Shape (..., width) to the same."""
        return self.straight(hidden) + self.bent(hidden)


class Scale(nn.Module):
    """``hidden * weight + bias``: a factor, or one for each dimension, and a bias."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Shape (..., width) to the same."""
        return hidden * self.weight + self.bias


class ByToken(nn.Module):
    """One map for the first tokens, another for the rest."""

    def __init__(self, special_tokens: int, special: nn.Module, patches: nn.Module) -> None:
        super().__init__()
        self.special_tokens = special_tokens
        self.special = special
        self.patches = patches

    def forward(self, hidden: Tensor) -> Tensor:
        """Shape (batch, tokens, width) to the same."""
        first, rest = hidden[:, : self.special_tokens], hidden[:, self.special_tokens :]
        return torch.cat([self.special(first), self.patches(rest)], dim=1)

    def extra_repr(self) -> str:
        """Where the tokens are parted."""
        return f"special_tokens={self.special_tokens}"


class InContext(nn.Module):
    """A map of each token, and what the image as a whole adds to its special tokens.

    Parameters
    ----------
    special_tokens
        How many tokens stand before the patches; if none do, it is the patches that the image adds to.
    tokens
        The map of each token.
    context
        From mean and standard deviation of the patches, shape (..., 2 width), to what is added.
    """

    def __init__(self, special_tokens: int, tokens: nn.Module, context: nn.Module) -> None:
        super().__init__()
        self.special_tokens = special_tokens
        self.tokens = tokens
        self.context = context

    def forward(self, hidden: Tensor) -> Tensor:
        """Shape (batch, tokens, width) to the same."""
        mapped, added = self.tokens(hidden), self.context(context_of(hidden[:, self.special_tokens :]))
        if not self.special_tokens:
            return mapped + added[:, None]
        first, rest = mapped[:, : self.special_tokens], mapped[:, self.special_tokens :]
        return torch.cat([first + added[:, None], rest], dim=1)

    def extra_repr(self) -> str:
        """Where the tokens are parted."""
        return f"special_tokens={self.special_tokens}"


def context_of(patches: Tensor) -> Tensor:
    """Mean and standard deviation of each image's patches, shape (batch, 2 width), from (batch, patches, width)."""
    mean = patches.mean(1, keepdim=True)
    spread = (patches - mean).square().mean(1).sqrt()  # in these steps, for torch.std is far slower
    return torch.cat([mean[:, 0], spread], dim=-1)


class Replacement(nn.Module):
    """Stands where the blocks of a span stood, and takes whatever arguments a block is called with."""

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
    "Sum": (Sum, lambda layer: (layer.straight, layer.bent)),
    "Scale": (_scale, lambda layer: (len(layer.weight), len(layer.bias))),
    "ByToken": (ByToken, lambda layer: (layer.special_tokens, layer.special, layer.patches)),
    "InContext": (InContext, lambda layer: (layer.special_tokens, layer.tokens, layer.context)),
}
"""What maps are made of: name -> what makes a layer, and the arguments that make one like the one given."""


def describe_map(module: Any) -> Any:
    """A map without its weights, for the configuration: ``["Linear", 96, 96, false]``.

    Raises
    ------
    ValueError
        If the map has a layer that is not one of `LAYERS`.
    """
    if isinstance(module, nn.Module):
        name = type(module).__name__
        if name not in LAYERS:
            raise ValueError(f"A map with a layer of class {name} cannot be saved; known are {', '.join(LAYERS)}.")
        return [name, *map(describe_map, LAYERS[name][1](module))]
    return module


def build_map(description: Sequence) -> nn.Module:
    """A map from its description, its weights not yet read.

    Raises
    ------
    ValueError
        If it has a layer that is not one of `LAYERS`.
    """
    name, *arguments = description
    if name not in LAYERS:
        raise ValueError(f"A map of this model has a layer {name!r}, and only {', '.join(LAYERS)} are known.")
    parts = [build_map(part) if _is_layer(part) else part for part in arguments]
    return LAYERS[name][0](*parts)


def _is_layer(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and isinstance(part[0], str)
