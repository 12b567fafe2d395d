"""How a transformer is built: where its blocks are, what it reads, and which tokens are no patches.

Two things are changed there: blocks that are lists of residual branches, as vit-pytorch keeps them, are made callable;
and position embeddings are interpolated once for images of another size, as transformers does at every call.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from toastlib.errors import InputError, unknown

SPECIAL_TOKENS = (
    *("cls_token", "class_embedding", "distillation_token", "register_tokens"),
    *("dist_token", "reg_token", "class_token"),  # as timm and torchvision call them
)
"""Embedding parameters of the tokens before the patches: one token per row."""
HEADS = ("heads", "head", "mlp_head", "linear_head", "classifier", "fc")
"""The classifier of a plain module, as torchvision, timm, vit-pytorch and others call it."""
ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit")
"""Model types that interpolate at every call, or need no position embeddings."""
INTERPOLATED = ("vit", "deit", "clip_vision_model", "siglip_vision_model")
"""Model types whose embeddings are made anew for another size."""


def find_blocks(model: nn.Module, path: str | Callable[[nn.Module], nn.Module] | None = None) -> str:
    """Dotted path of the largest module list whose members are transformer blocks of one class; a given one is checked.

    Blocks are recognised by the class that transformers derives them from, or as pairs, see `join_pairs`; timm's,
    inside its wrapper, by their path; and all others by the attention in each of them.
    """
    kinds = (nn.ModuleList, nn.Sequential)
    lists = {name: m for name, m in model.named_modules() if isinstance(m, kinds) and len(m)}
    if callable(path):  # it returns the list, or its path
        chosen = path(model)
        path = next((name for name, blocks in lists.items() if blocks is chosen), str(chosen))
    if path and lists and path not in lists:
        raise unknown("block list", path, lists)
    alike = [name for name, blocks in lists.items() if name and len({type(b) for b in blocks.children()}) == 1]
    known = GradientCheckpointingLayer | PairBlock
    found = [path] if path in lists else []
    found = found or [name for name in alike if isinstance(lists[name][0], known) or name == "timm_model.blocks"]
    found = found or _around_attention({name: lists[name] for name in alike})
    if not found:
        names = ", ".join(map(repr, lists)) or "none"
        raise InputError(f"No block list found in {type(model).__name__}: name it by blocks=... (lists: {names}).")
    path = max(found, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    if len(set(lists[path].children())) < len(lists[path]):
        raise InputError(f"{type(model).__name__} runs one block several times, and its outputs cannot be told apart.")
    return path


def _around_attention(lists: dict[str, nn.Module]) -> list[str]:
    """The lists with an attention inside each member; none of those in one another, which are stages of a pyramid."""

    def has_attention(block: nn.Module) -> bool:
        return any("attention" in type(part).__name__.lower() for name, part in block.named_modules() if name)

    around = [f"{name}." for name, blocks in lists.items() if has_attention(blocks[0])]
    return [
        name.removesuffix(".")
        for name in around
        if not any(other != name and (other.startswith(name) or name.startswith(other)) for other in around)
    ]


def check_is_encoder(model: nn.Module, name: str) -> None:
    """Raise an `InputError` if a model has a head or a second tower, and name its encoder; or if it asks for more."""
    if not isinstance(model, nn.Module):
        raise InputError(f"An encoder is made of a torch.nn.Module, not of a {type(model).__name__}.")
    part, kind = getattr(model, "base_model_prefix", ""), type(model).__name__
    if hasattr(model, "text_model") and hasattr(model, "vision_model"):
        part = "vision_model"
    elif not isinstance(getattr(model, part or " ", None), nn.Module) or kind in MODEL_MAPPING_NAMES.values():
        part = ""
    if part:
        raise InputError(f"A {kind} is more than an encoder: pass its part model.{part}, or let load_encoder open it.")
    for head in () if hasattr(model, "config") else HEADS:
        layers = [part for part in getattr(model, head, nn.Identity()).modules() if isinstance(part, nn.Linear)]
        if layers and layers[0].in_features != layers[-1].out_features:
            remedy = f"take it off by model.{head} = torch.nn.Identity()"
            raise InputError(f"{name} has its classifier still, {head}, and gives no features: {remedy}.")
    accepted = inspect.signature(model.forward).parameters.values()
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    asked = [one.name for one in accepted if one.default is one.empty and one.kind in by_place]
    if len(asked) > 1:
        raise InputError(
            f"{name} cannot be an encoder here: a {kind} asks for {', '.join(asked[1:])} beside {asked[0]}."
        )


def reads_text(model: nn.Module) -> bool:
    """True if a transformers model is called with token ids."""
    return getattr(model, "main_input_name", "") == "input_ids"


def is_causal(model: nn.Module) -> bool:
    """True for decoders such as GPT-2: tokens attend only to those before them."""
    config = getattr(model, "config", None)
    has_cache = hasattr(config, "use_cache") and not hasattr(config, "is_decoder")  # BERT's may be either
    return any(getattr(module, "is_causal", False) for module in model.modules()) or has_cache


def count_special_tokens(model: nn.Module) -> int:
    """Number of tokens before the patches (CLS, distillation, registers); of a text, the CLS token of an encoder."""
    if reads_text(model):
        return 0 if is_causal(model) else 1
    return sum(
        parameter.numel() // parameter.shape[-1]
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] in SPECIAL_TOKENS and not {"head", "pooler"} & set(name.split("."))
    )


class PairBlock(nn.ModuleList):
    """Two residual branches as one block: ``x = attention(x) + x``, then ``x = feed_forward(x) + x``."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (batch, tokens, width) to the same shape."""
        for branch in self:
            hidden = branch(hidden) + hidden
        return hidden


