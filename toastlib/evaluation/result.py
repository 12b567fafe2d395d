"""The result of an evaluation: predictions of every variant for the same test images, and the tables made from them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import pandas as pd

from toastlib.errors import InputError
from toastlib.evaluation.metrics import CONFIDENCE, accuracy_interval, changes, exact_mcnemar, holm, paired_difference
from toastlib.plan import ORIGINAL

ALL_PLANS = "all plans"  # stands in the column plan where all plans are pooled


def counted(variants: pd.DataFrame) -> str:
    """How many heads, translators, plans and so on there are beside the original, such as ``"heads: 1, plans: 2"``."""
    return ", ".join(f"{name}s: {len({*variants[name]} - {ORIGINAL, ''})}" for name in variants)


@dataclass(frozen=True)
class Evaluation:
    """Predictions of every head, translator, calibration set, plan and seed for the same test images.

    Parameters
    ----------
    variants
        One row per variant: ``head``, ``translator``, ``calibration`` if there are several sets, ``plan``, ``seed``.
    predictions, labels, class_names
        Predicted classes, int64, shape (variants, images); true ones, shape (images,); and one name per class.
    names
        First columns of every row of `table`: ``model``, ``features``, ``dataset``, and ``image_size`` of images.
    costs
        One row per translator and plan, from `plan_costs`; `table` takes them in.
    """

    variants: pd.DataFrame
    predictions: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...] = ()
    names: dict[str, str | int] = field(default_factory=dict)
    costs: pd.DataFrame | None = None

    def __repr__(self) -> str:
        where = " on ".join(str(self.names.get(key, "?")) for key in ("model", "dataset"))
        return f"Evaluation({where}; {counted(self.variants)}, test images: {len(self.labels):,})"

    @property
    def kind(self) -> list[str]:
        """The columns that name a variant, without the seed of its head."""
        return [column for column in self.variants if column != "seed"]

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether each prediction is correct: bool, shape (variants, images)."""
        return self.predictions == self.labels

    def mean_correct(self, **which: str) -> np.ndarray:
        """Share of the chosen variants that classify each image correctly, shape (images,).

        Chosen are all that fit columns, such as ``translator="linear", plan="2->5"``; an `InputError` if none does.
        """
        return self.correct[self._rows(**which)].mean(0)

    def predicted(self, **which: str | int) -> np.ndarray:
        """Classes that variants predict, int64, shape (variants, images); they are chosen as for `mean_correct`."""
        return self.predictions[self._rows(**which)]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per variant: names, accuracy in percent with Wilson's 95 % interval, and the costs of its plan.

        Columns of `names`, those of `variants`, ``correct`` (a count), ``images``, ``accuracy``, ``accuracy_low``,
        ``accuracy_high``, ``lost``, ``lost_low``, ``lost_high`` (points that this head loses against the original,
        paired over images), and those of `plan_costs`.
        """
        correct, images = self.correct.sum(1), len(self.labels)
        table = self.variants.assign(correct=correct, images=images, accuracy=100 * correct / images)
        ends = [accuracy_interval(int(count), images) for count in correct]
        table[["accuracy_low", "accuracy_high"]] = 100 * np.array(ends)
        settings = list(zip(table["head"], table["seed"]))
        original = {settings[row]: self.correct[row] for row in np.flatnonzero(table["plan"] == ORIGINAL)}
        lost = [paired_difference(original[setting], correct) for setting, correct in zip(settings, self.correct)]
        table[["lost", "lost_low", "lost_high"]] = lost
        if self.costs is not None:
            table = table.merge(self.costs, on=["translator", "plan"], validate="many_to_one")
        return pd.concat([pd.DataFrame(self.names, index=table.index), table], axis=1)

    @property
    def lost(self) -> pd.DataFrame:
        """Points that each plan loses against the original, with 95 % intervals paired over test images.

        Columns: those that name a variant, ``lost``, ``lost_low``, ``lost_high``; negative values are gains.
        """
        return self._lost(pooled=False)

    @property
    def pooled(self) -> pd.DataFrame:
        """Points lost as in `lost`, all plans together: each image counts with its mean over plans and seeds."""
        return self._lost(pooled=True)

    def gain(self, *, pooled: bool = True, adjust: bool = False, **over: str) -> pd.DataFrame:
        """Points that each variant gains over a reference, with 95 % intervals paired over test images.

        Columns: those that name a variant, ``gain``, ``gain_low``, ``gain_high``. The reference is
        ``translator="linear"``, ``calibration="mnist"`` or both: head, plan and calibration set are the variant's own
        where they are not named; the original has no plan, and identity no calibration set. With `pooled` all plans
        are one row; with `adjust` all intervals of a head hold together with 95 %, by Bonferroni's rule.

        Raises
        ------
        InputError
            If no reference is named, or there is no such variant.
        """
        if not over:
            raise InputError("A gain needs a reference: name it, for example translator='linear'.")
        kinds = self._kinds(pooled)
        kinds = [kind for kind in kinds if any(kind.get(column) != value for column, value in over.items())]
        rivals = sum(kind["head"] == kinds[0]["head"] for kind in kinds) if kinds and adjust else 1
        same = {ORIGINAL: ["head"], "identity": ["head", "plan"]}
        same, rows = same.get(over.get("translator"), ["head", "calibration", "plan"]), []
        for kind in kinds:
            chosen = {column: value for column, value in kind.items() if value != ALL_PLANS}
            reference = {column: chosen[column] for column in same if chosen.get(column)} | over
            correct, other = self.mean_correct(**chosen), self.mean_correct(**reference)
            rows.append((*kind.values(), *paired_difference(correct, other, 1 - (1 - CONFIDENCE) / rivals)))
        return pd.DataFrame(rows, columns=[*self.kind, "gain", "gain_low", "gain_high"])

    @property
    def by_class(self) -> pd.DataFrame:
        """Accuracy of every variant on every class, and the difference to the original's (paper, Figures 12-15).

        Columns: those that name a variant, ``class``, ``images`` (of the class in the test set), ``accuracy`` in
        percent, ``delta``, ``delta_low``, ``delta_high`` in points, with the 95 % interval paired over the class's
        images. Seeds are averaged; classes without a test image are left out.
        """
        rows = []
        for kind in self.variants[self.kind].drop_duplicates().to_dict("records"):
            original = self.mean_correct(head=kind["head"], plan=ORIGINAL)
            correct = self.mean_correct(**kind)
            for label in np.unique(self.labels):
                own = self.labels == label
                delta = paired_difference(correct[own], original[own])
                rows.append((*kind.values(), self.class_names[label], own.sum(), 100 * correct[own].mean(), *delta))
        columns = [*self.kind, "class", "images", "accuracy", "delta", "delta_low", "delta_high"]
        return pd.DataFrame(rows, columns=columns)

    def confusion(self, **which: str) -> pd.DataFrame:
        """Confusion matrices of the original and of one variant, in percent of the true class, averaged over seeds.

        The variant is chosen by ``translator="linear", plan="1->2"``, and by ``head`` where there are two; an
        `InputError` if there is none, or several. One row per cell: ``true``, ``predicted``, ``original``,
        ``approximated``, ``delta`` (their difference).
        """
        from sklearn.metrics import confusion_matrix

        labels = range(len(self.class_names))

        def matrix(predicted: np.ndarray) -> np.ndarray:
            return 100 * confusion_matrix(self.labels, predicted, labels=labels, normalize="true").ravel()

        matrices = [(matrix(before), matrix(after)) for _, before, after in self._pairs(**which)]
        original, approximated = np.mean(matrices, axis=0)
        cells = pd.MultiIndex.from_product([self.class_names] * 2, names=["true", "predicted"])
        columns = {"original": original, "approximated": approximated, "delta": approximated - original}
        return pd.DataFrame(columns, index=cells).reset_index()

    def flips(self, **which: str | int) -> pd.DataFrame:
        """Test images that the original classifies correctly and one variant does not.

        Chosen as for `confusion`, one head by ``seed``. Columns ``seed``, ``image``, ``true``, ``predicted``.
        """
        names = np.array(self.class_names, dtype=object)
        rows = [
            (seed, image, names[self.labels[image]], names[after[image]])
            for seed, before, after in self._pairs(**which)
            for image in np.flatnonzero((before == self.labels) & (after != self.labels))
        ]
        return pd.DataFrame(rows, columns=["seed", "image", "true", "predicted"])

    def mcnemar(self, seed: int | None = None) -> pd.DataFrame:
        """McNemar's exact test of every plan against the original: do more images turn wrong than turn right?

        One head is tested, the first if `seed` is `None`: heads of several seeds see the same images, and their counts
        must not be added up. Columns: those that name a variant, ``right_to_wrong``, ``wrong_to_right``, ``p``, and
        ``p_holm``, adjusted for the number of plans within each head and translator.
        """
        seed = self.variants["seed"].iloc[0] if seed is None else seed
        rows = []
        for kind in self._kinds(pooled=False):
            [(_, before, after)] = self._pairs(**kind, seed=seed)
            turned = changes(before == self.labels, after == self.labels)
            rows.append((*kind.values(), *turned, exact_mcnemar(*turned)))
        table = pd.DataFrame(rows, columns=[*self.kind, "right_to_wrong", "wrong_to_right", "p"])
        groups = table.groupby(["head", "translator"])["p"]
        return table.assign(p_holm=groups.transform(lambda p: holm(p.to_numpy())))

    def select_classes(self, classes: Iterable[int]) -> Self:
        """The same predictions for the images of some classes alone, given by their numbers."""
        images = np.isin(self.labels, list(classes))
        return replace(self, predictions=self.predictions[:, images], labels=self.labels[images])

    def _lost(self, pooled: bool) -> pd.DataFrame:
        gain = self.gain(pooled=pooled, translator=ORIGINAL)
        ends = {"lost": 0 - gain["gain"], "lost_low": 0 - gain["gain_high"], "lost_high": 0 - gain["gain_low"]}
        return gain.drop(columns=["gain", "gain_low", "gain_high"]).assign(**ends)

    def _kinds(self, pooled: bool) -> list[dict[str, str]]:
        """Every variant but the original, without its seed."""
        kinds = self.variants.loc[self.variants["plan"] != ORIGINAL, self.kind].drop_duplicates()
        return (kinds.assign(plan=ALL_PLANS).drop_duplicates() if pooled else kinds).to_dict("records")

    def _rows(self, **which: str | int) -> np.ndarray:
        """Whether each variant is meant: bool, shape (variants,)."""
        if unknown := which.keys() - set(self.variants):
            raise InputError(f"Variants have no {min(unknown)!r}: choose by {', '.join(self.variants)}.")
        chosen = (self.variants[list(which)] == pd.Series(which, dtype=object)).all(axis=1).to_numpy()
        if not chosen.any():
            raise InputError(f"No variant has {', '.join(f'{k}={v!r}' for k, v in which.items())}.")
        return chosen

    def _pairs(self, **which: str | int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each seed of one variant: the seed, the original's predictions and the variant's, shape (images,)."""
        chosen = self.variants[self._rows(**which)]
        if len(kinds := chosen[self.kind].drop_duplicates()) > 1:
            raise InputError(f"{len(kinds)} variants are of that kind: name {', '.join(self.kind)}.")
        for row, head, seed in chosen[["head", "seed"]].itertuples():
            [original] = self.predicted(plan=ORIGINAL, head=head, seed=seed)
            yield seed, original, self.predictions[row]
