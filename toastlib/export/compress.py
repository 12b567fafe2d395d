"""Compression: blocks chosen, removed and replaced, and the cost measured, in one call."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd
import torch

from toastlib.approximation.fuse import FUSED
from toastlib.data.images import ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.heads import (
    MEASURES,
    Head,
    choose_head,
    compare,
    describe,
    device_name,
    first_layer,
    form,
    measure_latency,
    percent,
    points_lost,
)
from toastlib.evaluation.smaller import Workshop
from toastlib.export.folder import save_compressed
from toastlib.models.classifier import own_classifier
from toastlib.models.costs import example_input, flops, parameter_count
from toastlib.models.encoder import Encoder
from toastlib.models.model_card import Accuracy, ModelCardData, Sizes, removed_in_words
from toastlib.models.saving import OWN, stored_dtype
from toastlib.plan import Plan
from toastlib.selection.search import HELD_OUT, TESTED, larger_and_larger, largest_plan_within, make_selector
from toastlib.statistics.similarity import similarity
from toastlib.translators.base import ALIGN, RECOMMENDED, make_translator, split_align

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRIED_ON = 200
"""Training images on which candidate plans are compared, reserved before the calibration images are drawn."""
MAX_DROP = 1.0  # points


@dataclass(frozen=True)
class CompressionResult:
    """A smaller encoder, and what it costs.

    Attributes
    ----------
    plan, translator, encoder, head
        The removed spans, the translator that replaces them, the smaller encoder and its head.
    card, lost
        Facts about both models; points lost, paired over the test images, with their 95 % interval.
    classes
        One row per class: ``class``, ``images``, ``before``, ``after`` in percent; `None` without labels.
    similarity
        Linear CKA of all blocks on the calibration set, from `similarity`.
    search
        One row per number of blocks that was tried, with the columns `TESTED`; ``lost``, ``low`` and ``high`` are NaN
        where the number was given, and there is no row where the plan was.
    max_drop
        The promise, in points; `None` where a plan or a number of blocks was given.
    """

    plan: Plan
    translator: str
    encoder: Encoder
    head: Head
    card: ModelCardData
    lost: Accuracy
    classes: pd.DataFrame | None
    similarity: pd.DataFrame
    search: pd.DataFrame
    max_drop: float | None = None

    @property
    def fused(self) -> bool:
        """True if the maps are in the weights of other blocks, and the architecture is the original's."""
        return split_align(self.translator)[0] == FUSED

    def summary(self) -> str:
        """What was done, in two lines, and what it costs, in five."""
        card, (lost, low, high) = self.card, self.lost
        removed = removed_in_words(self.plan.removed, self.encoder.sublayer_split is not None)
        size = "{:,} to {:,} parameters ({}), {:.3g} to {:.3g} MB on disk"
        (before, after), megabytes = card.sizes.parameters, [count / 1e6 for count in card.sizes.bytes]
        times = [
            f"{old:.3g} to {new:.3g} ms ({change(old, new)}) at batch {batch}"
            for batch, (old, new) in card.latency.items()
        ]
        return "\n".join(
            [
                card.head,
                f"Removed: {removed} (plan {self.plan}); in their place: {self.translator}.",
                *self.choice(),
                "",
                f"{card.measure} before  {{:.1f}} % [{{:.1f}}, {{:.1f}}]".format(*card.before),
                f"{card.measure} after   {{:.1f}} % [{{:.1f}}, {{:.1f}}]".format(*card.after),
                f"difference  {-lost:+z.1f} points [{-high:+z.1f}, {-low:+z.1f}], paired over {card.evaluation}",
                f"size  {size.format(before, after, change(before, after), *megabytes)}",
                f"time  {', '.join(times)}, on {card.device}",
            ]
        )

    def choice(self) -> list[str]:
        """How the blocks were chosen, in a sentence or two; nothing where the plan was given."""
        if self.search.empty:
            return []
        row = self.search[self.search["plan"] == str(self.plan)].iloc[-1]
        text = [
            f"Of {row['tried']} plans that were run on {row['tried_on']:,} training images, this one changes least."
            if row["tried"]
            else "There is one plan only that removes so many blocks."
        ]
        if self.max_drop is not None:
            lost, low, high = self.lost
            text += [
                f"On {row['held_out']:,} other training images it loses {row['lost']:.1f} [{row['low']:.1f}, "
                f"{row['high']:.1f}] points, and at most {self.max_drop:g} was asked for.",
                f"On the test images the promise is {'kept' if lost <= self.max_drop else 'NOT kept'}: "
                f"{lost:.1f} [{low:.1f}, {high:.1f}].",
            ]
        return text

    save = save_compressed


