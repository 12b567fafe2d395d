"""The page ``docs/known.md``: what `check_model` finds for a tiny model of each family, with random weights.

``.venv/bin/python tests/known_to_work.py`` writes it anew; `tests/test_known_to_work.py` holds it to what is found.
"""

import re
import sys
from pathlib import Path

import torch
import transformers
from models.test_other_libraries import VisionTransformer, stand_in_for_timm, wrapped_timm
from models.test_pairs import ViT
from tiny import letter_tokenizer
from torch import nn

from toastlib.errors import InputError
from toastlib.export.compatibility import CHECKS, MARKS, check_model
from toastlib.models.encoder import Encoder

PAGE = Path(__file__).resolve().parents[1] / "docs" / "known.md"
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4}
PIXELS = SIZES | {"image_size": 32, "patch_size": 8}
WORDS = SIZES | {"vocab_size": 50, "max_position_embeddings": 66, "pad_token_id": 0}
WORDS |= dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
IMAGES = {
    "ViT": ("ViTModel", {}),
    "DeiT": ("DeiTModel", {}),
    "BEiT": ("BeitModel", {}),
    "Data2Vec, vision": ("Data2VecVisionModel", {}),
    "DINOv2": ("Dinov2Model", {}),
    "DINOv2 with registers": ("Dinov2WithRegistersModel", {"num_register_tokens": 4}),
    "DINOv3": ("DINOv3ViTModel", {"num_register_tokens": 4}),
    "CLIP, vision": ("CLIPVisionModel", {}),
    "MetaCLIP 2, vision": ("MetaClip2VisionModel", {}),
    "SigLIP, vision": ("SiglipVisionModel", {}),
    "SigLIP 2, vision": ("Siglip2VisionModel", {"num_patches": 16}),
    "AIMv2, vision": ("Aimv2VisionModel", {}),
    "I-JEPA": ("IJepaModel", {}),
    "ViT-MSN": ("ViTMSNModel", {}),
    "ViT-MAE": ("ViTMAEModel", {}),
    "YOLOS": ("YolosModel", {"image_size": [32, 32], "num_detection_tokens": 5}),
    "VideoMAE": ("VideoMAEModel", {"num_frames": 2}),
}
"""Family -> its class in transformers, and what its configuration has beside `PIXELS`."""
STAGES = {"image_size": 32, "patch_size": 4, "depths": [1, 2], "num_heads": [2, 2], "embed_dim": 16, "window_size": 4}
WIDTHS = {"image_size": 64, "hidden_sizes": [8, 16, 32, 32], "num_attention_heads": [1, 2, 4, 4]}
PYRAMIDS = {
    "Swin": ("SwinModel", STAGES),
    "Swin v2": ("Swinv2Model", STAGES),
    "ConvNeXt": ("ConvNextModel", {"image_size": 32, "hidden_sizes": [8, 16, 32, 32], "depths": [1, 1, 2, 1]}),
    "Hiera": ("HieraModel", {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 2, 2, 1]}),
    "PVT": ("PvtModel", WIDTHS),
    "SegFormer": ("SegformerModel", WIDTHS),
}
"""The same with a whole configuration: their width changes from stage to stage."""
TEXTS = {
    "BERT": ("BertModel", {}),
    "RoBERTa": ("RobertaModel", {}),
    "XLM-RoBERTa": ("XLMRobertaModel", {}),
    "CamemBERT": ("CamembertModel", {}),
    "DistilBERT": ("DistilBertModel", {"hidden_dim": 64}),
    "ALBERT": ("AlbertModel", {"embedding_size": 32}),
    "ELECTRA": ("ElectraModel", {"embedding_size": 32}),
    "MPNet": ("MPNetModel", {}),
    "DeBERTa": ("DebertaModel", {}),
    "DeBERTa v2 and v3": ("DebertaV2Model", {}),
    "ModernBERT": ("ModernBertModel", {"global_attn_every_n_layers": 3, "local_attention": 8}),
    "Data2Vec, text": ("Data2VecTextModel", {}),
    "Nomic BERT": ("NomicBertModel", {}),
    "EuroBERT": ("EuroBertModel", GROUPED | {"mask_token_id": 4}),
    "ESM (proteins)": ("EsmModel", {}),
    "T5, encoder": ("T5EncoderModel", {"d_kv": 8, "d_ff": 64}),
    "GPT-2": ("GPT2Model", {"n_inner": 64}),
    "GPT-J": ("GPTJModel", {"rotary_dim": 4, "n_inner": 64}),
    "GPT-Neo": ("GPTNeoModel", {"attention_types": [[["global"], 5]]}),
    "GPT-NeoX": ("GPTNeoXModel", {}),
    "BLOOM": ("BloomModel", {}),
    "OPT": ("OPTModel", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "Llama": ("LlamaModel", GROUPED),
    "Mistral": ("MistralModel", GROUPED),
    "Qwen 2": ("Qwen2Model", GROUPED),
    "Qwen 3": ("Qwen3Model", GROUPED),
    "Gemma": ("GemmaModel", GROUPED),
    "Gemma 2": ("Gemma2Model", GROUPED | {"sliding_window": 8}),
    "Gemma 3, text": ("Gemma3TextModel", GROUPED | {"sliding_window": 8}),
    "OLMo": ("OlmoModel", GROUPED),
    "OLMo 2": ("Olmo2Model", GROUPED),
    "Phi": ("PhiModel", {}),
    "Phi 3": ("Phi3Model", {"num_key_value_heads": 2}),
    "SmolLM 3": ("SmolLM3Model", GROUPED),
    "Falcon": ("FalconModel", {}),
    "StableLM": ("StableLmModel", {"num_key_value_heads": 4}),
    "StarCoder 2": ("Starcoder2Model", {"num_key_value_heads": 2}),
    "Cohere": ("CohereModel", {"num_key_value_heads": 2}),
    "Granite": ("GraniteModel", {"num_key_value_heads": 2}),
    "Mixtral": ("MixtralModel", GROUPED | {"num_local_experts": 2}),
    "Mamba": ("MambaModel", {}),
}
"""The same beside `WORDS`."""
PLAIN = {
    "torchvision: VisionTransformer": VisionTransformer,
    "timm, in transformers' wrapper": wrapped_timm,
    "vit-pytorch: ViT": lambda: ViT("ViT"),
    "vit-pytorch: SimpleViT": lambda: ViT("SimpleViT"),
    "vit-pytorch: DeepViT": lambda: ViT("DeepViT"),
    "vit-pytorch: parallel branches": lambda: ViT("parallel"),
}
"""Layout of another library -> a stand-in of that layout."""
HEAD = """\
<!-- Written by `.venv/bin/python tests/known_to_work.py`: change that script, or the code, and write the page anew. -->
# What is known to work

Each family was tried out on a tiny model with random weights by
[`check_model`](#toastlib.export.compatibility.check_model), as `toast doctor MODEL` does with your own: ✓ works,
✗ does not, – was not reached, since something before it does not work. Blocks, features, `walk = forward` and maps are
needed for everything. A ✗ in another column closes that way alone: to keep the result (a folder, ONNX), or to make
another one (maps fused into MLPs; attention and MLP removed separately). Pyramids have no list of blocks that goes
from first to last.

A family that is missing may work too: ask `toast doctor`. How to open a model stands in [My own model](howto/model.md).
"""


def tiny(name: str, settings: dict) -> nn.Module:
    """A model with random weights, moved away from their initial values: a norm applied twice must not go unseen."""
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**settings))
    return shaken(model)


