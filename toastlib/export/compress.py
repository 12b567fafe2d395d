"""Compression: blocks chosen, removed and replaced, and the cost measured, in one call."""

import math
from dataclasses import replace
from numbers import Real

import pandas as pd
import torch
from transformers import PreTrainedModel

from toastlib import errors
from toastlib.approximation.fuse import FUSED, can_fuse
from toastlib.data.images import ImageSet
from toastlib.errors import InputError
from toastlib.evaluation import heads
from toastlib.evaluation.heads import MEASURES, Head
from toastlib.evaluation.latency import device_name, measure_energy, measure_latency, measure_pipeline, told_apart
from toastlib.export.onnx import NEEDED, in_onnxruntime
from toastlib.export.result import TUNED, CompressionResult, Contender, maps_table
from toastlib.models.base_architecture import own_classifier
from toastlib.models.costs import example_input, flops_of_example, input_of, parameter_count
from toastlib.models.encoder import Encoder
from toastlib.models.model_card import ModelCardData, Sizes, task_of
from toastlib.models.saving import OWN, saved_form, stored_dtype
from toastlib.plan import ORIGINAL, Plan
from toastlib.plugins import is_known
from toastlib.selection import search
from toastlib.statistics.similarity import similarity
from toastlib.translators.base import ALIGN, RECOMMENDED, TRANSLATORS, split_align

TRIED_ON = 200
"""Training images on which candidate plans are compared, reserved before the calibration images are drawn."""
LADDER = 500  # training images at most on which fewer blocks than asked for are tested, to show where to stop
MAX_DROP = 1.0  # points
REMOVES_NOTHING = "The plan removes nothing: name spans such as '2->5', or a number of blocks."
PREFERENCES = ("accuracy", "size", "speed")


