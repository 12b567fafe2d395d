"""Answers about plans within a moment: block outputs are kept, and only the blocks behind a plan's first span run."""

import time
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toastlib.approximation.engine import THE_ORIGINAL, Maps, Variant, collect_features, forward_plans
from toastlib.approximation.prepare import fit_maps
from toastlib.data.images import ImageSet
from toastlib.errors import unknown
from toastlib.evaluation.costs import plan_costs
from toastlib.evaluation.evaluate import require_labels
from toastlib.evaluation.metrics import changes, paired_difference
from toastlib.evaluation.probe import HeadConfig, Probe
from toastlib.models.batch import BatchSize, batch_of
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import capture_outputs
from toastlib.plan import ORIGINAL, Plan, Span
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.base import TRANSLATORS, make_translator


@dataclass(frozen=True)
class Answer:
    """Accuracy, costs and predictions of one plan with one translator."""

    plan: Plan
    translator: str  # "original" for the empty plan
    accuracy: float  # percent of the images, mean over heads
    lost: float  # points, with the 95 % interval paired over images
    lost_low: float
    lost_high: float
    parameters: int  # maps included
    gflops: float  # per image
    right_to_wrong: int  # images that the first head turns from correct to wrong
    wrong_to_right: int
    predicted: np.ndarray = field(repr=False)  # classes that the first head predicts, int64, shape (images,)
    seconds: float  # that the answer took