class PairList(nn.ModuleList):
    """Blocks of a model that takes each for two residual branches: one does all, one nothing; or both, not `whole`."""

    whole = True

    def __iter__(self) -> Iterator:
        blocks = list(self._modules.values())
        return iter([(partial(_change, block), torch.zeros_like) for block in blocks] if self.whole else blocks)


def _change(block: nn.Module, hidden: Tensor, **kwargs: object) -> Tensor:
    return block(hidden) - hidden


def join_pairs(model: nn.Module) -> None:
    """Make every list of pairs in a model a `PairList`; names of weights and what the model computes stay."""
    for name, module in list(model.named_modules()):
        members = list(module) if type(module) is nn.ModuleList else []
        if members and all(type(member) is nn.ModuleList and len(member) == 2 for member in members):
            model.set_submodule(name, PairList(map(PairBlock, members)))


@torch.no_grad()
def set_image_size(model: nn.Module, size: int) -> None:
    """Let a model read square images of another size, in pixels; its configuration and saved folders follow."""
    kind = model.config.model_type
    if kind not in ANY_SIZE + INTERPOLATED:
        types = ", ".join(ANY_SIZE + INTERPOLATED)
        raise InputError(f"Models of type {kind} read images of one size only; {types} read others.")
    patch = model.config.patch_size
    if size < patch or size % patch:
        near = max(patch, round(size / patch) * patch)
        raise InputError(f"An image of {size} pixels has no whole patches of {patch} pixels: take {near}.")
    if kind in ANY_SIZE or size == model.config.image_size:
        return
    embeddings = model.embeddings
    model.config.image_size = size
    model.embeddings = type(embeddings)(model.config).eval().requires_grad_(False)
    weights, shapes = embeddings.state_dict(), {k: v.shape for k, v in model.embeddings.state_dict().items()}
    [name] = [name for name, shape in shapes.items() if shape != weights[name].shape]
    tokens, width = shapes[name][-2:]
    interpolated = embeddings.interpolate_pos_encoding(torch.empty(1, tokens, width), size, size)
    model.embeddings.load_state_dict(weights | {name: interpolated.reshape(shapes[name])})
