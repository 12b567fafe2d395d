"""Blocks in pairs ``[attention, feed-forward]``, as vit-pytorch's ViT, SimpleViT and DeepViT keep them."""

import copy

import pytest
import torch
from torch import nn

from toastlib.approximation.replace import approximate
from toastlib.data.images import Images
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError
from toastlib.evaluation.evaluate import evaluate_plans
from toastlib.evaluation.probe import HeadConfig
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import capture_outputs
from toastlib.models.structure import PairList
from toastlib.models.walk import check_walk
from toastlib.statistics.collect import collect_moments

WIDTH, DEPTH = 32, 5


class Attention(nn.Module):
    """Self-attention behind a norm; DeepViT mixes the maps of its heads."""

    def __init__(self, mix):
        super().__init__()
        self.norm, self.to_qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.to_out = nn.Linear(WIDTH, WIDTH)
        self.reattn_weights = nn.Parameter(torch.randn(4, 4)) if mix else None

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.to_qkv(self.norm(x)).chunk(3, -1))
        weights = (q @ k.mT / 8**0.5).softmax(-1)
        if self.reattn_weights is not None:
            weights = torch.einsum("bhij,hg->bgij", weights, self.reattn_weights)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """The loop over pairs; `parallel` adds both branches of the same input, as no pair of ours does."""

    def __init__(self, mix=False, parallel=False):
        super().__init__()
        self.parallel, self.norm = parallel, nn.LayerNorm(WIDTH)
        pairs = ((Attention(mix), self.feed_forward()) for _ in range(DEPTH))
        self.layers = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

    def feed_forward(self):
        return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x):
        for attn, ff in self.layers:
            if self.parallel:
                x = x + attn(x) + ff(x)
            else:
                x = attn(x) + x
                x = ff(x) + x
        return self.norm(x)


class ViT(nn.Module):
    """Patches of 8 x 8 pixels, and a CLS token but in SimpleViT, which takes the mean."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.to_patch_embedding = nn.Conv2d(3, WIDTH, 8, 8)
        self.cls_token = None if kind == "SimpleViT" else nn.Parameter(torch.randn(1, 1, WIDTH))
        self.transformer = Transformer(mix=kind == "DeepViT", parallel=kind == "parallel")

    def forward(self, img):
        x = self.to_patch_embedding(img).flatten(2).mT
        if self.cls_token is None:
            return self.transformer(x).mean(1)
        return self.transformer(torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1))[:, 0]


@pytest.fixture(params=["ViT", "SimpleViT", "DeepViT"])
def model(request):
    return ViT(request.param).eval()


@pytest.fixture
def encoder(model):
    return Encoder(model, preprocessing=Preprocessing(resize=(32, 32)), name="pairs")


@torch.no_grad()
def test_an_encoder_of_pairs_computes_what_the_model_does(model, pixel_values):
    names, expected = list(model.state_dict()), copy.deepcopy(model)(pixel_values)
    encoder = Encoder(model, name="pairs")
    assert (encoder.blocks_path, len(encoder.blocks), encoder.width) == ("transformer.layers", DEPTH, WIDTH)
    torch.testing.assert_close(encoder(pixel_values), expected)
    assert list(model.state_dict()) == names
    check_walk(encoder, pixel_values)
    assert encoder.walk_is_checked


@torch.no_grad()
def test_a_block_is_both_branches(model, encoder, pixel_values):
    with capture_outputs(encoder, range(-1, DEPTH)) as h:
        encoder(pixel_values)
    for block, (attention, feed_forward) in enumerate(encoder.blocks):
        middle = attention(h[block - 1]) + h[block - 1]
        torch.testing.assert_close(h[block], feed_forward(middle) + middle)


@torch.no_grad()
def test_dropping_a_span_is_the_model_without_its_pairs(model, encoder, pixel_values, tiny_images):
    shorter = copy.deepcopy(model)
    shorter.transformer.layers.whole = False
    shorter.transformer.layers = nn.ModuleList(
        nn.ModuleList(pair) for k, pair in enumerate(shorter.transformer.layers) if k not in (2, 3)
    )
    dropped = approximate(encoder, "1->3", tiny_images.train, translator="identity")
    torch.testing.assert_close(dropped(pixel_values), shorter(pixel_values))


def test_pairs_go_through_moments_maps_and_an_evaluation(encoder, tiny_images):
    moments = collect_moments(encoder, tiny_images.train)
    assert moments.blocks == tuple(range(-1, DEPTH))
    head = HeadConfig(seeds=1, min_steps=10)
    options = {"translators": ["linear", "context"], "calibration": moments, "head": head}
    table = evaluate_plans(encoder, tiny_images, "1->3", **options).table.set_index("translator")
    for name in ("linear", "context"):
        smaller = approximate(encoder, "1->3", moments, translator=name)
        assert sum(p.numel() for p in smaller.parameters()) == table.loc[name, "parameters"]


def test_pairs_of_another_kind_are_refused(tiny_images):
    model, pixels = ViT("parallel"), torch.randn(2, 3, 32, 32)
    expected, encoder = copy.deepcopy(model)(pixels), Encoder(model, name="parallel")
    images = Images(tiny_images.train.pixels, None, (), Preprocessing(resize=(32, 32)))
    with pytest.raises(InputError, match="The blocks of parallel are pairs, and not two residual branches one after"):
        collect_moments(encoder, images)
    torch.testing.assert_close(model(pixels), expected)  # it computes what it did


def test_stages_of_two_blocks_are_no_pairs():
    from transformers import SegformerConfig, SegformerModel

    model = SegformerModel(SegformerConfig(depths=[2, 2, 2, 2])).eval()
    pixels = torch.randn(1, 3, 64, 64)
    expected = copy.deepcopy(model)(pixels).last_hidden_state
    Encoder(model, features="mean")
    assert torch.equal(model(pixels).last_hidden_state, expected)
    assert not any(isinstance(module, PairList) for module in model.modules())


def test_an_encoder_without_a_configuration_is_not_saved(encoder, tmp_path):
    with pytest.raises(InputError):
        encoder.save_pretrained(tmp_path / "one")
    assert not (tmp_path / "one").exists()