def compress(
    encoder: Encoder,
    data: ImageSet,
    *,
    remove: int | str | Plan | None = None,
    max_drop: float | None = None,
    translator: str | None = None,
    head: PreTrainedModel | str | None = None,
    calibration: int = 500,
    seed: int = 0,
    onnx: bool = False,
    finetune: int = 0,
) -> CompressionResult:
    """Remove blocks of an encoder and measure the cost; test images are used for measuring alone.

    Parameters
    ----------
    encoder, data
        An original, with whole blocks or from `split_blocks`; images, or texts, with or without labels.
    remove
        A plan, or a number of blocks: then the best plans by calibration images are compared on other training images,
        and every number up to this one is tested on up to 500 more, if there are so many.
    max_drop
        Points that may be lost (1 if both are `None`): the upper end of the 95 % interval on a third of the training
        images, which neither maps, head nor choice have seen. As many blocks go as that allows.
    translator
        A name of `TRANSLATORS`, or ``"fused"``; ``"+align"`` behind it adds feature alignment, which the head absorbs.
        Or a preference, ``"accuracy"``, ``"size"`` or ``"speed"``: ``"context"``, ``"linear"`` and ``"fused"`` are
        compared, aligned where there is a linear head, and for accuracy the first is taken, else the last;
        ``"identity"``, nothing in place of the blocks, is measured beside them. `None` is ``"accuracy"`` for blocks;
        for sublayers ``"size"``, as a ``"context"`` map is as large as an attention.
    head
        ``"own"``, the checkpoint's classifier, which must know all classes of the data by name (case, spaces, ``_``,
        ``-`` and ``/`` aside); ``"new"``, a linear one that is trained on the original's features and frozen; `None` is
        the own one if there is any. Or the checkpoint as ``AutoModelForImageClassification`` loads it.
    calibration, seed
        Number of training images that maps are fitted on; seed of their draw and of the head.
    onnx
        Measure all models in onnxruntime as well, the original and the one that is taken with int8 weights too.
    finetune
        Epochs for which the maps of the model that is taken, or its head where they have no weights, are then trained
        on the training images by their labels, or to the original's features. 0 leaves it as it was fitted.

    Returns
    -------
    CompressionResult
        `CompressionResult.save` writes it to a folder.

    Raises
    ------
    InputError
        If both `remove` and `max_drop` are given, a name is unknown, the encoder cannot be saved, its classifier does
        not know all classes, no block can be removed, a package is missing, or `onnx` or `finetune` does not suit.
    """
    if onnx:
        errors.need_packages("ONNX", NEEDED, "onnx")
        if encoder.reads_text:
            raise InputError("Models of texts are not measured in onnxruntime: `toast export` writes the saved folder.")
        if encoder.device.type != "cpu":
            raise InputError("onnxruntime is measured on the CPU: load the encoder with device cpu.")
    errors.need_encoder(encoder)
    errors.need_set(data)
    errors.whole_number("calibration", calibration, least=1)
    errors.whole_number("seed", seed)
    errors.whole_number("finetune", finetune)
    if finetune and (remove is None or max_drop is not None):
        raise InputError("A promise of max_drop is about maps as they are fitted: fine-tune with remove, without it.")
    _check(encoder, remove, max_drop, RECOMMENDED if translator is None or translator in PREFERENCES else translator)
    if head is not None and not isinstance(head, str):
        errors.need(head, "config", "A classifier, as AutoModelForImageClassification loads it,")
    classifier, wanted = (None, head) if head is None or isinstance(head, str) else (head, OWN)
    if classifier is None and encoder.checkpoint:
        classifier = own_classifier(*encoder.checkpoint[:3], whole_or_none=wanted == "new")
    own_head = heads.choose_head(encoder, data, classifier, seed, wanted)
    names, plan_given = _translators(translator, encoder, own_head), isinstance(remove, str | Plan)
    max_drop = MAX_DROP if remove is None and max_drop is None else max_drop
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    held_out_count = len(data.train) // search.HELD_OUT
    if max_drop is None:  # a promise needs a third; a ladder up to `remove` takes what is left over
        left_over = 0 if plan_given else len(data.train) - calibration - TRIED_ON
        held_out_count = min(held_out_count, LADDER, max(left_over, 0))
    held_out, fitting = (data.train[part] for part in order.tensor_split([held_out_count]))
    drawn = fitting.sample(min(calibration + TRIED_ON, len(fitting)), seed)
    reserved = 0 if plan_given else min(TRIED_ON, len(drawn) // 3)
    calibrated = search.Calibrated(encoder, drawn[: min(calibration, len(drawn) - reserved)])
    tried_on = drawn[len(calibrated.images) :][:TRIED_ON]
    ladder = pd.DataFrame(columns=search.TESTED)
    if plan_given:
        plan = Plan.parse(remove)
    else:
        trial = heads.choose_head(encoder, replace(data, train=fitting), classifier, seed, wanted)
        choose = search.make_selector(calibrated, tried_on, trial, names[0])
        tested = search.scores_by_size(calibrated, choose, names[0], trial, held_out)
        if max_drop is not None:
            plan, ladder = search.largest_plan_within(tested, trial, max_drop, heads.inputs_of(data.test))
        elif len(held_out):
            plan, ladder = search.plan_of_size(tested, trial, remove)
        else:
            plan, *how = choose(remove)
            ladder.loc[0] = (remove, str(plan), *how, *(float("nan"),) * 3, 0, 0)
    made, reasons = _make_all(calibrated, plan, names, own_head)
    taken = next(iter(made))
    if finetune:
        smaller, new_head = calibrated.make(plan, taken, own_head)  # anew: what is not tuned is measured beside it
        new_head = _fine_tuned(smaller, new_head, data, encoder, epochs=finetune, seed=seed)
        made = {taken + TUNED: (smaller, new_head)} | made
    contenders = _contenders({ORIGINAL: (encoder, own_head)} | made, stored_dtype(encoder).itemsize, onnx)
    found = [heads.answers(one.model, data.test) for one in contenders]
    scores = [heads.score(one, found[0], data.test, own_head) for one in found]
    models, (smaller, new_head) = [one.model for one in contenders], next(iter(made.values()))
    latency, energy = measure_latency(models, data.test), measure_energy(models, data.test)
    task = task_of(encoder.reads_text, own_head.module and "base").name
    in_pipeline = measure_pipeline(models[:2], data.test, task, encoder.tokenizer)
    in_pipeline += [(float("nan"),) * 3] * (len(models) - 2)
    spreads = {batch: times[:2] for batch, times in latency.items()} | {"pipeline": in_pipeline[:2]}
    inputs = heads.inputs_of(data.test)
    before, after = (heads.percent(one, own_head.measure) for one in scores[:2])
    card = ModelCardData(
        base=encoder.name,
        calibration=f"{len(calibrated.images)} training {inputs} of {data.name}, seed {seed}",
        evaluation=f"{len(data.test)} test {inputs} of {data.name}",
        measure=MEASURES[own_head.measure],
        head=heads.describe(own_head, data, classifier, split_align(taken)[1])
        + (heads.describe_tuning(own_head, data, scores[2], scores[1], finetune) if finetune else ""),
        before=before if own_head.measure == "accuracy" else None,  # the original agrees with itself
        after=after,
        latency={batch: (times[0][0], times[1][0]) for batch, times in latency.items()},
        in_pipeline=(in_pipeline[0][0], in_pipeline[1][0]),
        unclear=tuple(key for key, pair in spreads.items() if not told_apart(*pair)),
        device=device_name(encoder.device),
        input=input_of(encoder),
        sizes=Sizes(
            tuple(parameter_count(model) for model in models[:2]),
            tuple(map(flops_of_example, (encoder, smaller))),
            tuple(round(one.megabytes * 1e6) for one in contenders[:2]),
        ),
    )
    with_labels, compared = own_head.measure == "accuracy", own_head.measure != "similarity"
    flips = heads.flips(data.test, found[:2], scores[:2], own_head, encoder.tokenizer) if compared else []
    return CompressionResult(
        plan=plan,
        translator=taken,
        encoder=smaller,
        head=new_head,
        card=card,
        lost=heads.points_lost(*scores[:2], own_head),
        maps=maps_table(contenders, reasons, found, scores, latency | {"pipeline": in_pipeline}, energy, own_head),
        classes=heads.by_class(data.test, *scores[:2], own_head) if with_labels else None,
        flips=flips,
        similarity=similarity(calibrated.moments, "cka"),
        search=ladder,
        max_drop=max_drop,
    )


def _translators(translator: str | None, encoder: Encoder, head: Head) -> list[str]:
    """The translators to compare, the one that is taken first: a name alone, or those of a preference, and nothing."""
    if translator is not None and translator not in PREFERENCES:
        return [translator]
    align = ALIGN if heads.first_layer(head, encoder) is not None else ""
    names = [FUSED] * can_fuse(encoder) + ["linear", RECOMMENDED]
    if translator == "accuracy" or (translator is None and encoder.sublayer_split is None):
        names.reverse()
    return [name + align for name in (*names, "identity")]  # nothing in place of the blocks: what maps have to beat


def _make_all(
    calibrated: search.Calibrated, plan: Plan, names: list[str], head: Head
) -> tuple[dict[str, tuple[Encoder, Head]], dict[str, str]]:
    """Translator -> smaller encoder and head; and for those that this plan does not allow, why."""
    made, reasons = {}, {}
    for name in names:
        try:
            made[name] = calibrated.make(plan, name, head)
        except InputError as error:
            if len(names) == 1:
                raise
            reasons[name] = str(error)
    return made, reasons


def _fine_tuned(smaller: Encoder, head: Head, data: ImageSet, teacher: Encoder, *, epochs: int, seed: int) -> Head:
    """Train the maps of the smaller encoder, in place, or the head where none has weights; the head is returned."""
    from toastlib.export.finetune import BATCH, finetune

    model, train = saved_form(smaller, head.module, heads.names_of(head)), data.train
    if by_labels := head.measure == "accuracy":
        train = replace(train, labels=torch.tensor(head.places)[train.labels], class_names=head.class_names)
    steps = epochs * math.ceil(len(train) / BATCH)
    has_maps = any(hasattr(block, "translation") and parameter_count(block) for block in smaller.blocks)
    parts = "maps" if has_maps else "head"
    finetune(model, train, parts=parts, teacher=None if by_labels else teacher, steps=steps, seed=seed)
    if head.module is None:
        return head
    is_toast = hasattr(model, "toast")  # and not of the base architecture
    return head._replace(module=(model.classifier or model.toast.base) if is_toast else model)


def _contenders(made: dict[str, tuple[Encoder, Head]], itemsize: int, onnx: bool) -> list[Contender]:
    """The original and a model for each translator; then the same in onnxruntime, the first two with int8 too."""
    models = {name: heads.form(*pair) for name, pair in made.items()}
    found = []
    for name, model in models.items():
        plain = name == ORIGINAL or split_align(name.removesuffix(TUNED))[0] == FUSED
        opens = "transformers" if plain else "transformers with toastlib"
        found.append(Contender(name, model, parameter_count(model) * itemsize / 1e6, opens))
    if onnx:
        example = example_input(next(iter(made.values()))[0])
        for index, (name, model) in enumerate(models.items()):
            for precision in ("float32", "int8") if index < 2 else ("float32",):
                one = in_onnxruntime(model, example, precision)
                found.append(Contender(name, one, one.megabytes, f"onnxruntime, {precision}"))
    return found


def _check(encoder: Encoder, remove: int | str | Plan | None, max_drop: float | None, translator: str) -> None:
    if remove is not None and max_drop is not None:
        raise InputError("Give remove or max_drop, not both: each of them decides which blocks are removed.")
    errors.need_original(encoder)
    errors.need(translator, "removesuffix", "The name of a translator")
    kind, _ = split_align(translator)
    if kind != FUSED and not is_known(kind, TRANSLATORS):
        raise errors.unknown("translator", kind, [name + end for name in (*TRANSLATORS, FUSED) for end in ("", ALIGN)])
    if max_drop is not None and not (isinstance(max_drop, Real) and 0 < max_drop < 100):
        raise InputError(f"max_drop is a number of points between 0 and 100, not {max_drop}.")
    if isinstance(remove, str | Plan) and not Plan.parse(remove).check(len(encoder.blocks)):
        raise InputError(REMOVES_NOTHING)
    if isinstance(remove, int) and not 0 < remove < len(encoder.blocks):
        raise InputError(f"{remove} blocks cannot be removed: the model has {len(encoder.blocks)}, and keeps one.")
