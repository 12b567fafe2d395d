"""Attention by products: the values of torch's own, taken where it is faster, kept out where it does not fit."""

import copy

import pytest
import torch
from tiny import FAMILIES
from torch.nn.functional import scaled_dot_product_attention

from toastlib.models import attention
from toastlib.models.attention import PLAIN, FirstQuery, choose_attention, products, products_are_faster
from toastlib.models.encoder import Encoder
from toastlib.models.loading import load_encoder


@pytest.fixture
def faster(monkeypatch):
    monkeypatch.setattr(attention, "products_are_faster", lambda shape, dtype: True)


def drawn(dtype=torch.float64):
    query, key, value = torch.randn(3, 2, 3, 5, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return query, key, value, torch.randn(1, 3, 5, 5, dtype=dtype, generator=torch.Generator().manual_seed(1))


def test_products_are_attention():
    query, key, value, mask = drawn()
    for bias in (None, mask):
        expected = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=0.3)
        torch.testing.assert_close(products(query, key, value, attn_mask=bias, scale=0.3), expected)


@pytest.mark.parametrize("attend", [scaled_dot_product_attention, products])
def test_one_query_gives_the_output_of_the_first_token(attend):
    query, key, value, mask = drawn()
    for bias in (None, mask, mask[..., :1, :]):
        whole = attend(query, key, value, attn_mask=bias, scale=0.3)
        with FirstQuery():
            first = attend(query, key, value, attn_mask=bias, scale=0.3)
        assert first.shape == whole.shape
        torch.testing.assert_close(first, whole[:, :, :1].expand_as(whole))


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "dinov2-registers", "dinov3", "clip", "beit-cls"])
def test_features_agree_within_the_rounding_of_bfloat16(tiny_model, pixel_values, family, faster):
    assert family in FAMILIES
    encoder = Encoder(tiny_model(family)).to(torch.bfloat16)
    exact = copy.deepcopy(encoder).float()(pixel_values)
    own = encoder(pixel_values.bfloat16()).float()
    choose_attention(encoder)
    assert encoder.model.config._attn_implementation == PLAIN
    ours = encoder(pixel_values.bfloat16()).float()
    assert (ours - exact).abs().mean() < 1.5 * (own - exact).abs().mean()


def test_a_model_that_would_change_keeps_its_attention(tiny_model, faster, monkeypatch):
    monkeypatch.setattr(attention, "attend_by_products", lambda module, query, *rest, **more: (query.mT.mT * 0, None))
    encoder = Encoder(tiny_model("vit"))
    choose_attention(encoder)
    assert encoder.model.config._attn_implementation == "sdpa"


def test_texts_and_plain_modules_keep_their_attention(tiny_model, faster):
    encoder = Encoder(tiny_model("bert"))
    choose_attention(encoder)
    assert encoder.model.config._attn_implementation == "sdpa"


def test_the_measurement_is_made_once_for_a_shape():
    before = products_are_faster.cache_info().misses
    answers = {products_are_faster((1, 2, 5, 8), torch.float32) for _ in range(3)}
    assert len(answers) == 1
    assert products_are_faster.cache_info().misses == before + 1


def test_the_fastest_encoder_is_saved_as_any_other(faster, tmp_path):
    encoder = load_encoder("vit-mini", device="cpu", dtype="fastest")
    assert encoder.model.config._attn_implementation == PLAIN
    assert load_encoder("vit-mini", device="cpu").model.config._attn_implementation == "sdpa"
    encoder.save_pretrained(tmp_path / "saved")
    assert PLAIN not in "".join(path.read_text() for path in (tmp_path / "saved").glob("*.json"))
    assert load_encoder(str(tmp_path / "saved"), device="cpu").model.config._attn_implementation == "sdpa"
