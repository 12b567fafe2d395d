"""Every model family at the size of its checkpoints, with random weights: blocks, tokens, features, parameters."""

from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import transformers
from tiny import SIZES
from torch import nn
from transformers.utils import is_timm_available

from toastlib import paper
from toastlib.approximation.replace import approximate
from toastlib.errors import InputError
from toastlib.evaluation.costs import map_costs, plan_costs
from toastlib.models.costs import parameter_count
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import collect_activations
from toastlib.plan import ORIGINAL, Plan

SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
DINOV2 = {"image_size": 518, "patch_size": 14}  # trained at 518 pixels, used at 224: positions are interpolated
LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}


class Family(NamedTuple):
    """The prefix of the classes in transformers, the configuration, and what is to be found."""

    prefix: str
    config: dict
    path: str
    depth: int
    width: int
    special_tokens: int
    tokens: int
    block_parameters: int


FAMILIES = {
    "vit-t": Family(
        "ViT",
        {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
        *("layers", 12, 192, 1, 197, 444_864),
    ),
    "vit-s": Family("ViT", SMALL, "layers", 12, 384, 1, 197, 1_774_464),
    "vit-b": Family("ViT", {}, "layers", 12, 768, 1, 197, 7_087_872),
    "vit-l, 4 blocks": Family("ViT", LARGE | {"num_hidden_layers": 4}, "layers", 4, 1024, 1, 197, 12_596_224),
    "deit-s": Family("DeiT", SMALL, "layers", 12, 384, 2, 198, 1_774_464),
    "dinov2-s": Family("Dinov2", DINOV2 | SMALL, "encoder.layer", 12, 384, 1, 257, 1_775_232),
    "dinov2-s with registers": Family(
        "Dinov2WithRegisters", DINOV2 | SMALL, "encoder.layer", 12, 384, 5, 261, 1_775_232
    ),
    "openclip-vit-b": Family("CLIPVision", {"patch_size": 16}, "encoder.layers", 12, 768, 1, 197, 7_087_872),
    "dinov3-s": Family("DINOv3ViT", SMALL | {"num_register_tokens": 4}, "model.layer", 12, 384, 5, 201, 1_774_848),
    "siglip-b": Family("SiglipVision", {}, "encoder.layers", 12, 768, 0, 196, 7_087_872),
    "beit-b": Family("Beit", {"use_relative_position_bias": True}, "layers", 12, 768, 1, 197, 7_097_424),
}
"""Alias -> the family at the size of its checkpoint; parameters of a block as counted by hand."""


def build(prefix, config):
    """A model with random weights; norms and scales too, else one applied twice is as good as one applied once."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}Model")(getattr(transformers, f"{prefix}Config")(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@cache
def count_only(alias):
    """The encoder of the paper with that alias, without memory for its weights."""
    family = FAMILIES.get(alias)
    prefix, config = (
        (family.prefix, family.config)
        if family
        else {
            "vit-l": ("ViT", LARGE | {"num_hidden_layers": 24}),
            "dinov2-b": ("Dinov2", DINOV2),
        }[alias]
    )
    with torch.device("meta"):
        return Encoder(getattr(transformers, f"{prefix}Model")(getattr(transformers, f"{prefix}Config")(**config)))


@pytest.fixture(scope="module")
def pixel_values():
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=FAMILIES)
def built(request, pixel_values):
    """A family, its encoder, and what the plain model returned before it became one."""
    family = FAMILIES[request.param]
    model = build(family.prefix, family.config)
    with torch.no_grad():
        output = model(pixel_values)
    return family, Encoder(model, features="cls" if family.special_tokens else "mean"), output


def test_blocks_and_their_parameters_are_found(built):
    family, encoder, _ = built
    assert (encoder.blocks_path, len(encoder.blocks), encoder.width) == (family.path, family.depth, family.width)
    assert {parameter_count(block) for block in encoder.blocks} == {family.block_parameters}


def test_tokens_are_told_apart(built, pixel_values):
    family, encoder, output = built
    assert encoder.special_tokens == family.special_tokens
    assert encoder.embed(pixel_values).hidden.shape == (2, family.tokens, family.width)
    assert output.last_hidden_state.shape == (2, family.tokens, family.width)


@torch.no_grad()
def test_features_are_the_plain_models(built, pixel_values):
    family, encoder, output = built
    if family.prefix == "CLIPVision":
        expected = output.pooler_output
    elif family.special_tokens:
        expected = output.last_hidden_state[:, 0]
    else:
        expected = output.last_hidden_state.mean(1)
    torch.testing.assert_close(encoder(pixel_values), expected)
    assert torch.pdist(expected) > 0.01


@torch.no_grad()
def test_a_span_dropped_leaves_the_model_that_never_had_its_blocks(built, pixel_values):
    family, encoder, _ = built
    anything = {block: torch.randn(4, family.width) for block in (1, 2)}
    smaller = approximate(encoder, "1->2", anything, translator="identity")
    with encoder.block_list([block for k, block in enumerate(encoder.blocks) if k != 2]):
        expected = encoder(pixel_values)
    features = smaller(pixel_values)
    assert features.isfinite().all()
    torch.testing.assert_close(features, expected)
    assert parameter_count(encoder) - parameter_count(smaller) == family.block_parameters


def printed(table, model):
    """(plan, parameters in millions as the paper's table has them) of one model; some are printed as differences."""
    rows = paper.published(table)
    rows = rows[(rows["model"] == model) & (rows["params_m"] != "")].drop_duplicates("plan")
    return [(plan, abs(float(text.replace("−", "-").rstrip("M ")))) for plan, text in rows[["plan", "params_m"]].values]


def removed_parameters(encoder, plan, maps):
    """Parameters of the removed blocks less those of linear maps, one for each span or for each block."""
    count = {"span": len(plan), "block": len(plan.removed)}[maps]
    blocks = sum(parameter_count(encoder.blocks[block]) for block in plan.removed)
    return blocks - count * map_costs("linear", encoder.width, 1)[0]


class TestPublishedParameters:
    def test_a_block_of_vit_s_counts_1_627_million_less_one_map(self):
        encoder = count_only("vit-s")
        assert removed_parameters(encoder, Plan.parse("1->2"), "block") == 1_774_464 - 384**2 == 1_627_008

    def test_maps_are_counted_once_for_each_span_and_in_the_paper_once_for_each_block(self):
        encoder = count_only("vit-s")
        assert removed_parameters(encoder, Plan.parse("1->5"), "span") == 4 * 1_774_464 - 384**2
        assert removed_parameters(encoder, Plan.parse("1->5"), "block") == 4 * 1_774_464 - 4 * 384**2

    @pytest.mark.parametrize("table", [8, 9, 10, 11])
    def test_one_column_of_totals_is_repeated_and_its_short_plans_are_dinov2s(self, table):
        """Rows that remove two blocks or more count ViT-S, the others DINOv2-S; only Table 8 and 10 can mean ViT-S."""
        rows = paper.published(table).drop_duplicates("plan")
        for plan, total in zip(rows["plan"], rows["params_m"].astype(float)):
            encoder = count_only("vit-s" if len(Plan.parse(plan).removed) > 1 else "dinov2-s")
            left = parameter_count(encoder) - removed_parameters(encoder, Plan.parse(plan), "block")
            assert abs(left / 1e6 - total) < 0.011, plan

    @pytest.mark.parametrize(
        ("table", "model"),
        [(1, "vit-s"), (1, "deit-s"), (1, "dinov2-b"), (12, "vit-b"), (13, "vit-l")],
    )
    def test_tables_of_differences_are_right_but_for_one(self, table, model):
        encoder = count_only(model)
        differences = dict(printed(table, model))
        assert abs(parameter_count(encoder) / 1e6 - differences.pop(ORIGINAL)) < 0.011
        wrong = [
            plan
            for plan, printed_millions in differences.items()
            if abs(removed_parameters(encoder, Plan.parse(plan), "block") / 1e6 - printed_millions) > 0.011
        ]
        assert wrong == (["1->5"] if model == "dinov2-b" else [])

    def test_both_countings_stand_in_the_table_of_costs(self, pixel_values):
        family = FAMILIES["vit-l, 4 blocks"]
        encoder = Encoder(build(family.prefix, family.config))
        costs = plan_costs(encoder, [Plan.parse("0->2")], ["linear"], inputs=pixel_values[:1]).iloc[0]
        assert costs["removed_parameters"] == 2 * family.block_parameters - 1024**2
        assert costs["removed_parameters_paper"] == 2 * family.block_parameters - 2 * 1024**2
        assert costs["parameters"] == parameter_count(encoder) - costs["removed_parameters"]


class TimmModel(nn.Module):
    """The parts of a timm transformer that count here: its blocks are called as one, or walked."""

    def __init__(self, blocks=nn.Sequential):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
        self.reg_token = nn.Parameter(torch.randn(1, 4, 16))
        self.patch_embed = nn.Conv2d(3, 16, 8, 8)
        layers = [nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(5)]
        self.blocks = nn.Sequential(*layers) if blocks is nn.Sequential else nn.ModuleList(layers)
        self.norm = nn.LayerNorm(16)
        self.num_features = 16

    def forward(self, pixel_values):
        patches = self.patch_embed(pixel_values).flatten(2).mT
        hidden = torch.cat([token.expand(len(patches), -1, -1) for token in (self.cls_token, self.reg_token)], 1)
        hidden = torch.cat([hidden, patches], 1)
        if isinstance(self.blocks, nn.Sequential):
            return self.norm(self.blocks(hidden))
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)


class TimmWrapper(nn.Module):
    """Built as transformers' `TimmWrapperModel`, which needs a package that toastlib does without."""

    def __init__(self, blocks):
        super().__init__()
        self.config = SimpleNamespace(architecture="vit_tiny")
        self.timm_model = TimmModel(blocks)

    def forward(self, pixel_values):
        hidden = self.timm_model(pixel_values)
        return SimpleNamespace(last_hidden_state=hidden, pooler_output=hidden[:, 0])


@pytest.mark.parametrize("blocks", [nn.Sequential, nn.ModuleList])
@torch.no_grad()
def test_timms_blocks_are_found_inside_the_wrapper_and_replaced(blocks):
    torch.manual_seed(0)
    model, pixel_values = TimmWrapper(blocks).eval(), torch.randn(2, 3, 32, 32)
    expected = model(pixel_values).last_hidden_state[:, 0]
    encoder = Encoder(model)
    assert (encoder.blocks_path, len(encoder.blocks), encoder.width) == ("timm_model.blocks", 5, 16)
    assert (encoder.special_tokens, encoder.embed(pixel_values).hidden.shape) == (5, (2, 21, 16))
    torch.testing.assert_close(encoder(pixel_values), expected)
    images = SimpleNamespace(batches=lambda size: [(pixel_values, None)])
    smaller = approximate(
        encoder, "1->3", collect_activations(encoder, images, [1, 3], tokens="all"), translator="identity"
    )
    with encoder.block_list([encoder.blocks[k] for k in (0, 1, 4)]):
        torch.testing.assert_close(smaller(pixel_values), encoder(pixel_values))
    assert type(encoder.blocks) is blocks


@pytest.mark.skipif(not is_timm_available(), reason="timm is not installed: its models are checked on a stand-in")
@pytest.mark.parametrize(
    ("architecture", "special_tokens", "tokens"),
    [
        ("vit_tiny_patch16_224", 1, 197),
        ("deit_tiny_distilled_patch16_224", 2, 198),
        ("vit_small_patch16_dinov3", 5, 261),
    ],
)
@torch.no_grad()
def test_timms_own_models_become_encoders(architecture, special_tokens, tokens):
    config = transformers.TimmWrapperConfig(architecture=architecture)
    model = transformers.TimmWrapperModel(config).eval()
    side = model.timm_model.default_cfg["input_size"][-1]
    pixel_values = torch.randn(1, 3, side, side)
    expected = model(pixel_values).last_hidden_state[:, 0]
    encoder = Encoder(model)
    assert (encoder.blocks_path, len(encoder.blocks)) == ("timm_model.blocks", 12)
    assert encoder.special_tokens == special_tokens
    assert encoder.embed(pixel_values).hidden.shape == (1, tokens, encoder.width)
    torch.testing.assert_close(encoder(pixel_values), expected)


def test_a_token_of_a_pooling_head_stands_before_no_patch():
    model = transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**SIZES)).eval()
    encoder = Encoder(model, features="mean", name="aimv2")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels), model(pixels).last_hidden_state.mean(1))
    with pytest.raises(InputError, match="aimv2 has no CLS token"):
        Encoder(model, features="cls", name="aimv2")
