"""Zero-shot classification with blocks removed from the vision tower, the text tower untouched (paper, Table 2)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from toastlib.approximation.engine import collect_features
from toastlib.approximation.prepare import Source, prepare
from toastlib.data.images import ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.dual_encoder import DualEncoder, caption
from toastlib.evaluation.evaluate import as_evaluation, require_labels
from toastlib.evaluation.result import Evaluation
from toastlib.plan import Plan

TEMPLATES = ("a photo of a {}.", "a picture of the {}.", "an image of one {}.")
HEAD = "zero-shot"


@dataclass(frozen=True)
class ZeroShotHead:
    """A head that nobody trained: what the class names mean, as the text tower has it."""

    projection: nn.Module  # from the vision tower's features to the width that images and texts share
    texts: Tensor  # one feature of length 1 per class, shape (classes, shared width)
    scale: float  # from cosine similarity to logit
    bias: float = 0.0  # only SigLIP has one

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """Shape (..., classes) from features of shape (..., width)."""
        return self.scale * normalize(self.projection(features.float()), dim=-1) @ self.texts.T + self.bias


@torch.inference_mode()
def zero_shot_head(dual: DualEncoder, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> ZeroShotHead:
    """The head of these classes: the mean over templates of their text features, brought back to length 1.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021), section 3.1.
    Templates are captions with ``{}`` in place of the class name (see `caption`); an `InputError` if one has none.
    """
    check_templates(templates)
    per_template = [dual.text_features([caption(text, name) for name in class_names]) for text in templates]
    texts = normalize(torch.stack(per_template).mean(0), dim=-1)
    bias = getattr(dual.model, "logit_bias", torch.zeros(1)).item()
    projection = getattr(dual.model, "visual_projection", nn.Identity())
    return ZeroShotHead(projection, texts, dual.model.logit_scale.exp().item(), bias)


def evaluate_zero_shot(
    dual: DualEncoder,
    data: ImageSet,
    plans: str | Plan | Iterable[str | Plan],
    *,
    translators: Iterable[str] | Mapping[str, Source] = ("identity", "linear"),
    calibration: Any = 500,
    templates: Sequence[str] = TEMPLATES,
    batch_size: int = 32,
) -> Evaluation:
    """Classify the test images by their class names, with the original vision encoder and with every plan (Table 2).

    Parameters
    ----------
    dual, data
        A vision encoder, from which blocks are removed, with its text encoder; and a set with labelled test images.
    plans, translators, calibration, batch_size
        As for `evaluate_plans`.
    templates
        As for `zero_shot_head`: one without ``{}`` is refused.

    Returns
    -------
    Evaluation
        Its head is ``"zero-shot"``, its only seed 0.
    """
    require_labels(data, ["test"])
    encoder, head = dual.encoder, zero_shot_head(dual, data.class_names, templates)
    ready = prepare(encoder, data, plans, translators=translators, calibration=calibration, batch_size=batch_size)
    test = collect_features(encoder, data.test, ready.variants, ready.maps, batch_size)
    predicted = torch.stack([head.logits(features).argmax(-1) for features in test])
    return as_evaluation(encoder, data, ready, predicted[None, :, None], [HEAD], [0])


def check_templates(templates: Sequence[str]) -> None:
    """Raise an `InputError` unless there are templates, each with one place for the class name."""
    if not templates:
        raise InputError(f"There is no template: zero-shot needs one, for example {TEMPLATES[0]!r}.")
    for template in templates:
        try:
            fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
        except ValueError:  # a brace that is not closed
            fields = []
        if fields != [""]:
            raise InputError(f"Template {template!r} needs one {{}} where the class name goes, as in {TEMPLATES[0]!r}.")
