"""How many calibration images a map needs: accuracy over sizes and draws of the calibration set."""

from collections.abc import Iterable
from itertools import accumulate, pairwise, product
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from toastlib.approximation.engine import Variant, collect_features
from toastlib.approximation.replace import fit_spans
from toastlib.data.images import Images, ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.metrics import Predictions, accuracy_table
from toastlib.evaluation.probe import Probe
from toastlib.models.encoder import Encoder
from toastlib.plan import ORIGINAL, Plan, Span, parse_plans
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import Moments, Pair, plan_pairs
from toastlib.translators.base import Identity, Linear

SIZES = (16, 32, 64, 128, 256, 512, 1024)
Fits = dict[Span, Linear]


class Draw(NamedTuple):
    """One calibration set: its number of images, and the seed that it was drawn with."""

    size: int
    seed: int

    @property
    def name(self) -> str:
        """What tells the maps of one draw from those of another in a sweep."""
        return f"linear, {self.size} images, draw {self.seed}"


def sample_size_curve(
    encoder: Encoder,
    dataset: ImageSet,
    plans: str | Plan | Iterable[str | Plan],
    sizes: Iterable[int] = SIZES,
    draws: Iterable[int] = range(5),
    seeds: Iterable[int] = range(3),
    head_lr: float = 1e-3,
    head_min_steps: int = 0,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Accuracy against the number of calibration images, several draws of each (paper, Figure 5 of the newer text).

    The heads are trained once, on the original's features, and frozen: what varies is the map alone. The maps of all
    sizes and draws go through one walk over the test images, in which they share the blocks before their span.

    Parameters
    ----------
    encoder, dataset
        The original encoder, and images with labels.
    plans
        Each gets a curve.
    sizes
        Numbers of calibration images; those beyond the training split become all of it.
    draws
        Seeds of the calibration sets. The sets of one draw are nested: the larger hold the smaller.
    seeds
        Of the heads.
    head_lr, head_min_steps, batch_size
        As for `predict`.

    Returns
    -------
    DataFrame
        One row per plan, size, draw and head seed: names of model, features and data set, ``head``, ``translator``,
        ``plan``, ``calibration_size``, ``calibration_seed``, ``rank`` of the map's input (the smallest of the plan's
        spans), ``residual`` on the calibration images and ``residual_test`` on the test images (the share of
        ``|H[e]|^2`` that the map leaves, mean over the spans), ``seed`` and the columns of
        `accuracy_table`. The original and the identity need no calibration: one row per seed with
        size 0, draw 0 and rank 0, and no ``residual``.

    Raises
    ------
    InputError
        If a plan does not fit, a size is not positive, or the data set has no labels.
    """
    if dataset.train.labels is None or dataset.test.labels is None:
        raise InputError(f"{dataset.name} has no labels: accuracies need them.")
    plans = [plan.check(len(encoder.blocks)) for plan in parse_plans(plans) if plan]
    sizes, seeds = cap_sizes(sizes, len(dataset.train)), list(seeds)
    fits = fit_draws(encoder, dataset.train, plans, sizes, draws, batch_size)
    without = [Variant(Plan(), ORIGINAL)] + [Variant(plan, Identity.name) for plan in plans]
    variants = without + [Variant(plan, draw.name) for plan in plans for draw in fits]
    test = collect_features(encoder, dataset.test, variants, _modules(encoder, plans, fits), batch_size)
    train = collect_features(encoder, dataset.train, variants[:1], {}, batch_size)
    probe = Probe(len(dataset.class_names), seeds, learning_rate=head_lr, min_steps=head_min_steps)
    predicted = probe.fit(train, dataset.train.labels).predict(test)
    test_moments = collect_moments(encoder, dataset.test, plan_pairs(plans), batch_size=batch_size)
    described = _describe(plans, fits, test_moments)
    names = {"model": encoder.name, "features": encoder.feature_kind, "dataset": dataset.name, "head": "frozen"}
    return _tabulate(described.assign(**names)[[*names, *described]], seeds, predicted, dataset.test.labels)


def cap_sizes(sizes: Iterable[int], available: int) -> list[int]:
    """The sizes in order, those beyond the available images replaced by all of them, without repetitions.

    Raises
    ------
    InputError
        If there is no size, or one is not positive.
    """
    capped = sorted({min(size, available) for size in sizes})
    if not capped or capped[0] < 1:
        raise InputError("Calibration sizes are numbers of images from 1 on, such as [16, 64, 256].")
    return capped


def nested_moments(
    encoder: Encoder, images: Images, sizes: Iterable[int], seed: int, pairs: Iterable[Pair], batch_size: int = 32
) -> dict[int, Moments]:
    """Moments of growing calibration sets in one pass: each set is the smaller one and some images more.

    Parameters
    ----------
    encoder, images
        The original, and the images to draw from.
    sizes
        Numbers of images.
    seed
        Of the draw: the set of n images is ``images.sample(n, seed)``.
    pairs, batch_size
        As for `collect_moments`.

    Returns
    -------
    dict
        Size -> moments.
    """
    sizes, pairs = sorted(set(sizes)), list(pairs)
    drawn = images.sample(sizes[-1], seed)
    steps = [drawn[start:stop] for start, stop in pairwise([0, *sizes])]
    parts = (collect_moments(encoder, step, pairs, batch_size=batch_size) for step in steps)
    return dict(zip(sizes, accumulate(parts, Moments.merge), strict=True))


def fit_draws(
    encoder: Encoder, images: Images, plans: list[Plan], sizes: list[int], draws: Iterable[int], batch_size: int = 32
) -> dict[Draw, Fits]:
    """The linear maps of every span of the plans, for every size and draw; each image is seen once per draw."""
    pairs, spans = plan_pairs(plans), {span for plan in plans for span in plan}
    return {
        Draw(size, seed): fit_spans(sorted(spans), Linear.name, moments)
        for seed in draws
        for size, moments in nested_moments(encoder, images, sizes, seed, pairs, batch_size).items()
    }


def residual(weight: Tensor, moments: Moments, span: Span) -> float:
    """``|H[e] - H[s] W|^2 / |H[e]|^2`` on the rows of any moments, for example of images that W has not seen.

    Parameters
    ----------
    weight
        W, float64, shape (width, width).
    moments
        Holding the span's pairs.
    span
        ``s->e``.
    """
    gram, cross = moments.product(span.start, span.start), moments.product(span.start, span.end)
    last = moments.blocks.index(span.end)
    total = moments.inner[last, last]
    return ((total - 2 * (weight * cross).sum() + (weight * (gram @ weight)).sum()) / total).item()


def variance_split(curve: pd.DataFrame) -> pd.DataFrame:
    """How much of the accuracy's variance comes from the calibration draw, and how much from the head's seed.

    For each plan and size, accuracy is a mean plus an effect of the draw, one of the head's seed and a remainder; the
    mean squares of that two-way layout give unbiased estimates of the three variances. Estimates below zero are set
    to zero. Searle, Casella and McCulloch, "Variance Components" (1992), chapter 4.

    Parameters
    ----------
    curve
        From `sample_size_curve`.

    Returns
    -------
    DataFrame
        Columns ``plan``, ``calibration_size``; ``draws``, ``head_seeds``, ``remainder``: standard deviations in points;
        ``draw_share``: percent of the summed variance that the draws bring. NaN with a single draw or seed, the share
        also where nothing varies.
    """
    maps = curve[curve["calibration_size"] > 0]
    rows = [
        (*key, *_components(part.pivot(index="calibration_seed", columns="seed", values="accuracy").to_numpy()))
        for key, part in maps.groupby(["plan", "calibration_size"], sort=False)
    ]
    split = pd.DataFrame(rows, columns=["plan", "calibration_size", "draws", "head_seeds", "remainder"])
    variances = split[["draws", "head_seeds", "remainder"]] ** 2
    total = variances.sum(axis=1, skipna=False)
    return split.assign(draw_share=100 * variances["draws"] / total.where(total > 0))


def saturation(curve: pd.DataFrame, within: float = 0.5) -> pd.DataFrame:
    """The smallest size from which on no larger one brings more than `within` points of mean accuracy.

    Parameters
    ----------
    curve
        From `sample_size_curve`.
    within
        Points of mean accuracy, over draws and seeds, that count as nothing.

    Returns
    -------
    DataFrame
        Columns ``plan``, ``calibration_size``.
    """
    maps = curve[curve["calibration_size"] > 0]
    means = maps.pivot_table(index="calibration_size", columns="plan", values="accuracy", sort=False).sort_index()
    best_beyond = means[::-1].cummax()[::-1]
    enough = (best_beyond - means <= within).idxmax()
    return enough.rename("calibration_size").rename_axis("plan").reset_index()


def _modules(encoder: Encoder, plans: list[Plan], fits: dict[Draw, Fits]) -> dict:
    spans = {span for plan in plans for span in plan}
    dropped = {(span, Identity.name): Identity().module() for span in spans}
    mapped = {
        (span, draw.name): fit.module().to(encoder.device, encoder.dtype)
        for draw, fitted in fits.items()
        for span, fit in fitted.items()
    }
    return dropped | mapped


def _describe(plans: list[Plan], fits: dict[Draw, Fits], test: Moments) -> pd.DataFrame:
    """One row per variant, in the order of the sweep."""
    rows = [(ORIGINAL, ORIGINAL, 0, 0, 0, np.nan, np.nan)]
    for plan in plans:
        left = np.mean([Identity().fit(test, span).residual_ for span in plan])
        rows.append((Identity.name, str(plan), 0, 0, 0, np.nan, left))
    for plan, (draw, fitted) in product(plans, fits.items()):
        rank = min(fitted[span].rank_ for span in plan)
        left = np.mean([fitted[span].residual_ for span in plan])
        left_test = np.mean([residual(fitted[span].weight_, test, span) for span in plan])
        rows.append((Linear.name, str(plan), *draw, rank, left, left_test))
    columns = ["calibration_size", "calibration_seed", "rank", "residual", "residual_test"]
    return pd.DataFrame(rows, columns=["translator", "plan", *columns])


def _tabulate(described: pd.DataFrame, seeds: list[int], predicted: Tensor, labels: Tensor) -> pd.DataFrame:
    variants = described.loc[described.index.repeat(len(seeds))].reset_index(drop=True)
    variants["seed"] = seeds * len(described)
    return accuracy_table(Predictions(variants, predicted.flatten(0, 1).cpu().numpy(), labels.cpu().numpy()))


def _components(accuracy: np.ndarray) -> tuple[float, float, float]:
    """Standard deviations of draws, seeds and remainder, from accuracies of shape (draws, seeds)."""
    draws, seeds = accuracy.shape
    freedom = (draws - 1) * (seeds - 1)
    if not freedom:
        return (np.nan,) * 3
    of_draw, of_seed = accuracy.mean(1, keepdims=True), accuracy.mean(0, keepdims=True)
    remainder = ((accuracy - of_draw - of_seed + accuracy.mean()) ** 2).sum() / freedom
    draw_variance = of_draw.var(ddof=1) - remainder / seeds
    seed_variance = of_seed.var(ddof=1) - remainder / draws
    return tuple(float(max(value, 0) ** 0.5) for value in (draw_variance, seed_variance, remainder))
