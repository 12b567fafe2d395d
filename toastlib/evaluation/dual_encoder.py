"""Two towers, for images and for texts: a checkpoint's own, or a small text tower trained here for a locked encoder."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from toastlib.approximation.engine import collect_features, variants_of
from toastlib.data.images import Images, catalog
from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.models.loading import load_checkpoint, load_tokenizer

EMBEDDED = "vit-mini"
PROJECTED = {"clip": ("cls", "pooler"), "siglip": ("pooler",)}
"""Model type -> the features that its projection was trained on."""
CAPTIONS = ("a {}", "this is a {}", "the {} in a picture", "an image with a {}", "one {}")
"""What the embedded text tower is trained on; the word order differs from that of the templates it is asked with."""
SPECIAL_WORDS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
LONGEST_CAPTION = 32  # tokens


@dataclass(frozen=True)
class DualEncoder:
    """An encoder of images and the text tower that was trained with it, or for it.

    Parameters
    ----------
    encoder
        The vision tower: what blocks are removed from.
    model
        Has ``get_text_features``, ``logit_scale``, and where there is one ``visual_projection``: transformers'
        `CLIPModel`, `SiglipModel` or `VisionTextDualEncoderModel`. Its vision tower is the encoder's.
    tokenizer
        Of the text tower.
    held_out
        Class names that no caption of the training named; empty where the captions are not known.
    """

    encoder: Encoder
    model: nn.Module
    tokenizer: Any
    held_out: tuple[str, ...] = ()

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Features of length 1, shape (captions, shared width), float32."""
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


def add_text_tower(encoder: Encoder, model: str, images: Images) -> DualEncoder:
    """The text tower of the encoder's checkpoint, or for the embedded encoder one that is trained on these images.

    Parameters
    ----------
    encoder
        From `load_encoder`.
    model
        The name that it was loaded by: alias, Hub id or folder.
    images
        With labels; only the embedded encoder, which has no text tower of its own, learns from them, see
        `tune_text_tower`. The classes of `held_out_classes` are kept from it.

    Returns
    -------
    DualEncoder
        The encoder, and a text tower whose features share a space with its own.

    Raises
    ------
    InputError
        If the checkpoint has no text tower, or was trained on other features than the encoder's.
    """
    if encoder.name == EMBEDDED:
        return tune_text_tower(encoder, images, held_out_classes(images.class_names))
    return load_text_tower(encoder, model)


def load_text_tower(encoder: Encoder, model: str) -> DualEncoder:
    """The text tower, projections and tokenizer of the encoder's own checkpoint: CLIP or SigLIP.

    Raises
    ------
    InputError
        If it has none, or no tokenizer, or its projection was trained on other features than the encoder's.
    """
    path = catalog.model_path(model)
    both, missing = load_checkpoint(path, trust_remote_code=False)
    kind = both.config.model_type
    if not hasattr(both, "get_text_features") or kind not in PROJECTED or missing:
        hint = f"take 'openclip-vit-b', or {EMBEDDED!r}, for which one is trained"
        raise InputError(f"The checkpoint of {model!r} has no text tower of CLIP or SigLIP: {hint}.")
    if encoder.feature_kind not in PROJECTED[kind]:
        raise InputError(f"{model!r} compares texts with its pooled features: take features={PROJECTED[kind][0]!r}.")
    tokenizer = load_tokenizer(path, model)
    both.vision_model = encoder.model  # one tower, not two
    both.eval().requires_grad_(False)
    return DualEncoder(encoder, both.to(encoder.device), tokenizer)


def held_out_classes(class_names: Sequence[str], per_word: int = 2) -> tuple[str, ...]:
    """Classes that can be kept from training because each of their words is still learned from other classes.

    For names like ``"red circle"``: at most `per_word` of the classes with each colour, and of those with each shape,
    and less than half of them. Names that share no words, such as the digits', give none.
    """
    used = Counter(word for name in class_names for word in _words(name))
    lost, held_out = Counter(), []
    for name in class_names:
        if all(lost[word] < per_word < used[word] / 2 for word in _words(name)):
            lost.update(_words(name))
            held_out.append(name)
    return tuple(held_out)


