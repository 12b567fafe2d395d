"""How a transformer is built: where its blocks are, what it reads, and which tokens are no patches."""

from torch import nn

from toastlib.errors import InputError, unknown

SPECIAL_TOKENS = (
    *("cls_token", "class_embedding", "distillation_token", "register_tokens"),
    *("dist_token", "reg_token"),  # as timm calls them
)
"""Embedding parameters of the tokens before the patches: one token per row."""


def find_blocks(model: nn.Module, path: str | None = None) -> str:
    """Dotted path of the largest module list whose members are transformer blocks of one class; a given one is checked.

    Blocks are recognised by the class that transformers derives them from; timm's, inside its wrapper, by their path.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    kinds = (nn.ModuleList, nn.Sequential)
    lists = {name: m for name, m in model.named_modules() if isinstance(m, kinds) and len(m)}
    if path and lists and path not in lists:
        raise unknown("block list", path, lists)
    found = (
        {path: 0}
        if path in lists
        else {
            name: sum(p.numel() for p in blocks.parameters())
            for name, blocks in lists.items()
            if len({type(b) for b in blocks}) == 1
            and (isinstance(blocks[0], GradientCheckpointingLayer) or name == "timm_model.blocks")
        }
    )
    if not found:
        names = ", ".join(map(repr, lists)) or "none"
        raise InputError(f"No block list found in {type(model).__name__}: name it by blocks=... (lists: {names}).")
    path = max(found, key=found.get)
    if len(set(lists[path])) < len(lists[path]):
        raise InputError(f"{type(model).__name__} runs one block several times, and its outputs cannot be told apart.")
    return path


def reads_text(model: nn.Module) -> bool:
    """True if a transformers model is called with token ids."""
    return getattr(model, "main_input_name", "") == "input_ids"


def is_causal(model: nn.Module) -> bool:
    """True for decoders such as GPT-2: tokens attend only to those before them."""
    return any(getattr(module, "is_causal", False) for module in model.modules())


def count_special_tokens(model: nn.Module) -> int:
    """Number of tokens before the patches (CLS, distillation, registers); of a text, the CLS token of an encoder."""
    if reads_text(model):
        return 0 if is_causal(model) else 1
    return sum(
        parameter.numel() // parameter.shape[-1]
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] in SPECIAL_TOKENS
    )
