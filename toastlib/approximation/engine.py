"""One walk over the images for many variants of an encoder: every shared prefix is computed once, and kept on disk."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from toastlib.approximation.align import fit_alignment
from toastlib.approximation.progress import progress_bar
from toastlib.approximation.replace import fit_spans
from toastlib.cache import default_cache, fingerprint
from toastlib.data.images import Images
from toastlib.data.tokens import Inputs
from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import collect_activations
from toastlib.plan import ORIGINAL, Plan, Span
from toastlib.statistics.collect import collect_folds, collect_moments
from toastlib.statistics.moments import KFoldMoments, Moments, plan_pairs
from toastlib.translators.base import Activations, make_translator, needs_folds, split_align

MapKey = tuple[Span, str]
"""A span and the name of the translator that takes its place."""


@dataclass(frozen=True)
class Variant:
    """One plan with one kind of map; the original encoder is the variant of the empty plan.

    A translator such as ``"linear+align"`` shares maps and blocks with ``"linear"``, and aligns the features.
    """

    plan: Plan
    translator: str

    @property
    def aligned(self) -> bool:
        """Whether its features are."""
        return split_align(self.translator)[1]

    @property
    def plain(self) -> "Variant":
        """The variant before alignment."""
        return replace(self, translator=split_align(self.translator)[0])

    @property
    def map_keys(self) -> list[MapKey]:
        """The maps that it needs."""
        return [(span, self.plain.translator) for span in self.plan]

    def map_key(self, block: int) -> MapKey | None:
        """Where this variant leaves the block list after `block`, if it does."""
        return next((key for key in self.map_keys if key[0].start == block), None)


Maps = dict[MapKey | Variant, nn.Module]
"""What stands in for spans, and for the variants that are aligned what their features go through."""


def variants_of(plans: Iterable[Plan], translators: Iterable[str]) -> list[Variant]:
    """The original first, then every plan with every translator."""
    translators = list(translators)
    return [Variant(Plan(), ORIGINAL)] + [Variant(plan, name) for plan in plans if plan for name in translators]


def collect_calibration(
    encoder: Encoder, images: Images, plans: Sequence[Plan], translators: Iterable[str], batch_size: int = 32
) -> Moments | KFoldMoments | Activations:
    """What the maps of these plans are fitted on, from one pass over the calibration images.

    That is their moments, in folds if one of the translators needs them. If one is trained it is the activations of all
    tokens, which the closed forms read as well: float32, (images x tokens x width) for each block where a span begins
    or ends. Where both are needed there is a second pass, and the activations lie with the folds.
    """
    kinds, activations = [make_translator(name) for name in translators], None
    if any(kind.needs_activations for kind in kinds):
        blocks = sorted({block for plan in plans for span in plan for block in span})
        activations = collect_activations(encoder, images, blocks, tokens="all", batch_size=batch_size)
    if any(map(needs_folds, kinds)):
        folds = collect_folds(encoder, images, plan_pairs(plans), batch_size=batch_size)
        return replace(folds, activations=activations)
    return activations or collect_moments(encoder, images, plan_pairs(plans), batch_size=batch_size)


def fit_maps(encoder: Encoder, variants: Iterable[Variant], calibration: Moments | KFoldMoments | Activations) -> Maps:
    """Fit every map that the variants need, each once; on the encoder's device and in its dtype."""
    spans: dict[str, set[Span]] = {}
    for variant in variants:
        spans.setdefault(variant.plain.translator, set()).update(variant.plan)
    return {
        (span, name): fitted.module().to(encoder.device, encoder.dtype)
        for name, needed in spans.items()
        if needed
        for span, fitted in fit_spans(sorted(needed), name, calibration).items()
    }


def fit_alignments(
    encoder: Encoder, images: Images, variants: Iterable[Variant], maps: Maps, batch_size: int = 32
) -> Maps:
    """Fit what the features of aligned variants go through, on calibration images whose labels play no part.

    Parameters
    ----------
    encoder
        The original.
    images
        Calibration images; they go through all aligned variants in one walk.
    variants
        Those that are not aligned are left out.
    maps
        From `fit_maps`.
    batch_size
        Images per forward pass.
    """
    aligned = [variant for variant in variants if variant.aligned]
    if not aligned:
        return {}
    walked = [Variant(Plan(), ORIGINAL), *(variant.plain for variant in aligned)]
    target, *features = collect_features(encoder, images, walked, maps, batch_size)
    return {variant: fit_alignment(x, target).module() for variant, x in zip(aligned, features, strict=True)}


