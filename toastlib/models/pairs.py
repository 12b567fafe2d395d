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
    """Blocks of a model that takes each for two residual branches: one does all, one nothing; or both, not `whole`."""

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
        members = list(module) if type(module) is nn.ModuleList else []
        if members and all(type(member) is nn.ModuleList and len(member) == 2 for member in members):
            model.set_submodule(name, PairList(map(PairBlock, members)))
