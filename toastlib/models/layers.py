"""The layers of maps that torch does not have, and the descriptions of maps in saved configurations.

This file imports torch alone, and travels beside modeling_toast.py in the folder of every model that toastlib saves.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

CODE = ("modeling_toast.py", "configuration_toast.py", "layers.py", "sublayer_split.py")
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


class MapPerPosition(nn.Module):
    """One matrix and one bias for each position of a token; their number is fixed."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(tokens, width, width))
        self.bias = nn.Parameter(torch.zeros(tokens, 1, width))

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (batch, tokens, width) to the same shape."""
        if hidden.shape[1] != len(self.weight):
            raise ValueError(f"The map is for images of {len(self.weight)} tokens, not {hidden.shape[1]}: resize them.")
        return torch.baddbmm(self.bias, hidden.transpose(0, 1), self.weight).transpose(0, 1)


class AddPooledContext(nn.Module):
    """One map for each token; a second map of the pooled patches is added to the special tokens, or else to all.

    `context` takes mean and standard deviation of an image's patches, (batch, 2 width), to (batch, width).
    """

    mask: Tensor | None = None  # 0 for padding, (batch, tokens), see `padding_known`

    def __init__(self, special_tokens: int, tokens: nn.Module, context: nn.Module) -> None:
        super().__init__()
        self.special_tokens = special_tokens
        self.tokens = tokens
        self.context = context

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (batch, tokens, width) to the same shape."""
        mask = None if self.mask is None else self.mask[:, self.special_tokens :]
        mapped, added = self.tokens(hidden), self.context(context_of(hidden[:, self.special_tokens :], mask))
        if not self.special_tokens:
            return mapped + added[:, None]
        first, rest = mapped[:, : self.special_tokens], mapped[:, self.special_tokens :]
        return torch.cat([first + added[:, None], rest], dim=1)


class AddRunningContext(nn.Module):
    """One map for each token of a decoder; a second map of the tokens up to it is added.

    `context` takes their mean and standard deviation, (batch, tokens, 2 width), to (batch, tokens, width).
    """

    mask: Tensor | None = None  # 0 for padding, (batch, tokens so far), see `padding_known`

    def __init__(self, tokens: nn.Module, context: nn.Module) -> None:
        super().__init__()
        self.tokens = tokens
        self.context = context

    def forward(self, hidden: Tensor, sums: Tensor | None = None) -> Tensor:
        """Hidden states (batch, tokens, width) to the same shape; their `running_sums` where tokens came before."""
        sums = running_sums(hidden, self.mask) if sums is None else sums
        return self.tokens(hidden) + self.context(running_context(sums).to(hidden.dtype))


