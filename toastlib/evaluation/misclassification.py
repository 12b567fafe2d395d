"""Who pays for a removed block: classes, confusions, and the single images whose label flips (paper, Figures 12-15)."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from toastlib.errors import InputError
from toastlib.evaluation.metrics import Predictions, paired_difference
from toastlib.plan import ORIGINAL

KIND = ["head", "translator", "plan"]


def class_accuracy(predictions: Predictions, class_names: Sequence[str]) -> pd.DataFrame:
    """Accuracy of every variant on every class, and how far it is from the original's.

    Parameters
    ----------
    predictions
        From `predict`.
    class_names
        One name per class, in the order of the labels.

    Returns
    -------
    DataFrame
        Columns ``head``, ``translator``, ``plan``, ``class``, ``images`` (of that class in the test set), ``accuracy``
        in percent, averaged over seeds, and ``delta``, ``delta_low``, ``delta_high``: points gained against the
        original, negative where the class loses, with the 95 % interval paired over the class's images. Classes
        without a test image are left out.
    """
    rows = []
    for head, translator, plan in predictions.variants[KIND].drop_duplicates().itertuples(index=False):
        original = predictions.mean_correct(head=head, plan=ORIGINAL)
        correct = predictions.mean_correct(head=head, translator=translator, plan=plan)
        for label in np.unique(predictions.labels):
            own = predictions.labels == label
            delta = paired_difference(correct[own], original[own])
            rows.append((head, translator, plan, class_names[label], own.sum(), 100 * correct[own].mean(), *delta))
    return pd.DataFrame(rows, columns=[*KIND, "class", "images", "accuracy", "delta", "delta_low", "delta_high"])


def confusion(predictions: Predictions, class_names: Sequence[str], **which: str) -> pd.DataFrame:
    """Which class is taken for which, by the original and by one variant, in percent of the true class.

    Parameters
    ----------
    predictions, class_names
        As for `class_accuracy`.
    **which
        Picks the variant: ``translator="linear", plan="1->2"``, and the ``head`` where there are two.

    Returns
    -------
    DataFrame
        Columns ``true``, ``predicted``, ``original``, ``approximated``, ``delta`` (their difference, in points): one
        row per cell of the confusion matrix, its rows normalised, averaged over seeds.

    Raises
    ------
    InputError
        If no variant is of that kind.
    """
    from sklearn.metrics import confusion_matrix

    labels = range(len(class_names))

    def matrix(predicted: np.ndarray) -> np.ndarray:
        return 100 * confusion_matrix(predictions.labels, predicted, labels=labels, normalize="true").ravel()

    pairs = list(_pairs(predictions, **which))
    original = np.mean([matrix(before) for _, before, _ in pairs], axis=0)
    approximated = np.mean([matrix(after) for _, _, after in pairs], axis=0)
    cells = pd.MultiIndex.from_product([class_names, class_names], names=["true", "predicted"])
    columns = {"original": original, "approximated": approximated, "delta": approximated - original}
    return pd.DataFrame(columns, index=cells).reset_index()


def flips(predictions: Predictions, class_names: Sequence[str], **which: str | int) -> pd.DataFrame:
    """The test images that the original classifies rightly and one variant wrongly.

    Parameters
    ----------
    predictions, class_names, **which
        As for `confusion`; ``seed`` picks one head.

    Returns
    -------
    DataFrame
        Columns ``seed``, ``image`` (its row in the test set), ``true`` and ``predicted`` (class names).

    Raises
    ------
    InputError
        If no variant is of that kind.
    """
    labels, names = predictions.labels, np.array(class_names, dtype=object)
    rows = [
        (seed, image, names[labels[image]], names[after[image]])
        for seed, before, after in _pairs(predictions, **which)
        for image in np.flatnonzero((before == labels) & (after != labels))
    ]
    return pd.DataFrame(rows, columns=["seed", "image", "true", "predicted"])


def mcnemar(predictions: Predictions, seed: int | None = None) -> pd.DataFrame:
    """McNemar's exact test of every plan against the original: do more images turn wrong than right?

    Only images that one of the two classifies rightly and the other wrongly say something; if the plan made no
    difference, each would be as likely to turn one way as the other (McNemar 1947, exact binomial form, two-sided).

    Parameters
    ----------
    predictions
        From `predict`.
    seed
        The head that is tested, the first if `None`: the heads of several seeds see the same images, so their counts
        must not be added up.

    Returns
    -------
    DataFrame
        Columns ``head``, ``translator``, ``plan``, ``right_to_wrong``, ``wrong_to_right``, ``p``, and ``p_holm``:
        corrected for the number of plans, for each head and translator by itself.
    """
    from scipy.stats import binomtest

    variants = predictions.variants
    seed = variants["seed"].iloc[0] if seed is None else seed
    rows = []
    for kind in variants.loc[variants["plan"] != ORIGINAL, KIND].drop_duplicates().to_dict("records"):
        [(_, before, after)] = _pairs(predictions, **kind, seed=seed)
        before, after = before == predictions.labels, after == predictions.labels
        lost, won = int((before & ~after).sum()), int((~before & after).sum())
        p = binomtest(lost, lost + won).pvalue if lost + won else 1.0
        rows.append((*kind.values(), lost, won, p))
    table = pd.DataFrame(rows, columns=[*KIND, "right_to_wrong", "wrong_to_right", "p"])
    return table.assign(p_holm=table.groupby(["head", "translator"])["p"].transform(lambda p: holm(p.to_numpy())))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values corrected for their number by Holm's step-down method (1979), in the order given.

    Rejecting those below 0.05 makes the chance of even one false rejection at most 5 %.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * np.asarray(p)[order])
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def _pairs(predictions: Predictions, **which: str | int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each seed of a variant: the seed, the original's predictions and the variant's, shape (images,) each."""
    variants = predictions.variants
    chosen = variants[np.logical_and.reduce([variants[column] == value for column, value in which.items()])]
    if chosen.empty:
        raise InputError(f"No variant has {', '.join(f'{k}={v!r}' for k, v in which.items())}.")
    if len(kinds := chosen[KIND].drop_duplicates()) > 1:
        raise InputError(f"{len(kinds)} variants are of that kind: name head, translator and plan.")
    for row, head, seed in chosen[["head", "seed"]].itertuples():
        original = (variants["plan"] == ORIGINAL) & (variants["head"] == head) & (variants["seed"] == seed)
        yield seed, predictions.predicted[original.to_numpy()][0], predictions.predicted[row]
