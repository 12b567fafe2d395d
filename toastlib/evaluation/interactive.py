"""What a plan would do, answered at once: block outputs of some test images are kept, and only what follows runs.

Three things are computed beforehand: ``h[k]`` of every block for a few hundred test images, what each block costs, and
heads on the original's features, which are then frozen. A plan's answer then takes its maps, which have a closed form,
and the blocks behind its first span.
"""

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from toastlib.approximation.engine import Variant, collect_features
from toastlib.approximation.replace import fit_spans
from toastlib.data.images import ImageSet
from toastlib.errors import InputError, unknown
from toastlib.evaluation.costs import map_costs, plan_costs
from toastlib.evaluation.metrics import paired_difference
from toastlib.evaluation.probe import Probe
from toastlib.models.encoder import BlockInput, Encoder
from toastlib.plan import ORIGINAL, Plan, Span
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.base import TRANSLATORS, make_translator, needs_folds

MEMORY = 2**30  # bytes for block outputs


@dataclass(frozen=True)
class Answer:
    """What one plan with one translator does.

    Parameters
    ----------
    plan, translator
        What was asked; the empty plan has the translator ``"original"``.
    accuracy
        Percent of the test images that are kept, averaged over the heads.
    lost
        Points that it loses against the original, with the ends of the 95 % interval, paired image by image.
    parameters, gflops
        Of the encoder, maps included; GFLOPs are per image.
    predicted
        int64, shape (images,): the classes that the first head predicts.
    seconds
        How long the answer took.
    """

    plan: Plan
    translator: str
    accuracy: float
    lost: tuple[float, float, float]
    parameters: int
    gflops: float
    predicted: np.ndarray
    seconds: float


class Playground:
    """Block outputs, heads and costs at hand, so that any plan and closed form is answered in a moment.

    Parameters
    ----------
    encoder, dataset
        The original, and images with labels.
    calibration
        What maps are fitted on: from `collect_moments` or `collect_folds`, with the pairs of all blocks. Translators
        that need folds are offered with the latter only; trained ones are never offered.
    images
        How many of the first test images take part; fewer where their block outputs would not fit into `memory`.
    seeds, head_lr, head_min_steps
        Of the heads, see `Probe`.
    batch_size
        Images per forward pass.
    memory
        Bytes that the block outputs may take, 1 GiB.

    Attributes
    ----------
    translators : list of str
        The names that can be asked for.
    images : Images
        The test images that take part.
    original : Answer
        For the encoder as it came.

    Raises
    ------
    InputError
        If the data set has no labels.
    """

    def __init__(
        self,
        encoder: Encoder,
        dataset: ImageSet,
        calibration: Moments | KFoldMoments,
        images: int = 200,
        seeds: list[int] | tuple[int, ...] = (0,),
        head_lr: float = 1e-3,
        head_min_steps: int = 0,
        batch_size: int = 32,
        memory: int = MEMORY,
    ) -> None:
        if dataset.train.labels is None or dataset.test.labels is None:
            raise InputError(f"{dataset.name} has no labels: there is no accuracy to show.")
        self.encoder, self.class_names, self.calibration = encoder, dataset.class_names, calibration
        self.translators = [name for name in TRANSLATORS if _suits(name, calibration)]
        self.images = dataset.test[: _how_many(encoder, dataset, images, memory)]
        train = collect_features(encoder, dataset.train, [Variant(Plan(), ORIGINAL)], {}, batch_size)
        self._probe = Probe(len(dataset.class_names), list(seeds), learning_rate=head_lr, min_steps=head_min_steps)
        self._probe.fit(train, dataset.train.labels)
        self._batches = [_run_blocks(encoder, inputs) for inputs, _ in self.images.batches(batch_size)]
        self._costs = _Costs.of(encoder, next(self.images[:1].batches(1))[0], self._batches[0].hidden[0].shape[1])
        self._maps: dict[tuple[Span, str], nn.Module] = {}
        self._answers: dict[tuple[Plan, str], Answer] = {}
        self._right = (self._predict(Plan(), ORIGINAL) == self.labels).mean(0)  # share of the heads, (images,)
        self.original = self.answer("", ORIGINAL)

    def answer(self, plan: str | Plan, translator: str = "linear") -> Answer:
        """What the plan does with this translator; an answer that was given before is cached.

        Raises
        ------
        InputError
            If the plan does not fit the encoder, or the translator is not one of `translators`.
        """
        plan = Plan.parse(plan).check(len(self.encoder.blocks))
        translator = translator if plan else ORIGINAL
        if plan and translator not in self.translators:
            raise unknown("translator here", translator, self.translators)
        if (plan, translator) not in self._answers:
            self._answers[plan, translator] = self._compute(plan, translator)
        return self._answers[plan, translator]

    def table(self, plan: str | Plan, translators: list[str] | None = None) -> pd.DataFrame:
        """The original and the plan with each translator, one row each.

        Parameters
        ----------
        plan
            Which blocks go.
        translators
            Some of `translators`; all of them if `None`.

        Returns
        -------
        DataFrame
            Columns ``translator``, ``accuracy`` (percent), ``lost``, ``lost_low``, ``lost_high`` (points),
            ``parameters`` (millions), ``gflops``, and how many images turn ``right_to_wrong`` and ``wrong_to_right``.
        """
        plan = Plan.parse(plan)
        asked = (self.translators if translators is None else translators) if plan else []
        rows = []
        for answer in [self.original, *(self.answer(plan, name) for name in asked)]:
            lost, low, high = answer.lost
            cost = (answer.parameters / 1e6, answer.gflops)
            rows.append((answer.translator, answer.accuracy, lost, low, high, *cost, *self.flips(answer)))
        columns = ["translator", "accuracy", "lost", "lost_low", "lost_high", "parameters", "gflops"]
        return pd.DataFrame(rows, columns=[*columns, "right_to_wrong", "wrong_to_right"])

    def flips(self, answer: Answer) -> tuple[int, int]:
        """How many images the first head turns from right to wrong, and from wrong to right."""
        before, after = (one.predicted == self.labels for one in (self.original, answer))
        return int((before & ~after).sum()), int((~before & after).sum())

    @property
    def labels(self) -> np.ndarray:
        """Of the images that take part, int64."""
        return self.images.labels.cpu().numpy()

    def least_sure(self, count: int) -> list[int]:
        """The images that the original gets right by the smallest margin: where a change shows first."""
        logits = self._features(Plan(), ORIGINAL) @ self._probe.weight_[0, 0] + self._probe.bias_[0, 0]
        best, second = logits.topk(2, dim=1).values.T
        wrong = logits.argmax(1).cpu() != self.images.labels.cpu()
        order = (best - second).cpu() + 1e9 * wrong  # wrong ones last
        return sorted(order.argsort(stable=True)[:count].tolist())

    def _compute(self, plan: Plan, translator: str) -> Answer:
        started = time.perf_counter()
        predicted = self._predict(plan, translator)
        right = (predicted == self.labels).mean(0)
        lost = paired_difference(self._right, right)
        cost = self._costs.sum(plan, translator)
        seconds = time.perf_counter() - started
        return Answer(plan, translator, 100 * float(right.mean()), lost, *cost, predicted[0], seconds)

    def _predict(self, plan: Plan, translator: str) -> np.ndarray:
        """Classes, int64, shape (seeds, images)."""
        return self._probe.predict(self._features(plan, translator)[None])[0].cpu().numpy()

    @torch.inference_mode()
    def _features(self, plan: Plan, translator: str) -> Tensor:
        """Features of the images, shape (images, width); blocks before the first span do not run again."""
        maps = {span.start: (self._map(span, translator), span.end) for span in plan}
        last = len(self.encoder.blocks) - 1
        features = []
        for batch in self._batches:
            block = min(maps, default=last)
            hidden = batch.hidden[block + 1]
            while block < last:
                if block in maps:
                    module, block = maps[block]
                    hidden = module(hidden)
                else:
                    block += 1
                    hidden = self.encoder.run_block(block, hidden, batch.shared)
            features.append(self.encoder.pool(hidden, batch.first_input).float())
        return torch.cat(features)

    def _map(self, span: Span, translator: str) -> nn.Module:
        if (span, translator) not in self._maps:
            fitted = fit_spans([span], translator, self.calibration)[span].module()
            self._maps[span, translator] = fitted.to(self.encoder.device, self.encoder.dtype)
        return self._maps[span, translator]