def context_of(patches: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean and standard deviation of patches, (batch, patches, width) to (batch, 2 width); none where the mask is 0."""
    if mask is not None:
        return running_context(running_sums(patches, mask)[:, -1]).to(patches.dtype)
    mean = patches.mean(1, keepdim=True)
    return torch.cat([mean[:, 0], _root((patches - mean).square().mean(1))], dim=-1)  # torch.std is far slower


def running_sums(hidden: Tensor, mask: Tensor | None = None, before: Tensor | float = 0) -> Tensor:
    """Sums over the tokens up to each of 1, of the token and of its squares; float64, (batch, tokens, 1 + 2 width).

    The last of an attention mask are these tokens'; `before` has the sums of the tokens before them.
    """
    rows = hidden.double()  # the difference of two large sums is the variance
    real = torch.ones_like(rows[..., :1]) if mask is None else mask[:, -rows.shape[1] :, None].to(rows)
    return torch.cat([real, rows * real, rows.square() * real], dim=-1).cumsum(1) + before


def running_context(sums: Tensor) -> Tensor:
    """Mean and standard deviation of the tokens up to each, (..., 2 width), from `running_sums`."""
    mean, square = (sums[..., 1:] / sums[..., :1].clamp(min=1)).chunk(2, dim=-1)
    return torch.cat([mean, _root(square - mean.square())], dim=-1)


def _root(variance: Tensor) -> Tensor:
    return torch.where(variance > 0, variance, 1).sqrt() * (variance > 0)  # the root has no gradient at 0


@contextlib.contextmanager
def padding_known(modules: Iterable[nn.Module], mask: Tensor | None) -> Iterator[None]:
    """Inside the context the maps among these modules that pool tokens leave out those whose mask is 0."""
    kinds = AddPooledContext | AddRunningContext
    pooling = [part for module in modules for part in module.modules() if isinstance(part, kinds)]
    if pooling and mask is not None and getattr(mask, "ndim", 0) != 2:
        raise ValueError(
            "A context map takes an attention mask of shape (batch, tokens), and a static cache has another one: take "
            "cache_implementation='dynamic'."
        )
    for part in pooling:
        part.mask = mask
    try:
        yield
    finally:
        for part in pooling:
            part.mask = None


class Replacement(nn.Module):
    """The map of a span in a block list; of the further arguments that a block is called with it reads the cache.

    It returns a tuple of so many `outputs`, if the blocks return one. A decoder's cache counts tokens by layer, so that
    a map keeps something of each token there too: its running sums, or one of its values.
    """

    layer_idx = 0  # in the cache, see `number_blocks`

    def __init__(self, span: Sequence[int], translation: nn.Module, outputs: int = 0) -> None:
        super().__init__()
        self.span = span
        self.translation = translation
        self.outputs = outputs

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple:
        """Approximate ``h[end]`` from ``h[start]``, both of shape (batch, tokens, width)."""
        cache = next((one for one in (*args, *kwargs.values()) if hasattr(one, "get_seq_length")), None)
        sums_up = isinstance(self.translation, AddRunningContext)
        layer = getattr(cache, "layers", [])[self.layer_idx : self.layer_idx + 1]
        of_states = any(hasattr(one, "conv_states") for one in layer)  # Mamba's, which keeps nothing of single tokens
        if of_states and sums_up:
            raise ValueError("a context map keeps its sums in a cache of attention, which it does not have")
        if cache is None or of_states:
            return as_output(self.translation(hidden), self.outputs)
        kept, further = hidden[..., :1], ()
        if sums_up:
            before = cache.layers[self.layer_idx].keys[:, 0, -1:] if cache.get_seq_length(self.layer_idx) > 0 else 0
            kept = running_sums(hidden, self.translation.mask, before)
            further = (kept,)
        cache.update(kept[:, None], kept[:, None, :, :1], self.layer_idx)
        return as_output(self.translation(hidden, *further), self.outputs)

    def extra_repr(self) -> str:
        """The span."""
        return "->".join(map(str, self.span))


def as_output(hidden: Tensor, outputs: int) -> Tensor | tuple:
    """Hidden states as a block returns them: alone for 0 outputs, or first in a tuple of so many."""
    return (hidden, *[None] * (outputs - 1)) if outputs else hidden


def number_blocks(blocks: Iterable[nn.Module]) -> None:
    """Number the layers of a decoder's cache as the members of its block list, from 0."""
    for number, block in enumerate(blocks):
        for part in block.modules():
            for name in ("layer_idx", "layer_id"):
                if hasattr(part, name):
                    setattr(part, name, number)


def shorten(blocks: nn.Module, maps: dict[tuple[int, int], nn.Module], outputs: int) -> nn.Module:
    """The block list with a `Replacement` of so many outputs in place of each span: (start, end) -> its map."""
    starts = {span[0] + 1: span for span in maps}
    removed = {block for start, end in maps for block in range(start + 1, end + 1)}
    kept = []
    for number, block in enumerate(blocks):
        if number in starts:
            replacement = Replacement(starts[number], maps[starts[number]], outputs)
            if hasattr(block, "attention_type"):  # some models ask each of their blocks for it
                replacement.attention_type = block.attention_type
            kept.append(replacement)
        elif number not in removed:
            kept.append(block)
    return nn.Sequential(*kept) if isinstance(blocks, nn.Sequential) else nn.ModuleList(kept)


def layer_lists(config: Any) -> list[str]:
    """Names of the lists in a configuration that have a member for each block, such as how it attends."""
    lists = {name: value for name, value in vars(config).items() if "layer" in name and isinstance(value, list)}
    return [name for name, value in lists.items() if len(value) == config.num_hidden_layers]


def shorten_config(config: Any, kept: Sequence[int]) -> None:
    """Leave these blocks alone in a configuration, and in everything that it says of each of them."""
    for name in layer_lists(config):
        setattr(config, name, [getattr(config, name)[block] for block in kept])
    if hasattr(config, "attention_types"):  # GPT-Neo's, from which its list is made
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]
    config.num_hidden_layers = len(kept)
    if hasattr(config, "stage_names"):  # of a backbone
        config.stage_names = config.stage_names[: len(kept) + 1]
        config.set_output_features_output_indices(out_indices=None, out_features=None)


def pool_text(hidden: Tensor, mask: Tensor, features: str, special_tokens: int) -> Tensor:
    """The CLS token, the last one, or the mean of all that are not special, (batch, width); padding does not count."""
    if features == "cls":
        return hidden[:, 0]
    place = mask.cumsum(1)  # of a token in its text, from 1
    if features == "last":
        last = place.argmax(1)[:, None, None].expand(-1, 1, hidden.shape[-1])
        return hidden.gather(1, last)[:, 0]
    chosen = mask.bool() & (place > special_tokens)
    return hidden.masked_fill(~chosen[..., None], 0).sum(1) / chosen.sum(1, keepdim=True).clamp(min=1)


LAYERS = {
    "Identity": (nn.Identity, lambda layer: ()),
    "Linear": (nn.Linear, lambda layer: (layer.in_features, layer.out_features, layer.bias is not None)),
    "LayerNorm": (nn.LayerNorm, lambda layer: (list(layer.normalized_shape), layer.eps)),
    "GELU": (nn.GELU, lambda layer: (layer.approximate,)),
    "SiLU": (nn.SiLU, lambda layer: ()),
    "Dropout": (nn.Dropout, lambda layer: (layer.p,)),
    "Sequential": (nn.Sequential, lambda layer: layer),
    "Sum": (Parallel, lambda layer: (layer.straight, layer.bent)),
    "Scale": (
        lambda factors, width: Scale(torch.ones(factors), torch.zeros(width)),
        lambda layer: (len(layer.weight), len(layer.bias)),
    ),
    "ByToken": (SplitByTokenType, lambda layer: (layer.special_tokens, layer.special, layer.patches)),
    "ByPosition": (MapPerPosition, lambda layer: layer.weight.shape[:2]),
    "InContext": (AddPooledContext, lambda layer: (layer.special_tokens, layer.tokens, layer.context)),
    "InRunningContext": (AddRunningContext, lambda layer: (layer.tokens, layer.context)),
}
"""Name -> (function that makes the layer, layer -> arguments of that function); the names are a file format."""
NAMES = {make.__name__: name for name, (make, _) in LAYERS.items()}
"""Class -> its name in `LAYERS`; another class has its own name there."""


def describe_map(module: Any) -> Any:
    """Description of a map without its weights: ``["Linear", 96, 96, false]``; `ValueError` for unknown layers."""
    if isinstance(module, nn.Module):
        name = NAMES.get(type(module).__name__, type(module).__name__)
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
