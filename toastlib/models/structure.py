"""What a model is made of, told from its modules: the list of its blocks, what it reads, its special tokens."""

from torch import nn

from toastlib.errors import InputError, unknown

SPECIAL_TOKENS = (
    *("cls_token", "class_embedding", "distillation_token", "register_tokens"),
    *("dist_token", "reg_token"),  # as timm calls them
)
"""Embedding parameters that stand before the patches: one token per row."""

WITHOUT_MASK = {"vit_mae": "ViTModel"}
"""Kinds of models that hide patches at random -> what opens the same weights and hides none."""


def find_blocks(model: nn.Module, path: str | None = None) -> str:
    """Dotted path of the largest module list whose members are transformer blocks of one class.

    Blocks are known by the class that transformers derives them from; timm's, inside its wrapper, by their place.
    With a `path`, that path: it is only checked.

    Raises
    ------
    InputError
        If no list of Hugging Face blocks is there, or none at `path`; the message names the lists that are.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    kinds = (nn.ModuleList, nn.Sequential)
    lists = {name: m for name, m in model.named_modules() if isinstance(m, kinds) and len(m)}
    if path in lists:
        return path
    if path and lists:
        raise unknown("block list", path, lists)
    found = {
        name: sum(p.numel() for p in blocks.parameters())
        for name, blocks in lists.items()
        if len({type(b) for b in blocks}) == 1
        and (isinstance(blocks[0], GradientCheckpointingLayer) or name == "timm_model.blocks")
    }
    if not found:
        names = ", ".join(map(repr, lists)) or "none"
        raise InputError(f"No block list found in {type(model).__name__}: name it by blocks=... (lists: {names}).")
    return max(found, key=found.get)


def reads_text(model: nn.Module) -> bool:
    """Whether a transformers model is called with token ids."""
    return getattr(model, "main_input_name", "") == "input_ids"


def is_causal(model: nn.Module) -> bool:
    """Whether tokens attend only to those before them: a decoder, such as GPT-2."""
    return any(getattr(module, "is_causal", False) for module in model.modules())


def count_special_tokens(model: nn.Module) -> int:
    """Tokens before the patches: CLS, distillation, registers; of a text, the CLS token that only encoders have."""
    if reads_text(model):
        return 0 if is_causal(model) else 1
    tokens = {
        name: parameter.numel() // parameter.shape[-1]
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] in SPECIAL_TOKENS
    }
    return sum(tokens.values())