@torch.inference_mode()
def forward_plans(
    encoder: Encoder,
    inputs: Inputs,
    variants: Sequence[Variant],
    maps: Maps,
    finish: Callable[[Tensor, Inputs], Tensor] | None = None,
) -> dict[Variant, Tensor]:
    """Features of every variant for one batch, shape (batch, width) each, not aligned.

    The plans form a trie over block outputs: variants travel together until a span parts them. No block runs twice
    on the same state, and none that no variant needs.

    Parameters
    ----------
    encoder
        The original.
    inputs
        Pixel values, shape (batch, 3, height, width), or `Tokens`.
    variants
        What to compute.
    maps
        From `fit_maps`.
    finish
        What is made of the last block's output and the inputs, in place of `Encoder.pool`, which makes features.
    """
    finish = finish or encoder.pool
    shared = encoder.embed(inputs)
    features: dict[Variant, Tensor] = {}
    branches = [(-1, shared.hidden, list(variants))]  # (block, its output, who shares it)
    while branches:
        block, hidden, travellers = branches.pop()
        groups: dict[MapKey | None, list[Variant]] = {}
        for variant in travellers:
            groups.setdefault(variant.map_key(block), []).append(variant)
        # Who stays is pushed first and so goes on last: only the states of one path wait in memory.
        for key, group in sorted(groups.items(), key=lambda item: item[0] is not None):
            if key is not None:
                branches.append((key[0].end, maps[key](hidden), group))
            elif block + 1 < len(encoder.blocks):
                branches.append((block + 1, encoder.run_block(block + 1, hidden, shared), group))
            else:
                features |= dict.fromkeys(group, finish(hidden, inputs))
    return features


def collect_features(
    encoder: Encoder,
    images: Images,
    variants: Sequence[Variant],
    maps: Maps,
    batch_size: int = 32,
) -> Tensor:
    """Features of every variant for all images.

    Parameters
    ----------
    encoder, images, variants
        The original, and what to compute.
    maps
        From `fit_maps`, and `fit_alignments` where a variant is aligned.
    batch_size
        Images per forward pass.

    Returns
    -------
    Tensor
        float32, shape (variants, images, width), on the encoder's device. What an earlier call computed for the same
        encoder, images, maps and batch size is read from disk, see `toastlib.cache`.

    Raises
    ------
    InputError
        If a variant's features hold NaN or infinity, or their alignment is missing.
    """
    for variant in variants:
        if variant.aligned and variant not in maps:
            raise InputError(f"Translator {variant.translator!r} needs maps from fit_alignments, which are missing.")
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
    for row, variant in enumerate(variants):
        if variant.aligned:
            features[row] = maps[variant](features[row])
    return features


def _compute_features(
    encoder: Encoder,
    images: Images,
    variants: dict[int, Variant],
    maps: Maps,
    batch_size: int,
    features: Tensor,
) -> None:
    """Fill the given rows of `features`."""
    done = 0
    with progress_bar(len(images), "sweep") as progress:
        for pixel_values, _ in images.batches(batch_size):
            batch = forward_plans(encoder, pixel_values, list(variants.values()), maps)
            for row, variant in variants.items():
                features[row, done : done + len(pixel_values)] = batch[variant]
            done += len(pixel_values)
            progress.update(len(pixel_values))
    for row, variant in variants.items():
        if not torch.isfinite(features[row]).all():
            raise InputError(f"Plan {variant.plan} with translator {variant.translator!r} gives NaN or infinity.")


def _feature_keys(
    encoder: Encoder, images: Images, variants: Sequence[Variant], maps: Maps, batch_size: int
) -> list[str | None]:
    """What the features of each variant are kept under; `None` for what is not kept."""
    read_out = (encoder.blocks_path, encoder.feature_kind, encoder.special_tokens)
    walked = fingerprint("features", encoder, read_out, *images.cache_key_parts, batch_size)
    return [
        walked and fingerprint(walked, str(variant.plan), *(maps[key] for key in variant.map_keys))
        for variant in variants
    ]
