"""Many plans, translators and seeds in one walk over the data: every shared prefix is computed once."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from toastlib.activations import collect_activations
from toastlib.approximation import fit_spans
from toastlib.cache import default_cache, fingerprint
from toastlib.data import Images, ImageSet
from toastlib.errors import InputError, unknown
from toastlib.evaluation import Predictions, accuracy_table, plan_costs
from toastlib.models import Encoder
from toastlib.moments import Moments, collect_moments, plan_pairs
from toastlib.plan import ORIGINAL, Plan, Span, parse_plans
from toastlib.probe import Probe
from toastlib.progress import progress_bar
from toastlib.translators import Activations, make_translator

HEADS = ("retrained", "frozen")
Exit = tuple[Span, str]
"""A span and the name of the translator that takes its place."""


@dataclass(frozen=True)
class Variant:
    """One plan with one kind of map; the original encoder is the variant of the empty plan."""

    plan: Plan
    translator: str

    def exit(self, block: int) -> Exit | None:
        """Where this variant leaves the block list after `block`, if it does."""
        return next(((span, self.translator) for span in self.plan if span.start == block), None)


def variants_of(plans: Iterable[Plan], translators: Iterable[str]) -> list[Variant]:
    """The original first, then every plan with every translator."""
    translators = list(translators)
    return [Variant(Plan(), ORIGINAL)] + [Variant(plan, name) for plan in plans if plan for name in translators]


def collect_calibration(
    encoder: Encoder, images: Images, plans: Sequence[Plan], translators: Iterable[str], batch_size: int = 32
) -> Moments | Activations:
    """What the maps of these plans are fitted on, from one pass over the calibration images.

    That is their moments. If one of the translators is trained it is the activations of all tokens, which the closed
    forms read as well: float32, (images x tokens x width) for each block where a span begins or ends.
    """
    if any(make_translator(name).needs_activations for name in translators):
        blocks = sorted({block for plan in plans for span in plan for block in span})
        return collect_activations(encoder, images, blocks, tokens="all", batch_size=batch_size)
    return collect_moments(encoder, images, plan_pairs(plans), batch_size=batch_size)


def fit_maps(
    encoder: Encoder, variants: Iterable[Variant], calibration: Moments | Activations
) -> dict[Exit, nn.Module]:
    """Fit every map that the variants need, each once; on the encoder's device and in its dtype."""
    spans: dict[str, set[Span]] = {}
    for variant in variants:
        spans.setdefault(variant.translator, set()).update(variant.plan)
    return {
        (span, name): fitted.module().to(encoder.device, encoder.dtype)
        for name, needed in spans.items()
        if needed
        for span, fitted in fit_spans(sorted(needed), name, calibration).items()
    }


@torch.inference_mode()
def walk(
    encoder: Encoder, inputs: Tensor, variants: Sequence[Variant], maps: dict[Exit, nn.Module]
) -> dict[Variant, Tensor]:
    """Features of every variant for one batch, shape (batch, width) each.

    The plans form a trie over block outputs: variants travel together until a span parts them. No block runs twice
    on the same state, and none that no variant needs.

    Parameters
    ----------
    encoder
        The original.
    inputs
        Pixel values, shape (batch, 3, height, width).
    variants
        What to compute.
    maps
        From `fit_maps`.
    """
    shared = encoder.start(inputs)
    features: dict[Variant, Tensor] = {}
    branches = [(-1, shared.hidden, list(variants))]  # (block, its output, who shares it)
    while branches:
        block, hidden, travellers = branches.pop()
        groups: dict[Exit | None, list[Variant]] = {}
        for variant in travellers:
            groups.setdefault(variant.exit(block), []).append(variant)
        # Who stays is pushed first and so goes on last: only the states of one path wait in memory.
        for exit_, group in sorted(groups.items(), key=lambda item: item[0] is not None):
            if exit_ is not None:
                branches.append((exit_[0].end, maps[exit_](hidden), group))
            elif block + 1 < len(encoder.blocks):
                branches.append((block + 1, encoder.run_block(block + 1, hidden, shared), group))
            else:
                features |= dict.fromkeys(group, encoder.finish(hidden, inputs))
    return features


