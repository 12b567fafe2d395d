"""Models of torchvision and timm: stand-ins of exactly their layout, and their own models where they are installed."""

import importlib.util
import sys
from collections import OrderedDict
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from transformers.models.timm_wrapper import modeling_timm_wrapper

from toastlib.approximation.replace import approximate
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError
from toastlib.evaluation.evaluate import evaluate_plans
from toastlib.evaluation.probe import HeadConfig
from toastlib.export.compatibility import ESSENTIAL, check_model
from toastlib.models.encoder import Encoder
from toastlib.models.loading import load_encoder
from toastlib.models.walk import check_walk
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.similarity import similarity

WIDTH, DEPTH = 32, 5


class EncoderBlock(nn.Module):
    """As in torchvision.models.vision_transformer."""

    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(WIDTH, 4, dropout=0.0, batch_first=True)
        self.dropout = nn.Dropout(0.0)
        self.ln_2 = nn.LayerNorm(WIDTH, eps=1e-6)
        layers = [nn.Linear(WIDTH, 64), nn.GELU(), nn.Dropout(0.0), nn.Linear(64, WIDTH), nn.Dropout(0.0)]
        self.mlp = nn.Sequential(*layers)

    def forward(self, input):
        torch._assert(input.dim() == 3, f"Expected (batch_size, seq_length, hidden_dim) got {input.shape}")
        x = self.ln_1(input)
        x, _ = self.self_attention(x, x, x, need_weights=False)
        x = self.dropout(x) + input
        return x + self.mlp(self.ln_2(x))


class TorchvisionEncoder(nn.Module):
    """As `Encoder` in torchvision.models.vision_transformer."""

    def __init__(self, tokens):
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.randn(1, tokens, WIDTH))
        self.dropout = nn.Dropout(0.0)
        self.layers = nn.Sequential(OrderedDict((f"encoder_layer_{k}", EncoderBlock()) for k in range(DEPTH)))
        self.ln = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, input):
        return self.ln(self.layers(self.dropout(input + self.pos_embedding)))


class VisionTransformer(nn.Module):
    """As in torchvision.models.vision_transformer, for images of 32 pixels."""

    def __init__(self, classes=10):
        super().__init__()
        self.image_size, self.patch_size, self.hidden_dim = 32, 8, WIDTH
        self.conv_proj = nn.Conv2d(3, WIDTH, 8, 8)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.encoder = TorchvisionEncoder(17)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(WIDTH, classes)))

    def forward(self, x):
        torch._assert(x.shape[2] == self.image_size, f"Wrong image height! Got {x.shape[2]}!")
        x = self.conv_proj(x).reshape(len(x), self.hidden_dim, -1).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        return self.heads(self.encoder(x)[:, 0])


@pytest.fixture
def torchvisions():
    torch.manual_seed(0)
    model = VisionTransformer().eval()
    model.heads = nn.Identity()
    return model


@torch.no_grad()
def test_torchvisions_blocks_and_class_token_are_found(torchvisions, pixel_values):
    expected = torchvisions(pixel_values)
    encoder = Encoder(torchvisions)
    assert (encoder.blocks_path, len(encoder.blocks), encoder.width) == ("encoder.layers", DEPTH, WIDTH)
    assert (encoder.special_tokens, encoder.feature_kind) == (1, "cls")
    assert torch.equal(encoder(pixel_values), expected)
    check_walk(encoder, pixel_values)
    assert encoder.walk_is_checked


def test_torchvisions_blocks_are_compared_and_replaced(torchvisions, tiny_images, pixel_values):
    encoder = Encoder(torchvisions, preprocessing=Preprocessing(resize=(32, 32)))
    moments = collect_moments(encoder, tiny_images.train)
    assert len(similarity(moments, "cka")) == (DEPTH + 1) ** 2
    smaller = approximate(encoder, "1->3", moments)
    assert len(smaller.blocks) == DEPTH - 1
    options = {"translators": ["context"], "calibration": moments, "head": HeadConfig(seeds=1, min_steps=10)}
    table = evaluate_plans(encoder, tiny_images, "1->3", **options).table.set_index("translator")
    assert table.loc["context", "parameters"] == sum(p.numel() for p in smaller.parameters())
    dropped = approximate(encoder, "1->3", moments, translator="identity")
    with encoder.block_list([encoder.blocks[k] for k in (0, 1, 4)]):
        torch.testing.assert_close(dropped(pixel_values), encoder(pixel_values))


def test_a_classifier_that_is_still_there_is_named_with_the_remedy():
    says = r"^mine has its classifier still, heads, .* model\.heads = torch\.nn\.Identity\(\)\.$"
    with pytest.raises(InputError, match=says):
        Encoder(VisionTransformer(), name="mine")


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed: a stand-in")
def test_torchvisions_own_model_becomes_an_encoder():
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, DEPTH, 4, WIDTH, 64)
    model.heads = nn.Identity()
    table = check_model(model).set_index("check")["works"]
    assert table[list(ESSENTIAL)].all()
    assert table["special tokens"]


