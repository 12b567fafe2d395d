"""Maps fitted on one data set and used on another: the paper's generalization protocol (Tables 3, 14 and 15)."""

from collections.abc import Iterable, Mapping

import pandas as pd
from torch import nn

from toastlib.approximation.engine import MapKey, Variant, collect_features
from toastlib.approximation.replace import fit_spans
from toastlib.data.images import ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.metrics import Predictions, paired_difference
from toastlib.evaluation.probe import Probe
from toastlib.models.encoder import Encoder
from toastlib.plan import ORIGINAL, Plan, parse_plans
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.base import Identity

Kind = tuple[str, str]
"""(source, translator); identity and the original have the source ``""``, for they are fitted on nothing."""
ALL_PLANS = "all plans"


def transfer(
    encoder: Encoder,
    target: ImageSet,
    plans: str | Plan | Iterable[str | Plan],
    sources: Mapping[str, Moments | KFoldMoments],
    translators: Iterable[str] = ("linear",),
    seeds: Iterable[int] = range(3),
    head_lr: float = 1e-3,
    head_min_steps: int = 0,
    batch_size: int = 32,
) -> Predictions:
    """Predict the target's test images with maps fitted on other data sets (paper, Tables 3, 14, 15).

    The head is trained on the original encoder's features of the target and then frozen. The target is walked once
    for all sources, so neither its original features nor its heads are computed twice.

    Parameters
    ----------
    encoder, target
        The original encoder, and images with labels.
    plans
        Each is tried with the maps of every source, and with its blocks dropped (``"identity"``).
    sources
        Name of a data set -> moments of its calibration images, holding the plans' pairs; in folds where a translator
        needs them, see `fit_spans`.
    translators
        Each is fitted on every source: the paper's linear map, or others by name. What aligns features is none of
        them: it would have to see the target.
    seeds, head_lr, head_min_steps
        Of the heads, see `Probe`.
    batch_size
        Images per forward pass.

    Returns
    -------
    Predictions
        With a further column ``source`` in its variants, ``""`` for identity and the original.

    Raises
    ------
    InputError
        If a plan does not fit, moments lack a pair or are of the wrong kind, a translator is unknown, or the target has
        no labels.
    """
    if target.train.labels is None or target.test.labels is None:
        raise InputError(f"{target.name} has no labels, and its accuracy needs them.")
    plans, seeds = [plan.check(len(encoder.blocks)) for plan in parse_plans(plans) if plan], list(seeds)
    translators = [name for name in dict.fromkeys(translators) if name != "identity"]
    kinds = [("", "identity")] + [(source, name) for name in translators for source in sources]
    pairs = [(kind, plan) for plan in plans for kind in kinds]
    variants = [Variant(Plan(), ORIGINAL)] + [Variant(plan, _key(kind)) for kind, plan in pairs]
    maps = _fit(encoder, plans, sources, translators)
    train = collect_features(encoder, target.train, variants[:1], maps, batch_size)
    test = collect_features(encoder, target.test, variants, maps, batch_size)
    probe = Probe(len(target.class_names), seeds, learning_rate=head_lr, min_steps=head_min_steps)
    predicted = probe.fit(train, target.train.labels).predict(test)  # (variants, seeds, images)
    named = [("", ORIGINAL, ORIGINAL)] + [(*kind, str(plan)) for kind, plan in pairs]
    rows = [("frozen", *names, seed) for names in named for seed in seeds]
    return Predictions(
        pd.DataFrame(rows, columns=["head", "source", "translator", "plan", "seed"]),
        predicted.flatten(0, 1).cpu().numpy(),
        target.test.labels.cpu().numpy(),
    )


def lost_by_source(predictions: Predictions, **reference: str) -> pd.DataFrame:
    """Percentage points that the maps of each source lose against a reference, paired over the target's test images.

    Parameters
    ----------
    predictions
        From `transfer`.
    **reference
        What stands against every map of the same plan: ``translator="original"``, ``translator="identity"``, or
        ``source="digits"``.

    Returns
    -------
    DataFrame
        Columns ``source``, ``translator``, ``plan``, ``lost``, ``lost_low``, ``lost_high`` (95 % interval; negative
        values are gains). The plan ``"all plans"`` pools them: each image counts with its mean over plans and seeds.
    """
    fitted = predictions.variants[predictions.variants["translator"] != ORIGINAL]
    rows = []
    for source, translator in fitted[["source", "translator"]].drop_duplicates().itertuples(index=False):
        for plan in [*fitted["plan"].unique(), ALL_PLANS]:
            which = {} if plan == ALL_PLANS else {"plan": plan}
            against = reference if reference.get("translator") == ORIGINAL else reference | which
            difference = paired_difference(
                predictions.mean_correct(**against),
                predictions.mean_correct(source=source, translator=translator, **which),
            )
            rows.append((source, translator, plan, *difference))
    return pd.DataFrame(rows, columns=["source", "translator", "plan", "lost", "lost_low", "lost_high"])


def _key(kind: Kind) -> str:
    """What tells the maps of one source from those of another where the walk knows translators only."""
    source, translator = kind
    return f"{translator} from {source}" if source else translator


def _fit(
    encoder: Encoder,
    plans: Iterable[Plan],
    sources: Mapping[str, Moments | KFoldMoments],
    translators: Iterable[str],
) -> dict[MapKey, nn.Module]:
    spans = sorted({span for plan in plans for span in plan})
    dropped = {(span, "identity"): Identity().module() for span in spans}
    return dropped | {
        (span, _key((source, name))): fitted.module().to(encoder.device, encoder.dtype)
        for name in translators
        for source, moments in sources.items()
        for span, fitted in fit_spans(spans, name, moments).items()
    }
