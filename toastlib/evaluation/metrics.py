"""What a plan costs and saves: accuracy with its interval, parameters, FLOPs and throughput."""

import copy
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.plan import ORIGINAL, Plan
from toastlib.translators.base import Translator, make_translator

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Predictions:
    """What every variant of a sweep predicts for the same test images.

    Parameters
    ----------
    variants
        One row per variant: ``head``, ``translator``, ``plan``, ``seed``.
    predicted
        int64, shape (variants, images).
    labels
        int64, shape (images,).
    """

    variants: pd.DataFrame
    predicted: np.ndarray
    labels: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """bool, shape (variants, images)."""
        return self.predicted == self.labels

    def mean_correct(self, **which: str) -> np.ndarray:
        """Share of seeds that classify each image rightly, shape (images,), for one head, translator and plan.

        Raises
        ------
        InputError
            If no variant is of that kind.
        """
        chosen = np.logical_and.reduce([self.variants[column] == value for column, value in which.items()])
        if not chosen.any():
            raise InputError(f"No variant has {', '.join(f'{k}={v!r}' for k, v in which.items())}.")
        return self.correct[chosen].mean(0)


def accuracy_table(predictions: Predictions) -> pd.DataFrame:
    """One row per variant with its accuracy.

    Parameters
    ----------
    predictions
        From `predict`.

    Returns
    -------
    DataFrame
        The variants' columns, then ``correct``, ``images``, ``accuracy`` in percent, and ``accuracy_low``,
        ``accuracy_high``: Wilson's 95 % interval (1927) over test images.
    """
    correct = predictions.correct.sum(1)
    images = len(predictions.labels)
    low, high = zip(*(accuracy_interval(int(c), images) for c in correct), strict=True)
    return predictions.variants.assign(
        correct=correct,
        images=images,
        accuracy=100 * correct / images,
        accuracy_low=[100 * value for value in low],
        accuracy_high=[100 * value for value in high],
    )


def accuracy_interval(correct: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, as two numbers in [0, 1]."""
    from scipy.stats import binomtest

    interval = binomtest(correct, images).proportion_ci(CONFIDENCE, method="wilson")
    return interval.low, interval.high


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Mean of ``first - second`` over the same test images, with the 95 % interval of Student (1908).

    Parameters
    ----------
    first, second
        Correctness of each image in [0, 1], shape (images,), from `Predictions.mean_correct`.

    Returns
    -------
    tuple
        Difference, lower and upper end, in percentage points: Student's interval of the paired differences.
    """
    from scipy.stats import ttest_1samp

    difference = 100 * (first - second)
    if np.ptp(difference) == 0:
        return (float(difference[0]),) * 3
    interval = ttest_1samp(difference, 0).confidence_interval(CONFIDENCE)
    return float(difference.mean()), float(interval.low), float(interval.high)


def accuracy_lost(predictions: Predictions) -> pd.DataFrame:
    """Percentage points that each plan loses against the original encoder, paired over test images.

    Parameters
    ----------
    predictions
        From `predict`, with the original among its variants.

    Returns
    -------
    DataFrame
        Columns ``head``, ``translator``, ``plan``, ``lost``, ``lost_low``, ``lost_high`` (95 % interval; negative
        values are gains).
    """
    rows = []
    kinds = predictions.variants[["head", "translator", "plan"]].drop_duplicates()
    for head, translator, plan in kinds[kinds["plan"] != ORIGINAL].itertuples(index=False):
        original = predictions.mean_correct(head=head, plan=ORIGINAL)
        approximated = predictions.mean_correct(head=head, translator=translator, plan=plan)
        lost, low, high = paired_difference(original, approximated)
        rows.append((head, translator, plan, lost, low, high))
    return pd.DataFrame(rows, columns=["head", "translator", "plan", "lost", "lost_low", "lost_high"])


def parameter_count(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


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
    blank = _blank(encoder)
    start = blank.start(inputs.to("meta"))
    per_block = [_count_flops(blank.run_block, k, start.hidden, start) for k in range(len(blank.blocks))]
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
    return parameter_count(blank), _count_flops(blank, torch.empty(1, tokens, width, device="meta"))


def flops(encoder: Encoder, inputs: Tensor) -> int:
    """Floating-point operations of one forward pass (a multiply-add counts two), by torch's own counter.

    They are counted without weights, on the meta device: torch does not see the products inside attention on a CPU.
    """
    return _count_flops(_blank(encoder).features, inputs.to("meta"))


@torch.inference_mode()
def throughput(encoder: Encoder, inputs: Tensor, repeats: int = 5) -> float:
    """Images per second: the median of `repeats` forward passes after one that is not counted.

    Parameters
    ----------
    encoder
        What is timed.
    inputs
        Pixel values on the encoder's device, shape (batch, 3, height, width).
    repeats
        Passes that are counted.

    Returns
    -------
    float
        Images per second.
    """
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        encoder(inputs)
        if inputs.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return len(inputs) / statistics.median(times[1:])


def _blank(encoder: Encoder) -> Encoder:
    """The encoder with shapes in place of values; the values are not copied on the way."""
    shapes = {id(p): torch.nn.Parameter(p.to("meta"), requires_grad=False) for p in encoder.parameters()}
    return copy.deepcopy(encoder, shapes | {id(buffer): buffer.to("meta") for buffer in encoder.buffers()})


def _blank_map(translator: str | Translator, width: int) -> torch.nn.Module:
    """The map without values: nothing is allocated, and nothing drawn."""
    kind = make_translator(translator)
    with torch.device("meta"):
        return kind.architecture(width)


@torch.no_grad()
def _count_flops(function, *args) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops()
