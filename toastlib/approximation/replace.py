"""A smaller encoder: the blocks of a plan removed, one map standing in for each span."""

import copy
from collections.abc import Iterable

import torch
from torch import nn

from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.models.layers import Replacement
from toastlib.plan import Plan, Span
from toastlib.statistics.moments import KFoldMoments, Moments, plan_pairs
from toastlib.translators.base import RECOMMENDED, Activations, Translator, make_translator, needs_folds, split_align


def fit_spans(
    spans: Iterable[Span], translator: str | Translator, calibration: Moments | KFoldMoments | Activations
) -> dict[Span, Translator]:
    """Fit one translator for each span, all of them on the activations of the original model.

    Parameters
    ----------
    spans
        Which maps are needed.
    translator
        A name, or a translator whose settings are used for every span.
    calibration
        Of the original encoder: moments that hold the spans' pairs, from `collect_moments` or `collect_folds`, or
        activations of their blocks, from ``collect_activations(..., tokens="all")``. Trained translators need
        activations, those that choose a penalty or tell tokens apart `collect_folds`; the other closed forms take any.

    Returns
    -------
    dict
        Span -> its fitted translator.

    Raises
    ------
    InputError
        If the translator is unknown, or the calibration is of the wrong kind or lacks a block.
    """
    if isinstance(translator, str) and split_align(translator)[1]:
        raise InputError(
            f"{translator!r} aligns features after the last block, where no span is: approximate with "
            f"{split_align(translator)[0]!r} and give the result to toastlib.align."
        )
    prototype = make_translator(translator)
    return {span: copy.copy(prototype).fit(_suited(prototype, calibration, span), span) for span in spans}


def approximate(
    encoder: Encoder,
    plan: str | Plan,
    translator: str | Translator = RECOMMENDED,
    calibration: Moments | KFoldMoments | Activations | None = None,
) -> Encoder:
    """A copy of the encoder in which maps stand in for the spans of a plan.

    Parameters
    ----------
    encoder
        The original; it stays as it is.
    plan
        A `Plan` or its text, ``"2->5 7->8"``.
    translator
        A name of `TRANSLATORS`, or a translator.
    calibration
        What the maps are fitted on, see `fit_spans`: for the default the moments of `collect_folds`. Needed by any plan
        that is not empty.

    Returns
    -------
    Encoder
        A model like any other. The removed blocks are gone from its parameters; in its block list one
        `Replacement` stands for each span.

    Raises
    ------
    InputError
        If the plan does not fit the model, or the calibration is missing, of the wrong kind, or lacks a block.
    """
    plan = Plan.parse(plan).check(len(encoder.blocks))
    if plan and calibration is None:
        raise InputError(f"Plan {plan} needs moments to fit its maps on: pass those of collect_folds.")
    fitted = fit_spans(plan, translator, calibration)
    return replace_spans(encoder, {span: fit.module() for span, fit in fitted.items()})


def replace_spans(encoder: Encoder, maps: dict[Span, nn.Module]) -> Encoder:
    """A copy of the encoder with modules in place of spans; the removed blocks are never copied."""
    starts = {span.start + 1: span for span in maps}
    removed = {block for span in maps for block in span.blocks}
    kept = [
        Replacement(starts[k], maps[starts[k]]).to(encoder.device, encoder.dtype) if k in starts else block
        for k, block in enumerate(encoder.blocks)
        if k in starts or k not in removed
    ]
    with encoder.block_list(kept):
        smaller = copy.deepcopy(encoder, {id(encoder.tokenizer): encoder.tokenizer})  # shared: it may be large
    number_blocks(smaller.blocks)
    return smaller


def number_blocks(blocks: Iterable[nn.Module]) -> None:
    """Give each block the number of its keys and values in a decoder's cache: without a gap, and from 0.

    From the first of them the cache tells how many tokens it has seen.
    """
    attending = [[part for part in block.modules() if hasattr(part, "layer_idx")] for block in blocks]
    for number, parts in enumerate(filter(None, attending)):
        for part in parts:
            part.layer_idx = number


def _suited(
    translator: Translator, calibration: Moments | KFoldMoments | Activations, span: Span
) -> Moments | KFoldMoments | Activations:
    """The calibration as the translator reads it: folds add up, and activations can become moments, never back."""
    if needs_folds(translator):
        if isinstance(calibration, KFoldMoments):
            return calibration
        raise InputError(
            f"Translator {translator.name!r} needs moments in folds, with special tokens and patches apart: pass those "
            "of collect_folds."
        )
    if isinstance(calibration, KFoldMoments):
        rows = calibration.activations if translator.needs_activations else None
        calibration = rows or calibration.restrict(span).whole
    if isinstance(calibration, Moments):
        if translator.needs_activations:
            raise InputError(
                f"Translator {translator.name!r} is trained on activations, which moments do not hold: pass those of "
                "collect_activations(..., tokens='all')."
            )
        return calibration
    _check_rows(calibration, span)
    if translator.needs_activations:
        return calibration
    return Moments.of({block: calibration[block] for block in span}, plan_pairs([Plan((span,))]))


def _check_rows(activations: Activations, span: Span) -> None:
    if missing := set(span) - activations.keys():
        raise InputError(f"Span {span} needs the activations of block {min(missing)}, which are not there.")
    for block in span:
        if not torch.isfinite(activations[block].sum()):
            raise InputError(
                f"The activations of block {block} hold NaN or infinity: check the checkpoint and its dtype."
            )
