"""Finer than blocks: an encoder whose attentions and MLPs are blocks of their own, to be compared and replaced."""

import copy
from itertools import compress, product

import torch
from torch import Tensor, nn

from toastlib.data.tokens import Inputs, Tokens
from toastlib.errors import InputError
from toastlib.models.encoder import BlockInput, Encoder
from toastlib.models.saving import example_input
from toastlib.models.sublayer_split import IN_SUBLAYERS, SublayerSplit, split_block


def split_blocks(encoder: Encoder) -> Encoder:
    """The same encoder with every block split into its two sublayers (Vaswani et al. 2017, section 3.1).

    Its block ``2k`` is the attention of block k, and ``2k + 1`` the MLP: ``h[2k]`` lies between the two, ``h[2k + 1]``
    is ``h[k]`` of the original. All that takes an encoder takes it, so that spans may begin and end inside a block;
    the span ``2k->2k+1`` replaces one MLP.

    Parameters
    ----------
    encoder
        An original; it stays as it is.

    Returns
    -------
    Encoder
        It shares the original's weights, and computes what the original does bit for bit.

    Raises
    ------
    InputError
        If the encoder was split or made smaller before, or its blocks are no attention followed by an MLP.

    Examples
    --------
    >>> sublayers = split_blocks(encoder)  # doctest: +SKIP
    >>> mlps = plan_of(2 * block + 1 for block in (2, 3, 4, 5))  # the plan 4->5 6->7 8->9 10->11
    >>> smaller = approximate(sublayers, mlps, "ridge", collect_folds(sublayers, images))  # doctest: +SKIP
    """
    if encoder.sublayer_split is not None:
        raise InputError(f"The blocks of {encoder.name} are sublayers already.")
    if any(hasattr(block, "translation") for block in encoder.blocks):
        raise InputError(f"{encoder.name} was made smaller already: split the original.")
    split = find_split(encoder)
    sublayers = [sublayer for block in encoder.blocks for sublayer in split_block(block, split)]
    shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
    with encoder.block_list(sublayers):
        whole = copy.deepcopy(encoder, shared | {id(encoder.tokenizer): encoder.tokenizer})
    if encoder.is_causal:  # some decoders run as many blocks as their configuration counts
        whole.model.config.num_hidden_layers = len(sublayers)
    whole.sublayer_split = split
    whole.name = encoder.name + IN_SUBLAYERS
    return whole


@torch.inference_mode()
def find_split(encoder: Encoder) -> SublayerSplit:
    """How to part the blocks of an encoder, by trial: the two sublayers after one another are the block, bit for bit.

    Raises
    ------
    InputError
        If no split is.
    """
    shared, block = encoder.embed(_example(encoder)), encoder.blocks[0]
    called, returned, whole = _run(block, shared.hidden, shared)
    attending = [name for name in called if "attention" in type(getattr(block, name)).__name__.lower()]
    if len(attending) == 1:
        attends, own = attending[0], [name for name, _ in block.named_parameters(recurse=False)]
        cuts = range(called.index(attends) + 1, len(called))
        for adds, cut, *owned in product((True, False), cuts, *[(True, False)] * len(own)):
            attention = (*called[:cut], *compress(own, owned))
            mlp = (*called[cut:], *(name for name in own if name not in attention))
            split = SublayerSplit(attention, mlp, attends, isinstance(returned[attends], tuple), adds)
            if _is_right(split, block, shared, whole):
                return split
    raise InputError(f"The blocks of {encoder.name}, {type(block).__name__}s, are no attention followed by an MLP.")


def _run(block: nn.Module, hidden: Tensor, shared: BlockInput) -> tuple[list[str], dict, Tensor]:
    """Children with parameters in the order of their first calls, what they returned, and what the block did."""
    returned = {}
    handles = [
        child.register_forward_hook(lambda module, args, output, name=name: returned.setdefault(name, output))
        for name, child in block.named_children()
        if any(True for _ in child.parameters())
    ]
    try:
        output = block(hidden, *shared.args, **shared.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return list(returned), returned, output


def _is_right(split: SublayerSplit, block: nn.Module, shared: BlockInput, whole: Tensor) -> bool:
    """Whether both sublayers do something, together what the block does, and nothing is left without them."""

    def run(module: nn.Module, hidden: Tensor) -> Tensor:
        return module(hidden, *shared.args, **shared.kwargs)

    attention, mlp = split_block(block, split)
    middle = run(attention, shared.hidden)
    if middle.shape != whole.shape or torch.equal(middle, shared.hidden) or torch.equal(middle, whole):
        return False
    neither, _ = split_block(mlp, split)
    return torch.equal(run(mlp, middle), whole) and torch.equal(run(neither, middle), middle)


def _example(encoder: Encoder) -> Inputs:
    """Anything that the encoder reads."""
    if not encoder.reads_text:
        return example_input(encoder)
    tokens = torch.arange(2, 10, device=encoder.device)[None]
    return Tokens(tokens, torch.ones_like(tokens))
