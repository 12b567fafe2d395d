"""Sublayers: an encoder whose attentions and MLPs are blocks of their own."""

import copy
from collections.abc import Iterator
from itertools import compress, product
from typing import Any

import torch
from torch import Tensor, nn

from toastlib.data.tokens import Inputs
from toastlib.errors import InputError, need_encoder
from toastlib.models.attention import FirstQuery
from toastlib.models.base_architecture import renumber
from toastlib.models.costs import example_input
from toastlib.models.encoder import BlockInput, Encoder
from toastlib.models.hooks import capture_modules
from toastlib.models.sublayer_split import IN_SUBLAYERS, SublayerSplit, split_block


def split_blocks(encoder: Encoder) -> Encoder:
    """The encoder with every block split into its two sublayers (Vaswani et al. 2017, section 3.1).

    Block ``2k`` is the attention of the original's block k, ``2k + 1`` its MLP. The span ``2k->2k+1`` replaces one MLP.

    Parameters
    ----------
    encoder
        An original; it stays as it is.

    Returns
    -------
    Encoder
        With the original's weights, not copies, and its outputs bit for bit.

    Raises
    ------
    InputError
        If the encoder was split or made smaller before, or a block is no attention followed by an MLP.
    """
    need_encoder(encoder)
    if encoder.sublayer_split is not None:
        raise InputError(f"The blocks of {encoder.name} are sublayers already.")
    if any(hasattr(block, "translation") for block in encoder.blocks):
        raise InputError(f"{encoder.name} was made smaller already: split the original.")
    split = find_split(encoder)
    sublayers = [sublayer for block in encoder.blocks for sublayer in split_block(block, split)]
    shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
    with encoder.block_list(sublayers):
        whole = copy.deepcopy(encoder, shared | {id(encoder.tokenizer): encoder.tokenizer})
    renumber(whole, [block // 2 for block in range(len(sublayers))])
    whole.sublayer_split = split
    whole.name = encoder.name + IN_SUBLAYERS
    return whole


def split_last(encoder: Encoder, hidden: Tensor, shared: BlockInput, inputs: Inputs) -> None:
    """Let `run_last`, which has the same arguments, compute the CLS token alone if that leaves the features alike."""
    if encoder.feature_kind != "cls":
        return
    whole = encoder.pool(run_last(encoder, hidden, shared), inputs)
    try:
        encoder.last_split = find_split(encoder)
        apart = (encoder.pool(run_last(encoder, hidden, shared), inputs) - whole).abs().max() / whole.abs().max()
    except Exception:  # no attention followed by an MLP, or whatever a model does with one token
        apart = torch.inf
    if not apart < torch.finfo(whole.dtype).eps ** 0.75:  # rounding, of one block
        encoder.last_split = None


def run_last(encoder: Encoder, hidden: Tensor, shared: BlockInput) -> Tensor:
    """Output of the last block for the tokens that the features read.

    Shape (batch, tokens, width), or (batch, 1, width) where `split_last` found that they read the CLS token alone:
    then the MLP, and the queries of torch's attention, are computed for no other token.
    """
    last = len(encoder.blocks) - 1
    if not encoder.reads_cls_alone:
        return encoder.run_block(last, hidden, shared)
    attention, mlp = split_block(encoder.blocks[last], encoder.last_split)
    with FirstQuery():
        middle = encoder.run_block(last, hidden, shared, module=attention)
    return encoder.run_block(last, middle[:, :1], shared, module=mlp)


@torch.inference_mode()
def find_split(encoder: Encoder) -> SublayerSplit:
    """The split of the blocks into attention and MLP, found by trial: both in turn compute the block bit for bit."""
    block, shared = encoder.blocks[-1], encoder.embed(example_input(encoder))  # the first may lack a norm, ModernBERT's
    children = {name: child for name, child in block.named_children() if any(True for _ in child.parameters())}
    with capture_modules(children) as outputs:
        whole = encoder.run_block(-1, shared.hidden, shared)
    for split in _candidates(block, outputs):
        if _is_right(split, encoder, shared, whole):
            return split
    raise InputError(f"The blocks of {encoder.name}, {type(block).__name__}s, are no attention followed by an MLP.")


def _candidates(block: nn.Module, outputs: dict[str, Any]) -> Iterator[SublayerSplit]:
    """All splits of a block's children, in the order of their calls, and of its own parameters (BEiT's factors)."""
    called = list(outputs)
    attending = [name for name in called if "attention" in type(getattr(block, name)).__name__.lower()]
    if len(attending) != 1:
        return
    attends = attending[0]
    own = [name for name, _ in block.named_parameters(recurse=False)]
    choices = [list(compress(own, chosen)) for chosen in product((True, False), repeat=len(own))]
    for adds in (True, False):
        for first_of_mlp in range(called.index(attends) + 1, len(called)):
            for owned in choices:
                attention = [*called[:first_of_mlp], *owned]
                mlp = [*called[first_of_mlp:], *(name for name in own if name not in owned)]
                yield SublayerSplit(attention, mlp, attends, isinstance(outputs[attends], tuple), adds)


def _is_right(split: SublayerSplit, encoder: Encoder, shared: BlockInput, whole: Tensor) -> bool:
    """True if each sublayer changes its input, both in turn compute the block, and without both nothing happens."""
    attention, mlp = split_block(encoder.blocks[-1], split)
    try:
        middle = encoder.run_block(-1, shared.hidden, shared, module=attention)
        if middle.shape != whole.shape or torch.equal(middle, shared.hidden) or torch.equal(middle, whole):
            return False
        neither, _ = split_block(mlp, split)
        end, same = (encoder.run_block(-1, middle, shared, module=one) for one in (mlp, neither))
        return torch.equal(end, whole) and torch.equal(same, middle)
    except (AttributeError, RuntimeError):  # a block that looks into its parts; half an MLP has another width
        return False
