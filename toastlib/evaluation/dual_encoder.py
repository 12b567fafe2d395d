"""Dual encoders: an encoder of images and the text encoder that shares a feature space with it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize

from toastlib.data import catalog
from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.models.loading import load_checkpoint, load_tokenizer

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
    path = catalog.model_path(model)
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
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, PreTrainedTokenizerFast

    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = build_dual_model(encoder, CLIPTextConfig(**settings["text"]), settings["projection_dim"])
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    model.eval().requires_grad_(False).to(encoder.device)
    return DualEncoder(encoder, model, PreTrainedTokenizerFast.from_pretrained(folder), tuple(settings["held_out"]))


def build_dual_model(encoder: Encoder, text: Any, projection_dim: int) -> nn.Module:
    """A `VisionTextDualEncoderModel` around the encoder's own model, its text encoder and projections not trained."""
    from transformers import CLIPTextModel, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    own = encoder.model.config
    config = VisionTextDualEncoderConfig.from_vision_text_configs(own, text, projection_dim=projection_dim)
    model = VisionTextDualEncoderModel(config, vision_model=encoder.model, text_model=CLIPTextModel(text))
    encoder.model.config = own  # the pair has put a copy in its place
    return model


def caption(template: str, class_name: str) -> str:
    """The template about a class: ``"oak_tree"`` is an oak tree, ``"tench, Tinca tinca"`` a tench."""
    return template.format(class_name.split(",")[0].replace("_", " "))
