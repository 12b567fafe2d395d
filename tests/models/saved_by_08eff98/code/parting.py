"""A block as two blocks, its sublayers: the block without its MLP, and the block without its attention.

This file imports torch alone, and travels beside modeling_toast.py in the folder of every model that toastlib saves.
"""

import copy
from dataclasses import dataclass

from torch import Tensor, nn

IN_SUBLAYERS = " in sublayers"
"""Behind the name of an encoder whose blocks are sublayers."""


@dataclass(frozen=True)
class Parting:
    """Which parts of a block belong to its attention, and which to its MLP.

    Parameters
    ----------
    attention, mlp
        Names of the block's children with parameters, in the order in which they are called, and of its own parameters.
    attends
        The one of them that attends.
    returns_tuple
        Whether that one returns a tuple, the states first.
    adds
        Whether the block adds what sublayers return to what they were given (ViT); else they do so themselves (BERT).
    """

    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    attends: str
    returns_tuple: bool
    adds: bool

    def __post_init__(self) -> None:
        for name in ("attention", "mlp"):  # lists, where they are read from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))


class Bypass(nn.Module):
    """Stands for a part of a block whose work another block does: adds nothing, or hands on what it was given."""

    def __init__(self, attends: bool, returns_tuple: bool, adds: bool) -> None:
        super().__init__()
        self.attends = attends
        self.returns_tuple = returns_tuple
        self.adds = adds

    def forward(self, *args, **kwargs):
        """Zero, or the states among the arguments: the first tensor for an attention, the last for any other part."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not tensors:  # a bias of attention weights, which here nothing reads
            return None
        states = tensors[0 if self.attends else -1]
        states = states.new_zeros(()) if self.adds else states
        return (states, None) if self.returns_tuple else states

    def extra_repr(self) -> str:
        """What it stands for."""
        return f"attends={self.attends}, adds={self.adds}"


def block_name(block: int, sublayers: bool) -> str:
    """What a block is called in a text, for example ``"the MLP of block 3"`` for the block 7 of one in sublayers."""
    if block < 0:
        return "the embedding"
    return f"{('the attention', 'the MLP')[block % 2]} of block {block // 2}" if sublayers else f"block {block}"


def part(block: nn.Module, parting: Parting) -> tuple[nn.Module, nn.Module]:
    """The attention of a block and its MLP, both of the block's class and with its own weights, not copies of them."""
    return _without(block, parting.mlp, parting), _without(block, parting.attention, parting)


def _without(block: nn.Module, parts: tuple[str, ...], parting: Parting) -> nn.Module:
    sublayer = copy.copy(block)
    own = {name: copy.copy(value) for name, value in vars(block).items() if isinstance(value, dict)}
    vars(sublayer).update(own)  # a copied module shares its lists of children and hooks
    for name in parts:
        if name in sublayer._parameters:  # a factor of what the other sublayer returns (BEiT)
            del sublayer._parameters[name]
            setattr(sublayer, name, 1.0)
        else:
            attends = name == parting.attends
            setattr(sublayer, name, Bypass(attends, attends and parting.returns_tuple, parting.adds))
    return sublayer
