"""What a plan gives for what it costs: the Pareto front, and throughput measured fairly."""

import time
from collections.abc import Iterable, Mapping

import pandas as pd
import torch
from torch import Tensor

from toastlib.approximation.replace import approximate
from toastlib.models.encoder import Encoder
from toastlib.plan import ORIGINAL, Plan
from toastlib.statistics.moments import Moments


def pareto_front(frame: pd.DataFrame, cost: str, value: str) -> pd.Series:
    """Which rows no other row beats: none costs at most as much and gives at least as much, one of them strictly.

    Equal rows are on the front together or not at all. Rows with a missing cost or value are not on it.

    Parameters
    ----------
    frame
        One row per choice.
    cost, value
        Columns: less is better, more is better.

    Returns
    -------
    Series
        bool, with the frame's index.
    """
    best = frame.dropna(subset=[cost, value]).groupby(cost)[value].max()  # for each cost, cheapest first
    cheaper = best.astype(float).cummax().shift(fill_value=-float("inf"))
    return frame[value].eq(frame[cost].map(best)) & frame[value].gt(frame[cost].map(cheaper))


@torch.inference_mode()
def relative_throughput(encoders: Mapping[str, Encoder], inputs: Tensor, repeats: int = 9) -> pd.DataFrame:
    """Images per second of several encoders, and as a multiple of the first one's in the same round.

    One round runs every encoder once, every other round in reverse; a machine that slows down or speeds up between
    rounds changes both sides of a ratio alike. One round that is not counted comes first.

    Parameters
    ----------
    encoders
        Name -> encoder; the first is what the others are compared with.
    inputs
        Pixel values, shape (batch, 3, height, width).
    repeats
        Rounds that are counted.

    Returns
    -------
    DataFrame
        One row per encoder and round: ``encoder``, ``repeat``, ``images_per_second``, ``relative`` (1 for the first
        encoder; 1.5 is half as fast again).
    """
    names, rows = list(encoders), []
    for repeat in range(-1, repeats):
        order = names if repeat % 2 else names[::-1]
        seconds = {name: _seconds(encoders[name], inputs) for name in order}
        first = seconds[names[0]]
        rows += [(name, repeat, len(inputs) / seconds[name], first / seconds[name]) for name in names]
    frame = pd.DataFrame(rows, columns=["encoder", "repeat", "images_per_second", "relative"])
    return frame[frame["repeat"] >= 0].reset_index(drop=True)


def time_plans(
    encoder: Encoder,
    plans: Iterable[Plan],
    translators: Iterable[str],
    moments: Moments,
    inputs: Tensor,
    repeats: int = 9,
) -> pd.DataFrame:
    """Throughput of every plan and translator, each plan in rounds of its own with the original.

    Only the encoders of one plan exist at a time.

    Parameters
    ----------
    encoder
        The original.
    plans, translators
        Each pair is timed.
    moments
        As for `approximate`.
    inputs, repeats
        As for `relative_throughput`: pixel values of shape (batch, 3, height, width), and rounds that are counted.

    Returns
    -------
    DataFrame
        Columns ``translator``, ``plan``, ``repeat``, ``images_per_second``, ``relative``; the original's rows, as the
        translator ``"original"``, stand with each plan.
    """
    translators = list(translators)
    frames = []
    for plan in plans:
        encoders = {ORIGINAL: encoder} | {name: approximate(encoder, plan, name, moments) for name in translators}
        timed = relative_throughput(encoders, inputs, repeats).rename(columns={"encoder": "translator"})
        timed.insert(1, "plan", str(plan))
        frames.append(timed)
    return pd.concat(frames, ignore_index=True)


def _seconds(encoder: Encoder, inputs: Tensor) -> float:
    start = time.perf_counter()
    encoder(inputs)
    if inputs.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
