"""What a model answers, and how good that is: its accuracy, or its agreement with the original; and what breaks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from toastlib.approximation.align import fit_alignment
from toastlib.approximation.engine import THE_ORIGINAL, Maps, Variant, collect_features
from toastlib.approximation.replace import replace_spans
from toastlib.data.images import Images, ImageSet
from toastlib.data.texts import Texts
from toastlib.data.tokens import arguments_of
from toastlib.errors import InputError, unknown
from toastlib.evaluation.metrics import accuracy_interval, changes, paired_difference, paired_interval
from toastlib.evaluation.probe import HeadConfig, Probe, absorb_alignment
from toastlib.models.base_architecture import match_labels, own_classifier
from toastlib.models.costs import example_input
from toastlib.models.encoder import Encoder
from toastlib.models.model_card import Accuracy
from toastlib.models.saving import as_stored, saved_form

MEASURES = {
    "accuracy": "accuracy",
    "agreement": "agreement with the original",
    "similarity": "cosine similarity with the original's features",
}
LOST = {"accuracy": "points lost", "agreement": "% of answers changed", "similarity": "% of similarity lost"}
"""What a difference of scores is called, by the head's measure."""
MIN_STEPS = 1000  # of the head
HEADS = (None, "own", "new")
SHOWN = 12  # pictures of images that turn wrong, and confusions that are new


class Head(NamedTuple):
    """What turns features into classes: a probe or linear layer, the checkpoint's own classifier, or `None`."""

    module: Probe | nn.Linear | PreTrainedModel | None
    class_names: tuple[str, ...]
    measure: str  # of its answers: a name of `MEASURES`
    places: tuple[int, ...] = ()  # of the data set's classes among `class_names`
    own: bool = False  # whether it is the checkpoint's classifier, an alignment folded in or not


def choose_head(
    encoder: Encoder, dataset: ImageSet, classifier: PreTrainedModel | None, seed: int, wanted: str | None = None
) -> Head:
    """The checkpoint's classifier if it has one, else a probe on the original's features if there are labels.

    `wanted` is ``"own"``, ``"new"``, or `None` for the own one if there is any; `seed` is that of a new head.
    """
    if wanted not in HEADS:
        raise unknown("head", wanted, HEADS[1:])
    if wanted == "own" and classifier is None:
        raise InputError(f"{encoder.name} has no classifier of its own: --head new trains one.")
    labelled = dataset.train.labels is not None and dataset.test.labels is not None
    if wanted == "new" and not labelled:
        raise InputError(f"A new head needs labels, and {dataset.name} has none.")
    own = tuple(classifier.config.id2label[k] for k in range(classifier.config.num_labels)) if classifier else ()
    if not labelled:
        return Head(classifier, own, "agreement" if classifier else "similarity", own=bool(classifier))
    names = dataset.class_names
    if classifier and wanted != "new":
        places = match_labels(classifier.config, names)
        if strange := [name for name, place in zip(names, places, strict=True) if place is None]:
            raise InputError(
                f"{encoder.name}'s classifier has no label for {_some(strange)} of the {len(names)} classes of "
                f"{dataset.name}; its labels are {_some(own)}. Name the classes as the labels are named, or "
                "--head new trains another classifier."
            )
        return Head(classifier, own, "accuracy", tuple(places), own=True)
    features = collect_features(encoder, dataset.train, [THE_ORIGINAL], {})
    probe = Probe(len(names), HeadConfig(seeds=[seed], min_steps=MIN_STEPS))
    return Head(probe.fit(features, dataset.train.labels), names, "accuracy", tuple(range(len(names))))


def describe(head: Head, dataset: ImageSet, classifier: PreTrainedModel | None, align: bool = False) -> str:
    """Which head a model has been measured with, and is saved with; in a second sentence, if an alignment is in it."""
    corrected = " A map that corrects the features is multiplied into its weights." if align else ""
    if head.measure == "similarity":
        return "No classifier: there are no labels, and the features of both models are compared."
    if head.own:
        part = len(head.places) < len(head.class_names)
        how = f", and tested on {len(head.places)} of its {len(head.class_names)} labels" if part else ""
        if head.measure == "agreement":
            how = ": there are no labels, and the answers of both are compared"
        return f"The checkpoint's own classifier is kept{how}.{corrected}"
    instead = ", in place of the checkpoint's own" if classifier else ""
    inputs = inputs_of(dataset.train)
    return f"A new linear classifier is trained on {len(dataset.train)} training {inputs}{instead}.{corrected}"


