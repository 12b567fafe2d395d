"""From a checkpoint and images to a smaller model in a folder: which blocks go, and what that costs."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd
import torch

from toastlib.approximation.engine import collect_calibration
from toastlib.approximation.fuse import FUSED, fuse_spans
from toastlib.approximation.replace import approximate
from toastlib.data.images import Images, ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.heads import (
    MEASURES,
    Head,
    aligned,
    choose_head,
    compare,
    device_name,
    form,
    measure_latency,
    percent,
)
from toastlib.evaluation.metrics import paired_difference
from toastlib.models.costs import flops, parameter_count
from toastlib.models.encoder import Encoder
from toastlib.models.model_card import Accuracy, ModelCardData, Sizes
from toastlib.models.saving import example_input
from toastlib.plan import Plan
from toastlib.selection.search import largest_plan_within, make_selector
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.similarity import similarity
from toastlib.translators.base import RECOMMENDED, make_translator, split_align

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRIED_ON = 200
"""Training images that they are run on: neither those that maps are fitted on nor those that a drop is bounded on."""
HELD_OUT = 5
"""One training image in so many is kept from maps, and from the head while spans are chosen."""
MAX_DROP = 1.0  # points


@dataclass(frozen=True)
class CompressionResult:
    """A smaller encoder, and all that is to be said about it.

    Attributes
    ----------
    plan, translator
        What was removed, and what stands in for it.
    encoder, head
        The smaller encoder, and what it is saved with.
    before, after
        Percent and its 95 % interval, of the original and of this model, by the head's measure.
    lost
        Points lost, paired over the test images, with their 95 % interval.
    classes
        One row per class: ``class``, ``images``, ``before``, ``after`` in percent; `None` without labels.
    similarity
        Linear CKA of all blocks on the calibration images, from `similarity`.
    search
        One row per number of removed blocks that was tried: ``removed``, ``plan``, ``lost`` in points on training
        images that were held out; empty where the number was given.
    counted
        Parameters and FLOPs of both.
    card
        For the folder.
    """

    plan: Plan
    translator: str
    encoder: Encoder
    head: Head
    before: Accuracy
    after: Accuracy
    lost: Accuracy
    classes: pd.DataFrame | None
    similarity: pd.DataFrame
    search: pd.DataFrame
    counted: Sizes
    card: ModelCardData

    @property
    def folded(self) -> bool:
        """Whether no layer stands where the blocks stood."""
        return split_align(self.translator)[0] == FUSED


def compress(
    encoder: Encoder,
    dataset: ImageSet,
    plan: str | Plan | None = None,
    remove: int | None = None,
    max_drop: float | None = None,
    translator: str = RECOMMENDED,
    classifier: "PreTrainedModel | None" = None,
    calibration_size: int = 500,
    seed: int = 0,
    batch_size: int = 32,
) -> CompressionResult:
    """Make an encoder smaller and measure what that costs; test images are used for the measuring alone.

    Parameters
    ----------
    encoder, dataset
        The original, whole or from `split_blocks`, and images with or without labels.
    plan
        Which spans go. Or instead:
    remove
        How many blocks go; which, the criterion says from the calibration images, and running the best few plans
        from training images beside them.
    max_drop
        As many blocks go as lose at most so many points on held-out training images; 1 if nothing is given.
    translator
        A name of `TRANSLATORS`, or ``"fused"``; with ``"+align"`` behind it the features are
        aligned too, which the head takes in.
    classifier
        The checkpoint's own. It is kept where the data set has no labels or labels of the same names; else a linear
        head is trained on the original's features and frozen.
    calibration_size
        Training images that the maps are fitted on, or as many as there are.
    seed
        Of the draw of images, and of the head.
    batch_size
        Images per forward pass.

    Returns
    -------
    CompressionResult
        The smaller encoder, and what it costs; `save_compressed` writes it.

    Raises
    ------
    InputError
        If more than one of `plan`, `remove` and `max_drop` is given, a name is unknown, the encoder cannot be saved, or
        not even one block can go.
    """
    _check(encoder, plan, remove, max_drop, translator)
    fitting, held_out = _part(dataset.train, seed)
    drawn = fitting.sample(min(calibration_size + TRIED_ON, len(fitting)), seed)
    calibration, trying = drawn[:calibration_size], drawn[calibration_size:]

    def make(chosen: Plan, head: Head) -> tuple[Encoder, Head]:
        return _make(encoder, head, chosen, translator, calibration, batch_size)

    moments = collect_moments(encoder, calibration, batch_size=batch_size)
    search = pd.DataFrame(columns=["removed", "plan", "lost"])
    if plan is not None:
        plan = Plan.parse(plan).check(len(encoder.blocks))
    else:
        trial = choose_head(encoder, replace(dataset, train=fitting), classifier, seed, batch_size)
        choose = make_selector(encoder, moments, calibration, trying, trial, translator, batch_size)
        if remove is not None:
            plan = choose(remove)
        else:
            bound = MAX_DROP if max_drop is None else max_drop
            plan, search = largest_plan_within(encoder, make, choose, trial, held_out, bound, batch_size)
    own_head = choose_head(encoder, dataset, classifier, seed, batch_size)
    smaller, head = make(plan, own_head)
    models = form(encoder, own_head), form(smaller, head)
    scores, classes = compare(models, head, dataset.test, batch_size)
    before, after = (percent(score, head.measure) for score in scores)
    counted = _count(encoder, smaller, *models)
    card = ModelCardData(
        encoder.name,
        f"{len(calibration)} training images of {dataset.name}, seed {seed}",
        f"{len(dataset.test)} test images of {dataset.name}",
        before if head.measure == "accuracy" else None,
        after if head.measure == "accuracy" else None,
        measure_latency(models, dataset.test),
        device_name(encoder.device),
    )
    lost, matrix = paired_difference(*scores), similarity(moments, "cka")
    return CompressionResult(
        plan, translator, smaller, head, before, after, lost, classes, matrix, search, counted, card
    )


def summary(taken: CompressionResult) -> str:
    """A few lines for the terminal."""
    score = "{:.1f} % -> {:.1f} % [{:.1f}, {:.1f}]".format(taken.before[0], *taken.after)
    removed = "blocks" if taken.encoder.sublayer_split is None else "sublayers"
    return "\n".join(
        [
            f"plan {taken.plan} ({len(taken.plan.removed)} {removed}, {taken.translator})",
            "parameters {:,} -> {:,}".format(*taken.counted.parameters),
            f"{MEASURES[taken.head.measure]} {score}",
        ]
    )


def _check(encoder: Encoder, plan, remove: int | None, max_drop: float | None, translator: str) -> None:
    if sum(choice is not None for choice in (plan, remove, max_drop)) > 1:
        raise InputError("Say one of plan, remove and max_drop: each of them decides which blocks go.")
    if any(hasattr(block, "translation") for block in encoder.blocks):
        raise InputError(
            f"{encoder.name} was made smaller already: start from the original, with all spans in one plan."
        )
    if split_align(translator)[0] != FUSED:
        make_translator(translator)
    if remove is not None and not 0 < remove < len(encoder.blocks):
        raise InputError(f"{remove} blocks cannot be removed: the model has {len(encoder.blocks)}, and keeps one.")


def _part(images: Images, seed: int) -> tuple[Images, Images]:
    """Training images for maps and trial heads, and those that are held out from both."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out = len(images) // HELD_OUT
    return images[order[held_out:]], images[order[:held_out]]


def _make(
    encoder: Encoder, head: Head, plan: Plan, translator: str, calibration: Images, batch_size: int
) -> tuple[Encoder, Head]:
    """The smaller encoder, and the head that belongs to it."""
    kind, align = split_align(translator)
    if kind == FUSED:
        smaller = fuse_spans(encoder, plan, calibration, batch_size)
    else:
        fitted_on = collect_calibration(encoder, calibration, [plan], [kind], batch_size)
        smaller = approximate(encoder, plan, kind, fitted_on)
    if align:
        head = aligned(head, smaller, encoder, calibration, batch_size)
    return smaller, head


def _count(encoder: Encoder, smaller: Encoder, *models: "PreTrainedModel") -> Sizes:
    parameters = tuple(parameter_count(model) for model in models)
    return Sizes(parameters, tuple(flops(one, example_input(one)) for one in (encoder, smaller)))