def collect_features(
    encoder: Encoder,
    images: Images,
    variants: Sequence[Variant],
    maps: dict[Exit, nn.Module],
    batch_size: int = 32,
) -> Tensor:
    """Features of every variant for all images.

    Returns
    -------
    Tensor
        float32, shape (variants, images, width), on the encoder's device. What an earlier call computed for the same
        encoder, images, maps and batch size is read from disk, see `toastlib.cache`.

    Raises
    ------
    InputError
        If a variant's features hold NaN or infinity.
    """
    features = torch.empty(len(variants), len(images), encoder.width, device=encoder.device)
    cache = default_cache()
    keys = _feature_keys(encoder, images, variants, maps, batch_size) if cache.folder else [None] * len(variants)
    missing = []
    for row, key in enumerate(keys):
        kept = cache.get(key)
        if kept is None:
            missing.append(row)
        else:
            features[row] = kept["features"]
    if missing:
        _compute_features(encoder, images, {row: variants[row] for row in missing}, maps, batch_size, features)
    for row in missing:
        cache.put(keys[row], {"features": features[row]})
    return features


def _compute_features(
    encoder: Encoder,
    images: Images,
    variants: dict[int, Variant],
    maps: dict[Exit, nn.Module],
    batch_size: int,
    features: Tensor,
) -> None:
    """Fill the given rows of `features`."""
    done = 0
    with progress_bar(len(images), "sweep") as progress:
        for pixel_values, _ in images.batches(batch_size):
            batch = walk(encoder, pixel_values, list(variants.values()), maps)
            for row, variant in variants.items():
                features[row, done : done + len(pixel_values)] = batch[variant]
            done += len(pixel_values)
            progress.update(len(pixel_values))
    for row, variant in variants.items():
        if not torch.isfinite(features[row]).all():
            raise InputError(f"Plan {variant.plan} with translator {variant.translator!r} gives NaN or infinity.")


def _feature_keys(
    encoder: Encoder, images: Images, variants: Sequence[Variant], maps: dict[Exit, nn.Module], batch_size: int
) -> list[str | None]:
    """What the features of each variant are kept under; `None` for what is not kept."""
    read_out = (encoder.blocks_path, encoder.feature_kind, encoder.special_tokens)
    walked = fingerprint("features", encoder, read_out, images.pixels, images.preprocessing, images.dtype, batch_size)
    return [
        walked and fingerprint(walked, str(variant.plan), *(maps[span, variant.translator] for span in variant.plan))
        for variant in variants
    ]