def describe_tuning(head: Head, dataset: ImageSet, before: np.ndarray, after: np.ndarray, epochs: int) -> str:
    """What fine-tuning on the training images won, in a sentence, from the scores of the test images."""
    by = "by their labels" if head.measure == "accuracy" else "to the original's features"
    lost, low, high = points_lost(before, after, head)
    return (
        f" Then the model is fine-tuned for {epochs} epoch{'s' * (epochs > 1)} on {len(dataset.train)} training "
        f"{inputs_of(dataset.train)} {by}: {MEASURES[head.measure]} {100 * before.mean():.1f} % before it, "
        f"{100 * after.mean():.1f} % after, {-lost:+z.1f} points [{-high:+z.1f}, {-low:+z.1f}]."
    )


def inputs_of(data: Images | Texts) -> str:
    """``"images"`` or ``"texts"``."""
    return "texts" if isinstance(data, Texts) else "images"


def _some(names: Sequence[str], most: int = 5) -> str:
    """Names, the first few if there are many."""
    more = f" and {len(names) - most} others" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def aligned(head: Head, original: Encoder, features: Tensor, target: Tensor) -> Head:
    """The head for a smaller encoder, with the alignment of its features to the original's folded in."""
    layer = first_layer(head, original)
    if layer is None:
        raise InputError("Aligned features need a linear classifier that reads them: take a translator without +align.")
    alignment = fit_alignment(features, target)
    absorbed = layer.absorb(alignment) if isinstance(layer, Probe) else absorb_alignment(layer, alignment)
    return head._replace(module=absorbed)


def first_layer(head: Head, original: Encoder) -> "Probe | nn.Linear | None":
    """What absorbs an alignment: the probe, or the checkpoint's linear layer if it reads what the encoder gives."""
    if isinstance(head.module, Probe):
        return head.module
    layer, example = getattr(head.module, "classifier", None), example_input(original)
    with torch.inference_mode():
        if isinstance(layer, nn.Linear) and layer.in_features == original.width:
            logits = layer(original(example).to(layer.weight))
            own = head.module(**arguments_of(example)).logits
            if torch.allclose(logits, own, rtol=1e-4, atol=1e-4 * logits.abs().max().item()):
                return layer
    return None


def predict_by_own(
    encoder: Encoder, dataset: ImageSet, variants: Sequence[Variant], maps: Maps, features: Tensor
) -> Tensor:
    """Classes that the checkpoint's classifier predicts for the test images, int64, shape (variants, images).

    From the variants' features if it is a linear layer that reads these; else every smaller model is run. An answer
    that is no class of the set is the number of its classes.
    """
    classifier = own_classifier(*encoder.checkpoint[:3]) if encoder.checkpoint else None
    head = choose_head(encoder, dataset, classifier, 0, "own")
    layer = first_layer(head, encoder)
    if layer is not None:
        with torch.inference_mode():
            chosen = layer.to(features.device)(features.to(layer.weight.dtype)).argmax(-1).cpu()
    elif any(variant.aligned for variant in variants):
        raise InputError("Aligned features need a linear classifier that reads them: take translators without +align.")
    else:
        spans = [{key[0]: maps[key] for key in variant.map_keys} for variant in variants]
        models = (form(replace_spans(encoder, own) if own else encoder, head) for own in spans)
        chosen = torch.stack([answers(model.to(encoder.device), dataset.test).argmax(-1) for model in models])
    classes = torch.full((len(head.class_names),), len(head.places))
    classes[list(head.places)] = torch.arange(len(head.places))
    return classes[chosen]


def names_of(head: Head) -> tuple[str, ...] | None:
    """The class names to save a head with: a checkpoint's own classifier brings its own."""
    return head.class_names if isinstance(head.module, Probe | nn.Linear) else None