def compress(
    encoder: Encoder,
    data: ImageSet,
    *,
    remove: int | str | Plan | None = None,
    max_drop: float | None = None,
    translator: str | None = None,
    head: "PreTrainedModel | str | None" = None,
    calibration: int = 500,
    seed: int = 0,
) -> CompressionResult:
    """Remove blocks of an encoder and measure the cost; test images are used for measuring alone.

    Parameters
    ----------
    encoder, data
        An original, with whole blocks or from `split_blocks`; images with or without labels.
    remove
        A plan, or a number of blocks: then the best plans by calibration images are compared on other training images.
    max_drop
        Points that may be lost (1 if both are `None`): the upper end of the 95 % interval on a third of the training
        images, which neither maps, head nor choice have seen. As many blocks go as that allows.
    translator
        A name of `TRANSLATORS`, or ``"fused"``; ``"+align"`` behind it adds feature alignment, which the head absorbs.
        `None` is ``"context+align"`` where there is a linear head, else ``"context"``.
    head
        ``"own"``, the checkpoint's classifier, which must know all classes of the data by name (case, spaces, ``_`` and
        ``-`` aside); ``"new"``, a linear one that is trained on the original's features and frozen; `None` is the own
        one if there is any. Or the checkpoint as ``AutoModelForImageClassification`` loads it.
    calibration, seed
        Number of training images that maps are fitted on; seed of their draw and of the head.

    Returns
    -------
    CompressionResult
        `CompressionResult.save` writes it to a folder.

    Raises
    ------
    InputError
        If both `remove` and `max_drop` are given, a name is unknown, the encoder cannot be saved, its classifier does
        not know all classes, or not even one block can be removed.
    """
    _check(encoder, remove, max_drop, translator or RECOMMENDED)
    classifier, wanted = (None, head) if head is None or isinstance(head, str) else (head, OWN)
    if classifier is None and encoder.checkpoint:
        classifier = own_classifier(*encoder.checkpoint[:2])
    own_head = choose_head(encoder, data, classifier, seed, wanted)
    if translator is None:
        translator = RECOMMENDED if first_layer(own_head, encoder) is None else RECOMMENDED + ALIGN
    max_drop = MAX_DROP if remove is None and max_drop is None else max_drop
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    held_out_count = 0 if max_drop is None else len(data.train) // HELD_OUT
    held_out, fitting = (data.train[part] for part in order.tensor_split([held_out_count]))
    drawn = fitting.sample(min(calibration + TRIED_ON, len(fitting)), seed)
    reserved = 0 if isinstance(remove, str | Plan) else min(TRIED_ON, len(drawn) // 3)
    workshop = Workshop(encoder, drawn[: min(calibration, len(drawn) - reserved)])
    tried_on = drawn[len(workshop.images) :][:TRIED_ON]
    search = pd.DataFrame(columns=TESTED)
    if isinstance(remove, str | Plan):
        plan = Plan.parse(remove).check(len(encoder.blocks))
    else:
        trial = choose_head(encoder, replace(data, train=fitting), classifier, seed, wanted)
        choose = make_selector(workshop, tried_on, trial, translator)
        if max_drop is None:
            plan, tried, images = choose(remove)
            search.loc[0] = (remove, str(plan), tried, images, *(float("nan"),) * 3, 0)
        else:
            tested = larger_and_larger(workshop, choose, translator, trial, held_out)
            plan, search = largest_plan_within(tested, trial, max_drop)
    smaller, new_head = workshop.make(plan, translator, own_head)
    models = form(encoder, own_head), form(smaller, new_head)
    scores, classes = compare(models, new_head, data.test)
    before, after = (percent(score, new_head.measure) for score in scores)
    card = ModelCardData(
        base=encoder.name,
        calibration=f"{len(workshop.images)} training images of {data.name}, seed {seed}",
        evaluation=f"{len(data.test)} test images of {data.name}",
        measure=MEASURES[new_head.measure],
        head=describe(own_head, data, classifier),
        before=before,
        after=after,
        latency=measure_latency(models, data.test),
        device=device_name(encoder.device),
        sizes=Sizes(
            tuple(parameter_count(model) for model in models),
            tuple(flops(one, example_input(one)) for one in (encoder, smaller)),
            tuple(parameter_count(model) * stored_dtype(encoder).itemsize for model in models),
        ),
    )
    lost, matrix = points_lost(*scores, new_head), similarity(workshop.moments, "cka")
    return CompressionResult(plan, translator, smaller, new_head, card, lost, classes, matrix, search, max_drop)


def change(before: float, after: float) -> str:
    """A relative change in percent, in words of a table."""
    return f"{100 * (after / before - 1):+z.0f} %"


def _check(encoder: Encoder, remove: int | str | Plan | None, max_drop: float | None, translator: str) -> None:
    if remove is not None and max_drop is not None:
        raise InputError("Give remove or max_drop, not both: each of them decides which blocks are removed.")
    if any(hasattr(block, "translation") for block in encoder.blocks):
        raise InputError(
            f"{encoder.name} was made smaller already: start from the original, with all spans in one plan."
        )
    if split_align(translator)[0] != FUSED:
        make_translator(translator)
    if max_drop is not None and not 0 < max_drop < 100:
        raise InputError(f"max_drop is a number of points between 0 and 100, not {max_drop:g}.")
    if isinstance(remove, int) and not 0 < remove < len(encoder.blocks):
        raise InputError(f"{remove} blocks cannot be removed: the model has {len(encoder.blocks)}, and keeps one.")