class Attention(nn.Module):
    """As in timm.layers.attention."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, attn_mask=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """As in timm.models.vision_transformer."""

    def __init__(self):
        super().__init__()
        self.norm1, self.attn, self.ls1, self.drop_path1 = (
            nn.LayerNorm(WIDTH),
            Attention(),
            nn.Identity(),
            nn.Identity(),
        )
        self.norm2, self.ls2, self.drop_path2 = nn.LayerNorm(WIDTH), nn.Identity(), nn.Identity()
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(WIDTH, 64), act=nn.GELU(), fc2=nn.Linear(64, WIDTH)))

    def forward(self, x, attn_mask=None):
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class TimmModel(nn.Module):
    """The parts of timm's VisionTransformer that count here."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.patch_embed = nn.Conv2d(3, WIDTH, 8, 8)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.num_features = WIDTH

    def forward_features(self, pixel_values):
        patches = self.patch_embed(pixel_values).flatten(2).mT
        return self.norm(self.blocks(torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1)))

    def forward_head(self, hidden):
        return hidden[:, 0]


PRETRAINED = {
    "input_size": [3, 32, 32],
    "interpolation": "bicubic",
    "crop_pct": 0.8,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.2],
}


def wrapped_timm():
    """A model of timm as transformers wraps it."""
    config = transformers.TimmWrapperConfig(architecture="vit_tiny", pretrained_cfg=PRETRAINED)
    return transformers.TimmWrapperModel(config).eval()


@contextmanager
def stand_in_for_timm(**more):
    """Inside the context transformers and toastlib find a timm that knows one architecture."""
    timm = SimpleNamespace(create_model=lambda *_, **__: TimmModel(), __version__="1", **more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "timm", timm)
        patch.setattr(modeling_timm_wrapper, "timm", timm, raising=False)
        patch.setattr(modeling_timm_wrapper, "requires_backends", lambda *_: None)
        yield


@pytest.fixture
def timm(tmp_path):
    """A stand-in for timm, with the weights of one model in a folder in place of the Hub; and that model."""

    def get_pretrained_cfg(name):
        if name.endswith(".wrong"):
            raise RuntimeError("Invalid pretrained tag (wrong) for vit_tiny.")
        places = {"vit_tiny": str(tmp_path / "vit_tiny.tag"), "vit_old": None}
        return SimpleNamespace(hf_hub_id=places[name]) if name in places else None

    torch.manual_seed(0)
    with stand_in_for_timm(get_pretrained_cfg=get_pretrained_cfg):
        model = wrapped_timm()
        nn.init.normal_(model.timm_model.cls_token)
        model.save_pretrained(tmp_path / "vit_tiny.tag")
        yield model


@torch.no_grad()
def test_a_name_of_timms_opens_its_weights_from_the_hub(timm, pixel_values):
    encoder = load_encoder("timm:vit_tiny", device="cpu")
    assert (encoder.name, encoder.blocks_path, len(encoder.blocks)) == ("vit_tiny", "timm_model.blocks", DEPTH)
    assert (encoder.special_tokens, encoder.width) == (1, WIDTH)
    preprocessing = Preprocessing(40, (32, 32), "bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    assert encoder.preprocessing == preprocessing
    torch.testing.assert_close(encoder(pixel_values), timm(pixel_values).pooler_output)


def test_timms_model_passes_the_checks(timm):
    table = check_model("timm:vit_tiny").set_index("check")
    assert list(table.index[~table["works"].astype(bool)]) == ["fuse"]  # its configuration counts no blocks


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nonsense_9", r"timm has no weights on the Hub for 'nonsense_9': timm\.list_models\('nonsense\*', pretrained"),
        ("vit_old", "timm has no weights on the Hub for 'vit_old'"),
        ("vit_tiny.wrong", r"timm does not know 'vit_tiny\.wrong': Invalid pretrained tag \(wrong\) for vit_tiny\."),
    ],
)
def test_a_name_that_timm_does_not_know_is_refused(timm, name, says):
    with pytest.raises(InputError, match=f"^{says}"):
        load_encoder(f"timm:{name}")


def test_without_timm_its_names_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"^timm:vit_tiny needs timm, which is not installed: pip install timm\.$"):
        load_encoder("timm:vit_tiny")


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed: it has a stand-in")
def test_timm_itself_says_where_its_weights_lie():
    from toastlib.data import catalog

    expected = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert catalog.model_path("timm:vit_tiny_patch16_224") == expected
    assert catalog.model_path("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k") == expected
    for name in ("nonsense", "vit_tiny_patch16_224.nonsense"):
        with pytest.raises(InputError, match=r"^timm (has no weights|does not know)"):
            catalog.model_path(f"timm:{name}")