def form(encoder: Encoder, head: Head) -> PreTrainedModel:
    """The model as it is saved, its weights rounded alike; so what is measured is what is taken away."""
    return as_stored(saved_form(encoder, head.module, names_of(head)), encoder).to(encoder.dtype)


@torch.inference_mode()
def answers(model: PreTrainedModel, images: Images) -> Tensor:
    """Logits of a classifier, shape (images, classes), or features, shape (images, width); float32 on the CPU."""
    outputs = [model(**arguments_of(inputs)) for inputs, _ in images.batches()]
    found = [output.logits if "logits" in output else output.pooler_output for output in outputs]
    return torch.cat(found).float().cpu()


def score(found: Tensor, original: Tensor, images: Images, head: Head) -> np.ndarray:
    """How good each image's answer is, in [0, 1], by the head's measure; shape (images,)."""
    if head.measure == "similarity":
        return torch.cosine_similarity(found, original).clamp(min=0).double().numpy()
    expected = torch.tensor(head.places)[images.labels.cpu()] if head.measure == "accuracy" else original.argmax(1)
    return (found.argmax(1) == expected).double().numpy()


def points_lost(before: np.ndarray, after: np.ndarray, head: Head) -> Accuracy:
    """Points that the scores lose over the same images, with the 95 % interval.

    By `paired_interval` for answers that are right or wrong, Wilson's for changed ones, Student's for similarities.
    """
    if head.measure == "similarity":
        return paired_difference(before, after)
    lost, won = changes(before, after)
    count = len(before)
    ends = accuracy_interval(lost, count) if head.measure == "agreement" else paired_interval(lost, won, count)
    return tuple(100 * value for value in ((lost - won) / count, *ends))


def percent(scores: np.ndarray, measure: str) -> Accuracy:
    """Mean of the scores in percent with its interval: Wilson's for shares of images, Student's for similarities."""
    if measure == "similarity":
        return paired_difference(scores, np.zeros(len(scores)))
    interval = accuracy_interval(int(scores.sum()), len(scores))
    return tuple(100 * float(value) for value in (scores.mean(), *interval))


class Flip(NamedTuple):
    """An image or text whose answer turns wrong, its class, and both answers; pixels are uint8, (3, height, width)."""

    shown: Tensor | str
    label: str
    before: str
    after: str

    def __repr__(self) -> str:
        return f"Flip({self.label!r}, {self.before!r} -> {self.after!r})"


def by_class(images: Images, before: np.ndarray, after: np.ndarray, head: Head) -> pd.DataFrame:
    """A row for each class: ``images``, percent ``before`` and ``after``, points ``lost`` with their interval."""
    labels, rows = images.labels.cpu().numpy(), []
    for label in np.unique(labels):
        of_class = labels == label
        shares = (100 * scores[of_class].mean() for scores in (before, after))
        lost = points_lost(before[of_class], after[of_class], head)
        rows.append((head.class_names[head.places[label]], int(of_class.sum()), *shares, *lost))
    return pd.DataFrame(rows, columns=["class", "images", "before", "after", "lost", "low", "high"])


def flips(
    images: Images | Texts, found: Sequence[Tensor], scores: Sequence[np.ndarray], head: Head, tokenizer: Any = None
) -> list[Flip]:
    """The images or texts that turn wrong, in their order; without labels, those that are called something else."""
    rows, flipped = np.flatnonzero(scores[0] > scores[1]), []
    shown = images.decoded(tokenizer) if isinstance(images, Texts) else images.pixels
    for row in rows.tolist():
        before, after = (head.class_names[answers[row].argmax()] for answers in found)
        label = before if images.labels is None else head.class_names[head.places[images.labels[row]]]
        flipped.append(Flip(shown[row], label, before, after))
    return flipped


def new_confusions(flipped: list[Flip]) -> pd.DataFrame:
    """Of the images that turn wrong, how many of a class are called what: ``class``, ``called``, ``images``."""
    pairs = pd.DataFrame([(flip.label, flip.after) for flip in flipped], columns=["class", "called"])
    return pairs.value_counts().rename("images").reset_index().head(SHOWN)
