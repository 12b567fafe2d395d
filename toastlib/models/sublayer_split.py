"""A block as two blocks, its sublayers: the block without its MLP, and the block without its attention.

This file imports torch alone, and travels beside modeling_toast.py in the folder of every model that toastlib saves.
"""

import copy
from dataclasses import dataclass

from torch import Tensor, nn

IN_SUBLAYERS = " in sublayers"  # behind the name of an encoder whose blocks are sublayers


@dataclass(frozen=True)
class SublayerSplit:
    """The parts of a block that belong to its attention, and those that belong to its MLP.

    They are named: children with parameters, in the order in which they are called, and the block's own parameters.
    """

    attention: list[str]
    mlp: list[str]
    attends: str  # the child that attends
    returns_tuple: bool  # true if that child returns a tuple, the hidden states first
    adds: bool  # true if the block adds a sublayer's output to its input (ViT); else the sublayer does so itself (BERT)


class Bypass(nn.Module):
    """No-op in place of the attention or MLP: returns 0 where the block adds the residual itself, else its input."""

    def __init__(self, attends: bool, returns_tuple: bool, adds: bool) -> None:
        super().__init__()
        self.attends = attends
        self.returns_tuple = returns_tuple
        self.adds = adds

    def forward(self, *args, **kwargs):
        """Zero, or the hidden states: the first tensor of an attention's arguments, the last of any other part's."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not tensors:  # a bias of attention weights, which here nothing reads
            return None
        states = tensors[0 if self.attends else -1]
        states = states.new_zeros(()) if self.adds else states
        return (states, None) if self.returns_tuple else states

    def extra_repr(self) -> str:
        """The part that it replaces."""
        return f"attends={self.attends}, adds={self.adds}"


def block_name(block: int, sublayers: bool) -> str:
    """The name of a block in a text: block 7 of an encoder in sublayers is ``"the MLP of block 3"``."""
    if block < 0:
        return "the embedding"
    return f"{('the attention', 'the MLP')[block % 2]} of block {block // 2}" if sublayers else f"block {block}"


def split_block(block: nn.Module, split: SublayerSplit) -> tuple[nn.Module, nn.Module]:
    """The attention and the MLP of a block, both of the block's class and with its own weights, not copies."""
    return _without(block, split.mlp, split), _without(block, split.attention, split)


def _without(block: nn.Module, parts: list[str], split: SublayerSplit) -> nn.Module:
    sublayer = copy.copy(block)
    own = {name: copy.copy(value) for name, value in vars(block).items() if isinstance(value, dict)}
    vars(sublayer).update(own)  # a copied module shares its lists of children and hooks
    for name in parts:
        if name in sublayer._parameters:  # a factor of what the other sublayer returns (BEiT)
            del sublayer._parameters[name]
            setattr(sublayer, name, 1.0)
        else:
            attends = name == split.attends
            setattr(sublayer, name, Bypass(attends, attends and split.returns_tuple, split.adds))
    return sublayer
