"""Zero-cost maps: spans folded into the block before them, so that the base architecture is left with fewer blocks.

The idea is ReplaceMe's (Shopkhoev et al. 2025, arXiv 2505.02819). A block adds the output ``m`` of its MLP to what it
has got: ``h[s] = r + m``. For a span ``s->e`` a map of ``m`` alone is fitted, so that ``r + map(m)`` approximates
``h[e]``; the last layer of the MLP is linear, and so takes the map into its own weights.
"""

import copy

import torch
from torch import Tensor, nn

from toastlib.errors import InputError, need_batches, need_encoder, need_original
from toastlib.models.batch import BatchSize, batch_of
from toastlib.models.costs import example_input, flops_of_example, parameter_count
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import capture_modules, capture_outputs
from toastlib.models.layers import shorten_config
from toastlib.plan import Plan, Span
from toastlib.statistics.moments import Moments
from toastlib.translators.linear import Affine, Linear

FUSED = "fused"
"""Named as a translator: no map is left, for it is multiplied into the block before."""


class FusedEncoder(Encoder):
    """An encoder of the base architecture whose spans are folded away: fewer blocks, and nothing in their place.

    `Encoder.save_pretrained` writes it as a folder that transformers opens without toastlib. `plan` holds the spans of
    the original's blocks that are gone, and `original` the original's parameters and its FLOPs for one image.
    """

    plan: Plan
    original: tuple[int, int | None]


def fuse_spans(encoder: Encoder, plan: str | Plan, images, *, batch_size: BatchSize = "auto") -> FusedEncoder:
    """A copy of the encoder without the blocks of a plan, the block before each span fitted to stand in for them.

    Shopkhoev et al., "ReplaceMe" (2025), arXiv 2505.02819.

    Parameters
    ----------
    encoder, plan
        The original, which stays as it is; a `Plan` or its text: no span may start at -1, or where another one ends.
    images, batch_size
        As for `align_features`.

    Returns
    -------
    FusedEncoder
        Of the base architecture, with fewer blocks; the kept blocks before spans have new weights.

    Raises
    ------
    InputError
        If the plan does not fit the model or cannot be folded, or the model's blocks have no MLP to fold into.
    """
    need_encoder(encoder)
    need_batches(images)
    need_original(encoder)
    if encoder.sublayer_split is not None:
        raise InputError("Sublayers cannot be folded, for the base architecture has none: fold the original's blocks.")
    plan = Plan.parse(plan).check(len(encoder.blocks))
    for span in plan:
        if span.start == -1:
            raise InputError(f"Span {span} cannot be folded: no block stands before it whose MLP could take its map.")
        if span.start in plan.removed:
            raise InputError(f"Span {span} cannot be folded: block {span.start} goes too; write the two as one span.")
    maps = _fit(encoder, plan, images, batch_size)
    kept = [k for k in range(len(encoder.blocks)) if k not in plan.removed]
    if not hasattr(getattr(encoder.model, "config", None), "num_hidden_layers"):
        raise InputError(f"{encoder.name} has no configuration that says how many blocks there are: nothing is folded.")
    with encoder.block_list([encoder.blocks[k] for k in kept]):
        model = copy.deepcopy(encoder.model)
    shorten_config(model.config, kept)
    same = {"preprocessing": encoder.preprocessing, "name": encoder.name}
    folded = FusedEncoder(model, encoder.blocks_path, encoder.feature_kind, **same)
    for span, fit in maps.items():  # the layer then computes layer(x) @ weight + bias
        layer = down_projection(folded, kept.index(span.start))
        layer.weight.data = (fit.weight_.mT @ layer.weight.double()).to(layer.weight.dtype)
        if fit.bias_ is not None:
            layer.bias.data = (layer.bias.double() @ fit.weight_ + fit.bias_).to(layer.bias.dtype)
    folded.plan, folded.checkpoint = plan, encoder.checkpoint
    folded.original = (parameter_count(encoder), flops_of_example(encoder))
    return folded


def can_fuse(encoder: Encoder) -> bool:
    """Whether the encoder has whole blocks with an MLP, and a configuration that counts them."""
    whole = encoder.sublayer_split is None and hasattr(getattr(encoder.model, "config", None), "num_hidden_layers")
    try:
        return whole and down_projection(encoder, 0) is not None
    except InputError:
        return False


def down_projection(encoder: Encoder, block: int) -> nn.Linear:
    """The last layer of a block's MLP, known by its shape: the last linear layer from more values to the width.

    An `InputError` if the block has none.
    """
    layers = [m for m in encoder.blocks[block].modules() if isinstance(m, nn.Linear)]
    found = [m for m in layers if m.out_features == encoder.width < m.in_features]
    if not found:
        raise InputError(f"Block {block} of {encoder.name} has no MLP that a map could be folded into.")
    return found[-1]


def branch_scale(encoder: Encoder, block: int) -> Tensor:
    """What the MLP's output is multiplied by before a block adds it: a LayerScale's factors, or ones; shape (width,).

    It is the derivative of the block's output by a shift of its down-projection's output, and so asks for no names. An
    `InputError` if a shift does more: the block norms what it has added.
    """
    zero = torch.zeros(encoder.width, device=encoder.device, dtype=encoder.dtype, requires_grad=True)
    layer = down_projection(encoder, block)
    with torch.no_grad():
        hidden = encoder.embed(example_input(encoder))

    def shifted(shift: Tensor) -> Tensor:
        with layer.register_forward_hook(lambda module, args, output: output + shift):
            return encoder.run_block(block, hidden.hidden, hidden)[0, 0]

    with torch.enable_grad():
        scale = torch.autograd.grad(shifted(zero).sum(), zero)[0]
    with torch.no_grad():
        before = shifted(zero)
        shift = 1000 * before.abs().max() * torch.linspace(-1, 1, encoder.width).to(zero)  # far above rounding
        moved = shifted(shift) - before
    if (moved - scale * shift).abs().max() > 0.05 * moved.abs().max():
        raise InputError(f"Block {block} of {encoder.name} norms what its MLP has added: no map can be folded into it.")
    return scale.double()


@torch.inference_mode()
def _fit(encoder: Encoder, plan: Plan, images, batch_size: int) -> dict[Span, Affine]:
    """For each span the map of its MLP's output before LayerScale, from one pass; with a bias if the MLP has one."""
    with torch.inference_mode(False):
        scales = {span: branch_scale(encoder, span.start) for span in plan}
    if unused := [span for span, scale in scales.items() if not scale.all()]:
        raise InputError(f"Span {unused[0]} cannot be folded: its MLP does not reach all of the block's output.")
    layers = {span: down_projection(encoder, span.start) for span in plan}
    totals = {}
    ends = {block for span in plan for block in span}
    with capture_modules(layers) as branch, capture_outputs(encoder, ends) as h:
        for pixel_values, _ in images.batches(batch_of(encoder, batch_size)):
            encoder(pixel_values)
            for span in plan:
                m = branch[span].double().reshape(-1, encoder.width)
                before, after = (h[block].double().flatten(0, 1) for block in span)
                rows = {0: m, 1: (after - before) / scales[span] + m}  # as the layer hands them to LayerScale
                moments = Moments.of(rows, [(0, 0), (0, 1)])
                totals[span] = totals[span].merge(moments) if span in totals else moments
    if not totals and plan:
        raise InputError("There are no images to fit the folded maps on.")
    forms = {span: Linear() if layer.bias is None else Affine() for span, layer in layers.items()}
    return {span: forms[span].fit_moments(moments, Span(0, 1)) for span, moments in totals.items()}