def shaken(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def models() -> dict[str, dict[str, object]]:
    """Part of the page -> family -> a function that makes its model."""
    without_head = {name: lambda make=make: headless(make()) for name, make in PLAIN.items()}
    return {
        "Images": {
            family: lambda name=name, more=more: tiny(name, PIXELS | more) for family, (name, more) in IMAGES.items()
        }
        | {family: lambda name=name, whole=whole: tiny(name, whole) for family, (name, whole) in PYRAMIDS.items()},
        "Texts": {
            family: lambda name=name, more=more: tiny(name, WORDS | more) for family, (name, more) in TEXTS.items()
        },
        "Other libraries": without_head,
    }


def headless(model: nn.Module) -> nn.Module:
    """Without its classifier, and saying which images it reads, where no configuration does."""
    model.image_size = 32
    if hasattr(model, "heads"):
        model.heads = nn.Identity()
    return shaken(model)


def row(family: str, make) -> str:
    """What is found of one family, as a row of the page."""
    torch.manual_seed(0)
    with stand_in_for_timm():
        model = make()
    if getattr(model, "main_input_name", "") == "input_ids":
        try:
            name = type(model).__name__
            model = Encoder(model, features="mean", tokenizer=letter_tokenizer(), name=name)
        except InputError:
            pass  # which the table tells
    with stand_in_for_timm():
        table = check_model(model).set_index("check")
    marks = [MARKS[table["works"].get(check)] for check in CHECKS]
    reasons: dict[str, list[str]] = {}
    for check, works, detail in table.reset_index().itertuples(index=False):
        if works is False:
            short = re.sub(r" by [\d.e+-]+ of the largest| \(lists: .*\)|\.$", "", detail)
            reasons.setdefault(short, []).append(check)
    why = "; ".join(f"{', '.join(checks)}: {reason}" for reason, checks in reasons.items()).replace("|", r"\|")
    return f"| {family} | {' | '.join(marks)} | {why} |"


def in_short(rows: list[str]) -> str:
    """The families whose blocks can be replaced by maps, and those whose blocks cannot."""
    cells = [[cell.strip() for cell in row.split("|")[1:]] for row in rows]
    maps = list(CHECKS).index("maps")
    works, fails = ([name for name, *marks in cells if (marks[maps] == "✓") is wanted] for wanted in (True, False))
    lists = f"Blocks can be replaced by maps in: {' · '.join(works)}."
    return lists + (f"\n\nNot in: {' · '.join(fails)}." if fails else "")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for part, families in models().items():
        head = f"| {' | '.join(['family', *CHECKS, 'why not'])} |"
        rows = [row(family, make) for family, make in families.items()]
        ruler = "|---|" + ":-:|" * len(CHECKS) + "---|"
        parts.append("\n".join([f"## {part}", "", in_short(rows), "", head, ruler, *rows, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    families = {family: make for part in models().values() for family, make in part.items()}
    if sys.argv[1:]:
        for wanted in sys.argv[1:]:
            print(row(wanted, families[wanted]))
    else:
        PAGE.write_text(page(), encoding="utf-8")
