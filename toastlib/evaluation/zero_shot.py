"""Zero-shot classification with blocks removed from the vision tower, the text tower untouched (paper, Table 2)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from string import Formatter

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from toastlib.approximation.engine import collect_calibration, collect_features, fit_alignments, fit_maps, variants_of
from toastlib.data.images import ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.dual_encoder import DualEncoder, caption
from toastlib.evaluation.metrics import Predictions
from toastlib.plan import Plan, parse_plans
from toastlib.statistics.moments import Moments
from toastlib.translators.base import Activations, make_translator

TEMPLATES = ("a photo of a {}.", "a picture of the {}.", "an image of one {}.")
HEAD = "zero-shot"


@dataclass(frozen=True)
class ZeroShotHead:
    """A head that nobody trained: what the class names mean, as the text tower has it.

    Parameters
    ----------
    projection
        Takes the vision tower's features to the width that images and texts share.
    texts
        One feature of length 1 per class, shape (classes, shared width).
    scale, bias
        From cosine similarity to logit; only SigLIP has a bias.
    """

    projection: nn.Module
    texts: Tensor
    scale: float
    bias: float = 0.0

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """Shape (..., classes) from features of shape (..., width)."""
        return self.scale * normalize(self.projection(features.float()), dim=-1) @ self.texts.T + self.bias


@torch.inference_mode()
def zero_shot_head(
    towers: DualEncoder, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> ZeroShotHead:
    """The head of these classes: the mean over templates of their text features, brought back to length 1.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021), section 3.1.

    Parameters
    ----------
    towers
        From `add_text_tower`.
    class_names
        One class each; underscores are spaces, and what follows a comma is left out.
    templates
        Captions with ``{}`` where the class name goes.

    Returns
    -------
    ZeroShotHead
        Its ``texts`` have shape (classes, shared width).

    Raises
    ------
    InputError
        If there is no template, or one has no ``{}``.
    """
    check_templates(templates)
    per_template = [towers.text_features([caption(text, name) for name in class_names]) for text in templates]
    texts = normalize(torch.stack(per_template).mean(0), dim=-1)
    bias = getattr(towers.model, "logit_bias", torch.zeros(1)).item()
    projection = getattr(towers.model, "visual_projection", nn.Identity())
    return ZeroShotHead(projection, texts, towers.model.logit_scale.exp().item(), bias)


def predict_zero_shot(
    towers: DualEncoder,
    dataset: ImageSet,
    plans: str | Plan | Iterable[str | Plan],
    translators: Iterable[str] = ("identity", "linear"),
    templates: Sequence[str] = TEMPLATES,
    calibration_size: int = 500,
    calibration_seed: int = 0,
    batch_size: int = 32,
    moments: Moments | Activations | None = None,
) -> Predictions:
    """Predict the test images by what their classes are called, with the original encoder and with every plan.

    Parameters
    ----------
    towers
        From `add_text_tower`; spans are taken out of its encoder.
    dataset
        Training images for the maps, whose labels play no part, and labelled test images.
    plans, translators
        Each plan is tried with each translator.
    templates
        See `zero_shot_head`.
    calibration_size, calibration_seed
        How many training images the maps are fitted on, and the seed of that draw.
    batch_size
        Images per forward pass.
    moments
        Fit the maps on these instead, see `predict`.

    Returns
    -------
    Predictions
        With the head ``"zero-shot"``; nothing is drawn but the calibration images, so their seed is the only one.

    Raises
    ------
    InputError
        If a name is unknown, a plan or a template does not fit, or the test images have no labels.
    """
    if dataset.test.labels is None:
        raise InputError(f"{dataset.name} has no labels, and its accuracy needs them.")
    translators = list(dict.fromkeys(translators))
    for name in translators:
        make_translator(name)
    plans = [plan.check(len(towers.encoder.blocks)) for plan in parse_plans(plans)]
    variants = variants_of(plans, translators)
    head = zero_shot_head(towers, dataset.class_names, templates)
    calibration, images = moments, None
    if calibration is None or any(variant.aligned for variant in variants):
        images = dataset.train.sample(calibration_size, calibration_seed)
    if calibration is None and any(plans):
        calibration = collect_calibration(towers.encoder, images, plans, translators, batch_size)
    maps = fit_maps(towers.encoder, variants, calibration)
    maps |= fit_alignments(towers.encoder, images, variants, maps, batch_size)
    test = collect_features(towers.encoder, dataset.test, variants, maps, batch_size)
    rows = [(HEAD, variant.translator, str(variant.plan), calibration_seed) for variant in variants]
    return Predictions(
        pd.DataFrame(rows, columns=["head", "translator", "plan", "seed"]),
        torch.stack([head.logits(features).argmax(-1) for features in test]).cpu().numpy(),
        dataset.test.labels.cpu().numpy(),
    )


def select_classes(predictions: Predictions, classes: Iterable[int]) -> Predictions:
    """The same predictions for the images of some classes only; what was predicted may be any class.

    Parameters
    ----------
    predictions
        From `predict_zero_shot`, or any others.
    classes
        Numbers of the classes, from 0.

    Returns
    -------
    Predictions
        Of the images whose true class is one of them.
    """
    images = np.isin(predictions.labels, list(classes))
    return replace(predictions, predicted=predictions.predicted[:, images], labels=predictions.labels[images])


def check_templates(templates: Sequence[str]) -> None:
    """Raise an `InputError` unless there are templates, each with one place for the class name."""
    if not templates:
        raise InputError(f"There is no template: zero-shot needs one, for example {TEMPLATES[0]!r}.")
    for template in templates:
        if [field for _, field, _, _ in _fields(template)] != [""]:
            raise InputError(f"Template {template!r} needs one {{}} where the class name goes, as in {TEMPLATES[0]!r}.")


def _fields(template: str) -> list[tuple]:
    try:
        return [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError:  # a brace that is not closed
        return []
