"""A smaller encoder: the blocks of a plan removed, one map standing in for each span."""

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from toastlib.errors import InputError
from toastlib.models import Encoder
from toastlib.moments import Moments
from toastlib.plan import Plan, Span
from toastlib.translators import Translator, make_translator


class Replacement(nn.Module):
    """Stands where the blocks of a span stood, and takes whatever arguments a block is called with."""

    def __init__(self, span: Span, translation: nn.Module) -> None:
        super().__init__()
        self.span = span
        self.translation = translation

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Approximate ``h[end]`` from ``h[start]``, both of shape (batch, tokens, width)."""
        return self.translation(hidden)

    def extra_repr(self) -> str:
        """The span."""
        return str(self.span)


def fit_spans(spans: Iterable[Span], translator: str | Translator, moments: Moments) -> dict[Span, Translator]:
    """Fit one translator for each span, all of them on the activations of the original model.

    Parameters
    ----------
    spans
        Which maps are needed.
    translator
        A name, or a translator whose settings are used for every span.
    moments
        Of the original encoder, holding the spans' pairs.
    """
    return {span: copy.copy(make_translator(translator)).fit(moments, span) for span in spans}


def approximate(
    encoder: Encoder, plan: str | Plan, translator: str | Translator = "linear", moments: Moments | None = None
) -> Encoder:
    """A copy of the encoder in which maps stand in for the spans of a plan.

    Parameters
    ----------
    encoder
        The original; it stays as it is.
    plan
        A `Plan` or its text, ``"2->5 7->8"``.
    translator
        ``"identity"``, ``"linear"``, or a translator.
    moments
        From `collect_moments` on the calibration images; needed by any plan that is not empty.

    Returns
    -------
    Encoder
        A model like any other. The removed blocks are gone from its parameters; in its block list one
        `Replacement` stands for each span.

    Raises
    ------
    InputError
        If the plan does not fit the model, or the moments are missing or lack a pair.
    """
    plan = Plan.parse(plan).check(len(encoder.blocks))
    if plan and moments is None:
        raise InputError(f"Plan {plan} needs moments to fit its maps on: pass those of collect_moments.")
    fitted = fit_spans(plan, translator, moments)
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
        return copy.deepcopy(encoder)
