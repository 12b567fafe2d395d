"""Spans fitted one after another, each on what the spans before it have made of the images."""

from collections.abc import Generator
from typing import Any

from torch import Tensor

from toastlib.approximation.replace import fit_spans, replace_spans
from toastlib.data.tokens import token_mask
from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import capture_outputs
from toastlib.plan import Plan, Span
from toastlib.statistics.collect import States, accumulate, kinds_of, merge_folds, split_folds
from toastlib.statistics.moments import Moments, plan_pairs
from toastlib.translators.base import RECOMMENDED, Translator, make_translator


def approximate_in_sequence(
    encoder: Encoder,
    plan: str | Plan,
    images: Any,
    translator: str | Translator = RECOMMENDED,
    folds: int = 5,
    batch_size: int = 32,
) -> Encoder:
    """A copy of the encoder in which maps stand in for spans, each fitted on what the spans before it hand on.

    `approximate` fits all maps on the original's states. Behind the first map the states are
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
        Calibration images, or texts: `Images`, or anything that can be sliced and has ``batches(size)``.
    translator
        A name of `TRANSLATORS`, or a translator; none that is trained on activations.
    folds
        Image i belongs to fold ``i % folds``.
    batch_size
        Images per forward pass.

    Returns
    -------
    Encoder
        As `approximate` returns it.

    Raises
    ------
    InputError
        If the plan does not fit the model, the translator is unknown or trained, or there are fewer images than folds.
    """
    plan = Plan.parse(plan).check(len(encoder.blocks))
    if (kind := make_translator(translator)).needs_activations:
        raise InputError(f"Translator {kind.name!r} is trained: in sequence only closed forms are fitted.")
    maps, dealt = {}, split_folds(images, folds)
    for span in plan:
        prefix = replace_spans(encoder, maps)
        moments = merge_folds(encoder, [_of_fold(encoder, prefix, span, part, batch_size) for part in dealt])
        maps[span] = fit_spans([span], translator, moments)[span].module()
    return replace_spans(encoder, maps)


def _of_fold(
    encoder: Encoder, prefix: Encoder, span: Span, images: Any, batch_size: int
) -> tuple[dict[str, Moments], dict[int, Tensor]]:
    """Moments of a span whose first states are the prefix's, and whose last are the original's."""
    start = span.start - (len(encoder.blocks) - len(prefix.blocks))  # the same block, now that others are gone

    def states() -> Generator[States, None, None]:
        with capture_outputs(prefix, [start]) as seen, capture_outputs(encoder, [span.end]) as wanted:
            for inputs, _ in images.batches(batch_size):
                prefix(inputs)
                encoder(inputs)
                yield {span.start: seen[start], span.end: wanted[span.end]}, token_mask(inputs)

    return accumulate(states(), encoder, plan_pairs([Plan((span,))]), kinds_of(encoder), with_summaries=True)