def tune_text_tower(
    encoder: Encoder,
    images: Images,
    held_out: Iterable[str] = (),
    steps: int = 150,
    batch_size: int = 256,
    seed: int = 0,
) -> DualEncoder:
    """Train a small text tower to say what the locked encoder sees (Zhai et al. 2022, LiT: locked-image tuning).

    The text tower is CLIP's in small: two causal blocks of width 64 over whole words. It and a linear projection of the
    encoder's features learn to give an image the feature of its caption rather than those of the other classes'
    captions. The encoder does not change.

    Parameters
    ----------
    encoder
        Stays as it is.
    images
        With labels and class names: a caption is one of `CAPTIONS` about the class.
    held_out
        Classes whose images and names are left out.
    steps, batch_size
        Of AdamW, and how many images each step sees.
    seed
        Of the first weights and of all draws.

    Raises
    ------
    InputError
        If the images have no labels.
    """
    if images.labels is None:
        raise InputError("A text tower learns from class names: these images have no labels.")
    seen = [name for name in images.class_names if name not in set(held_out)]
    number = torch.tensor([seen.index(name) if name in seen else -1 for name in images.class_names])
    targets = number[images.labels]
    images, targets = images[targets >= 0], targets[targets >= 0]
    features = collect_features(encoder, images, variants_of([], []), {})[0].cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _tokenizer(images.class_names)
        towers = DualEncoder(encoder, _untrained(encoder, tokenizer), tokenizer, tuple(held_out))
        _train(towers, features, targets, seen, steps, batch_size)
    towers.model.eval().requires_grad_(False)
    towers.model.to(encoder.device)
    return towers


def caption(template: str, class_name: str) -> str:
    """The template about a class: ``"oak_tree"`` is an oak tree, ``"tench, Tinca tinca"`` a tench."""
    return template.format(class_name.split(",")[0].replace("_", " "))


def _train(
    towers: DualEncoder, features: Tensor, targets: Tensor, names: Sequence[str], steps: int, batch_size: int
) -> None:
    model = towers.model
    learned = [p for name, p in model.named_parameters() if not name.startswith("vision_model.")]
    optimiser = torch.optim.AdamW(learned, lr=1e-3, weight_decay=0.0)
    for _ in range(steps):
        rows = torch.randint(len(features), (batch_size,))
        drawn = torch.randint(len(CAPTIONS), (len(names),)).tolist()
        texts = towers.text_features([caption(CAPTIONS[k], name) for k, name in zip(drawn, names, strict=True)])
        seen = normalize(model.visual_projection(features[rows]), dim=-1)
        loss = cross_entropy(model.logit_scale.exp() * seen @ texts.T, targets[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _untrained(encoder: Encoder, tokenizer: Any) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LONGEST_CAPTION,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,  # where CLIP reads the caption's feature; with 2 it would read elsewhere
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(encoder.model.config, text, projection_dim=64)
    own = encoder.model.config
    model = VisionTextDualEncoderModel(config, vision_model=encoder.model, text_model=CLIPTextModel(text))
    encoder.model.config = own  # the pair has put a copy in its place
    return model


def _tokenizer(class_names: Iterable[str]) -> Any:
    """Whole words, those of all classes and captions; any other is ``[UNK]``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    texts = [*(name for name in class_names), *(template.format("") for template in CAPTIONS)]
    words = sorted({word for text in texts for word in _words(text)})
    vocabulary = {word: number for number, word in enumerate([*SPECIAL_WORDS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[(word, vocabulary[word]) for word in ("[BOS]", "[EOS]")]
    )
    special = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL_WORDS, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **special
    )


def _words(text: str) -> list[str]:
    return caption("{}", text).lower().split()
