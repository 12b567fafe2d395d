"""Train the small text encoder of data/models/vit-mini-text, which 09_zero_shot asks for its class names.

    python scripts/train_text_encoder.py --out results/vit-mini-text      # some seconds on two cores

The method is locked-image tuning (Zhai et al. 2022, LiT): two causal blocks of width 64 over whole words, and a linear
projection of the locked encoder's features, learn to give an image of a coloured shape the feature of its caption, and
not those of the other classes' captions. A third of the classes is held out: their images and names are never seen.
"""

import json
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPTextConfig, PreTrainedTokenizerFast

from toastlib import Encoder, load_encoder, load_images
from toastlib.approximation.engine import THE_ORIGINAL, collect_features
from toastlib.data.images import Images
from toastlib.evaluation.zero_shot import DualEncoder, build_dual_model, caption

CAPTIONS = ("a {}", "this is a {}", "the {} in a picture", "an image with a {}", "one {}")
"""Their word order differs from that of the templates that 09 asks with."""
SPECIAL_WORDS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
LONGEST_CAPTION = 32  # tokens
PROJECTION = 64
CARD = """---
license: mit
language: en
---
# vit-mini-text

A text encoder for `vit-mini`: two causal blocks of width 64 over {words} words, and a projection of the encoder's CLS
feature to the shared width 64. `scripts/train_text_encoder.py` made it in {steps} steps from {images} images of
coloured shapes. It is not CLIP: it has read {captions} captions about the classes. {count} classes were held out:
{held_out}.
"""


def train_text_encoder(
    encoder: Encoder,
    images: Images,
    held_out: Iterable[str] = (),
    *,
    steps: int = 150,
    batch_size: int = 256,
    seed: int = 0,
) -> DualEncoder:
    """Train a text encoder for a locked encoder, on labelled images.

    Parameters
    ----------
    encoder
        It stays as it is.
    images
        With labels and class names: a caption is one of `CAPTIONS` about the class.
    held_out
        Classes whose images and names are left out.
    steps, batch_size
        Steps of AdamW, and images per step.
    seed
        Seed of the first weights and of all draws.
    """
    seen = [name for name in images.class_names if name not in set(held_out)]
    number = torch.tensor([seen.index(name) if name in seen else -1 for name in images.class_names])
    targets = number[images.labels]
    images, targets = images[targets >= 0], targets[targets >= 0]
    features = collect_features(encoder, images, [THE_ORIGINAL], {})[0].cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = word_tokenizer(images.class_names)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LONGEST_CAPTION,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,  # the token whose state is the caption's feature
        )
        dual = DualEncoder(encoder, build_dual_model(encoder, text, PROJECTION), tokenizer, tuple(held_out))
        train(dual, features, targets, seen, steps, batch_size)
    dual.model.eval().requires_grad_(False)
    return dual


def train(
    dual: DualEncoder, features: Tensor, targets: Tensor, names: Sequence[str], steps: int, batch_size: int
) -> None:
    """Take the steps: everything but the vision model learns."""
    model = dual.model
    learned = [p for name, p in model.named_parameters() if not name.startswith("vision_model.")]
    optimiser = torch.optim.AdamW(learned, lr=1e-3, weight_decay=0.0)
    for _ in range(steps):
        rows = torch.randint(len(features), (batch_size,))
        drawn = torch.randint(len(CAPTIONS), (len(names),)).tolist()
        texts = dual.text_features([caption(CAPTIONS[k], name) for k, name in zip(drawn, names, strict=True)])
        images = normalize(model.visual_projection(features[rows]), dim=-1)
        loss = cross_entropy(model.logit_scale.exp() * images @ texts.T, targets[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def held_out_classes(class_names: Sequence[str], per_word: int = 2) -> tuple[str, ...]:
    """Choose classes to hold out, so that each of their words is still learned from other classes.

    For names like ``"red circle"``: at most `per_word` of the classes with each colour, and of those with each shape,
    and less than half of them. Names that share no words, such as the digits', give none.
    """
    used = Counter(word for name in class_names for word in words_of(name))
    lost, held_out = Counter(), []
    for name in class_names:
        if all(lost[word] < per_word < used[word] / 2 for word in words_of(name)):
            lost.update(words_of(name))
            held_out.append(name)
    return tuple(held_out)


def word_tokenizer(class_names: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token for each word of the classes and captions; any other word is ``[UNK]``."""
    texts = [*class_names, *(template.format("") for template in CAPTIONS)]
    words = sorted({word for text in texts for word in words_of(text)})
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


def words_of(text: str) -> list[str]:
    """The words of a class name or caption."""
    return caption("{}", text).lower().split()


def save_text_encoder(dual: DualEncoder, folder: Path) -> None:
    """Write weights, settings and tokenizer, as `read_text_encoder` reads them; the vision model is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.contiguous() for k, v in dual.model.state_dict().items() if not k.startswith("vision_model.")}
    save_file(weights, folder / "model.safetensors")
    text = {k: v for k, v in dual.model.config.text_config.to_diff_dict().items() if k not in ("transformers_version",)}
    settings = {"text": text, "projection_dim": PROJECTION, "held_out": list(dual.held_out)}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    dual.tokenizer.save_pretrained(folder)


def main() -> None:
    """Train for vit-mini on the coloured shapes, and write the folder."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    parser.add_argument("--steps", type=int, default=150, help="steps of AdamW (150)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and draws (0)")
    options = parser.parse_args()
    encoder = load_encoder("vit-mini", device="cpu")
    images = load_images("coloured-shapes", encoder).train
    held_out = held_out_classes(images.class_names)
    dual = train_text_encoder(encoder, images, held_out, steps=options.steps, seed=options.seed)
    save_text_encoder(dual, options.out)
    card = CARD.format(
        words=len(dual.tokenizer) - len(SPECIAL_WORDS),
        steps=options.steps,
        images=len(images),
        captions=len(CAPTIONS),
        count=len(held_out),
        held_out=", ".join(held_out),
    )
    (options.out / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
