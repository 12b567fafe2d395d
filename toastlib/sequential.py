"""Spans fitted one after another, each on what the spans before it have made of the images."""

from typing import Any

import torch
from torch import Tensor

from toastlib.activations import record
from toastlib.approximation import fit_spans, replace_spans
from toastlib.collecting import product_dtype
from toastlib.errors import InputError
from toastlib.models import Encoder
from toastlib.moments import FoldedMoments, Moments
from toastlib.plan import Plan, Span
from toastlib.tokens import select_tokens, summarise, token_mask
from toastlib.translators import RECOMMENDED, Translator, make_translator


def approximate_in_sequence(
    encoder: Encoder,
    plan: str | Plan,
    images: Any,
    translator: str | Translator = RECOMMENDED,
    folds: int = 5,
    batch_size: int = 32,
) -> Encoder:
    """A copy of the encoder in which maps stand in for spans, each fitted on what the spans before it hand on.

    `toastlib.approximation.approximate` fits all maps on the original's states. Behind the first map the states are
    others, and each further map leads them further away. Here a map is fitted from the states that it will see to the
    original's, and makes good what those before it left. That takes a pass over the calibration images for every span,
    and holds for this plan alone.

    Parameters
    ----------
    encoder
        The original; it stays as it is.
    plan
        A `Plan` or its text, ``"2->5 7->8"``.
    images
        Calibration images, or texts: `toastlib.data.Images`, or anything that can be sliced and has ``batches(size)``.
    translator
        A name of `toastlib.translators.TRANSLATORS`, or a translator; none that is trained on activations.
    folds
        Image i belongs to fold ``i % folds``.
    batch_size
        Images per forward pass.

    Returns
    -------
    Encoder
        As `toastlib.approximation.approximate` returns it.

    Raises
    ------
    InputError
        If the plan does not fit the model, the translator is unknown or trained, or there are fewer images than folds.
    """
    plan = Plan.parse(plan).check(len(encoder.blocks))
    if (kind := make_translator(translator)).needs_activations:
        raise InputError(f"Translator {kind.name!r} is trained: in sequence only closed forms are fitted.")
    if not 2 <= folds <= len(images):
        raise InputError(f"{len(images)} images cannot be parted into {folds} folds: take 2 folds up to one per image.")
    maps = {}
    for span in plan:
        prefix = replace_spans(encoder, maps)
        moments = _collect(encoder, prefix, span, [images[fold::folds] for fold in range(folds)], batch_size)
        maps[span] = fit_spans([span], translator, moments)[span].module()
    return replace_spans(encoder, maps)


def _collect(encoder: Encoder, prefix: Encoder, span: Span, folds: list, batch_size: int) -> FoldedMoments:
    """Moments of a span whose first states are the prefix's, and whose last are the original's."""
    dealt = [_of_fold(encoder, prefix, span, images, batch_size) for images in folds]
    parts = {kind: tuple(moments[kind] for moments, _ in dealt) for kind in dealt[0][0]}
    summaries = tuple({k: torch.cat(rows) for k, rows in said.items()} for _, said in dealt if said)
    return FoldedMoments(parts, encoder.special_tokens, summaries=summaries)


@torch.inference_mode()
def _of_fold(
    encoder: Encoder, prefix: Encoder, span: Span, images: Any, batch_size: int
) -> tuple[dict[str, Moments], dict[int, list[Tensor]]]:
    """Moments by kind of token, and the summaries of images batch by batch."""
    start = span.start - (len(encoder.blocks) - len(prefix.blocks))  # the same block, now that others are gone
    kinds = ["special", "patch"] if encoder.special_tokens else ["patch"]
    pairs, dtype = [(span.start, span.start), tuple(span)], product_dtype(encoder)
    totals: dict[str, Moments] = {}
    said: dict[int, list[Tensor]] = {}
    for inputs, _ in images.batches(batch_size):
        with record(prefix, [start]) as seen, record(encoder, [span.end]) as wanted:
            prefix(inputs)
            encoder(inputs)
        mask = token_mask(inputs)
        hidden = {span.start: seen[start], span.end: wanted[span.end]}
        for kind in kinds:
            rows = {k: select_tokens(h, kind, encoder.special_tokens, mask) for k, h in hidden.items()}
            moments = Moments.of(rows, pairs, dtype)
            totals[kind] = totals[kind].merge(moments) if kind in totals else moments
        for k, h in hidden.items() if mask is None else ():
            said.setdefault(k, []).append(summarise(h, encoder.special_tokens).float())
    return totals, said