class _Batch(NamedTuple):
    """What is kept of some images: ``hidden[k + 1]`` is ``h[k]``, shape (batch, tokens, width)."""

    first_input: Tensor
    shared: BlockInput
    hidden: list[Tensor]


@torch.inference_mode()
def _run_blocks(encoder: Encoder, inputs: Tensor) -> _Batch:
    shared = encoder.embed(inputs)
    hidden = [shared.hidden]
    for block in range(len(encoder.blocks)):
        hidden.append(encoder.run_block(block, hidden[-1], shared))
    return _Batch(inputs[:1], shared, hidden)


class _Costs(NamedTuple):
    """Parameters and GFLOPs: of the original, and of each block; those of maps depend on width and tokens."""

    original: np.ndarray  # (2,)
    blocks: np.ndarray  # (blocks, 2)
    width: int
    tokens: int

    @classmethod
    def of(cls, encoder: Encoder, inputs: Tensor, tokens: int) -> "_Costs":
        singles = [Plan((Span(block - 1, block),)) for block in range(len(encoder.blocks))]
        costs = plan_costs(encoder, [Plan(), *singles], ["identity"], inputs)[["parameters", "gflops"]].to_numpy()
        return cls(costs[0], costs[0] - costs[1:], encoder.width, tokens)

    def sum(self, plan: Plan, translator: str) -> tuple[int, float]:
        parameters, gflops = self.original - self.blocks[list(plan.removed)].sum(0)
        if plan:
            map_parameters, map_flops = map_costs(translator, self.width, self.tokens)
            parameters, gflops = parameters + len(plan) * map_parameters, gflops + len(plan) * map_flops / 1e9
        return int(parameters), float(gflops)


def _suits(name: str, calibration: Moments | KFoldMoments) -> bool:
    """Whether a translator can be fitted on such a calibration in no time."""
    kind = make_translator(name)
    return not kind.needs_activations and (isinstance(calibration, KFoldMoments) or not needs_folds(kind))


@torch.inference_mode()
def _how_many(encoder: Encoder, dataset: ImageSet, images: int, memory: int) -> int:
    state = encoder.embed(next(dataset.test[:1].batches(1))[0]).hidden
    bytes_per_image = state.numel() * state.element_size() * (len(encoder.blocks) + 1)
    return min(images, len(dataset.test), max(1, memory // bytes_per_image))
