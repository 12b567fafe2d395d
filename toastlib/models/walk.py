"""Whether an encoder is its blocks, one after the other: all that is computed here takes that for granted."""

import torch

from toastlib.data.tokens import Inputs
from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.models.structure import PairList
from toastlib.models.sublayers import split_last


@torch.inference_mode()
def check_walk(encoder: Encoder, inputs: Inputs) -> None:
    """Raise an `InputError` unless a walk from block to block gives the features of the model's own forward.

    Each input must also have the features that it has alone: torch's own layers, without ``batch_first``, take a batch
    of images for the tokens of one. Two inputs are enough, and an encoder is checked once, with what is made of it.
    Rounding differs, and may grow over the blocks to the root of the dtype's precision.
    """
    if encoder.model.training:
        raise InputError(f"{encoder.name} is in training mode, where dropout draws at random: call its eval() first.")
    if encoder.walk_is_checked:
        return
    inputs = inputs[:2]
    if isinstance(pairs := encoder.model.get_submodule(encoder.blocks_path), PairList):
        _check_pairs(encoder, pairs, inputs)
    own = encoder.features(inputs)
    try:
        shared = encoder.embed(inputs)
        hidden = shared.hidden
        for block in range(len(encoder.blocks)):
            before, hidden = hidden, encoder.run_block(block, hidden, shared)
        walked = encoder.pool(hidden, inputs)
    except InputError:
        raise
    except Exception as error:  # whatever a block does with hidden states of another one
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise InputError(
            f"The blocks of {encoder.name} do not run one after the other, each on its own: {reason}."
        ) from error
    largest, tolerance = own.abs().max(), torch.finfo(own.dtype).eps ** 0.5  # NaN is left to whoever meets it
    difference = (own - walked).abs().max() / largest
    if difference > tolerance:
        raise InputError(
            f"{encoder.name} is more than its blocks one after the other: its features differ from theirs by "
            f"{difference:.1g} of the largest. It adds something between blocks, such as positions or skips."
        )
    if len(own) > 1 and (own[:1] - encoder.features(inputs[:1])).abs().max() / largest > tolerance:
        raise InputError(
            f"The features that {encoder.name} has for an image depend on the others in its batch: its blocks take the "
            "batch for tokens, as torch's own layers do without batch_first=True."
        )
    encoder.walk_is_checked = len(own) > 1
    split_last(encoder, before, shared, inputs)


def _check_pairs(encoder: Encoder, pairs: PairList, inputs: Inputs) -> None:
    """Refuse a model that does something else with the members of a pair than add one after the other; it stays so."""
    joined = encoder.run(encoder.model, inputs)
    pairs.whole = False
    apart = encoder.run(encoder.model, inputs)
    pairs.whole = torch.allclose(joined, apart, rtol=1e-3, atol=1e-4 * float(apart.abs().max()))
    if not pairs.whole:
        raise InputError(f"The blocks of {encoder.name} are pairs, and not two residual branches one after the other.")
