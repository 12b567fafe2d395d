"""Costs of plans: parameters, FLOPs and throughput; and the plans that no other beats (paper, Figure 12)."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from toastlib.approximation.prepare import Source, Sources, fitted_maps, name_translators
from toastlib.approximation.replace import approximate
from toastlib.errors import InputError, unknown, whole_number
from toastlib.models.costs import count_flops, flops, parameter_count, without_values
from toastlib.models.encoder import Encoder
from toastlib.plan import ORIGINAL, Plan
from toastlib.translators.base import make_translator


def pareto_front(frame: pd.DataFrame, cost: str, value: str) -> pd.Series:
    """Mark the rows that no other row beats, by costing no more and giving no less, one of the two strictly.

    Equal rows are on the front together or not at all. Rows with a missing cost or value are not on it.

    Parameters
    ----------
    frame, cost, value
        One row per choice, and the names of its columns: less cost is better, more value is better.

    Returns
    -------
    Series
        bool, with the frame's index.

    Raises
    ------
    InputError
        If it has no such column.
    """
    for column in (cost, value):
        if column not in getattr(frame, "columns", ()):
            raise unknown("column", column, getattr(frame, "columns", ()))
    best = frame.dropna(subset=[cost, value]).groupby(cost)[value].max()  # for each cost, cheapest first
    cheaper = best.astype(float).cummax().shift(fill_value=-float("inf"))
    return frame[value].eq(frame[cost].map(best)) & frame[value].gt(frame[cost].map(cheaper))


@torch.inference_mode()
def relative_throughput(encoders: Mapping[Any, Callable], inputs: Any, repeats: int = 9) -> pd.DataFrame:
    """Measure images per second of several encoders, and as a multiple of the first one's in the same round.

    A round runs every encoder once, every other round in reverse: a machine that slows down changes both sides of a
    ratio alike. One round that is not counted comes first.

    Parameters
    ----------
    encoders
        Name -> encoder, or another function of `inputs`; the first is what the others are compared with.
    inputs, repeats
        Pixel values, shape (batch, 3, height, width), and the number of rounds that are counted.

    Returns
    -------
    DataFrame
        One row per encoder and round: ``encoder``, ``repeat``, ``images_per_second``, ``relative`` (1 for the first).

    Raises
    ------
    InputError
        If there is no encoder or no round.
    """
    if not encoders:
        raise InputError("There is no encoder to measure.")
    whole_number("repeats", repeats, least=1)
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
    calibration: Any,
    *,
    translators: Sources,
    inputs: Tensor,
    repeats: int = 9,
) -> pd.DataFrame:
    """Measure the throughput of every plan and translator, each plan in rounds of its own with the original.

    Only the encoders of one plan exist at a time.

    Parameters
    ----------
    encoder, plans, calibration, translators
        As for `approximate`; each plan is timed with each translator.
    inputs, repeats
        As for `relative_throughput`: shape (batch, 3, height, width), and the number of rounds.

    Returns
    -------
    DataFrame
        Columns ``translator``, ``plan``, ``repeat``, ``images_per_second``, ``relative``; each plan has the original's.
    """
    translators, frames = name_translators(translators), []
    for plan in plans:
        smaller = {name: approximate(encoder, plan, calibration, translator=one) for name, one in translators.items()}
        timed = relative_throughput({ORIGINAL: encoder} | smaller, inputs, repeats)
        timed.insert(1, "plan", str(plan))
        frames.append(timed)
    return pd.concat(frames, ignore_index=True).rename(columns={"encoder": "translator"})


def _seconds(encoder: Encoder, inputs: Any) -> float:
    start = time.perf_counter()
    encoder(inputs)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def plan_costs(encoder: Encoder, plans: Iterable[Plan], translators: Sources, *, inputs: Tensor) -> pd.DataFrame:
    """Count parameters and FLOPs of every plan and translator, from one forward pass without weights.

    Parameters
    ----------
    encoder, plans, translators
        The original; each plan with each translator is a row, the empty plan one row with translator ``"original"``. An
        `InputError` if a translator is unknown, or fitted maps have none for a span.
    inputs
        One input, shape (1, 3, height, width): its size decides the FLOPs.

    Returns
    -------
    DataFrame
        Columns ``translator``, ``plan``, ``blocks_removed``, ``parameters``, ``removed_parameters`` (one map per span),
        ``removed_parameters_paper`` (one map per removed block, as in Tables 1 and 8-13), ``gflops`` per image.
    """
    plans, total, parameters = list(plans), flops(encoder, inputs), parameter_count(encoder)
    blank = without_values(encoder)
    start = blank.embed(inputs.to("meta"))
    block_flops = [count_flops(blank.run_block, k, start.hidden, start) for k in range(len(blank.blocks))]
    uses = Counter(parameter for block in encoder.blocks for parameter in set(block.parameters()))
    size = {"width": encoder.width, "tokens": start.hidden.shape[:-1].numel(), "special_tokens": encoder.special_tokens}
    size["is_causal"] = encoder.is_causal
    spans = {span for plan in plans for span in plan}
    maps, rows = {}, []
    for name, source in name_translators(translators).items():
        if isinstance(source, Mapping):
            maps[name] = {span: map_costs(one, **size) for span, one in fitted_maps(name, source, spans).items()}
        else:
            maps[name] = dict.fromkeys(spans, map_costs(source, **size))
    for plan in plans:
        for translator in maps if plan else [ORIGINAL]:
            own = {span: maps[translator][span] for span in plan}  # parameters and FLOPs of each map
            gone = Counter(p for block in plan.removed for p in set(encoder.blocks[block].parameters()))
            removed = sum(p.numel() for p, times in gone.items() if times == uses[p])  # blocks may share weights
            saved = removed - sum(count for count, _ in own.values())
            saved_flops = sum(block_flops[block] for block in plan.removed) - sum(work for _, work in own.values())
            rows.append(
                {
                    "translator": translator,
                    "plan": str(plan),
                    "blocks_removed": len(plan.removed),
                    "parameters": parameters - saved,
                    "removed_parameters": saved,
                    "removed_parameters_paper": removed - sum(len(span.blocks) * own[span][0] for span in plan),
                    "gflops": (total - saved_flops) / 1e9,
                }
            )
    return pd.DataFrame(rows)


def map_costs(
    translator: Source | nn.Module, width: int, tokens: int, *, special_tokens: int = 1, is_causal: bool = False
) -> tuple[int, int]:
    """Count the parameters of one map, and its FLOPs for one image.

    Parameters
    ----------
    translator
        A name, a translator, a map, or span -> map, all of which are counted.
    width, tokens, special_tokens, is_causal
        The encoder's width, tokens of one image, how many of them stand before the patches; whether it is a decoder.

    Returns
    -------
    tuple
        Parameters and FLOPs.
    """
    if isinstance(translator, Mapping):
        kind = {"special_tokens": special_tokens, "is_causal": is_causal}
        each = [map_costs(one, width, tokens, **kind) for one in translator.values()]
        return sum(parameters for parameters, _ in each), sum(work for _, work in each)
    if isinstance(translator, nn.Module):
        blank = without_values(translator)
    else:
        with torch.device("meta"):  # nothing is allocated, and nothing drawn
            translator = make_translator(translator)
            apart = {"special_tokens": special_tokens} if translator.tells_tokens_apart else {}
            apart |= {"is_causal": is_causal} if translator.needs_context else {}
            apart |= {"tokens": tokens} if translator.needs_positions else {}
            blank = translator.build(width, **apart).to("meta")
    return parameter_count(blank), count_flops(blank, torch.empty(1, tokens, width, device="meta"))
