"""What a plan gives for what it costs: the Pareto front, and throughput measured fairly."""

import time
from collections.abc import Iterable, Mapping

import pandas as pd
import torch
from torch import Tensor

from toastlib.approximation.replace import approximate
from toastlib.errors import InputError
from toastlib.models.costs import count_flops, flops, parameter_count, without_values
from toastlib.models.encoder import Encoder
from toastlib.plan import ORIGINAL, Plan
from toastlib.statistics.moments import Moments
from toastlib.translators.base import Translator, make_translator


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


def removed_parameters(
    encoder: Encoder, plan: Plan, maps: str = "span", translator: str | Translator = "linear"
) -> int:
    """Parameters that a plan takes away from the original encoder.

    Parameters
    ----------
    encoder
        The original.
    plan
        Which blocks go.
    maps
        ``"span"`` counts one map for each span, as the method has it; ``"block"`` counts one for each removed block,
        as the paper's tables print (Tables 1, 8-13).
    translator
        Whose maps are counted: linear ones have ``width^2`` parameters, identity ones none.
    """
    if maps not in ("span", "block"):
        raise InputError(f"Maps are counted per 'span' or per 'block', not per {maps!r}.")
    blocks = sum(parameter_count(encoder.blocks[block]) for block in plan.removed)
    count = len(plan) if maps == "span" else len(plan.removed)
    return blocks - count * parameter_count(_blank_map(translator, encoder.width))


def plan_costs(encoder: Encoder, plans: Iterable[Plan], translators: Iterable[str], inputs: Tensor) -> pd.DataFrame:
    """Parameters and FLOPs of every plan and translator, from one counted forward pass.

    Parameters
    ----------
    encoder
        The original.
    plans, translators
        Each pair is a row; the empty plan gives one row with translator ``"original"``.
    inputs
        One input, shape (1, 3, height, width): its size decides the FLOPs.

    Returns
    -------
    DataFrame
        Columns ``translator``, ``plan``, ``blocks_removed``, ``parameters``, ``removed_parameters`` (one map per span),
        ``removed_parameters_paper`` (one map per removed block), ``gflops`` per image.
    """
    total, parameters = flops(encoder, inputs), parameter_count(encoder)
    blank = without_values(encoder)
    start = blank.embed(inputs.to("meta"))
    per_block = [count_flops(blank.run_block, k, start.hidden, start) for k in range(len(blank.blocks))]
    tokens = start.hidden.shape[:-1].numel()
    rows = []
    for plan in plans:
        for translator in translators if plan else [ORIGINAL]:
            kind = translator if plan else "identity"
            removed = removed_parameters(encoder, plan, "span", kind)
            map_flops = len(plan) * map_costs(kind, encoder.width, tokens)[1]
            plan_flops = total - sum(per_block[block] for block in plan.removed) + map_flops
            rows.append(
                {
                    "translator": translator,
                    "plan": str(plan),
                    "blocks_removed": len(plan.removed),
                    "parameters": parameters - removed,
                    "removed_parameters": removed,
                    "removed_parameters_paper": removed_parameters(encoder, plan, "block", kind),
                    "gflops": plan_flops / 1e9,
                }
            )
    return pd.DataFrame(rows)


def map_costs(translator: str | Translator, width: int, tokens: int) -> tuple[int, int]:
    """Parameters of one map, and its FLOPs for one image of so many tokens."""
    blank = _blank_map(translator, width)
    return parameter_count(blank), count_flops(blank, torch.empty(1, tokens, width, device="meta"))


def _blank_map(translator: str | Translator, width: int) -> torch.nn.Module:
    """The map without values: nothing is allocated, and nothing drawn."""
    kind = make_translator(translator)
    with torch.device("meta"):
        return kind.architecture(width)
