"""A smaller encoder: the blocks of a plan are removed, and one map stands in for each span."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from toastlib.errors import InputError, need, need_encoder
from toastlib.models.base_architecture import renumber
from toastlib.models.batch import BatchSize
from toastlib.models.costs import example_input
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import collect_activations
from toastlib.models.layers import shorten
from toastlib.models.walk import check_walk
from toastlib.plan import Plan, Span
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import KFoldMoments, Moments, plan_pairs
from toastlib.translators.base import RECOMMENDED, Activations, Translator, make_translator, split_align


def fit_spans(
    spans: Iterable[Span], translator: str | Translator, calibration: Moments | KFoldMoments | Activations
) -> dict[Span, Translator]:
    """Fit one translator for each span, all of them on the activations of the original model.

    Parameters
    ----------
    spans, translator
        Which maps are needed; a name, or a translator whose settings are used for every span.
    calibration
        Moments of the original encoder that hold the spans' pairs, from `collect_moments`; or activations of their
        blocks, from ``collect_activations(..., tokens="all")``. Trained translators need activations, and
        ``"per-position"`` those of ``tokens="positions"``. Translators that choose a penalty or separate token types
        need moments in folds; the other closed forms take any.

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
            f"{split_align(translator)[0]!r} and give the result to toastlib.approximation.align.align_features."
        )
    prototype = make_translator(translator)
    return {span: _fit(copy.copy(prototype), calibration, span) for span in spans}


def approximate(
    encoder: Encoder,
    plan: str | Plan | Iterable[tuple[int, int]],
    calibration: Any = None,
    *,
    translator: str | Translator = RECOMMENDED,
    batch_size: BatchSize = "auto",
) -> Encoder:
    """Copy the encoder, with one map in place of each span of a plan.

    Parameters
    ----------
    encoder, plan
        The original encoder, which stays as it is; a `Plan`, ``"2->5 7->8"`` or ``[(2, 5), (7, 8)]``.
    calibration, batch_size
        What the maps are fitted on: calibration images, and their number per forward pass; or their moments or
        activations, see `fit_spans`. An empty plan needs none.
    translator
        A name, or a translator; ``"linear"`` is the paper's map.

    Returns
    -------
    Encoder
        An encoder like any other: the removed blocks are gone from its parameters, and one `Replacement` stands for
        each span in its block list.

    Raises
    ------
    InputError
        If the plan does not fit the encoder, or the calibration is missing, does not suit the map, or lacks a block.
    """
    need_encoder(encoder)
    plan = Plan.parse(plan).check(len(encoder.blocks))
    if plan and calibration is None:
        raise InputError(f"Plan {plan} needs calibration images, or their moments, to fit its maps on.")
    if plan and hasattr(calibration, "batches"):
        calibration = collect_calibration(encoder, calibration, [plan], [translator], batch_size)
    check_moments(encoder, calibration)
    fitted = fit_spans(plan, translator, calibration)
    return replace_spans(encoder, {span: fit.module() for span, fit in fitted.items()})


def check_moments(encoder: Encoder, calibration: Any) -> None:
    """Raise an `InputError` for moments of an encoder with more blocks, or with another width."""
    if isinstance(calibration, Moments | KFoldMoments):
        moments = calibration if isinstance(calibration, Moments) else next(iter(calibration.parts.values()))[0]
        knows_width = hasattr(encoder.model, "config")  # a plain module's is a guess
        if moments.blocks[-1] >= len(encoder.blocks) or (knows_width and moments.width != encoder.width):
            theirs = f"blocks up to {moments.blocks[-1]} and width {moments.width}"
            raise InputError(
                f"These moments are of another encoder, with {theirs}: {encoder.name} has {len(encoder.blocks)} blocks."
            )


