"""Many plans in one forward pass: each shared prefix of blocks runs once, and features are kept on disk."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from toastlib.cache import default_cache, fingerprint
from toastlib.data.images import Images
from toastlib.data.tokens import Inputs, token_mask
from toastlib.errors import InputError, need_batches, need_encoder
from toastlib.models.batch import BatchSize, batch_of
from toastlib.models.encoder import Encoder
from toastlib.models.layers import NAMES, AddPooledContext, AddRunningContext, MapPerPosition, padding_known
from toastlib.models.sublayers import run_last
from toastlib.models.walk import check_walk
from toastlib.plan import ORIGINAL, Plan, Span
from toastlib.translators.base import split_align

MapKey = tuple[Span, str, str]
"""A map: its span, the name of its translator, and the name of its calibration set (``""`` where there is one)."""


@dataclass(frozen=True)
class Variant:
    """A plan, the translator of its maps, and the calibration set that they are fitted on.

    The original encoder is the variant of the empty plan. ``"linear+align"`` shares maps and blocks with ``"linear"``;
    its features are aligned afterwards.
    """

    plan: Plan
    translator: str
    calibration: str = ""

    @property
    def aligned(self) -> bool:
        """Whether feature alignment follows the last block."""
        return split_align(self.translator)[1]

    @property
    def unaligned(self) -> "Variant":
        """The same variant without feature alignment."""
        return replace(self, translator=split_align(self.translator)[0])

    @property
    def map_keys(self) -> list[MapKey]:
        """The maps that the variant needs, one for each span."""
        return [(span, self.unaligned.translator, self.calibration) for span in self.plan]


THE_ORIGINAL = Variant(Plan(), ORIGINAL)
Maps = dict[MapKey | Variant, nn.Module]
"""Maps of spans, and for each aligned variant the map that aligns its features."""


def variants_of(plans: Iterable[Plan], translators: list[str], calibrations: Sequence[str] = ("",)) -> list[Variant]:
    """The original first, then every plan with every translator and calibration set; dropping needs none."""
    return [THE_ORIGINAL] + [
        Variant(plan, translator, calibration)
        for plan in plans
        if plan
        for translator in translators
        for calibration in ([""] if translator == "identity" else calibrations)
    ]


@torch.inference_mode()
def forward_plans(
    encoder: Encoder,
    inputs: Inputs,
    variants: Sequence[Variant],
    maps: Maps,
    pool: Callable[[Tensor, Inputs], Tensor] | None = None,
    *,
    start: tuple[int, Tensor] | None = None,
) -> dict[Variant, Tensor]:
    """Run every variant on one batch: its features before alignment, shape (batch, width).

    No block runs twice on the same hidden states: the plans form a trie over block outputs, and variants share their
    blocks until a span parts them.

    `inputs` are pixel values, shape (batch, 3, height, width), or `Tokens`, and `maps` those of `fit_maps`. `pool` is
    called with the last block's output and the inputs; if `None` it is `Encoder.pool`, which gives features, and tokens
    that it does not read are left out, see `run_last`. `start` is a block and its output ``h[block]`` that all variants
    share, computed before; -1 and ``h[-1]`` if `None`.
    """
    last, reads_all = len(encoder.blocks) - 1, pool is not None or not encoder.reads_cls_alone
    pool = pool or encoder.pool
    shared = encoder.embed(inputs)
    features: dict[Variant, Tensor] = {}
    branches = [(*(start or (-1, shared.hidden)), list(variants))]  # (block, its output, the variants that share it)
    while branches:
        block, hidden, sharing = branches.pop()
        groups: dict[MapKey | None, list[Variant]] = {}
        for variant in sharing:
            from_here = next((key for key in variant.map_keys if key[0].start == block), None)
            groups.setdefault(from_here, []).append(variant)
        # The group that runs the next block is pushed first and popped last: one path's states wait in memory.
        for key, group in sorted(groups.items(), key=lambda item: item[0] is not None):
            if key is not None:
                end, replacement = key[0].end, maps[key]
                read = hidden if reads_all or end < last or not acts_by_token(replacement) else hidden[:, :1]
                with padding_known([replacement], token_mask(inputs)):
                    branches.append((end, replacement(read), group))
            elif block + 1 < last or (reads_all and block < last):
                branches.append((block + 1, encoder.run_block(block + 1, hidden, shared), group))
            elif block < last:
                branches.append((last, run_last(encoder, hidden, shared), group))
            else:
                features |= dict.fromkeys(group, pool(hidden, inputs))
    return features


def collect_features(
    encoder: Encoder, images: Images, variants: Sequence[Variant], maps: Maps, batch_size: BatchSize = "auto"
) -> Tensor:
    """Compute the features of every variant for all images, or read them from the cache.

    Maps are those of `fit_maps`, and of `fit_alignments` where a variant is aligned. The features are float32, shape
    (variants, images, width), on the encoder's device; an `InputError` if they hold NaN or infinity.
    """
    need_encoder(encoder)
    need_batches(images)
    batch_size = batch_of(encoder, batch_size)
    features = torch.empty(len(variants), len(images), encoder.width, device=encoder.device)
    cache = default_cache()
    prefix = None  # of the keys of features before alignment; nothing is cached without one
    if cache.folder:
        pooling = (encoder.blocks_path, encoder.feature_kind, encoder.special_tokens)
        prefix = fingerprint("features", encoder, pooling, *images.cache_key_parts, batch_size)
    keys = [prefix and fingerprint(prefix, str(one.plan), *(maps[key] for key in one.map_keys)) for one in variants]
    missing = {}
    for row, (variant, key) in enumerate(zip(variants, keys, strict=True)):
        if (kept := cache.get(key)) is None:
            missing[row] = variant
        else:
            features[row] = kept["features"]
    done = 0
    for inputs in visible_batches(images, batch_size, "features") if missing else ():
        check_walk(encoder, inputs)
        batch = in_halves(lambda part: forward_plans(encoder, part, list(missing.values()), maps), inputs)
        for row, variant in missing.items():
            features[row, done : done + len(inputs)] = batch[variant]
        done += len(inputs)
    for row, variant in missing.items():
        if not torch.isfinite(features[row]).all():
            raise InputError(f"Plan {variant.plan} with translator {variant.translator!r} gives NaN or infinity.")
    for row in missing:
        cache.put(keys[row], {"features": features[row]})
    for row, variant in enumerate(variants):
        if variant.aligned:
            features[row] = maps[variant](features[row])
    return features


def acts_by_token(map_: nn.Module) -> bool:
    """True if a map gives each token an output that depends on no other, and takes any number of tokens."""
    pooling = AddPooledContext | AddRunningContext | MapPerPosition
    known = {"Scale", *NAMES}
    return all(type(part).__name__ in known and not isinstance(part, pooling) for part in map_.modules())


def in_halves(run: Callable[[Inputs], dict], inputs: Inputs) -> dict:
    """What `run` gives for a batch, name -> tensor of (batch, ...); half by half where a GPU's memory is too small."""
    try:
        return run(inputs)
    except torch.cuda.OutOfMemoryError:
        if len(inputs) == 1:
            raise
    torch.cuda.empty_cache()  # here, where the failed attempt's tensors are gone
    half = len(inputs) // 2
    first, second = in_halves(run, inputs[:half]), in_halves(run, inputs[half:])
    return {name: torch.cat([first[name], second[name]]) for name in first}


def visible_batches(images: Any, batch_size: int, task: str, unit: str = "image") -> Iterator[Inputs]:
    """The inputs of each batch, under a bar that shows itself when the work takes long, and leaves nothing behind.

    ``TQDM_DISABLE`` hides it, as the notebook runner wants; tqdm itself heeds the variable in terminals only.
    """
    hidden = bool(os.environ.get("TQDM_DISABLE"))
    with tqdm(total=len(images), desc=task, unit=unit, delay=10, leave=False, disable=hidden) as bar:
        for inputs, _ in images.batches(batch_size):
            yield inputs
            bar.update(len(inputs))
