"""Tiny models with random weights, one for every family that the tests know."""

import sysconfig
import venv
from pathlib import Path

import torch

from toastlib.evaluation.language import LanguageModel
from toastlib.models.encoder import Encoder

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
PATCHES = (SIZES["image_size"] // SIZES["patch_size"]) ** 2
FAMILIES = {
    "vit": ("ViT", {}),
    "deit": ("DeiT", {}),
    "dinov2": ("Dinov2", {}),
    "dinov2-registers": ("Dinov2WithRegisters", {"num_register_tokens": 4}),
    "dinov3": ("DINOv3ViT", {"num_register_tokens": 4}),
    "clip": ("CLIPVision", {}),
    "siglip": ("SiglipVision", {}),
    "beit": ("Beit", {"use_mean_pooling": True}),
    "beit-cls": ("Beit", {"use_mean_pooling": False}),
}
"""Family -> the prefix of its classes in transformers, and what its configuration has beside `SIZES`."""
READS = {"vocab_size": 50, "max_position_embeddings": 66}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
SLIDING = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
}
TEXT_FAMILIES = {
    "bert": ("Bert", READS),
    "roberta": ("Roberta", READS | {"pad_token_id": 0}),
    "distilbert": ("DistilBert", READS | {"hidden_dim": 64}),
    "modernbert": ("ModernBert", READS | {"pad_token_id": 0, "global_attn_every_n_layers": 3, "local_attention": 8}),
    "gpt2": ("GPT2", READS | {"n_inner": 64}),
    "llama": ("Llama", READS | {"num_key_value_heads": 2}),
    "gemma2": ("Gemma2", READS | GROUPED | SLIDING),
}
"""The same for models of texts; token 0 is for padding."""
MORE_FAMILIES = {"data2vec-vision": ("Data2VecVision", {"use_mean_pooling": True})}
MORE_ENCODERS = {
    "data2vec-text": ("Data2VecText", READS | {"pad_token_id": 0}),
    "deberta": ("Deberta", READS | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
}
MORE_DECODERS = {
    "gpt-j": ("GPTJ", {"vocab_size": 50, "n_positions": 66, "n_embd": 32, "n_layer": 5, "n_head": 4, "rotary_dim": 4}),
    "gpt-neo": (
        "GPTNeo",
        READS
        | {
            "num_layers": 5,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2], [["global"], 1]],
            "window_size": 8,
        },
    ),
    "gpt-neox": ("GPTNeoX", READS),
    "bloom": ("Bloom", {"vocab_size": 50, "n_layer": 5, "n_head": 4, "hidden_size": 32}),
    "qwen2": ("Qwen2", READS | GROUPED),
    "qwen3": ("Qwen3", READS | GROUPED),
    "gemma3": ("Gemma3Text", READS | GROUPED | SLIDING),
    "olmo2": ("Olmo2", READS | GROUPED),
    "phi": ("Phi", READS),
    "smollm3": ("SmolLM3", READS | GROUPED),
}
"""More of them, which the tests of whole paths take."""
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MIXTURES = {"qwen3-moe": ("Qwen3Moe", READS | GROUPED | EXPERTS)}


def make_tiny_model(family, seed=0, head="Model", **config):
    """A model of the family with random weights: 5 blocks, width 32; 32 pixels and patches of 8, or 50 tokens.

    All parameters are moved away from their initial values: a norm with weight 1 and bias 0 applied twice
    is the same as applied once, and would hide a mistake.
    """
    import transformers

    prefix, settings = (FAMILIES | MORE_FAMILIES | TEXT_FAMILIES | MORE_ENCODERS | MORE_DECODERS | MIXTURES)[family]
    torch.manual_seed(seed)
    configuration = getattr(transformers, f"{prefix}Config")(**SIZES | settings | config)
    prefix = prefix if head == "Model" else prefix.removesuffix("Text")  # Gemma 3's decoder without a head
    model = getattr(transformers, f"{prefix}{head}")(configuration).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


DECODERS = ("gpt2", "llama", "gemma2")
WORDS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "of", "photo", "cat", "dog", "tree", "oak"]
LETTERS = "abcdefghijklmnopqrstuvwxyz .,;:!?'-()\nABCDEFGHI"


def letter_tokenizer(**special):
    """One token for each of `LETTERS`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0} | {letter: number for number, letter in enumerate(LETTERS, start=1)} | {"<unk>": 49}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"pad_token": "<pad>", "unk_token": "<unk>"} | special)


def make_language_model(family):
    """A tiny decoder of the family with its head."""
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    # A head of its own: one that is the embedding, with random weights, says the last letter again and again.
    model = make_tiny_model(
        family, head="LMHeadModel" if family == "gpt2" else "ForCausalLM", tie_word_embeddings=False, **special
    )
    model.generation_config.eos_token_id = None
    base = getattr(model, model.base_model_prefix)
    return LanguageModel(Encoder(base, features="mean", name="tiny", tokenizer=letter_tokenizer()), model)


def write_tokenizer(folder):
    """Whole words of `WORDS`, between [BOS] and [EOS]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_input_names=["input_ids", "attention_mask"]
    ).save_pretrained(folder)


def environment_without_toastlib(folder: Path) -> Path:
    """The Python of a virtual environment that has all the packages of this one, but not toastlib."""
    venv.create(folder, with_pip=False)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
    (Path(packages) / "others.pth").write_text(sysconfig.get_path("purelib"))  # where an editable install is only named
    return Path(sysconfig.get_path("scripts", vars={"base": str(folder)})) / "python"
