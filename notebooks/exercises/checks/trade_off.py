"""Checks of the exercises on ``08_trade_off``."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from toastlib.evaluation.costs import pareto_front

from .verdicts import ROUNDED, steps, verdict


def front(answer: set[str]) -> str:
    """Exercise 1: which of seven plans are on the front."""
    right, beaten_by = {"B", "E", "G"}, {"A": "B", "C": "B", "D": "E", "F": "G"}
    mistakes = {
        "The letters go from A to G.": lambda plans: not set(plans) <= set("ABCDEFG"),
        **{f"{b} beats {a}, no dearer and no worse.": lambda plans, a=a: a in plans for a, b in beaten_by.items()},
        **{f"Nobody beats {e}: it belongs to the front.": lambda plans, e=e: e not in plans for e in sorted(right)},
    }
    return verdict(answer, right, mistakes, "From the cheapest up, each is better than all before.")


def pareto(answer: np.ndarray, cost: np.ndarray, value: np.ndarray) -> str:
    """Exercise 2: the front of any choices."""
    right = pareto_front(pd.DataFrame({"cost": cost, "value": value}), "cost", "value").to_numpy()
    cheaper, no_dearer = cost[:, None] < cost, cost[:, None] <= cost
    better, no_worse = value[:, None] > value, value[:, None] >= value
    both = _unbeaten(cheaper & better)
    dearest = _unbeaten(~cheaper & no_worse & (~no_dearer | better))
    itself = _unbeaten(no_dearer & no_worse)
    mistakes = {
        "To beat is not to be strictly better in both: better in one and equal in the other suffices.": both,
        "Every choice beats itself, no dearer and no worse: one of the two has to be strict.": itself,
        "Of two with the same value the dearer one stays on your front.": _unbeaten(no_dearer & better),
        "Of two with the same cost the worse one stays on your front.": _unbeaten(cheaper & no_worse),
        "That is the front of the dearest: less cost is better.": dearest,
        "It is the wrong way round: these are the choices that are beaten.": ~right,
    }
    return verdict(answer, right, mistakes, "`toast.pareto_front` agrees, ties and all.")


def operations(answer: Mapping[str, float]) -> str:
    """Exercise 3: operations of a map and of a block."""
    tokens, width = 65, 96
    a_map = 2 * tokens * width**2
    block = 12 * a_map + 4 * tokens**2 * width
    right = {"of a map": a_map, "of a block": block, "maps per block": block / a_map}
    mistakes = (
        {
            "a multiply-add counts two.": a_map / 2,
            "the CLS token goes through the map as well.": 2 * 64 * width**2,
            "every token goes through the map, not one.": 2 * width**2,
        },
        {
            "attention is missing, 4 T^2 d.": 12 * a_map,
            "the matrices are counted in multiply-adds; each is two operations.": 6 * a_map + 4 * tokens**2 * width,
        },
        {
            "that is the inverse: how much of a block is a map.": a_map / block,
            "that is the ratio of the parameters; attention computes something without any.": 12,
        },
    )
    praise = "The longer the input, the cheaper a map beside a block: 12 + 2 T / d."
    return steps(answer, right, mistakes, praise, ROUNDED)


def speed_up(answer: float, original: np.ndarray, smaller: np.ndarray) -> str:
    """Exercise 4: the median of the ratios within rounds."""
    ratio = original / smaller
    of_medians = np.median(original) / np.median(smaller)
    of_fastest = original.min() / smaller.min()
    mistakes = {
        "That is the ratio of the means: a few slow rounds decide it.": original.mean() / smaller.mean(),
        "That is the inverse: seconds of the original over seconds of the smaller one.": np.median(1 / ratio),
        "That is the mean of the ratios: the one round that went wrong pulls it.": ratio.mean(),
        "The two medians are not of the same round: take the ratios first.": of_medians,
        "Those are seconds saved; a speed-up is a ratio.": np.median(original - smaller),
        "Those are the fastest rounds of each, which met different moods of the machine.": of_fastest,
    }
    return verdict(answer, np.median(ratio), mistakes, "The machine's moods cancel in each round.", 1e-6)


def _unbeaten(beats: np.ndarray) -> np.ndarray:
    """Who is beaten by none, where ``beats[i, j]`` says that i beats j."""
    return ~beats.any(axis=0)
