"""The number of calibration images that a map needs: accuracy over sizes and draws of the calibration set."""

from collections.abc import Iterable
from itertools import accumulate, pairwise

import numpy as np
import pandas as pd

from toastlib.approximation.replace import fit_spans
from toastlib.data.images import Images, ImageSet
from toastlib.errors import InputError, need_encoder, whole_number
from toastlib.evaluation.evaluate import evaluate_plans, require_labels
from toastlib.evaluation.probe import HeadConfig
from toastlib.models.batch import BatchSize
from toastlib.models.encoder import Encoder
from toastlib.plan import ORIGINAL, Plan, parse_plans
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import Moments, Pair, plan_pairs
from toastlib.translators.least_squares import Sums, share
from toastlib.translators.linear import Identity

SIZES = (16, 32, 64, 128, 256, 512, 1024)


def sample_size_curve(
    encoder: Encoder,
    data: ImageSet,
    plans: str | Plan | Iterable[str | Plan],
    *,
    sizes: Iterable[int] = SIZES,
    draws: Iterable[int] = range(5),
    head: HeadConfig | None = None,
    batch_size: BatchSize = "auto",
) -> pd.DataFrame:
    """Measure accuracy against the number of calibration images, with several draws of each size (paper, Figure 5).

    Parameters
    ----------
    encoder, data, plans
        The original encoder, a set with labels, and plans: each gets a curve, with the paper's linear map.
    sizes
        Numbers of calibration images; a size beyond the training images becomes all of them.
    draws
        Seeds of the calibration sets. The sets of one draw are nested: each larger one holds the smaller ones.
    head, batch_size
        As for `evaluate_plans`.

    Returns
    -------
    DataFrame
        `Evaluation.table` with ``calibration_size`` and ``calibration_seed`` in place of ``calibration``; ``rank`` of
        the map's input (the smallest of the plan's spans); ``residual`` and ``residual_test``, the share of
        ``|H[e]|^2`` that maps leave on calibration and on test images, mean over the plan's spans. The original and
        the identity need no calibration: size, draw and rank are 0, and ``residual`` is missing.

    Raises
    ------
    InputError
        If there is no plan or one does not fit, there is no draw, a size is not positive, or there are no labels.
    """
    need_encoder(encoder)
    require_labels(data)
    plans, draws = [plan.check(len(encoder.blocks)) for plan in parse_plans(plans) if plan], list(draws)
    if not draws:
        raise InputError("A curve needs a draw of calibration images, such as draws=[0].")
    if not plans:
        raise InputError("A curve needs a plan that removes blocks, such as '1->3'.")
    sizes, pairs = cap_sizes(sizes, len(data.train)), plan_pairs(plans)
    drawn = {}  # name of a calibration set -> its size, its seed and its moments
    for seed in draws:
        nested = nested_moments(encoder, data.train, sizes, seed, pairs, batch_size=batch_size)
        drawn |= {f"{size} images, draw {seed}": (size, seed, moments) for size, moments in nested.items()}
    calibration = {name: moments for name, (_, _, moments) in drawn.items()}
    table = evaluate_plans(encoder, data, plans, calibration=calibration, head=head, batch_size=batch_size).table
    test = collect_moments(encoder, data.test, pairs, folds=0, batch_size=batch_size)
    added = {(ORIGINAL, ""): (0, 0, 0, np.nan, np.nan)}  # (plan, calibration set) -> the new columns
    for plan in plans:
        dropped = [Identity().fit_moments(test, span).residual_ for span in plan]
        added[str(plan), ""] = (0, 0, 0, np.nan, np.mean(dropped))
        for name, (size, seed, moments) in drawn.items():
            added[str(plan), name] = (size, seed, *_fit_quality(plan, moments, test))
    columns = ["calibration_size", "calibration_seed", "rank", "residual", "residual_test"]
    rows = [added[key] for key in zip(table["plan"], table["calibration"])]
    names, measured = table.loc[:, :"plan"].drop(columns="calibration"), pd.DataFrame(rows, columns=columns)
    return pd.concat([names, measured, table.loc[:, "seed":]], axis=1)


def cap_sizes(sizes: Iterable[int], available: int) -> list[int]:
    """The sizes in order, those beyond the available images replaced by all of them, without repetitions."""
    sizes = list(sizes)
    if not sizes:
        raise InputError("Calibration sizes are numbers of images from 1 on, such as [16, 64, 256].")
    for size in sizes:
        whole_number("A calibration size", size, least=1)
    return sorted({min(size, available) for size in sizes})


def nested_moments(
    encoder: Encoder,
    images: Images,
    sizes: Iterable[int],
    seed: int,
    pairs: Iterable[Pair],
    *,
    batch_size: BatchSize = "auto",
) -> dict[int, Moments]:
    """Moments of calibration sets ``images.sample(size, seed)`` in one pass: each holds the smaller ones."""
    sizes, pairs = sorted(set(sizes)), list(pairs)
    drawn = images.sample(sizes[-1], seed)
    steps = [drawn[start:stop] for start, stop in pairwise([0, *sizes])]
    parts = (collect_moments(encoder, step, pairs, folds=0, batch_size=batch_size) for step in steps)
    return dict(zip(sizes, accumulate(parts, Moments.merge), strict=True))


def _fit_quality(plan: Plan, moments: Moments, test: Moments) -> tuple[int, float, float]:
    """Rank, residual on the calibration images and residual on the test images of a plan's linear maps."""
    fitted = fit_spans(plan, "linear", moments)
    fits, sums = list(fitted.values()), [Sums.of_span(test, span) for span in fitted]
    on_test = [share(own.error(fit.weight_), own.square) for fit, own in zip(fits, sums, strict=True)]
    return min(fit.rank_ for fit in fits), np.mean([fit.residual_ for fit in fits]), np.mean(on_test)


def variance_split(curve: pd.DataFrame) -> pd.DataFrame:
    """How much of the accuracy's variance comes from the calibration draw, and how much from the head's seed.

    For each plan and size, accuracy is a mean plus an effect of the draw, one of the head's seed and a remainder; the
    mean squares of that two-way layout give unbiased estimates of the three variances, set to zero where they are
    negative. Searle, Casella and McCulloch, "Variance Components" (1992), chapter 4.

    Parameters
    ----------
    curve
        From `sample_size_curve`.

    Returns
    -------
    DataFrame
        Columns ``plan``, ``calibration_size``; ``draws``, ``head_seeds``, ``remainder``: standard deviations in points;
        ``draw_share``: percent of the summed variance that the draws bring. NaN with a single draw or seed.
    """
    maps = _maps_of(curve)
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
    curve, within
        From `sample_size_curve`; points of mean accuracy, over draws and seeds, that count as nothing.

    Returns
    -------
    DataFrame
        Columns ``plan``, ``calibration_size``.
    """
    maps = _maps_of(curve)
    means = maps.pivot_table(index="calibration_size", columns="plan", values="accuracy", sort=False).sort_index()
    best_beyond = means[::-1].cummax()[::-1]
    enough = (best_beyond - means <= within).idxmax()
    return enough.rename("calibration_size").rename_axis("plan").reset_index()


def _maps_of(curve: pd.DataFrame) -> pd.DataFrame:
    """The rows with a map; an `InputError` unless it is a curve."""
    if "calibration_size" not in getattr(curve, "columns", ()):
        raise InputError("A curve is the result of sample_size_curve, with a column calibration_size.")
    return curve[curve["calibration_size"] > 0]


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
