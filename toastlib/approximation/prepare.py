"""From plans, translators and calibration sets to fitted maps: the first step of every evaluation of plans."""

import copy
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from toastlib.approximation.align import fit_alignment
from toastlib.approximation.engine import THE_ORIGINAL, Maps, Variant, collect_features, variants_of
from toastlib.approximation.replace import check_moments, collect_calibration, fit_spans
from toastlib.errors import InputError, need_encoder, whole_number
from toastlib.models.batch import BatchSize
from toastlib.models.encoder import Encoder
from toastlib.plan import ORIGINAL, Plan, Span, parse_plans
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.base import Activations, Translator, make_translator, split_align

Source = str | Translator | Mapping[Span, nn.Module]
"""Where a map comes from: a registered name, a translator, or maps that are fitted already."""
Sources = Iterable[str | Translator] | Mapping[str, Source]


@dataclass(frozen=True)
class Prepared:
    """Variants of an encoder with all their maps, ready to run."""

    plans: list[Plan]  # those that were asked for, each once
    translators: dict[str, Source]  # a name that ends in "+align" has the source of the name before it
    variants: list[Variant]  # from `variants_of`: the original first
    maps: Maps  # every map that the variants need

    @property
    def names(self) -> list[dict[str, str]]:
        """``translator``, ``plan`` and, where there are several, ``calibration`` of every variant."""
        several = any(variant.calibration for variant in self.variants)
        return [
            {"translator": variant.translator}
            | ({"calibration": variant.calibration} if several else {})
            | {"plan": str(variant.plan)}
            for variant in self.variants
        ]


def prepare(
    encoder: Encoder, data: Any, plans: Any, *, translators: Any, calibration: Any, batch_size: int
) -> Prepared:
    """Read plans and translators, and fit every map on every calibration set; parameters as for `evaluate_plans`.

    An `InputError` if a name is unknown, a plan does not fit the encoder, a map is missing, or a calibration does not
    suit a map.
    """
    need_encoder(encoder)
    plans = [plan.check(len(encoder.blocks)) for plan in parse_plans(plans)]
    named = name_translators(translators)
    # Activations are a mapping too, from blocks to tensors.
    several = isinstance(calibration, Mapping) and all(isinstance(name, str) for name in calibration)
    calibrations = calibration if several else {"": calibration}
    if not calibrations:
        raise InputError("There is no calibration set: name one at least, such as {'mnist': images}.")
    variants, maps = variants_of(plans, list(named), list(calibrations)), {}
    for name, given in calibrations.items():
        own = [variant for variant in variants if variant.plan and variant.calibration == name]
        sources = {v.unaligned.translator: named[v.translator] for v in own}
        to_fit = [one for one in sources.values() if one != "identity" and not isinstance(one, Mapping)]
        if isinstance(given, int):
            whole_number("The number of calibration images", given, least=1)
        fits = data is not None and (to_fit or any(variant.aligned for variant in own))
        drawn = isinstance(given, int) and fits
        statistics = images = data.train.sample(given, seed=0) if drawn else given
        if fits and place(images) == place(data.test):
            message = "Maps are fitted on the test images that score them: take training images for calibration."
            warnings.warn(message, stacklevel=3)
        if to_fit and hasattr(images, "batches"):
            statistics = collect_calibration(encoder, images, plans, to_fit, batch_size)
        check_moments(encoder, statistics)
        maps |= fit_maps(encoder, own, named, statistics)
        maps |= fit_alignments(encoder, images, own, maps, batch_size)
    maps |= fit_maps(encoder, [v for v in variants if v.calibration not in calibrations], named, None)
    return Prepared(plans, named, variants, maps)


def place(images: Any) -> int:
    """Where images or texts begin in memory: two sets that begin at one place overlap."""
    first = next(iter(getattr(images, "cache_key_parts", ())), None)
    return first.data_ptr() if isinstance(first, Tensor) else id(images)


def name_translators(translators: Sources) -> dict[str, Source]:
    """Name -> source of its maps, for names, for translators by their `name`, or for a mapping.

    An `InputError` if a name is unknown or stands for two translators, or ``"x+align"`` has another source than
    ``"x"``.
    """
    if isinstance(translators, str | Translator):
        translators = [translators]
    if not isinstance(translators, Mapping):
        given, translators = translators, {}
        for one in given:
            name, source = (one, split_align(one)[0]) if isinstance(one, str) else (make_translator(one).name, one)
            if translators.setdefault(name, source) != source:
                raise InputError(f"Two translators have the name {name!r}: name them yourself, as in {{'mine': ...}}.")
    for name, source in translators.items():
        if name == ORIGINAL:
            raise InputError(f"{ORIGINAL!r} is the name of the encoder itself: give the maps another one.")
        if isinstance(source, str):
            make_translator(source)
        plain = split_align(name)[0]
        if translators.get(plain, source) != source:
            raise InputError(f"{name!r} aligns features behind the maps of {plain!r}: give both names the same source.")
    return dict(translators)


def fit_maps(
    encoder: Encoder,
    variants: Iterable[Variant],
    translators: Mapping[str, Source],
    calibration: Moments | KFoldMoments | Activations | None,
) -> Maps:
    """Fit every map that the variants need, each once; on the encoder's device and in its dtype."""
    sources = {split_align(name)[0]: source for name, source in translators.items()}
    needed: dict[tuple[str, str], set[Span]] = {}
    for variant in variants:
        for span, translator, name in variant.map_keys:
            needed.setdefault((translator, name), set()).add(span)
    return {
        (span, translator, name): module.to(encoder.device, encoder.dtype)
        for (translator, name), spans in needed.items()
        for span, module in _modules(sorted(spans), translator, sources[translator], calibration).items()
    }


def fit_alignments(
    encoder: Encoder, images: Any, variants: Iterable[Variant], maps: Maps, batch_size: BatchSize = "auto"
) -> Maps:
    """Fit the feature alignment of every aligned variant on calibration images; an `InputError` if there are none."""
    aligned = [variant for variant in variants if variant.aligned]
    if not aligned:
        return {}
    if not hasattr(images, "batches"):
        raise InputError(f"{aligned[0].translator!r} aligns features: pass calibration images, not their moments.")
    unaligned = [THE_ORIGINAL, *(variant.unaligned for variant in aligned)]
    target, *features = collect_features(encoder, images, unaligned, maps, batch_size)
    return {variant: fit_alignment(x, target).module() for variant, x in zip(aligned, features, strict=True)}


def _modules(spans: list[Span], name: str, source: Source, calibration: Any) -> dict[Span, nn.Module]:
    if source == "identity":
        return {span: nn.Identity() for span in spans}
    if not isinstance(source, Mapping):
        return {span: fitted.module() for span, fitted in fit_spans(spans, source, calibration).items()}
    return {span: copy.deepcopy(one) for span, one in fitted_maps(name, source, spans).items()}


def fitted_maps(name: str, maps: Mapping[Span, nn.Module], spans: Iterable[Span]) -> dict[Span, nn.Module]:
    """The maps of these spans; an `InputError` if one is missing."""
    if missing := [span for span in spans if span not in maps]:
        raise InputError(f"The maps of {name!r} have none for span {missing[0]}.")
    return {span: maps[span] for span in spans}
