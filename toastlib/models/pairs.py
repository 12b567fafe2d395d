"""Blocks as lists ``[attention, feed-forward]`` of residual branches, as vit-pytorch keeps them: made callable."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class PairBlock(nn.ModuleList):
    """Two residual branches as one block: ``x = attention(x) + x``, then ``x = feed_forward(x) + x``."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (batch, tokens, width) to the same shape."""
        for branch in self:
            hidden = branch(hidden) + hidden
        return hidden


class PairList(nn.ModuleList):
    """Blocks of a model that takes each of them for two residual branches.

    It gets one branch that adds all that the block does, and one that adds nothing; or, while `whole` is false, the two
    branches of each `PairBlock`.
    """

    whole = True

    def __iter__(self) -> Iterator:
        blocks = list(self._modules.values())
        return iter([(_Change(block), torch.zeros_like) for block in blocks] if self.whole else blocks)


class _Change:
    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, hidden: Tensor, **kwargs: object) -> Tensor:
        return self.block(hidden) - hidden


def join_pairs(model: nn.Module) -> None:
    """Make every list of pairs in a model a `PairList`; names of weights and what the model computes stay."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.ModuleList and len(module) and all(_is_pair(member) for member in module):
            model.set_submodule(name, PairList(PairBlock(pair) for pair in module))


def _is_pair(module: nn.Module) -> bool:
    return type(module) is nn.ModuleList and len(module) == 2