def collect_calibration(
    encoder: Encoder,
    images: Any,
    plans: Iterable[Plan],
    translators: Iterable[str | Translator],
    batch_size: BatchSize = "auto",
) -> Moments | KFoldMoments | Activations:
    """Collect what these translators are fitted on, for the spans of these plans alone.

    Moments, in folds if a translator needs them; the activations of all tokens, float32, shape (images * tokens, width)
    or, for maps per position, (images, tokens, width) for each block, if a translator is fitted on them; both, from two
    passes, if some need the one and some the other.
    """
    plans, kinds, activations = list(plans), [make_translator(one) for one in translators], None
    if any(kind.needs_activations for kind in kinds):
        blocks = sorted({block for plan in plans for span in plan for block in span})
        for inputs, _ in islice(images.batches(2), 1):
            check_walk(encoder, inputs)
        tokens = "positions" if any(kind.needs_positions for kind in kinds) else "all"
        activations = collect_activations(encoder, images, blocks, tokens=tokens, batch_size=batch_size)
    if any(kind.needs_folds for kind in kinds):
        context = any(kind.needs_context for kind in kinds)
        folds = collect_moments(encoder, images, plan_pairs(plans), folds=5, batch_size=batch_size, context=context)
        return replace(folds, activations=activations)
    return activations or collect_moments(encoder, images, plan_pairs(plans), folds=0, batch_size=batch_size)


def replace_spans(encoder: Encoder, maps: dict[Span, nn.Module]) -> Encoder:
    """A copy of the encoder with modules in place of spans; the removed blocks are never copied.

    Parameters
    ----------
    encoder, maps
        The original; span -> the module from ``h[s]`` to an approximation of ``h[e]``, shape (batch, tokens, width).

    Returns
    -------
    Encoder
        The smaller encoder.

    Raises
    ------
    InputError
        If the spans make no plan of this encoder, or a map is no module.
    """
    need_encoder(encoder)
    Plan.parse(list(maps)).check(len(encoder.blocks))
    for span, module in maps.items():
        need(module, "forward", f"A torch.nn.Module for span {Span(*span)}")
    if encoder.block_outputs is None and hasattr(encoder.model, "config"):
        encoder.features(example_input(encoder))
    maps = {span: module.to(encoder.device, encoder.dtype) for span, module in maps.items()}
    with encoder.block_list(shorten(encoder.blocks, maps, encoder.block_outputs or 0)):
        smaller = copy.deepcopy(encoder, {id(encoder.tokenizer): encoder.tokenizer})  # shared: it may be large
    gone = {block for span in maps for block in span.blocks[1:]}  # a map counts as the first block of its span
    renumber(smaller, [block for block in range(len(encoder.blocks)) if block not in gone])
    return smaller


def _fit(translator: Translator, calibration: Moments | KFoldMoments | Activations, span: Span) -> Translator:
    """Activations can become moments, never the other way round; folds are added up where they are not needed."""
    if translator.needs_folds and not isinstance(calibration, KFoldMoments):
        raise InputError(
            f"Translator {translator.name!r} needs moments in folds, with special tokens and patches apart: pass those "
            "of collect_moments with its default tokens='all' and folds=5."
        )
    if translator.needs_activations and isinstance(calibration, KFoldMoments):
        calibration = calibration.activations or calibration.whole
    if translator.needs_activations and isinstance(calibration, Moments):
        raise InputError(
            f"Translator {translator.name!r} is fitted on activations, which moments do not hold: pass those of "
            f"collect_activations(..., tokens={'positions' if translator.needs_positions else 'all'!r})."
        )
    if isinstance(calibration, Moments | KFoldMoments):
        return translator.fit_moments(calibration, span)
    if not isinstance(calibration, Mapping):
        raise InputError(f"Span {span} needs calibration images, or their moments or activations, to fit its map on.")
    if missing := set(span) - calibration.keys():
        raise InputError(f"Span {span} needs the activations of block {min(missing)}, which are not there.")
    hidden = {block: calibration[block] for block in span}
    if not translator.needs_positions:
        hidden = {block: rows.flatten(0, -2) for block, rows in hidden.items()}
    for block, rows in hidden.items():
        if not torch.isfinite(rows.sum()):
            where = f"The activations of block {block}"
            raise InputError(f"{where} hold NaN or infinity: check the checkpoint and its dtype.")
    if translator.needs_activations:
        return translator.fit(*hidden.values())
    return translator.fit_moments(Moments.of(hidden, plan_pairs(Plan((span,)))), span)
