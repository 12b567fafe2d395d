"""Accuracies of many plans, translators, heads and seeds, from one walk over the images."""

import copy
from collections.abc import Iterable

import pandas as pd
import torch

from toastlib.approximation.engine import (
    Maps,
    Variant,
    collect_calibration,
    collect_features,
    fit_alignments,
    fit_maps,
    variants_of,
)
from toastlib.data.images import ImageSet
from toastlib.errors import InputError, unknown
from toastlib.evaluation.costs import plan_costs
from toastlib.evaluation.metrics import Predictions, accuracy_table
from toastlib.evaluation.probe import Probe
from toastlib.models.encoder import Encoder
from toastlib.plan import ORIGINAL, Plan, parse_plans
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.base import Activations, make_translator

HEADS = ("retrained", "frozen")


def predict(
    encoder: Encoder,
    dataset: ImageSet,
    plans: str | Plan | Iterable[str | Plan],
    translators: Iterable[str] = ("identity", "linear"),
    seeds: Iterable[int] = range(3),
    heads: str | Iterable[str] = "retrained",
    calibration_size: int = 500,
    calibration_seed: int = 0,
    head_lr: float = 1e-3,
    head_min_steps: int = 0,
    batch_size: int = 32,
    moments: Moments | KFoldMoments | Activations | None = None,
    maps: Maps | None = None,
) -> Predictions:
    """Predict the test images with the original encoder and with every plan, translator, head and seed.

    Parameters
    ----------
    encoder, dataset
        The original encoder, and images with labels.
    plans, translators
        Each plan is tried with each translator; with ``"linear+align"``, or any other name before the plus, final
        features are brought back to the original's by one more closed-form map, see `toastlib.approximation.align`.
    seeds
        Of the heads: their first weights and the order of the images.
    heads
        ``"retrained"``: a head is trained on the features of each plan; ``"frozen"``: the head trained on the
        original's features is kept; or both.
    calibration_size, calibration_seed
        How many training images maps and alignments are fitted on, and the seed of that draw.
    head_lr, head_min_steps
        Learning rate of the heads, and how many steps they take at least, see `Probe`.
    batch_size
        Images per forward pass.
    moments
        Fit the maps on these instead, for example those of another data set; see `fit_spans` for the kind of
        moments that a translator needs.
    maps
        Take these maps instead of fitting any: (span, translator's name) -> module.

    Returns
    -------
    Predictions
        Of every head, translator, plan and seed; the original comes first.

    Raises
    ------
    InputError
        If a name is unknown, a plan does not fit, a map is missing, there is no seed, or the data set has no labels.
    """
    heads = [heads] if isinstance(heads, str) else list(heads)
    _check(dataset, heads)
    translators, seeds = list(dict.fromkeys(translators)), list(seeds)
    if not seeds:
        raise InputError("There is no seed: every head needs one, for example seeds=[0, 1, 2].")
    for name in translators:
        make_translator(name)
    plans = [plan.check(len(encoder.blocks)) for plan in parse_plans(plans)]
    variants = variants_of(plans, translators)
    calibration, images = moments, None
    fits = calibration is None and maps is None and any(plans)
    if fits or any(variant.aligned for variant in variants):
        images = dataset.train.sample(calibration_size, calibration_seed)
    if fits:
        calibration = collect_calibration(encoder, images, plans, translators, batch_size)
    maps = fit_maps(encoder, variants, calibration) if maps is None else _check_maps(encoder, variants, maps)
    maps |= fit_alignments(encoder, images, variants, maps, batch_size)
    trained_on = variants if "retrained" in heads else variants[:1]
    train = collect_features(encoder, dataset.train, trained_on, maps, batch_size)
    test = collect_features(encoder, dataset.test, variants, maps, batch_size)
    probe = Probe(len(dataset.class_names), seeds, learning_rate=head_lr, min_steps=head_min_steps)
    probe.fit(train, dataset.train.labels)
    predicted = [(probe if head == "retrained" else probe.first()).predict(test) for head in heads]
    rows = [(head, v.translator, str(v.plan), seed) for head in heads for v in variants for seed in seeds]
    return Predictions(
        pd.DataFrame(rows, columns=["head", "translator", "plan", "seed"]),
        torch.stack(predicted).flatten(0, 2).cpu().numpy(),
        dataset.test.labels.cpu().numpy(),
    )


def sweep(encoder: Encoder, dataset: ImageSet, plans: str | Plan | Iterable[str | Plan], **options) -> pd.DataFrame:
    """Accuracy and cost of plans x translators x heads x seeds, as one tidy frame.

    Parameters
    ----------
    encoder, dataset, plans
        As for `predict`.
    **options
        Any other parameter of `predict`.

    Returns
    -------
    DataFrame
        One row per head, translator, plan and seed: the names of model, features and data set, the columns of
        `accuracy_table`, and those of `plan_costs`. The original is the plan ``"original"``.
    """
    predictions = predict(encoder, dataset, plans, **options)
    return tabulate(predictions, encoder, dataset)


def tabulate(predictions: Predictions, encoder: Encoder, dataset: ImageSet) -> pd.DataFrame:
    """The table of `sweep` from predictions that are at hand.

    Parameters
    ----------
    predictions
        From `predict`.
    encoder, dataset
        What they were made with.

    Returns
    -------
    DataFrame
        As `sweep` returns it.
    """
    variants = predictions.variants
    plans = parse_plans(variants["plan"])
    pixel_values, _ = next(dataset.test[:1].batches(1))
    costs = plan_costs(encoder, plans, [t for t in variants["translator"].unique() if t != ORIGINAL], pixel_values)
    table = accuracy_table(predictions).merge(costs, on=["translator", "plan"], validate="many_to_one")
    names = {"model": encoder.name, "features": encoder.feature_kind, "dataset": dataset.name}
    return pd.concat([pd.DataFrame(names, index=table.index), table], axis=1)


def _check_maps(encoder: Encoder, variants: Iterable[Variant], maps: Maps) -> Maps:
    for variant in variants:
        for span, translator in variant.map_keys:
            if (span, translator) not in maps:
                raise InputError(f"The given maps have none for span {span} with translator {translator!r}.")
    return {key: copy.deepcopy(module).to(encoder.device, encoder.dtype) for key, module in maps.items()}


def _check(dataset: ImageSet, heads: list[str]) -> None:
    for head in heads:
        if head not in HEADS:
            raise unknown("head", head, HEADS)
    if dataset.train.labels is None or dataset.test.labels is None:
        raise InputError(f"{dataset.name} has no labels: accuracies need them, similarities and maps do not.")