class Playground:
    """Block outputs of test images and frozen heads, so that any plan is answered within a moment.

    Parameters
    ----------
    encoder, data
        The original encoder, and a set with labels.
    calibration
        Moments with the pairs of all blocks; translators that need folds are offered with `KFoldMoments` only.
    head, batch_size
        Seeds and training of the heads, which are frozen, `HeadConfig()` if `None`; images per forward pass.
    images, memory
        Number of test images, the first ones; fewer where their block outputs take more than so many bytes, 1 GiB.

    Attributes
    ----------
    translators, original
        Names that can be asked for, and the answer for the original encoder.
    images, labels
        The test images, and their classes: int64, shape (images,).
    """

    def __init__(
        self,
        encoder: Encoder,
        data: ImageSet,
        calibration: Moments | KFoldMoments,
        *,
        head: HeadConfig | None = None,
        images: int = 200,
        batch_size: BatchSize = "auto",
        memory: int = 2**30,
    ) -> None:
        require_labels(data)
        self.encoder, self.class_names, self.calibration = encoder, data.class_names, calibration
        closed = {name: kind for name in TRANSLATORS if not (kind := make_translator(name)).needs_activations}
        has_folds = isinstance(calibration, KFoldMoments)
        self.translators = [name for name, kind in closed.items() if has_folds or not kind.needs_folds]
        batch_size = batch_of(encoder, batch_size)
        train = collect_features(encoder, data.train, [THE_ORIGINAL], {}, batch_size)
        self._probe = Probe(len(data.class_names), head).fit(train[0], data.train.labels)
        self.images, self._batch_size = data.test[: min(images, _room_for(encoder, data, memory))], batch_size
        self.labels = self.images.labels.cpu().numpy()
        self._hidden: list[dict[int, Tensor]] = []  # of each batch: block -> its output, -1 -> the input of block 0
        for inputs, _ in self.images.batches(batch_size):
            with torch.inference_mode(), capture_outputs(encoder, range(-1, len(encoder.blocks))) as hidden:
                encoder(inputs)
            self._hidden.append(hidden)
        singles = [Plan((Span(block - 1, block),)) for block in range(len(encoder.blocks))]
        inputs, _ = next(self.images[:1].batches(1))
        costs = plan_costs(encoder, [Plan(), *singles], self.translators, inputs=inputs)
        self._costs = costs.set_index(["plan", "translator"])[["parameters", "gflops"]]
        self._maps: Maps = {}
        self._answers: dict[Variant, Answer] = {}
        self._correct = self._predict(THE_ORIGINAL) == self.labels  # (seeds, images)
        self.original = self.answer("")

    def answer(self, plan: str | Plan, translator: str = "linear") -> Answer:
        """Answer for a plan with a translator; earlier answers are kept.

        Raises
        ------
        InputError
            If the plan does not fit the encoder, or the translator is not one of `translators`.
        """
        plan = Plan.parse(plan).check(len(self.encoder.blocks))
        if plan and translator not in self.translators:
            raise unknown("translator here", translator, self.translators)
        variant = Variant(plan, translator) if plan else THE_ORIGINAL
        if variant not in self._answers:
            self._answers[variant] = self._compute(variant)
        return self._answers[variant]

    def table(self, plan: str | Plan, translators: list[str] | None = None) -> pd.DataFrame:
        """The original, and the plan with each translator (all if `None`): `Answer` as rows, parameters in millions."""
        plan = Plan.parse(plan)
        names = (self.translators if translators is None else translators) if plan else []
        table = pd.DataFrame([vars(self.original), *(vars(self.answer(plan, name)) for name in names)])
        return table.drop(columns=["plan", "predicted", "seconds"]).assign(parameters=table["parameters"] / 1e6)

    def least_sure(self, count: int) -> list[int]:
        """Images that the original classifies correctly by the smallest margin: a change shows there first."""
        logits = self._probe.logits(self._features(THE_ORIGINAL))[0, 0]
        best, second = logits.topk(2, dim=1).values.T.cpu().numpy()
        margin = np.where(self._correct[0], best - second, np.inf)
        return sorted(margin.argsort(kind="stable")[:count].tolist())

    def _compute(self, variant: Variant) -> Answer:
        started = time.perf_counter()
        predicted = self._predict(variant)
        correct, before = predicted == self.labels, self._correct
        lost = paired_difference(before.mean(0), correct.mean(0))
        parameters, gflops = self._cost(variant)
        costs, flips = (int(parameters), float(gflops)), changes(before[0], correct[0])
        results = (100 * float(correct.mean()), *lost, *costs, *flips, predicted[0])
        return Answer(variant.plan, variant.translator, *results, time.perf_counter() - started)

    def _cost(self, variant: Variant) -> np.ndarray:
        """Parameters and GFLOPs, added up from plans that remove one block: counting a plan anew takes seconds."""
        original = self._costs.loc[ORIGINAL].to_numpy()[0]
        if not variant.plan:
            return original
        blocks = [original - self._costs.loc[f"{block - 1}->{block}", "identity"] for block in variant.plan.removed]
        one_map = self._costs.loc["-1->0", variant.translator] - self._costs.loc["-1->0", "identity"]
        return (original - sum(blocks) + len(variant.plan) * one_map).to_numpy()

    def _predict(self, variant: Variant) -> np.ndarray:
        """Classes, int64, shape (seeds, images)."""
        return self._probe.predict(self._features(variant)).cpu().numpy()

    def _features(self, variant: Variant) -> Tensor:
        """Features of the images, float32, shape (images, width)."""
        if missing := [key for key in variant.map_keys if key not in self._maps]:
            needed = Variant(Plan(tuple(span for span, *_ in missing)), variant.translator)
            self._maps |= fit_maps(self.encoder, [needed], {variant.translator: variant.translator}, self.calibration)
        block = min((span.start for span in variant.plan), default=len(self.encoder.blocks) - 1)
        features = []
        for (inputs, _), hidden in zip(self.images.batches(self._batch_size), self._hidden, strict=True):
            start = (block, hidden[block])
            features.append(forward_plans(self.encoder, inputs, [variant], self._maps, start=start)[variant].float())
        return torch.cat(features)


@torch.inference_mode()
def _room_for(encoder: Encoder, data: ImageSet, memory: int) -> int:
    """Number of images whose block outputs fit, at least one."""
    hidden = encoder.embed(next(data.test[:1].batches(1))[0]).hidden
    return max(1, memory // (hidden.nbytes * (len(encoder.blocks) + 1)))