def predict(
    encoder: Encoder,
    dataset: ImageSet,
    plans: str | Plan | Iterable[str | Plan],
    translators: Iterable[str] = ("identity", "linear"),
    seeds: Iterable[int] = range(3),
    heads: str | Iterable[str] = "retrained",
    calibration_size: int = 500,
    calibration_seed: int = 0,
    head_lr: float = 1e-3,
    head_min_steps: int = 0,
    batch_size: int = 32,
    moments: Moments | Activations | None = None,
    maps: dict[Exit, nn.Module] | None = None,
) -> Predictions:
    """Predict the test images with the original encoder and with every plan, translator, head and seed.

    Parameters
    ----------
    encoder, dataset
        The original encoder, and images with labels.
    plans, translators
        Each plan is tried with each translator.
    seeds
        Of the heads: their first weights and the order of the images.
    heads
        ``"retrained"``: a head is trained on the features of each plan; ``"frozen"``: the head trained on the
        original's features is kept; or both.
    calibration_size, calibration_seed
        How many training images the maps are fitted on, and the seed of that draw.
    head_lr, head_min_steps
        Learning rate of the heads, and how many steps they take at least, see `Probe`.
    batch_size
        Images per forward pass.
    moments
        Fit the maps on these instead, for example those of another data set; activations where a translator is
        trained, see `fit_spans`.
    maps
        Take these maps instead of fitting any: (span, translator's name) -> module.

    Raises
    ------
    InputError
        If a name is unknown, a plan does not fit, a map is missing, there is no seed, or the data set has no labels.
    """
    heads = [heads] if isinstance(heads, str) else list(heads)
    _check(dataset, heads)
    translators, seeds = list(dict.fromkeys(translators)), list(seeds)
    if not seeds:
        raise InputError("There is no seed: every head needs one, for example seeds=[0, 1, 2].")
    for name in translators:
        make_translator(name)
    plans = [plan.check(len(encoder.blocks)) for plan in parse_plans(plans)]
    variants = variants_of(plans, translators)
    calibration = moments
    if calibration is None and maps is None and any(plans):
        images = dataset.train.sample(calibration_size, calibration_seed)
        calibration = collect_calibration(encoder, images, plans, translators, batch_size)
    maps = fit_maps(encoder, variants, calibration) if maps is None else _check_maps(encoder, variants, maps)
    trained_on = variants if "retrained" in heads else variants[:1]
    train = collect_features(encoder, dataset.train, trained_on, maps, batch_size)
    test = collect_features(encoder, dataset.test, variants, maps, batch_size)
    probe = Probe(len(dataset.class_names), seeds, learning_rate=head_lr, min_steps=head_min_steps)
    probe.fit(train, dataset.train.labels)
    predicted = [(probe if head == "retrained" else probe.first()).predict(test) for head in heads]
    rows = [(head, v.translator, str(v.plan), seed) for head in heads for v in variants for seed in seeds]
    return Predictions(
        pd.DataFrame(rows, columns=["head", "translator", "plan", "seed"]),
        torch.stack(predicted).flatten(0, 2).cpu().numpy(),
        dataset.test.labels.cpu().numpy(),
    )


def sweep(encoder: Encoder, dataset: ImageSet, plans: str | Plan | Iterable[str | Plan], **options) -> pd.DataFrame:
    """Accuracy and cost of plans x translators x heads x seeds, as one tidy frame.

    Parameters
    ----------
    encoder, dataset, plans
        As for `predict`.
    **options
        Any other parameter of `predict`.

    Returns
    -------
    DataFrame
        One row per head, translator, plan and seed: the names of model, features and data set, the columns of
        `accuracy_table`, and those of `plan_costs`. The original is the plan ``"original"``.
    """
    predictions = predict(encoder, dataset, plans, **options)
    return tabulate(predictions, encoder, dataset)


def tabulate(predictions: Predictions, encoder: Encoder, dataset: ImageSet) -> pd.DataFrame:
    """The table of `sweep` from predictions that are at hand."""
    variants = predictions.variants
    plans = parse_plans(variants["plan"])
    pixel_values, _ = next(dataset.test[:1].batches(1))
    costs = plan_costs(encoder, plans, [t for t in variants["translator"].unique() if t != ORIGINAL], pixel_values)
    table = accuracy_table(predictions).merge(costs, on=["translator", "plan"], validate="many_to_one")
    names = {"model": encoder.name, "features": encoder.feature_kind, "dataset": dataset.name}
    return pd.concat([pd.DataFrame(names, index=table.index), table], axis=1)


def _check_maps(encoder: Encoder, variants: Iterable[Variant], maps: dict[Exit, nn.Module]) -> dict[Exit, nn.Module]:
    for variant in variants:
        for span in variant.plan:
            if (span, variant.translator) not in maps:
                raise InputError(f"The given maps have none for span {span} with translator {variant.translator!r}.")
    return {exit_: copy.deepcopy(module).to(encoder.device, encoder.dtype) for exit_, module in maps.items()}


def _check(dataset: ImageSet, heads: list[str]) -> None:
    for head in heads:
        if head not in HEADS:
            raise unknown("head", head, HEADS)
    if dataset.train.labels is None or dataset.test.labels is None:
        raise InputError(f"{dataset.name} has no labels: accuracies need them, similarities and maps do not.")
