"""Criteria that rank spans before anything is run, from the moments of calibration images: no label is seen."""

from collections.abc import Callable, Iterable

from toastlib.errors import InputError, naming
from toastlib.plan import Span, all_spans
from toastlib.plugins import look_up, registry
from toastlib.statistics import similarity
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.least_squares import Sums, held_out_errors, share
from toastlib.translators.linear import Affine, Ridge

Costs = dict[Span, float]


def _by_token(moments: KFoldMoments, spans: Iterable[Span]) -> Costs:
    costs, shared = {}, {}
    for span in spans:
        if span.start not in shared:  # spans come by their starts, and those from one start share decompositions
            shared = {span.start: {kind: [] for kind in moments.parts}}
        errors = []
        for kind, kept in shared[span.start].items():
            folds = [Sums.of_span(fold, span) for fold in moments.parts[kind]]
            errors.append(share(held_out_errors(folds, shared=kept).min(), sum(fold.square for fold in folds)))
        costs[span] = sum(errors) / len(errors)
    return costs


CRITERIA: dict[str, Callable[..., float]] = {
    "mse": lambda moments, span: similarity.mse(moments)[0, 1].item(),
    "block-influence": lambda moments, span: 1 - similarity.cosine(moments)[0, 1].item(),
    "angular": lambda moments, span: similarity.angular(moments)[0, 1].item(),
    "cka": lambda moments, span: 1 - similarity.cka(moments)[0, 1].nan_to_num(0).item(),
    "fit": lambda moments, span: Affine().fit_moments(moments, span).residual_,
    "held-out": lambda moments, span: Ridge().fit_moments(moments, span).cv_error_,
    "by-token": lambda moments, span: _by_token(moments, [span])[span],
}
"""Name -> (moments of the span's two blocks, span) -> its cost.

``"mse"``, ``"block-influence"`` (Block Influence: 1 - mean cosine of input and output, ShortGPT, arXiv 2403.03853),
``"angular"`` (Gromov et al. 2024) and ``"cka"`` (1 where all rows of a block are alike) compare ``h[s]`` with ``h[e]``
over the rows of the moments: all tokens, or CLS with moments of ``tokens="cls"``. The others are the share of
``|H[e]|^2`` that a map leaves: ``"fit"`` an affine map on the rows that it was fitted on, ``"held-out"`` a ridge on
held-out images, ``"by-token"`` the mean of that for special tokens and for patches.
"""
registry("criterion", CRITERIA)
NEED_FOLDS = ("held-out", "by-token")  # criteria that hold images out: they need moments in folds


def span_costs(moments: Moments | KFoldMoments, criterion: str = "by-token") -> Costs:
    """Predict the cost of removing every span of the encoder.

    Parameters
    ----------
    moments, criterion
        Of all pairs of blocks, from `collect_moments`; a name of `CRITERIA`.

    Returns
    -------
    dict
        Span -> its cost, for all ``blocks * (blocks + 1) / 2`` spans.

    Raises
    ------
    InputError
        If the criterion is unknown, the moments are not in folds where it needs them, or pairs are missing.
    """
    cost = look_up("criterion", criterion, CRITERIA)
    if criterion not in NEED_FOLDS:
        moments = moments.whole
    elif not isinstance(moments, KFoldMoments):
        raise InputError(f"Criterion {criterion!r} is a held-out error: collect moments with folds.")
    spans = all_spans(moments.blocks[-1] + 1)
    if criterion == "by-token":
        return _by_token(moments, spans)
    with naming(f"Criterion {criterion!r}"):
        return {span: float(cost(moments.restrict(span), span)) for span in spans}
