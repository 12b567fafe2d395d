"""Zero-shot classification by a text encoder, with blocks removed from the vision tower alone (paper, Table 2)."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from toastlib.approximation.engine import collect_features
from toastlib.approximation.prepare import Sources, prepare
from toastlib.data import catalog
from toastlib.data.images import ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.evaluate import as_evaluation, require_labels
from toastlib.evaluation.result import Evaluation
from toastlib.models.batch import BatchSize
from toastlib.models.encoder import Encoder
from toastlib.models.loading import load_checkpoint, load_tokenizer
from toastlib.models.quiet import find_checkpoint
from toastlib.plan import Plan

TEMPLATES = ("a photo of a {}.", "a picture of the {}.", "an image of one {}.")
HEAD = "zero-shot"
EMBEDDED = "vit-mini"
TEXT_ENCODER = catalog.DATA / "models" / "vit-mini-text"
"""The text encoder of the embedded model; ``scripts/train_text_encoder.py`` made it."""
PROJECTED = {"clip": ("cls", "pooler"), "siglip": ("pooler",)}
"""Model type -> the features that its projection was trained on."""


@dataclass(frozen=True)
class DualEncoder:
    """An encoder of images with a text encoder that was trained together with it, or for it."""

    encoder: Encoder  # of images: blocks are removed from it
    model: nn.Module  # transformers' `CLIPModel`, `SiglipModel` or `VisionTextDualEncoderModel` around the encoder's
    tokenizer: Any  # of the text encoder
    held_out: tuple[str, ...] = ()  # class names that no caption of its training contained, where that is known

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Features of length 1, float32, shape (captions, shared width)."""
        siglip = self.model.config.model_type == "siglip"  # was trained on full length only
        tokens = self.tokenizer(
            list(captions),
            padding="max_length" if siglip else True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        features = self.model.get_text_features(**tokens.to(self.model.logit_scale.device)).pooler_output
        return normalize(features, dim=-1)


def load_dual_encoder(encoder: Encoder, model: str) -> DualEncoder:
    """Add the text encoder of the encoder's checkpoint: CLIP, SigLIP, or the embedded one of ``vit-mini``.

    Parameters
    ----------
    encoder, model
        From `load_encoder`, and the name that it was loaded by: alias, Hub id or folder.

    Returns
    -------
    DualEncoder
        The encoder and its text encoder.

    Raises
    ------
    InputError
        If the checkpoint has no text encoder or tokenizer, or was trained on other features than the encoder's.
    """
    if encoder.name == EMBEDDED:
        return read_text_encoder(encoder, TEXT_ENCODER)
    path = find_checkpoint(model)
    both, missing = load_checkpoint(path, trust_remote_code=False)
    kind = both.config.model_type
    if not hasattr(both, "get_text_features") or kind not in PROJECTED or missing:
        hint = f"take 'openclip-vit-b', or {EMBEDDED!r}"
        raise InputError(f"The checkpoint of {model!r} has no text encoder of CLIP or SigLIP: {hint}.")
    if encoder.feature_kind not in PROJECTED[kind]:
        raise InputError(f"{model!r} compares texts with its pooled features: take features={PROJECTED[kind][0]!r}.")
    tokenizer = load_tokenizer(path, model)
    both.vision_model = encoder.model  # one vision model, not two
    both.eval().requires_grad_(False)
    return DualEncoder(encoder, both.to(encoder.device), tokenizer)


def read_text_encoder(encoder: Encoder, folder: Path) -> DualEncoder:
    """Read a text encoder that ``scripts/train_text_encoder.py`` wrote, for the encoder that it was trained with."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = build_dual_model(encoder, transformers.CLIPTextConfig(**settings["text"]), settings["projection_dim"])
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    model.eval().requires_grad_(False).to(encoder.device)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return DualEncoder(encoder, model, tokenizer, tuple(settings["held_out"]))


def build_dual_model(encoder: Encoder, text: Any, projection_dim: int) -> nn.Module:
    """A `VisionTextDualEncoderModel` around the encoder's own model, its text encoder and projections not trained."""
    own = encoder.model.config
    kind = transformers.VisionTextDualEncoderModel
    config = kind.config_class.from_vision_text_configs(own, text, projection_dim=projection_dim)
    model = kind(config, vision_model=encoder.model, text_model=transformers.CLIPTextModel(text))
    encoder.model.config = own  # the pair has put a copy in its place
    return model


def caption(template: str, class_name: str) -> str:
    """The template about a class: ``"oak_tree"`` is an oak tree, ``"tench, Tinca tinca"`` a tench."""
    return template.format(class_name.split(",")[0].replace("_", " "))


@torch.inference_mode()
def zero_shot_head(
    dual: DualEncoder, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Callable[[Tensor], Tensor]:
    """A head that nobody trained, from features (..., width) to logits (..., classes).

    It compares images with the mean over templates of a class's text features, brought back to length 1. Radford et
    al., "Learning Transferable Visual Models From Natural Language Supervision" (2021), section 3.1. Templates are
    captions with ``{}`` in place of the class name (see `caption`); an `InputError` if one has none.
    """
    check_templates(templates)
    per_template = [dual.text_features([caption(text, name) for name in class_names]) for text in templates]
    texts = normalize(torch.stack(per_template).mean(0), dim=-1)  # (classes, shared width)
    scale, bias = dual.model.logit_scale.exp(), getattr(dual.model, "logit_bias", 0)  # only SigLIP has a bias
    project = getattr(dual.model, "visual_projection", nn.Identity())
    return lambda features: scale * normalize(project(features.float()), dim=-1) @ texts.T + bias


def evaluate_zero_shot(
    dual: DualEncoder,
    data: ImageSet,
    plans: str | Plan | Iterable[str | Plan],
    *,
    translators: Sources = ("identity", "linear"),
    calibration: Any = 500,
    templates: Sequence[str] = TEMPLATES,
    batch_size: BatchSize = "auto",
) -> Evaluation:
    """Classify the test images by their class names, with the original vision encoder and with every plan (Table 2).

    Parameters
    ----------
    dual, data
        A vision encoder, from which blocks are removed, with its text encoder; and a set with labelled test images.
    plans, translators, calibration, batch_size, templates
        As for `evaluate_plans`; and as for `zero_shot_head`.

    Returns
    -------
    Evaluation
        Its head is ``"zero-shot"``, its only seed 0.
    """
    require_labels(data, ["test"])
    encoder, head = dual.encoder, zero_shot_head(dual, data.class_names, templates)
    ready = prepare(encoder, data, plans, translators=translators, calibration=calibration, batch_size=batch_size)
    test = collect_features(encoder, data.test, ready.variants, ready.maps, batch_size)
    predicted = torch.stack([head(features).argmax(-1) for features in test])
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
