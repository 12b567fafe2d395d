"""Accuracies of many plans, translators, heads and seeds, from one pass over the images."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from toastlib.approximation.engine import collect_features
from toastlib.approximation.prepare import Prepared, Sources, prepare
from toastlib.data.images import ImageSet
from toastlib.errors import InputError, need_set
from toastlib.evaluation.costs import plan_costs
from toastlib.evaluation.heads import predict_by_own
from toastlib.evaluation.probe import HeadConfig, Probe
from toastlib.evaluation.result import Evaluation
from toastlib.models.batch import BatchSize
from toastlib.models.encoder import Encoder
from toastlib.plan import Plan


def evaluate_plans(
    encoder: Encoder,
    data: ImageSet,
    plans: str | Plan | Iterable[str | Plan],
    *,
    translators: Sources = ("identity", "linear"),
    calibration: Any = 500,
    head: HeadConfig | str | None = None,
    batch_size: BatchSize = "auto",
) -> Evaluation:
    """Classify the test images with the original encoder and with every plan, translator, calibration set and head.

    Parameters
    ----------
    encoder, data
        The original encoder, and a set with labels: its training images train the heads.
    plans, translators
        One plan, or several, each tried with each translator: names such as ``"linear"`` or ``"context+align"``,
        translators, or a mapping from names of your own to names, translators, or fitted maps (span -> module).
    calibration
        The number of training images that maps are fitted on, drawn with seed 0; or these images; or moments or
        activations of them. A mapping from names to these fits every map on each set (paper, Tables 3, 14, 15).
    head, batch_size
        Training of the heads: a `HeadConfig`, or its protocol alone, ``"frozen"`` if `None`, with seeds 0 to 2; images
        per forward pass, ``"auto"`` by device.

    Returns
    -------
    Evaluation
        The original comes first.

    Raises
    ------
    InputError
        If a name is unknown, a plan or a calibration does not fit, or labels or a classifier are missing.
    """
    head = HeadConfig.of(head)
    require_labels(data)
    ready = prepare(encoder, data, plans, translators=translators, calibration=calibration, batch_size=batch_size)
    test = collect_features(encoder, data.test, ready.variants, ready.maps, batch_size)
    predicted = {}
    if "own" in head.protocol:
        answers = predict_by_own(encoder, data, ready.variants, ready.maps, test)
        predicted["own"] = answers[:, None].expand(-1, len(head.seeds), -1)
    if set(head.protocol) - {"own"}:
        trained_on = ready.variants if "retrained" in head.protocol else ready.variants[:1]
        train = collect_features(encoder, data.train, trained_on, ready.maps, batch_size)
        probe = Probe(len(data.class_names), head).fit(train, data.train.labels)
        predicted["frozen"] = probe.first().predict(test)
        predicted["retrained"] = probe.predict(test) if "retrained" in head.protocol else None
    predictions = torch.stack([predicted[protocol].cpu() for protocol in head.protocol])
    return as_evaluation(encoder, data, ready, predictions, head.protocol, head.seeds)


def as_evaluation(
    encoder: Encoder, data: Any, ready: Prepared, predicted: Tensor, heads: Iterable[str], seeds: Iterable[int]
) -> Evaluation:
    """The result of predicted classes of shape (heads, variants, seeds, test images)."""
    rows = [{"head": head} | kind | {"seed": seed} for head in heads for kind in ready.names for seed in seeds]
    example, _ = next(data.test[:1].batches(1))
    class_names = tuple(data.class_names)
    if predicted.max() == len(class_names):
        class_names += ("another label",)
    names = {"model": encoder.name, "features": encoder.feature_kind, "dataset": data.name}
    if isinstance(example, Tensor):  # pixels; texts have no size
        names["image_size"] = example.shape[-1]
    return Evaluation(
        pd.DataFrame(rows),
        predicted.flatten(0, 2).cpu().numpy(),
        data.test.labels.cpu().numpy(),
        class_names,
        names,
        plan_costs(encoder, [Plan(), *ready.plans], ready.translators, inputs=example),
    )


def require_labels(data: ImageSet, splits: Iterable[str] = ("train", "test")) -> None:
    """Refuse a set whose images have no labels, before time is spent on it.

    Parameters
    ----------
    data, splits
        A set of images or texts, and those of its splits that need labels.

    Raises
    ------
    InputError
        If labels are missing, or it is no set.
    """
    need_set(data)
    if any(getattr(data, split).labels is None for split in splits):
        raise InputError(f"{data.name} has no labels: accuracies need them, similarities and maps do not.")
